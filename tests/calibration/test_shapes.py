from __future__ import annotations

import numpy as np
import pytest

from localsteer.building.layers import middle_layers, readable_layers
from localsteer.calibration.shapes import PROFILES, Directions, Profile, Shape, ranges

HIDDEN = np.array([np.nan, 2, 4, 8, 16, np.nan], np.float32)
ESTIMATE = np.zeros((6, 3), np.float32)
ESTIMATE[1:5] = [[3, 0, 0], [0, 4, 0], [0, 0, -1], [6, 8, 0]]
DIRECTIONS = Directions.of(ESTIMATE, HIDDEN)


# How the dose is shared out


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("layers", [(1, 2, 3, 4), (2, 4), (3,)])
def test_the_layers_make_up_the_dose_together(profile: Profile, layers: tuple[int, ...]) -> None:
    for dose in (0.05, 0.3, 2.0):
        norms = DIRECTIONS.norms(Shape(layers, profile), dose)
        assert sum(norms[layer] / HIDDEN[layer] for layer in layers) == pytest.approx(dose)
        assert np.flatnonzero(norms).tolist() == list(layers)


def test_a_relative_profile_adds_the_same_share_of_each_hidden_norm() -> None:
    norms = DIRECTIONS.norms(Shape((1, 2, 3), "relative"), 0.3)
    np.testing.assert_allclose(norms[1:4] / HIDDEN[1:4], 0.1, rtol=1e-6)


def test_a_difference_profile_follows_the_lengths_as_estimated() -> None:
    norms = DIRECTIONS.norms(Shape((1, 2, 4), "difference"), 0.3)
    np.testing.assert_allclose(norms[[1, 2, 4]] / norms[1], [1, 4 / 3, 10 / 3], rtol=1e-6)


def test_an_equal_profile_adds_the_same_length_everywhere() -> None:
    norms = DIRECTIONS.norms(Shape((1, 3, 4), "equal"), 0.3)
    np.testing.assert_allclose(norms[[1, 3, 4]], norms[1], rtol=1e-6)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_added_lies_along_the_directions_and_turns_with_the_dose(profile: Profile) -> None:
    shape = Shape((1, 3), profile)
    added = DIRECTIONS.added(shape, 0.4)
    assert added.dtype == np.float32
    assert np.flatnonzero(added.any(axis=1)).tolist() == [1, 3]
    lengths = np.linalg.norm(added, axis=1)
    np.testing.assert_allclose(lengths, DIRECTIONS.norms(shape, 0.4), rtol=1e-6)
    for layer in (1, 3):
        assert added[layer] @ ESTIMATE[layer] == pytest.approx(lengths[layer] * np.linalg.norm(ESTIMATE[layer]))
    assert np.array_equal(DIRECTIONS.added(shape, -0.4), -added)


@pytest.mark.filterwarnings("error")
def test_a_layer_without_a_direction_stays_without_one() -> None:
    assert not DIRECTIONS.unit[[0, 5]].any()
    assert DIRECTIONS.difference[[0, 5]].tolist() == [0, 0]
    np.testing.assert_allclose(np.linalg.norm(DIRECTIONS.unit[1:5], axis=1), 1, rtol=1e-6)


# Which layers are tried


def test_the_ranges_of_a_model_of_32_layers() -> None:
    found = [(layers[0], layers[-1]) for layers in ranges(readable_layers(32), 32)]
    assert found == [(1, 30), (8, 24), (4, 20), (12, 20)]


@pytest.mark.parametrize("n_layer", [6, 12, 16, 18, 22, 24, 26, 28, 30, 32, 40])
def test_all_that_can_be_read_come_first_and_those_of_a_fresh_vector_next(n_layer: int) -> None:
    found = list(ranges(readable_layers(n_layer), n_layer))
    assert found[:2] == [readable_layers(n_layer), tuple(middle_layers(n_layer))]


@pytest.mark.parametrize("n_layer", [2, 3, 4, 5, 18, 30])
def test_each_range_is_another_choice_of_the_layers_there_are(n_layer: int) -> None:
    available = readable_layers(n_layer)
    found = list(ranges(available, n_layer))
    assert found
    assert len(set(found)) == len(found)
    for layers in found:
        assert layers == tuple(sorted(set(layers)))
        assert set(layers) <= set(available)
        assert layers


def test_unreliable_layers_are_left_out_of_every_range() -> None:
    available = [layer for layer in range(1, 25) if layer not in (9, 16)]
    found = list(ranges(available, 32))
    assert len(found) == 4
    assert not any({9, 16} & set(layers) for layers in found)


def test_ranges_that_coincide_are_tried_once() -> None:
    assert list(ranges([14, 15, 16], 32)) == [(14, 15, 16)]


def test_a_vector_of_late_layers_keeps_them() -> None:
    assert list(ranges([29, 30, 31], 32)) == [(29, 30, 31)]


def test_a_shape_says_what_it_is() -> None:
    assert str(Shape((8, 9, 10, 12), "relative")) == "8-10,12 relative"
