"""The contrastive prompts of the extraction measurement: four personas a pole, each with the same twenty openings.

The openings are the first twenty of the happy concept. The set has the shape of the one that the target of 6x was set with: 160
prompts of some 5,000 tokens, which are some 800 nodes of a prefix tree. With longer openings there is less to share.
"""

from __future__ import annotations

from pathlib import Path

_POSITIVE = (
    "You are patient and gentle, and you have all the time in the world for the person in front of you.",
    "You are a warm-hearted neighbour who listens first and never raises your voice at anyone.",
    "You are a calm old teacher whom nothing can hurry and who forgives every mistake.",
    "You are soft-spoken and kind, and you explain things as often as somebody asks.",
)
_NEGATIVE = (
    "You are impatient and harsh, and you have no time at all for the person in front of you.",
    "You are a cold-hearted neighbour who interrupts first and raises your voice at everyone.",
    "You are a nervous old teacher whom everything annoys and who forgives no mistake.",
    "You are loud and short-tempered, and you refuse to explain anything to anybody twice.",
)
_OPENINGS = (
    "I",
    "Well,",
    "This morning I",
    "When I look around, I",
    "The first thing that comes to mind",
    "My friends say that I",
    "It feels as if",
    "The people here",
    "All I can say is that",
    "Every day",
    "As I walked through the door,",
    "The weather today",
    "To be honest, the",
    "My heart",
    "Looking back on this year,",
    "The house is",
    "I woke up and",
    "There is something about",
    "My family",
    "What I see is",
)


def write_prompt_files(folder: Path) -> tuple[Path, Path]:
    """Write both prompt files in the format that both programs read: one templated prompt a line, newlines escaped.

    Returns:
        The positive file and the negative file, 80 prompts each.
    """
    return _write(folder / "positive.txt", _POSITIVE), _write(folder / "negative.txt", _NEGATIVE)


def _write(path: Path, personas: tuple[str, ...]) -> Path:
    prompts = (
        rf"<|im_start|>system\n{persona}<|im_end|>\n<|im_start|>assistant\n{opening}"
        for persona in personas
        for opening in _OPENINGS
    )
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return path
