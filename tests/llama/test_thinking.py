from __future__ import annotations

import pytest

from localsteer.llama.thinking import Thinking, find_thinking

THINK = Thinking("<think>", "</think>")
HARMONY = Thinking("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>")


@pytest.mark.parametrize(
    ("thinking", "reply", "expected"),
    [
        (THINK, "<think>\nSo.\n</think>\n\nHi!", ("So.", "Hi!")),
        (THINK, "So.\n</think>\n\nHi!", ("So.", "Hi!")),
        (THINK, "<think>\nSo", ("\nSo", "")),
        (THINK, "Hi! <think> is a tag.", ("", "Hi! <think> is a tag.")),
        (THINK, "Hi!", ("", "Hi!")),
        (HARMONY, f"{HARMONY.opens}So.<|end|><|start|>assistant{HARMONY.answers}Hi!<|end|>", ("So.", "Hi!")),
        (HARMONY, f"{HARMONY.answers}Hi!", ("", "Hi!")),
        (HARMONY, f"{HARMONY.opens}So", ("So", "")),
        (HARMONY, "Hi!", ("", "Hi!")),
    ],
)
def test_a_reply_is_divided_by_its_marks(thinking: Thinking, reply: str, expected: tuple[str, str]) -> None:
    assert thinking.divided(reply) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("assistant\n<think>\n", "\n</think>\n\n"),
        ("assistant<think>", "</think>"),
        ("assistant\n", "<think>\n\n</think>\n\n"),
    ],
)
def test_reasoning_is_skipped_in_the_form_of_the_prompt(prompt: str, expected: str) -> None:
    assert THINK.skipped(prompt) == expected


def test_the_marks_of_channels_come_before_others_that_a_template_speaks_of() -> None:
    assert find_thinking("<|start|>assistant<|channel|>final ... </think>") == HARMONY
    assert find_thinking("{{ '[THINK]' }}") == Thinking("[THINK]", "[/THINK]")
    assert find_thinking("Think well.") is None
