"""A cap on steering: the arithmetic, which needs no model."""

from __future__ import annotations

import numpy as np
import pytest

from bench.capped import _Push, at_equal_kl

UP = np.array([0.0, 1.0, 0.0], np.float32)


def rows() -> np.ndarray:
    return np.array([[1, -3, 0], [1, 0, 0], [1, 1.5, 0], [1, 5, 0]], np.float32)


def test_a_token_gets_what_it_lacks_and_no_more_than_the_length() -> None:
    given = rows()
    _Push(UP, length=2.0, place=2.0, first=0).rewrite(given, None)
    np.testing.assert_array_equal(given[:, 1], [-1, 2, 2, 5])
    np.testing.assert_array_equal(given[:, [0, 2]], rows()[:, [0, 2]])


def test_without_a_place_every_token_gets_the_same() -> None:
    given = rows()
    _Push(UP, length=2.0, place=np.inf, first=0).rewrite(given, None)
    np.testing.assert_array_equal(given - rows(), np.tile(2 * UP, (4, 1)))


@pytest.mark.parametrize("kept", [None, np.array([0, 1, 2, 3])])
def test_what_comes_before_the_answer_is_left(kept: np.ndarray | None) -> None:
    given = rows()
    _Push(UP, length=2.0, place=2.0, first=1).rewrite(given, kept)
    np.testing.assert_array_equal(given[:, 1], [-3, 2, 2, 5])


def test_where_not_all_rows_are_there_their_places_in_the_batch_count() -> None:
    given = rows()[2:]
    _Push(UP, length=2.0, place=2.0, first=3).rewrite(given, np.array([2, 3]))
    np.testing.assert_array_equal(given[:, 1], [1.5, 5])


def test_both_are_compared_as_far_away_as_both_come() -> None:
    """KL as the square of the dose, ratio in proportion to it: a push that does half as much for the same KL."""
    constant = {f"{dose:g}": [dose**2, dose] for dose in (0.2, 0.5, 1.0)}
    capped = {"1": [0.04, 0.1], "4": [0.16, 0.2]}
    assert at_equal_kl({"constant": constant, "capped": capped}) == pytest.approx((0.16, 0.4, 0.2))
    further = {"1": [1.0, 0.5], "4": [4.0, 1.0]}
    assert at_equal_kl({"constant": constant, "capped": further}) == pytest.approx((1.0, 1.0, 0.5))
