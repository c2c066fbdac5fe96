"""Curves through noisy measurements, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.vector.calibration import Interval

Values = NDArray[np.float64]

RESAMPLES = 1000

# Coherence cost rises faster than the dose, effect slower: on the demo model the best of these are 1.5 to 3 and 0.5 to 1. Fewer
# than two free numbers a curve are all that some tens of noisy answers carry.
COST_EXPONENTS = (1.0, 1.5, 2.0, 3.0)
EFFECT_EXPONENTS = (0.5, 0.75, 1.0)
# The unsteered model has its say in an anchored answer at any dose: from 1 to 2.2 times the dose of others the effect rises by
# less than a tenth, or falls, for 12 of the 30 sides that are shipped (vectors/README.md, at its end).
ANCHORED_EFFECT_EXPONENTS = (0.0, 0.25, *EFFECT_EXPONENTS)


@dataclass(frozen=True, eq=False)
class PowerLaws:
    """y = scale * dose ** exponent, for each of some resamplings of the same data.

    Attributes:
        scale: (n_resamples,) at least 0.
        exponent: (n_resamples,).
    """

    scale: Values
    exponent: Values

    def at(self, dose: float | Values) -> Values:
        """(n_resamples,) the values at a dose of 0 or more, or at one for each."""
        return np.asarray(self.scale * dose**self.exponent)

    def inverse(self, value: float) -> Values:
        """(n_resamples,) the doses with this value; infinite where the curve never rises."""
        with np.errstate(divide="ignore"):
            return np.asarray((value / self.scale) ** (1 / self.exponent))


def fit_power_laws(doses: Values, values: Values, exponents: Sequence[float], weights: Values | None = None) -> PowerLaws:
    """Least squares through the origin, the best of the given exponents.

    Args:
        doses: (n,) positive.
        values: (n,) NaN where not measured.
        exponents: those to try.
        weights: (n_resamples, n) how often each value counts; None for once, in one fit.
    """
    known = np.isfinite(values)
    doses, values = doses[known], values[known]
    weights = np.ones((1, len(doses))) if weights is None else weights[:, known]
    tried = []
    for exponent in exponents:
        powers = doses**exponent
        scale = np.maximum(0, slopes(powers, values, weights))
        # The sum of squares, but for that of the values themselves, which is the same for all exponents.
        error = scale**2 * (weights @ powers**2) - 2 * scale * (weights @ (powers * values))
        tried.append((error, scale, np.full(len(scale), exponent)))
    errors, scales, used = (np.stack(column) for column in zip(*tried, strict=True))
    best = np.argmin(errors, axis=0)[None]
    return PowerLaws(np.take_along_axis(scales, best, 0)[0], np.take_along_axis(used, best, 0)[0])


def resampled_weights(questions: NDArray[np.intp], seed: int) -> Values:
    """Bootstrap over questions: whole questions are drawn with replacement, with all their answers.

    Args:
        questions: (n,) the question of each answer.
        seed: of the draws.

    Returns:
        (1000, n) how often each answer was drawn.
    """
    distinct, of_answer = np.unique(questions, return_inverse=True)
    count = len(distinct)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn[:, of_answer].astype(np.float64)


def mean_interval(values: Values, questions: NDArray[np.intp], seed: int, *, level: float = 0.95) -> Interval:
    """The mean with its bootstrap interval over questions; answers without a value are left out."""
    return slope_interval(np.ones_like(values), values, questions, seed, level=level)


def slopes(doses: Values, values: Values, weights: Values) -> Values:
    """(n_resamples,) least-squares slopes through the origin.

    Args:
        doses: (n,) positive.
        values: (n,).
        weights: (n_resamples, n) how often each value counts.
    """
    found: Values = weights @ (doses * values) / np.maximum(weights @ doses**2, np.finfo(np.float64).tiny)
    return found


def slope_interval(doses: Values, values: Values, questions: NDArray[np.intp], seed: int, *, level: float = 0.95) -> Interval:
    """The least-squares slope through the origin with its bootstrap interval over questions.

    Strong doses tell most about whether there is a slope at all: with a few answers a dose, a mean over all of them drowns it.
    """
    known = np.isfinite(values)
    doses, values, questions = doses[known], values[known], questions[known]
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    drawn = slopes(doses, values, resampled_weights(questions, seed))
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(slopes(doses, values, np.ones((1, len(doses))))[0]), float(low), float(high))


def rising(values: Values, weights: NDArray[np.intp]) -> Values:
    """The best curve through values that never falls (isotonic regression by pooling adjacent violators)."""
    pools: list[tuple[float, int, int]] = []  # mean, weight, how many values
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-1][0] < pools[-2][0]:
            (one, n_one, count), (other, n_other, others) = pools.pop(), pools.pop()
            total = n_one + n_other
            pools.append(((one * n_one + other * n_other) / total, total, count + others))
    return np.repeat([mean for mean, _, _ in pools], [count for _, _, count in pools])
