from __future__ import annotations

import numpy as np
import pytest

from localsteer.calibration.fits import (
    COST_EXPONENTS,
    EFFECT_EXPONENTS,
    PowerLaws,
    fit_power_laws,
    mean_interval,
    resampled_weights,
    rising,
    slope_interval,
)

DOSES = np.array([0.1, 0.2, 0.2, 0.4, 0.7])


# Power laws


@pytest.mark.parametrize("exponents", [COST_EXPONENTS, EFFECT_EXPONENTS])
def test_a_curve_without_noise_is_found_exactly(exponents: tuple[float, ...]) -> None:
    for exponent in exponents:
        law = fit_power_laws(DOSES, 3 * DOSES**exponent, exponents)
        assert law.exponent.tolist() == [exponent]
        assert law.scale[0] == pytest.approx(3)


@pytest.mark.filterwarnings("error")
def test_answers_without_a_value_are_left_out() -> None:
    doses = np.array([0.1, 0.3, *DOSES])
    law = fit_power_laws(doses, np.array([np.nan, np.nan, *(2 * DOSES**1.5)]), COST_EXPONENTS)
    assert (law.scale[0], law.exponent[0]) == (pytest.approx(2), 1.5)


def test_a_cost_rises_no_slower_than_the_dose_and_an_effect_no_faster() -> None:
    squared = 3 * DOSES**2
    assert fit_power_laws(DOSES, squared, COST_EXPONENTS).exponent[0] == 2
    assert fit_power_laws(DOSES, squared, EFFECT_EXPONENTS).exponent[0] == 1
    rooted = 3 * DOSES**0.4
    assert fit_power_laws(DOSES, rooted, COST_EXPONENTS).exponent[0] == 1
    assert fit_power_laws(DOSES, rooted, EFFECT_EXPONENTS).exponent[0] == 0.5


def test_the_fit_is_the_best_of_all_scales_and_exponents() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        values = 2 * DOSES**1.7 + 0.2 * random.standard_normal(len(DOSES))
        law = fit_power_laws(DOSES, values, COST_EXPONENTS)
        error = np.sum((values - law.at(DOSES)) ** 2)
        for exponent in COST_EXPONENTS:
            for scale in np.linspace(0, 6, 121):
                assert error <= np.sum((values - scale * DOSES**exponent) ** 2) + 1e-9


