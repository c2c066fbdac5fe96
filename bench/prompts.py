"""The contrastive prompts of the extraction measurement: four personas a pole, each with the same twenty openings.

Shaped like any contrastive set (long shared beginnings, short ends), which is what a prefix tree profits from.
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
    "Well, about that broken kettle",
    "The bus is late again, and",
    "When the guests arrive tonight",
    "In my garden this spring",
    "You asked me how to",
    "The first thing to know",
    "My sister called and said",
    "Let me look at your homework",
    "That question about the moon",
    "On the way to the market",
    "If the printer stops working",
    "People here usually think that",
    "The soup needs a little",
    "I have read your letter",
    "Before we begin the lesson",
    "It has rained all week",
    "Your new bicycle is",
    "The meeting yesterday went",
    "As for the old piano",
    "Tomorrow morning we could",
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
