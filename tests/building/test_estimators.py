from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.building.estimators import ESTIMATORS, Estimator, estimator, mean_difference, principal_component, reliability
from localsteer.errors import LocalsteerError

Floats = NDArray[np.float32]
METHODS = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())

N_PAIRS, N_LAYER, N_EMBD = 40, 3, 64


def planted(noise: float, *, seed: int = 0, signal: float = 1.0, n_pairs: int = N_PAIRS) -> tuple[Floats, Floats, Floats]:
    """Positive and negative activations that differ by a direction of another length a layer, and that direction.

    The pairs' common part is a hundred times as long, as it is in a real model.
    """
    random = np.random.default_rng(seed)
    unit = random.standard_normal((N_LAYER, N_EMBD))
    direction = signal * np.arange(1, N_LAYER + 1)[:, None] * unit / np.linalg.norm(unit, axis=1, keepdims=True)
    common = 100 * random.standard_normal((n_pairs, N_LAYER, N_EMBD)) / np.sqrt(N_EMBD)
    positive, negative = (
        common + half * direction + noise * random.standard_normal((n_pairs, N_LAYER, N_EMBD)) for half in (0.5, -0.5)
    )
    return positive.astype(np.float32), negative.astype(np.float32), direction.astype(np.float32)


def cosine(one: Floats, other: Floats) -> Floats:
    found: Floats = np.sum(one * other, axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return found


def test_mean_difference_by_hand() -> None:
    positive = np.array([[[1, 2], [0, 0]], [[3, 4], [8, 0]]], np.float32)
    negative = np.array([[[0, 0], [1, 1]], [[0, 1], [1, 2]]], np.float32)
    assert np.array_equal(mean_difference(positive, negative), [[2, 2.5], [3, -1.5]])


def test_mean_difference_of_many_large_activations_stays_exact() -> None:
    negative = np.full((3000, 1, 1), 1e5 + 0.3, np.float32)
    positive = negative + np.float32(0.0625)
    assert mean_difference(positive, negative)[0, 0] == pytest.approx(0.0625, rel=1e-6)


@METHODS
def test_a_planted_direction_is_found_with_its_sign_and_length(estimate: Estimator) -> None:
    positive, negative, direction = planted(noise=0.02)
    found = estimate(positive, negative)
    assert found.shape == (N_LAYER, N_EMBD)
    assert found.dtype == np.float32
    assert (cosine(found, direction) > 0.99).all()
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 2, 3], rel=0.02)


@METHODS
@pytest.mark.parametrize("seed", range(5))
def test_swapped_poles_turn_the_sign(estimate: Estimator, seed: int) -> None:
    positive, negative, _ = planted(noise=0.1, seed=seed)
    assert np.allclose(estimate(negative, positive), -estimate(positive, negative), rtol=1e-3, atol=1e-5)


@METHODS
def test_the_order_of_pairs_does_not_matter(estimate: Estimator) -> None:
    positive, negative, _ = planted(noise=0.1)
    order = np.random.default_rng(1).permutation(N_PAIRS)
    assert np.allclose(estimate(positive[order], negative[order]), estimate(positive, negative), rtol=1e-3, atol=1e-4)


@METHODS
def test_the_layers_do_not_mix(estimate: Estimator) -> None:
    positive, negative, _ = planted(noise=0.1)
    alone = np.concatenate([estimate(positive[:, [layer]], negative[:, [layer]]) for layer in range(N_LAYER)])
    assert np.allclose(estimate(positive, negative), alone, rtol=1e-3, atol=1e-4)


@METHODS
def test_one_pair_gives_its_difference(estimate: Estimator) -> None:
    positive, negative, _ = planted(noise=0.5, n_pairs=1)
    assert np.allclose(estimate(positive, negative), positive[0] - negative[0], rtol=1e-3, atol=1e-4)


@METHODS
def test_equal_poles_give_zero(estimate: Estimator) -> None:
    positive, _, _ = planted(noise=0.5)
    assert not estimate(positive, positive).any()


def test_pca_looks_at_differences_about_zero_not_about_their_mean() -> None:
    # The pairs agree on the first axis and vary a little, equally much to both sides, along the second.
    differences = np.array([[[1, 0.5]], [[1, -0.5]], [[1, 0.5]], [[1, -0.5]]], np.float32)
    found = principal_component(differences, np.zeros_like(differences))
    assert np.allclose(found, [[1, 0]], atol=1e-6)