@pytest.mark.parametrize("values", [-DOSES, np.zeros(5)])
@pytest.mark.filterwarnings("error")
def test_a_curve_that_does_not_rise_has_no_dose_for_a_value(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    law = fit_power_laws(DOSES, values, COST_EXPONENTS)
    assert law.at(0.5)[0] == 0
    assert law.inverse(0.25)[0] == np.inf


def test_the_dose_for_a_value_has_that_value() -> None:
    laws = PowerLaws(np.array([1.0, 6.0, 0.3]), np.array([1.0, 2.0, 3.0]))
    doses = laws.inverse(0.25)
    np.testing.assert_allclose(laws.at(doses), 0.25)
    np.testing.assert_allclose(laws.at(0.5), [0.5, 1.5, 0.0375])
    assert laws.at(0.0).tolist() == [0, 0, 0]


def test_a_weight_counts_an_answer_that_often() -> None:
    random = np.random.default_rng(1)
    values = 2 * DOSES**1.5 + 0.3 * random.standard_normal(5)
    weights = np.array([[1, 2, 0, 3, 1], [1, 1, 1, 1, 1], [0, 0, 2, 0, 1]], np.float64)
    together = fit_power_laws(DOSES, values, COST_EXPONENTS, weights)
    for row, counts in enumerate(weights.astype(int)):
        alone = fit_power_laws(np.repeat(DOSES, counts), np.repeat(values, counts), COST_EXPONENTS)
        assert together.scale[row] == pytest.approx(alone.scale[0])
        assert together.exponent[row] == alone.exponent[0]


# How sure


QUESTIONS = np.array([0, 0, 3, 3, 3, 5, 8, 8], np.intp)


def test_a_question_is_drawn_with_all_its_answers() -> None:
    weights = resampled_weights(QUESTIONS, seed=0)
    assert len(weights) >= 200
    assert weights.shape[1] == len(QUESTIONS)
    for question in set(QUESTIONS.tolist()):
        drawn = weights[:, question == QUESTIONS]
        assert (drawn == drawn[:, :1]).all()
    # As many questions as there are, each as likely as any other.
    of_question = weights[:, [0, 2, 5, 6]]
    assert (of_question.sum(axis=1) == 4).all()
    np.testing.assert_allclose(of_question.mean(axis=0), 1, atol=0.2)


def test_the_same_seed_draws_the_same() -> None:
    assert np.array_equal(resampled_weights(QUESTIONS, seed=4), resampled_weights(QUESTIONS, seed=4))
    assert not np.array_equal(resampled_weights(QUESTIONS, seed=4), resampled_weights(QUESTIONS, seed=5))


def test_the_mean_lies_in_its_interval() -> None:
    values = np.random.default_rng(0).standard_normal(8)
    found = mean_interval(values, QUESTIONS, seed=0)
    assert found.mean == pytest.approx(values.mean())
    assert found.low < found.mean < found.high


def test_equal_values_leave_no_doubt() -> None:
    found = mean_interval(np.full(8, 0.5), QUESTIONS, seed=0)
    assert (found.low, found.mean, found.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.filterwarnings("error")
def test_empty_answers_do_not_count_into_a_mean() -> None:
    values = np.random.default_rng(0).standard_normal(8)
    gappy = np.array([*values, np.nan, np.nan])
    assert mean_interval(gappy, np.array([*QUESTIONS, 0, 99], np.intp), 0) == mean_interval(values, QUESTIONS, 0)
    found = mean_interval(np.full(8, np.nan), QUESTIONS, 0)
    assert np.isnan([found.mean, found.low, found.high]).all()


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    # 20 questions with 2 answers each, which agree more than answers to different questions do. Percentile bootstraps of 20
    # fall somewhat short of 95 %; had the answers been drawn one by one it would be 80 %.
    random = np.random.default_rng(0)
    questions = np.repeat(np.arange(20), 2)
    hits = 0
    for seed in range(200):
        values = random.standard_normal(20)[questions] + 0.3 * random.standard_normal(40)
        found = mean_interval(values, questions, seed)
        hits += found.low <= 0 <= found.high
    assert hits >= 0.89 * 200


def test_the_slope_of_a_line_without_noise_leaves_no_doubt() -> None:
    doses = np.linspace(0.1, 0.8, 8)
    found = slope_interval(doses, 3 * doses, QUESTIONS, seed=0)
    assert (found.low, found.mean, found.high) == pytest.approx((3, 3, 3))


@pytest.mark.filterwarnings("error")
def test_empty_answers_do_not_count_into_a_slope() -> None:
    doses, values = np.linspace(0.1, 0.8, 8), np.random.default_rng(0).standard_normal(8)
    questions = np.array([*QUESTIONS, 0, 99], np.intp)
    gappy = slope_interval(np.array([*doses, 0.5, 0.5]), np.array([*values, np.nan, np.nan]), questions, 0)
    assert gappy == slope_interval(doses, values, QUESTIONS, 0)
    found = slope_interval(doses, np.full(8, np.nan), QUESTIONS, 0)
    assert np.isnan([found.mean, found.low, found.high]).all()


def test_a_slope_is_seen_more_often_than_a_mean_and_nothing_no_more_often() -> None:
    # A quick calibration: two or four answers at each of eight doses. Of 400 with an effect of half a deviation at 0.4 the slope
    # is beyond doubt for 150 and the mean for 131; without any, for 3 and 5 (2 were expected).
    doses = np.repeat([0.1, 0.2, 0.4, 0.15, 0.22, 0.3, 0.4, 0.5], [2, 2, 2, 4, 4, 4, 4, 4])
    questions = np.concatenate([np.arange(6), np.arange(20)])
    random = np.random.default_rng(0)
    seen = {effect: np.zeros(2) for effect in (0.0, 1.25)}
    for seed in range(400):
        noise = random.standard_normal(26)
        for effect, counts in seen.items():
            values = effect * doses + noise
            counts += (
                slope_interval(doses, values, questions, seed, level=0.99).low > 0,
                mean_interval(values, questions, seed, level=0.99).low > 0,
            )
    assert seen[1.25][0] > seen[1.25][1]
    assert seen[0.0][0] <= 8


# Curves that only rise


@pytest.mark.parametrize(
    ("values", "weights", "curve"),
    [
        ((1.0, 2.0, 3.0), (1, 1, 1), (1.0, 2.0, 3.0)),
        ((3.0, 1.0), (1, 1), (2.0, 2.0)),
        ((3.0, 1.0), (1, 3), (1.5, 1.5)),
        ((1.0, 3.0, 2.0, 4.0), (1, 1, 1, 1), (1.0, 2.5, 2.5, 4.0)),
        ((4.0, 3.0, 2.0), (1, 1, 1), (3.0, 3.0, 3.0)),
        ((2.0, 2.0, 1.0), (1, 1, 2), (1.5, 1.5, 1.5)),
        ((5.0,), (7,), (5.0,)),
        ((), (), ()),
    ],
)
def test_what_falls_is_levelled_by_its_weight(
    values: tuple[float, ...], weights: tuple[int, ...], curve: tuple[float, ...]
) -> None:
    assert rising(np.array(values), np.array(weights, np.intp)).tolist() == pytest.approx(list(curve))


def test_no_other_curve_that_only_rises_is_nearer() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        values, weights = random.standard_normal(6), random.integers(1, 5, 6).astype(np.intp)
        found = rising(values, weights)
        assert (np.diff(found) >= 0).all()
        assert weights @ found == pytest.approx(weights @ values)
        error = weights @ (values - found) ** 2
        for _ in range(200):
            other = np.sort(found + random.normal(scale=random.choice([0.01, 0.3]), size=6))
            assert weights @ (values - other) ** 2 >= error - 1e-9
