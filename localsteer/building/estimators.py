"""From activations to a direction for each layer: plain functions, and how reliable their answer is.

An estimator takes the pairs' activations at all layers at once, two arrays of (n_pairs, n_layer, n_embd), and gives one
direction a layer, (n_layer, n_embd), whose length is in residual-stream units.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.vector.control_vector import Floats

Estimator = Callable[[Floats, Floats], Floats]

# The mean of 16 random splits varies by 0.01 from seed to seed on 80 pairs of the happy concept.
_SPLITS = 16
# Halves of fewer pairs would be single pairs.
MIN_PAIRS = 4


def mean_difference(positive: Floats, negative: Floats) -> Floats:
    """Mean of the positive prompts' activations minus mean of the negative ones' (Rimsky et al. 2024, CAA).

    Args:
        positive: (n_pairs, n_layer, n_embd), residual-stream units.
        negative: the same shape.

    Returns:
        (n_layer, n_embd), residual-stream units.
    """
    difference: NDArray[np.float64] = positive.mean(axis=0, dtype=np.float64) - negative.mean(axis=0, dtype=np.float64)
    return difference.astype(np.float32)


def principal_component(positive: Floats, negative: Floats) -> Floats:
    """First principal component of the pair differences about zero (Zou et al. 2023, RepE; repeng's `pca_diff`).

    The differences are not centred: it is their common part that is wanted. The sign is that which most pairs (by their
    summed projection) agree with, and the length is that of the mean projection, so that the units are those of
    `mean_difference`.

    Args:
        positive: (n_pairs, n_layer, n_embd), residual-stream units.
        negative: the same shape.

    Returns:
        (n_layer, n_embd), residual-stream units.
    """
    differences = (positive - negative).transpose(1, 0, 2)
    _, _, components = np.linalg.svd(differences, full_matrices=False)
    first: Floats = components[:, 0, :]
    projections: Floats = np.einsum("lpe,le->l", differences, first) / np.float32(differences.shape[1])
    return first * projections[:, None]


ESTIMATORS: dict[str, Estimator] = {"mean": mean_difference, "pca": principal_component}


def estimator(method: str | Estimator) -> tuple[str, Estimator]:
    """The name and the function of a method that is given by either: a function goes by its own name.

    Raises:
        LocalsteerError: there is none of that name.
    """
    if not isinstance(method, str):
        return getattr(method, "__name__", type(method).__name__), method
    if method not in ESTIMATORS:
        raise LocalsteerError(f'There is no method "{method}".', hint=f"Choose from {', '.join(ESTIMATORS)}.")
    return method, ESTIMATORS[method]


def reliability(estimate: Estimator, positive: Floats, negative: Floats, *, seed: int = 0) -> Floats:
    """Split-half reliability: how well two directions from disjoint halves of the pairs agree.

    A mean difference far below the noise floor of quantised inference (2 % of the hidden norm) carries no signal. At the
    lowest blocks of the demo model the happy - sad difference is 0.1 % of the norm, and that shows here.

    Args:
        estimate: the estimator in question.
        positive: (n_pairs, n_layer, n_embd), residual-stream units.
        negative: the same shape.
        seed: of the random halves.

    Returns:
        (n_layer,) mean cosine over 16 random splits, -1 to 1; NaN where there are fewer than 4 pairs.
    """
    n_pairs, n_layer, _ = positive.shape
    if n_pairs < MIN_PAIRS:
        return np.full(n_layer, np.nan, np.float32)
    generator = np.random.default_rng(seed)
    cosines = np.zeros(n_layer)
    for _ in range(_SPLITS):
        order = generator.permutation(n_pairs)
        one, other = (estimate(positive[half], negative[half]) for half in (order[: n_pairs // 2], order[n_pairs // 2 :]))
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines += np.einsum("le,le->l", one, other) / np.maximum(norms, np.finfo(np.float32).tiny)
    return (cosines / _SPLITS).astype(np.float32)
