from __future__ import annotations

import pytest

from localsteer.calibration.effort import ANCHORED, FACTORS, QUICK, THOROUGH


def test_doses_lie_around_the_one_by_teacher_forcing_and_anchored_ones_from_the_one_that_was_found() -> None:
    assert 0 < FACTORS[0] < FACTORS[1] == 1 < FACTORS[2] < 2
    assert 1 == ANCHORED[0] < ANCHORED[1] < ANCHORED[2] < 3


@pytest.mark.parametrize(
    ("personas", "anchored", "thorough", "quick"),
    [(True, False, 94, 54), (False, False, 74, 42), (True, True, 166, 84)],
)
def test_so_many_answers_are_sampled(personas: bool, anchored: bool, thorough: int, quick: int) -> None:
    assert THOROUGH.answers(personas=personas, anchored=anchored) == thorough
    assert QUICK.answers(personas=personas, anchored=anchored) == quick
