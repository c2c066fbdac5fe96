from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from localsteer.policy.statistics import auroc, auroc_interval, measure, wilson
from localsteer.vector.calibration import Interval

ROUNDING = 1e-12
SCORES = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
LABELLED = st.lists(st.tuples(SCORES, st.booleans()), max_size=40)


def area(positive: list[float], negative: list[float]) -> float:
    return auroc(np.array([*positive, *negative], float), np.array([True] * len(positive) + [False] * len(negative), bool))


def assert_around(interval: Interval, value: float) -> None:
    assert interval.mean == value
    assert 0 <= interval.low <= value + ROUNDING
    assert value - ROUNDING <= interval.high <= 1
    assert interval.high - interval.low > 1e-4


# AUROC


@given(LABELLED)
def test_the_auroc_is_the_share_of_pairs_in_order_and_ties_count_half(labelled: list[tuple[float, bool]]) -> None:
    positive = [score for score, label in labelled if label]
    negative = [score for score, label in labelled if not label]
    assume(positive and negative)
    pairs = [(one > other) + (one == other) / 2 for one in positive for other in negative]
    found = auroc(np.array([score for score, _ in labelled]), np.array([label for _, label in labelled]))
    assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_the_auroc_of_known_scores() -> None:
    assert area([2, 3], [0, 1]) == 1.0
    assert area([0, 1], [2, 3]) == 0.0
    assert area([1, 1], [1, 1, 1]) == 0.5
    assert area([0, 2], [1]) == 0.5
    assert area([1, 2, 3], [0, 2]) == pytest.approx(4.5 / 6)
    assert area([math.inf], [-math.inf]) == 1.0


