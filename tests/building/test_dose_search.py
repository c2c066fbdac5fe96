from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from localsteer.building.dose_search import LADDER, DoseSearch

TOLERANCE = 0.15


def searched(curve: Callable[[float], float], tolerance: float = TOLERANCE) -> DoseSearch:
    search = DoseSearch(tolerance, list(LADDER))
    while search.next:
        search.add([curve(dose) for dose in search.next])
    return search


@pytest.mark.parametrize("dose", [0.1, 0.23, 0.31, 0.67, 1.1])
def test_where_the_persona_changes_little_the_dose_is_where_its_words_have_lost_the_tolerance(dose: float) -> None:
    found = searched(lambda at: -TOLERANCE * (at / dose) ** 2)
    assert found.dose == pytest.approx(dose, rel=0.03)
    assert len(found.tried) <= len(LADDER) + 3


@pytest.mark.parametrize("best", [0.08, 0.25, 0.6, 0.9])
def test_where_it_changes_what_is_said_the_dose_is_past_the_best_one_by_the_tolerance(best: float) -> None:
    found = searched(lambda at: 1.0 - ((at - best) / best) ** 2)
    assert found.dose == pytest.approx(best * (1 + np.sqrt(TOLERANCE)), rel=0.2)


def test_a_strong_dose_is_looked_for_as_far_as_the_words_hold_and_no_further() -> None:
    assert searched(lambda at: -TOLERANCE * (at / 3.3) ** 2).dose == pytest.approx(3.3, rel=0.05)
    assert searched(lambda _: 0.0).dose == 4.0


def test_a_text_that_is_no_text_any_more_is_past_the_dose() -> None:
    assert 0.2 <= searched(lambda at: -0.02 if at < 0.3 else float("nan")).dose < 0.3


def test_two_doses_beside_each_other_tell_no_slope() -> None:
    """Plain talk against a pirate on Qwen2.5-Coder 1.5B: the third dose was measured beside the second, as inexactly."""
    search = DoseSearch(TOLERANCE, list(LADDER))
    search.add([-0.0574, -0.1453, -0.4331])
    assert search.next == [pytest.approx(0.5175, rel=0.02)]
    search.add([-0.1453])
    assert search.dose == pytest.approx(0.53, rel=0.05)
