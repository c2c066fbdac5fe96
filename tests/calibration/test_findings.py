from __future__ import annotations

import numpy as np
import pytest

from localsteer.calibration.findings import Sample
from localsteer.calibration.fits import Values

DOSES = np.repeat([0.1, 0.2, 0.4], 4)
ZERO = np.zeros(12)


def sample(*, refused: Values = ZERO, relevance: Values = ZERO, costs: Values = ZERO) -> Sample:
    """Four answers at each of three doses."""
    return Sample(DOSES, np.arange(12, dtype=np.intp), ZERO, costs, costs, costs, relevance, ZERO, ZERO, refused, ZERO)


def of_doses(*values: float) -> Values:
    """A value for all answers at each dose."""
    return np.repeat(values, 4)


@pytest.mark.parametrize(
    ("values", "limit", "dose"),
    [
        ((0.0, 0.0, 1.0), 0.5, 0.3),  # half-way between two doses
        ((0.0, 0.0, 1.0), 0.25, 0.25),
        ((0.0, 0.5, 1.0), 0.5, 0.2),
        ((1.0, 1.0, 1.0), 0.5, 0.05),  # between no steering and the weakest dose
        ((0.0, 0.25, 0.25), 0.5, np.inf),
        ((0.0, 1.0, 0.0), 0.5, 0.2),  # by chance at one dose: over both strong ones it is a half
        ((0.75, 0.0, 0.0), 0.5, np.inf),  # the weakest dose alone says little
    ],
)
def test_a_measure_reaches_its_limit_between_the_doses(values: tuple[float, ...], limit: float, dose: float) -> None:
    assert sample(refused=of_doses(*values)).reaches("refused", limit, before=0.0) == pytest.approx(dose)


def test_a_measure_may_get_worse_by_falling() -> None:
    found = sample(relevance=of_doses(1.0, 0.8, 0.4))
    assert found.reaches("relevance", 0.6, before=1.0, falls=True) == pytest.approx(0.3)
    assert found.reaches("relevance", 0.3, before=1.0, falls=True) == np.inf


def test_an_unsteered_share_that_is_worse_than_that_at_the_weakest_dose_says_nothing_of_steering() -> None:
    assert sample(refused=of_doses(0.2, 0.2, 0.6)).reaches("refused", 0.4, before=0.35) == pytest.approx(0.3)


@pytest.mark.filterwarnings("error")
def test_answers_without_a_value_do_not_count() -> None:
    relevance = of_doses(1.0, 0.8, 0.4)
    relevance[[0, 5, 9]] = np.nan
    assert sample(relevance=relevance).reaches("relevance", 0.6, before=1.0, falls=True) == pytest.approx(0.3)
    relevance[8:] = np.nan  # all of the strongest dose
    assert sample(relevance=relevance).reaches("relevance", 0.9, before=1.0, falls=True) == pytest.approx(0.15)
    assert sample(relevance=np.full(12, np.nan)).reaches("relevance", 0.9, before=1.0, falls=True) == np.inf


def test_a_curve_has_a_point_for_each_dose() -> None:
    costs = of_doses(0.1, 0.2, 0.3)
    costs[0] = np.nan
    curve = sample(costs=costs, refused=np.array([0, 1] * 6, np.float64)).curve(seed=0)
    assert [point.dose for point in curve] == [0.1, 0.2, 0.4]
    assert [point.answers for point in curve] == [4, 4, 4]
    assert [point.cost.mean for point in curve] == pytest.approx([0.1, 0.2, 0.3])
    assert [point.refused for point in curve] == [0.5, 0.5, 0.5]
    assert curve[0].plain == pytest.approx(0.1)


def test_a_part_of_the_answers() -> None:
    whole = sample(costs=of_doses(0.1, 0.2, 0.3))
    assert whole.at(0.2).costs.tolist() == [0.2] * 4
    assert whole.up_to(0.2).costs.tolist() == [0.1] * 4 + [0.2] * 4
    assert not len(whole.up_to(0.05).doses)