def test_the_auroc_is_the_same_however_scores_are_stretched() -> None:
    random = np.random.default_rng(0)
    positive, negative = random.standard_normal(30) + 1, random.standard_normal(50)
    expected = area(positive.tolist(), negative.tolist())
    assert 0.6 < expected < 0.95
    assert area(np.exp(positive).tolist(), np.exp(negative).tolist()) == expected
    assert area((-negative).tolist(), (-positive).tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("scores", [([], []), ([1.0], []), ([], [1.0])])
def test_without_pairs_there_is_no_auroc(scores: tuple[list[float], list[float]]) -> None:
    assert math.isnan(area(*scores))


# Intervals


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        # Wilson's interval as published: Newcombe, Statistics in Medicine 17, 857-872 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 40, 0.0, 0.0876),
        (40, 40, 0.9124, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_a_rates_interval_is_wilsons(count: int, of: int, low: float, high: float) -> None:
    found = wilson(count, of)
    assert found.mean == count / of
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 5000), st.data())
def test_a_rates_interval_is_around_it_and_never_empty(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    assert_around(wilson(count, of), count / of)


def test_more_texts_give_a_narrower_interval() -> None:
    widths = [found.high - found.low for found in (wilson(n // 10, n) for n in (10, 40, 160, 640))]
    assert widths == sorted(widths, reverse=True)
    areas = [found.high - found.low for found in (auroc_interval(0.9, n, n) for n in (10, 40, 160, 640))]
    assert areas == sorted(areas, reverse=True)


@given(st.floats(0, 1), st.integers(1, 500), st.integers(1, 500))
def test_an_auroc_interval_is_around_it_and_never_empty(truth: float, positives: int, negatives: int) -> None:
    assert_around(auroc_interval(truth, positives, negatives), truth)


def test_a_perfect_separation_leaves_room_for_doubt() -> None:
    few, many = auroc_interval(1.0, 5, 5), auroc_interval(1.0, 40, 40)
    assert few.high == many.high == 1.0
    assert 0.4 < few.low < 0.75
    assert 0.85 < many.low < 0.97
    none = auroc_interval(0.0, 40, 40)
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - many.low, abs=1e-9)


def test_an_auroc_interval_does_not_depend_on_which_kind_is_called_positive() -> None:
    one, other = auroc_interval(0.8, 20, 60), auroc_interval(0.8, 60, 20)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    mirrored = auroc_interval(0.2, 20, 60)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((one.low, one.high))


@pytest.mark.parametrize("shift", [0.0, 1.2, 2.5])
def test_an_auroc_interval_holds_the_truth_about_as_often_as_it_says(shift: float) -> None:
    truth = 0.5 * (1 + math.erf(shift / 2))  # of two normal distributions of deviation 1
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        found = area((random.standard_normal(20) + shift).tolist(), random.standard_normal(30).tolist())
        interval = auroc_interval(found, 20, 30)
        inside += interval.low <= truth <= interval.high
    assert 0.91 < inside / 400 < 0.99


# All together


def test_texts_are_counted_by_what_they_are_and_what_they_are_called() -> None:
    scores = [0.9, 0.5, 0.4, 0.8, 0.1, 0.2, 0.3]
    labels = [True, True, True, False, False, False, False]
    found = measure(scores, labels, 0.5)
    assert (found.true_positives, found.false_positives) == (2, 1)
    assert (found.true_negatives, found.false_negatives) == (3, 1)
    assert (found.positives, found.negatives) == (3, 4)
    assert found.precision == wilson(2, 3)
    assert found.recall == wilson(2, 3)
    assert found.false_positive_rate == wilson(1, 4)
    assert found.f1.mean == pytest.approx(2 / 3)
    assert found.auroc == auroc_interval(10 / 12, 3, 4)


def test_a_score_at_the_threshold_is_called_positive() -> None:
    found = measure([0.5, 0.5], [True, False], 0.5)
    assert (found.true_positives, found.false_positives) == (1, 1)
    assert measure([0.5], [True], math.nextafter(0.5, 1)).true_positives == 0


@settings(max_examples=200)
@given(LABELLED, SCORES)
def test_every_rate_is_what_its_counts_say_and_nan_where_these_are_none(labelled: list[tuple[float, bool]], at: float) -> None:
    found = measure([score for score, _ in labelled], [label for _, label in labelled], at)
    hits, false = found.true_positives, found.false_positives
    assert hits == sum(score >= at and label for score, label in labelled)
    assert false == sum(score >= at and not label for score, label in labelled)
    assert found.positives == sum(label for _, label in labelled)
    assert found.positives + found.negatives == len(labelled)
    expected = {
        "precision": (hits, hits + false),
        "recall": (hits, found.positives),
        "f1": (2 * hits, 2 * hits + false + found.false_negatives),
        "false_positive_rate": (false, found.negatives),
        "auroc": (found.auroc.mean * found.positives * found.negatives, found.positives * found.negatives),
    }
    assert set(expected) == {"auroc", "precision", "recall", "f1", "false_positive_rate"}
    for name, (part, of) in expected.items():
        rate: Interval = getattr(found, name)
        if of == 0:
            assert all(math.isnan(value) for value in (rate.mean, rate.low, rate.high)), name
        else:
            assert rate.mean == pytest.approx(part / of), name
            assert_around(rate, rate.mean)


def test_nothing_called_positive_leaves_the_precision_undefined() -> None:
    found = measure([0.1, 0.2], [True, False], 0.5)
    assert math.isnan(found.precision.mean)
    assert (found.recall.mean, found.f1.mean, found.false_positive_rate.mean) == (0.0, 0.0, 0.0)


def test_no_mistake_on_few_texts_is_not_taken_for_certainty() -> None:
    found = measure([1, 1, 1, 0, 0, 0], [True, True, True, False, False, False], 0.5)
    for name in ("auroc", "precision", "recall", "f1"):
        rate: Interval = getattr(found, name)
        assert rate.mean == 1.0
        assert rate.low < 0.75, name
    assert found.false_positive_rate.high > 0.4


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_scores_may_be_any_sequence(kind: type) -> None:
    found = measure(kind([1.0, 0.0]), kind([1, 0]), 0.5)
    assert (found.true_positives, found.true_negatives) == (1, 1)
