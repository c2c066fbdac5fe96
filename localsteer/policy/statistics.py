"""How well scores tell positive texts from negative ones, with intervals that also hold where nothing went wrong.

A bootstrap of a sample without a mistake finds no mistake, and an interval of no width. So rates have Wilson's interval, and the
AUROC has one of the same kind (method 5 of R. G. Newcombe, Statistics in Medicine 25, 559-573, 2006): the values that the sample
would not be surprising under.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localsteer.vector.calibration import Interval
from localsteer.vector.probe import Metrics

_Z = 1.959964  # 95 %, two-sided


def measure(scores: ArrayLike, positive: ArrayLike, threshold: float) -> Metrics:
    """What a threshold does to scores.

    Args:
        scores: (n,) of the texts.
        positive: (n,) whether each is positive.
        threshold: scores from here on are called positive.
    """
    score = np.asarray(scores, np.float64)
    truth = np.asarray(positive, bool)
    called = score >= threshold
    hits, false = int((called & truth).sum()), int((called & ~truth).sum())
    missed, quiet = int((~called & truth).sum()), int((~called & ~truth).sum())
    # F1 is 2J / (1 + J) of J = hits / (hits + false + missed), a proportion like the others.
    overlap = wilson(hits, hits + false + missed)
    return Metrics(
        hits,
        false,
        quiet,
        missed,
        auroc_interval(auroc(score, truth), int(truth.sum()), int((~truth).sum())),
        wilson(hits, hits + false),
        wilson(hits, hits + missed),
        Interval(*(2 * j / (1 + j) for j in (overlap.mean, overlap.low, overlap.high))),
        wilson(false, false + quiet),
    )


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The share of pairs of a positive and a negative score with the positive one higher; ties count half. NaN without pairs."""
    negatives = np.sort(scores[~positive])
    positives = scores[positive]
    if not len(negatives) or not len(positives):
        return math.nan
    below = np.searchsorted(negatives, positives, "left")
    up_to = np.searchsorted(negatives, positives, "right")
    return float((below + up_to).mean() / 2 / len(negatives))


def auroc_interval(area: float, positives: int, negatives: int) -> Interval:
    """The areas under which a sample of this size and area would lie within 1.96 standard deviations."""
    if math.isnan(area):
        return Interval(area, area, area)
    more = (positives + negatives) / 2 - 1

    def deviation(truth: float) -> float:
        variance = truth * (1 - truth) * (1 + more * (1 - truth) / (2 - truth) + more * truth / (1 + truth))
        return _Z * math.sqrt(variance / (positives * negatives))

    low = _edge(lambda truth: area - truth <= deviation(truth), inside=area, outside=0.0)
    high = _edge(lambda truth: truth - area <= deviation(truth), inside=area, outside=1.0)
    return Interval(area, low, high)


def _edge(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last place inside on the way to another place, by bisection."""
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside


def wilson(count: int, of: int) -> Interval:
    """Wilson's score interval of a proportion; NaN of nothing."""
    if of == 0:
        return Interval(math.nan, math.nan, math.nan)
    share = count / of
    shrink = 1 + _Z**2 / of
    middle = (share + _Z**2 / (2 * of)) / shrink
    half = _Z / shrink * math.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))
