from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.divergence import Divergence
from bench.measure import MeasurementError
from localsteer.llama.model import Model


@pytest.fixture(scope="module")
def divergence(tiny: Model) -> Iterator[Divergence]:
    with Divergence(tiny, ("Who goes there?", "And why?", "Where to?")) as made:
        yield made


def rows(model: Model, layers: tuple[int, ...], seed: int, size: float) -> NDArray[np.float32]:
    made = np.zeros((model.n_layer, model.n_embd), np.float32)
    made[list(layers)] = np.random.default_rng(seed).normal(0, size, (len(layers), model.n_embd))
    return made


def test_what_adds_nothing_diverges_by_nothing(divergence: Divergence, tiny: Model) -> None:
    assert divergence.of(np.zeros((tiny.n_layer, tiny.n_embd), np.float32)) == pytest.approx(0, abs=1e-5)


def test_it_grows_with_the_strength(divergence: Divergence, tiny: Model) -> None:
    one = rows(tiny, (1, 2), 0, 0.1)
    found = [divergence.of(one * np.float32(strength)) for strength in (0.5, 1, 2)]
    assert 0 < found[0] < found[1] < found[2]


@pytest.mark.parametrize("size", [0.01, 3])
def test_another_vector_is_scaled_until_it_moves_the_model_as_far(divergence: Divergence, tiny: Model, size: float) -> None:
    ours, theirs = rows(tiny, (1, 2), 0, 0.2), rows(tiny, (1,), 1, size)
    found = divergence.as_far(theirs, ours)
    assert divergence.of(found) == pytest.approx(divergence.of(ours), rel=0.02)
    # Only the strength changes.
    assert np.allclose(found / np.linalg.norm(found), theirs / np.linalg.norm(theirs), atol=1e-6)


def test_what_moves_nothing_cannot_be_matched(divergence: Divergence, tiny: Model) -> None:
    with pytest.raises(MeasurementError, match="does not move"):
        divergence.as_far(np.zeros((tiny.n_layer, tiny.n_embd), np.float32), rows(tiny, (1,), 0, 0.1))
