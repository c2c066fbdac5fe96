"""What is asked for, and what came out."""

from __future__ import annotations

import random

import pytest

from localsteer.engine.request import Answer, Timing

_TIMING = Timing(0, 0, 0.0, 0, 0.0)
_WORDS = random.Random(0)


def answer(*tokens: int) -> Answer:
    return Answer("", tokens, "length", 0, _TIMING)


def of_chance(count: int) -> list[int]:
    return [_WORDS.randrange(1000) for _ in range(count)]


@pytest.mark.parametrize("period", [1, 2, 7, 20])
def test_an_answer_that_ends_in_saying_the_same_again_loops(period: int) -> None:
    said = of_chance(40)
    assert answer(*said, *(of_chance(period) * 64)[:64]).loops
    assert not answer(*said, *of_chance(64)).loops
    # What it did before does not count.
    assert not answer(*(of_chance(period) * 64)[:64], *of_chance(64)).loops


def test_a_short_answer_does_not() -> None:
    assert not answer(*[7] * 63).loops
    assert answer(*[7] * 64).loops
    assert not answer().loops


def test_a_list_whose_lines_begin_alike_does_not() -> None:
    assert not answer(*(token for line in range(16) for token in (5, 6, *of_chance(4), 9))).loops
