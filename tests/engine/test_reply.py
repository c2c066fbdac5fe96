from __future__ import annotations

import pytest

from localsteer.engine.phases import Division
from localsteer.engine.reply import apart, parts_of
from localsteer.llama.thinking import Thinking

THINK = Division(Thinking("<think>", "</think>"), begun=True)
HARMONY = Division(Thinking("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>"))

SOLAR = Division(Thinking("<|think|>", "<|end|>", "<|content|>"))


@pytest.mark.parametrize(
    ("division", "text", "expected"),
    [
        (None, "<think>plain</think>", ("", "<think>plain</think>")),
        (THINK, "why\n</think>\n\nBecause.\n", ("why", "Because.\n")),
        (THINK, "cut off", ("cut off", "")),
        (HARMONY, "<|channel|>analysis<|message|>why<|end|>assistant<|channel|>final<|message|>Because.", ("why", "Because.")),
        (SOLAR, "<|think|>why<|end|><|begin|>assistant<|content|>Because.", ("why", "Because.")),
        (SOLAR, "<|think|>why<|end|> <|think|>not<|end|>\n<|content|>Because.", ("whynot", "Because.")),
        (SOLAR, "<|content|>Because.", ("", "Because.")),
        (HARMONY, "<|channel|>commentary to=functions.a<|message|>{}", ("", "")),
    ],
)
def test_reasoning_and_answer_are_told_apart(division: Division | None, text: str, expected: tuple[str, str]) -> None:
    assert parts_of(division, text) == expected
    told: dict[bool, list[str]] = {True: [], False: []}
    push, finish = apart(division, told[False].append, told[True].append)
    for letter in text:
        push(letter)
    finish()
    assert ("".join(told[True]), "".join(told[False])) == expected
