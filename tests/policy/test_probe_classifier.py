from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.errors import PolicyError
from localsteer.policy.classifier import Seen
from localsteer.policy.probe_classifier import ProbeClassifier, moving_mean
from localsteer.vector.calibration import Interval
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from localsteer.vector.probe import Metrics, Probe, Watch

N_EMBD = 12
LAYER = 3
SOME = Interval(0.9, 0.8, 1.0)


def rows_of(count: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, N_EMBD)).astype(np.float32)


POSITIVE, NEGATIVE = rows_of(2, seed=1)


def vector_of(*, watch: Watch = "prompt", threshold: float = 0.2, window: int = 4) -> ControlVector:
    """A probe that tells two points apart, as `localsteer.probe.Probe` defines it."""
    direction = POSITIVE - NEGATIVE
    bias = -float((POSITIVE + NEGATIVE) @ direction / (direction @ direction))
    probe = Probe(LAYER, bias, threshold, watch, window, (1, 1), None, Metrics(9, 1, 9, 1, SOME, SOME, SOME, SOME, SOME))
    return ControlVector({LAYER: direction}, Provenance(concept="hostile", probe=probe))


def prompt_probe() -> ProbeClassifier:
    return ProbeClassifier.of(vector_of(), name="hostile")


def output_probe(window: int = 4) -> ProbeClassifier:
    return ProbeClassifier.of(vector_of(watch="output", window=window), name="drifting")


def seen(row: NDArray[np.float32], position: int = 0) -> Seen:
    """Other layers are read as well, for other probes."""
    return Seen("", position=position, rows={LAYER: row, LAYER + 1: -row})


def means(scores: Sequence[float], window: int) -> list[float]:
    """For each token the mean of the latest scores."""
    return [float(np.mean(scores[max(0, end - window) : end])) for end in range(1, len(scores) + 1)]


# Scores


def test_the_class_means_score_plus_and_minus_one() -> None:
    probe = prompt_probe()
    points = np.stack([POSITIVE, NEGATIVE, (POSITIVE + NEGATIVE) / 2, 2 * POSITIVE - NEGATIVE])
    np.testing.assert_allclose(probe.score(points), [1, -1, 0, 3], atol=1e-5)
    assert probe.observer().observe(seen(POSITIVE)) == pytest.approx(1, abs=1e-5)
    assert probe.observer().observe(seen(NEGATIVE)) == pytest.approx(-1, abs=1e-5)


def test_only_what_lies_along_the_direction_counts() -> None:
    direction = POSITIVE - NEGATIVE
    aside = rows_of(1, seed=2)[0]
    aside -= direction * (aside @ direction) / (direction @ direction)
    np.testing.assert_allclose(prompt_probe().score(POSITIVE + 5 * aside), 1, atol=1e-5)


def test_rows_of_any_arrangement_are_scored_alike() -> None:
    rows = rows_of(6, seed=3)
    scores = [float(prompt_probe().score(row)) for row in rows]
    np.testing.assert_allclose(prompt_probe().score(rows), scores, atol=1e-6)
    np.testing.assert_allclose(prompt_probe().score(rows.reshape(2, 3, N_EMBD)), np.reshape(scores, (2, 3)), atol=1e-6)


def test_a_probe_scores_the_same_from_its_file(tmp_path: Path) -> None:
    write_vector(vector_of(watch="output", window=7), tmp_path / "probe.gguf")
    probe = ProbeClassifier.of(read_vector(tmp_path / "probe.gguf"), name="drifting")
    assert (probe.watch, probe.window, probe.layer, probe.threshold) == ("output", 7, LAYER, 0.2)
    rows = rows_of(5, seed=4)
    np.testing.assert_array_equal(probe.score(rows), output_probe(7).score(rows))


# Where it is true


def test_it_is_true_from_its_threshold_on() -> None:
    probe = prompt_probe()
    assert (probe.threshold, probe.release) == (0.2, 0.2)
    assert [probe.is_on(score, before) for score in (0.19, 0.2) for before in (False, True)] == [False, False, True, True]


def test_a_policy_may_set_other_thresholds() -> None:
    probe = ProbeClassifier.of(vector_of(), name="hostile", threshold=0.6)
    assert (probe.threshold, probe.release) == (0.6, 0.6)
    probe = ProbeClassifier.of(vector_of(), name="hostile", release=-0.1)
    assert (probe.threshold, probe.release) == (0.2, -0.1)
    assert [probe.is_on(score, True) for score in (-0.1, -0.11)] == [True, False]
    # Zero is a threshold like any other.
    assert ProbeClassifier.of(vector_of(), name="hostile", threshold=0.0, release=0.0).threshold == 0


def test_a_vector_that_is_no_probe_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"not fitted to tell texts apart.*policy fit"):
        ProbeClassifier.of(ControlVector({LAYER: POSITIVE}), name="hostile")


# Answers


@pytest.mark.parametrize("window", [1, 3, 16, 50])
def test_an_answer_scores_by_the_mean_of_its_latest_tokens(window: int) -> None:
    rows = rows_of(40, seed=5)
    probe = output_probe(window)
    expected = means(probe.score(rows).tolist(), window)
    observer = probe.observer()
    np.testing.assert_allclose([observer.observe(seen(row, place)) for place, row in enumerate(rows, 1)], expected, atol=1e-9)
    np.testing.assert_allclose(moving_mean(probe.score(rows), window), expected, atol=1e-9)


def test_a_moving_mean_of_nothing_is_nothing() -> None:
    assert moving_mean(np.empty(0), 4).shape == (0,)


@pytest.mark.parametrize("kept", [0, 1, 5, 12])
def test_tokens_that_are_taken_back_count_no_more(kept: int) -> None:
    before, after = rows_of(12, seed=6), rows_of(9, seed=7)
    probe = output_probe(window=4)
    observer = probe.observer()
    for place, row in enumerate(before, 1):
        observer.observe(seen(row, place))
    observer.rewind(kept, "")
    scores = [observer.observe(seen(row, place)) for place, row in enumerate(after, kept + 1)]
    expected = means(probe.score(np.concatenate([before[:kept], after])).tolist(), 4)[kept:]
    np.testing.assert_allclose(scores, expected, atol=1e-9)


def test_a_token_that_was_drawn_and_not_run_can_be_taken_back() -> None:
    probe = output_probe(window=4)
    observer = probe.observer()
    rows = rows_of(3, seed=8)
    for place, row in enumerate(rows[:2], 1):
        observer.observe(seen(row, place))
    # The third token was never read.
    observer.rewind(2, "")
    assert observer.observe(seen(rows[2], 3)) == pytest.approx(float(probe.score(rows).mean()))


def test_answers_do_not_share_their_means() -> None:
    probe = output_probe()
    one, other = probe.observer(), probe.observer()
    one.observe(seen(POSITIVE, 1))
    assert other.observe(seen(NEGATIVE, 1)) == pytest.approx(-1, abs=1e-5)
    assert one.observe(seen(NEGATIVE, 2)) == pytest.approx(0, abs=1e-5)


# What goes wrong


@pytest.mark.parametrize("probe", [prompt_probe(), output_probe()])
def test_without_the_layer_there_is_nothing_to_score(probe: ProbeClassifier) -> None:
    for rows in ({}, {LAYER + 1: POSITIVE}):
        with pytest.raises(PolicyError, match="no activations to read"):
            probe.observer().observe(Seen("hello", rows=rows))