def test_pca_keeps_to_the_largest_component_where_the_mean_does_not() -> None:
    # All pairs agree on the first axis; one is far off along the second, which pulls the mean by a fifth.
    differences = np.zeros((10, 1, 2), np.float32)
    differences[:, 0, 0] = 1
    differences[0, 0, 1] = 2
    zero = np.zeros_like(differences)
    by_pca, by_mean = principal_component(differences, zero)[0], mean_difference(differences, zero)[0]
    assert by_pca[0] > 0.9
    assert by_pca[1] / by_pca[0] > by_mean[1] / by_mean[0]


@pytest.mark.parametrize("name", ["mean", "pca"])
def test_estimators_have_names(name: str) -> None:
    positive, negative, direction = planted(noise=0.02)
    found, estimate = estimator(name)
    assert found == name
    assert (cosine(estimate(positive, negative), direction) > 0.99).all()


def test_a_function_goes_by_its_own_name() -> None:
    assert estimator(mean_difference) == ("mean_difference", mean_difference)
    nameless = functools.partial(mean_difference)
    assert estimator(nameless) == ("partial", nameless)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(LocalsteerError, match=r'"median".*mean, pca'):
        estimator("median")


@METHODS
def test_a_strong_signal_is_reliable(estimate: Estimator) -> None:
    positive, negative, _ = planted(noise=0.01)
    found = reliability(estimate, positive, negative)
    assert found.shape == (N_LAYER,)
    assert (found > 0.97).all()
    assert (found <= 1.0001).all()


@METHODS
def test_noise_is_not_reliable(estimate: Estimator) -> None:
    positive, negative, _ = planted(noise=1, signal=0)
    assert (np.abs(reliability(estimate, positive, negative)) < 0.3).all()


def test_reliability_is_measured_for_each_layer() -> None:
    positive, negative, _ = planted(noise=0.01)
    random = np.random.default_rng(5)
    positive[:, 1], negative[:, 1] = random.standard_normal((2, N_PAIRS, N_EMBD))
    found = reliability(mean_difference, positive, negative)
    assert found[0] > 0.9
    assert abs(found[1]) < 0.3
    assert found[2] > 0.9


def test_reliability_grows_with_the_number_of_pairs() -> None:
    few = reliability(mean_difference, *planted(noise=0.3, n_pairs=8)[:2])
    many = reliability(mean_difference, *planted(noise=0.3, n_pairs=400)[:2])
    assert (many > few + 0.05).all()


@METHODS
def test_reliability_is_the_same_every_time(estimate: Estimator) -> None:
    positive, negative, _ = planted(noise=0.3)
    np.random.seed(1)
    first = reliability(estimate, positive, negative)
    np.random.seed(2)
    assert np.array_equal(reliability(estimate, positive, negative), first)


def test_the_seed_draws_other_halves() -> None:
    positive, negative, _ = planted(noise=0.3)
    one, other = (reliability(mean_difference, positive, negative, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one, other)
    assert np.allclose(one, other, atol=0.05)


@pytest.mark.parametrize("n_pairs", [1, 2, 3])
def test_too_few_pairs_have_no_reliability(n_pairs: int) -> None:
    positive, negative, _ = planted(noise=0.01, n_pairs=n_pairs)
    found = reliability(mean_difference, positive, negative)
    assert found.shape == (N_LAYER,)
    assert np.isnan(found).all()


@pytest.mark.parametrize("n_pairs", [4, 5])
def test_four_pairs_have_a_reliability(n_pairs: int) -> None:
    positive, negative, _ = planted(noise=0.01, n_pairs=n_pairs)
    assert (reliability(mean_difference, positive, negative) > 0.9).all()


def test_halves_of_opposite_sign_are_not_reliable() -> None:
    # Two clusters of pairs that say the opposite: halves cannot agree.
    positive, negative, _ = planted(noise=0.01, signal=1)
    positive[::2], negative[::2] = negative[::2].copy(), positive[::2].copy()
    assert (reliability(mean_difference, positive, negative) < 0.2).all()


def test_equal_poles_are_not_reliable_and_do_not_divide_by_zero() -> None:
    positive, _, _ = planted(noise=1)
    with np.errstate(all="raise"):
        assert not reliability(mean_difference, positive, positive).any()
