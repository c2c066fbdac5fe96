from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.calibration.instrument import Instrument, half_of

Floats = NDArray[np.float32]

N_EMBD = 16
LAYERS = (3, 4)
QUESTIONS = list(range(20)) * 2
CONCEPT = np.zeros((len(LAYERS), N_EMBD), np.float32)
CONCEPT[0, 2], CONCEPT[1, 7] = 1, -1


def noise(scale: float = 1.0, seed: int = 0) -> Floats:
    """Of one answer to each of QUESTIONS."""
    shape = (len(QUESTIONS), len(LAYERS), N_EMBD)
    drawn: Floats = scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return drawn


def instrument(unsteered: Floats) -> Instrument:
    return Instrument.fit(LAYERS, 7 * np.stack([CONCEPT, CONCEPT]), unsteered, QUESTIONS)


def test_unsteered_answers_read_zero_with_a_spread_of_one() -> None:
    unsteered = 5 + noise(3.0)
    readings = instrument(unsteered).read(unsteered, QUESTIONS)
    for half in (0, 1):
        assert readings[half_of(QUESTIONS) == half].mean() == pytest.approx(0, abs=1e-5)
    # Of one layer; the mean of two layers whose noise is independent varies less.
    alone = Instrument.fit((3,), np.stack([CONCEPT, CONCEPT])[:, :1], unsteered[:, :1], QUESTIONS)
    readings = alone.read(unsteered[:, :1], QUESTIONS)
    for half in (0, 1):
        assert readings[half_of(QUESTIONS) == half].std() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("shift", [-2.0, 0.5, 3.0])
def test_a_reading_counts_deviations_along_the_concept(shift: float) -> None:
    unsteered = 5 + noise(3.0)
    # The spread is about 3, measured on 20 answers a half.
    readings = instrument(unsteered).read(unsteered + 3 * shift * CONCEPT, QUESTIONS)
    assert readings.mean() == pytest.approx(shift, rel=0.25)


def test_what_lies_across_the_concept_reads_nothing() -> None:
    unsteered = noise()
    across = np.zeros((len(LAYERS), N_EMBD), np.float32)
    across[:, 11] = 100
    made = instrument(unsteered)
    np.testing.assert_allclose(made.read(unsteered + across, QUESTIONS), made.read(unsteered, QUESTIONS), atol=1e-4)


def test_each_half_of_the_questions_has_its_direction() -> None:
    # Answers to even questions are read along one axis, those to odd ones along another.
    directions = np.zeros((2, len(LAYERS), N_EMBD), np.float32)
    directions[0, :, 0] = directions[1, :, 1] = 1
    made = Instrument.fit(LAYERS, directions, noise(), QUESTIONS)
    pushed = np.zeros((2, len(LAYERS), N_EMBD), np.float32)
    pushed[:, :, 1] = 100
    even, odd = made.read(pushed, [4, 7])
    assert abs(even) < 2
    assert odd > 50


@pytest.mark.parametrize("length", [1e-3, 1e3])
def test_the_length_of_a_direction_does_not_matter(length: float) -> None:
    unsteered, answers = noise(), noise(seed=1)
    made = Instrument.fit(LAYERS, np.float32(length) * np.stack([CONCEPT, CONCEPT]), unsteered, QUESTIONS)
    assert made.layers == LAYERS
    np.testing.assert_allclose(made.read(answers, QUESTIONS), instrument(unsteered).read(answers, QUESTIONS), rtol=1e-4)


@pytest.mark.filterwarnings("error")
def test_an_empty_answer_has_no_reading_and_spoils_no_other() -> None:
    unsteered = noise()
    unsteered[3] = np.nan
    readings = instrument(unsteered).read(unsteered, QUESTIONS)
    assert np.flatnonzero(np.isnan(readings)).tolist() == [3]
    assert readings[half_of(QUESTIONS) == 0].mean() == pytest.approx(0, abs=1e-5)


def test_neighbouring_questions_are_in_different_halves() -> None:
    assert half_of([0, 1, 2, 7]).tolist() == [0, 1, 0, 1]
