from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.building.layers import default_layers, readable_layers, scale_to_dose
from localsteer.errors import ContrastError


def reliability(n_layer: int, value: float = 0.9, **others: float) -> NDArray[np.float32]:
    values = np.full(n_layer, value, np.float32)
    for name, other in others.items():
        values[int(name.removeprefix("layer"))] = other
    return values


@pytest.mark.parametrize(
    ("n_layer", "last"),
    [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (10, 8), (18, 16), (30, 28), (32, 30), (80, 78)],
)
def test_reading_goes_from_layer_1_to_the_last_but_one_and_covers_the_middle_half(n_layer: int, last: int) -> None:
    assert readable_layers(n_layer) == tuple(range(1, last + 1))


@pytest.mark.parametrize(
    ("n_layer", "first", "last"),
    [(2, 1, 1), (3, 1, 2), (4, 1, 3), (6, 2, 5), (18, 5, 14), (30, 8, 23), (32, 8, 24), (80, 20, 60)],
)
def test_the_middle_half_is_steered(n_layer: int, first: int, last: int) -> None:
    assert default_layers(reliability(n_layer)) == tuple(range(first, last + 1))


def test_every_default_layer_is_read() -> None:
    for n_layer in range(2, 130):
        assert set(default_layers(reliability(n_layer))) <= set(readable_layers(n_layer)) <= set(range(1, n_layer))


def test_unreliable_layers_are_left_out() -> None:
    values = reliability(12, layer4=0.49, layer5=0.5, layer6=-1)
    assert default_layers(values) == (3, 5, 7, 8, 9)


def test_reliable_layers_outside_the_middle_do_not_count() -> None:
    with pytest.raises(ContrastError):
        default_layers(reliability(12, 0.1, layer1=0.99, layer11=0.99))


def test_a_reliability_that_nobody_could_measure_is_no_objection() -> None:
    assert default_layers(reliability(8, float("nan"))) == (2, 3, 4, 5, 6)
    assert default_layers(reliability(8, float("nan"), layer3=0.1)) == (2, 4, 5, 6)


def test_no_reliable_layer_is_an_error_with_the_best_cosine() -> None:
    with pytest.raises(ContrastError, match=r"0\.43 .*layers 2-6") as caught:
        default_layers(reliability(8, 0.1, layer4=0.43, layer0=0.9, layer7=float("nan")))
    assert "personas" in (caught.value.hint or "")


def test_the_dose_is_shared_equally_in_units_of_each_layers_norm() -> None:
    random = np.random.default_rng(0)
    direction = random.standard_normal((6, 16)).astype(np.float32) * np.array([[1], [5], [0.01], [3], [7], [2]], np.float32)
    hidden_norm = np.array([np.nan, 2, 30, 400, 5000, np.nan], np.float32)
    scaled = scale_to_dose(direction, hidden_norm, (1, 2, 4), 1.5)
    assert sorted(scaled) == [1, 2, 4]
    for layer, added in scaled.items():
        assert added.dtype == np.float32
        assert np.linalg.norm(added) / hidden_norm[layer] == pytest.approx(0.5, rel=1e-5)
        cosine = added @ direction[layer] / np.linalg.norm(added) / np.linalg.norm(direction[layer])
        assert cosine == pytest.approx(1, abs=1e-6)


def test_poles_that_do_not_differ_at_a_layer_are_an_error() -> None:
    direction = np.ones((4, 3), np.float32)
    direction[2] = 0
    norms = np.ones(4, np.float32)
    with pytest.raises(ContrastError, match="layer 2"):
        scale_to_dose(direction, norms, (1, 2), 1.0)
    assert sorted(scale_to_dose(direction, norms, (1, 3), 1.0)) == [1, 3]
