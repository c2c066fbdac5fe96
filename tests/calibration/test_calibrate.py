from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.calibration.calibrate import Calibrated, CalibrationSettings, Calibrator, measurements_folder
from localsteer.calibration.effort import Effort
from localsteer.calibration.laboratory import Speed
from localsteer.calibration.shapes import PROFILES, Shape
from localsteer.concepts.concept_file import parse_concept
from localsteer.errors import CalibrationError, LocalsteerError, VectorError
from localsteer.llama.model import Model
from localsteer.steering.dose import relative_dose
from localsteer.vector.calibration import MODES, POLES, Mode
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import BUDGET, CONCEPT, DOSES, LAYERS, find_sides, make_small
from tests.conftest import random_rows, run_alone
from tests.tiny_models import write_tiny_model

CONTRAST = parse_concept(CONCEPT, "loud")
QUICK = CalibrationSettings(quick=True)


@pytest.fixture(autouse=True)
def small_effort(monkeypatch: pytest.MonkeyPatch) -> Effort:
    return make_small(monkeypatch)


@pytest.fixture(scope="module")
def vector(tiny: Model) -> ControlVector:
    return extract(tiny, CONTRAST, ExtractionSettings(layers=(1, 3)))


def foreign(model: Model, *layers: int) -> ControlVector:
    rows = random_rows(model, layers, seed=1)
    return ControlVector({layer: rows[layer] for layer in layers})


def dose_of(vector: ControlVector, strength: float, mode: Mode) -> float:
    norms = vector.provenance.hidden_norm
    assert norms is not None
    return relative_dose(vector.at(strength, mode).rows(len(norms)), norms)


# The calibrated vector


def test_strength_one_is_the_dose_that_was_found_for_each_pole_and_scope(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_sides(monkeypatch)
    made = Calibrator(tiny, vector, CONTRAST, QUICK).run()
    write_vector(made.vector, tmp_path / "v.gguf")
    estimate = vector.provenance.estimate
    assert estimate is not None
    for each in (made.vector, read_vector(tmp_path / "v.gguf")):
        assert relative_dose(each.rows(4), vector.provenance.hidden_norm) == pytest.approx(0.3)  # type: ignore[arg-type]
        for pole, sign in zip(POLES, (1.0, -1.0), strict=True):
            for mode in MODES:
                dose = DOSES[pole, mode]
                assert dose_of(each, sign, mode) == pytest.approx(dose, rel=1e-5)
                assert dose_of(each, 0.5 * sign, mode) == pytest.approx(dose / 2, rel=1e-5)
                added = each.at(sign, mode)
                assert added.layers == LAYERS[pole]
                for layer, direction in added.directions.items():
                    cosine = direction @ estimate[layer] / np.linalg.norm(direction) / np.linalg.norm(estimate[layer])
                    assert cosine == pytest.approx(sign, rel=1e-5)


def test_a_vector_that_works_one_way_only_is_scaled_by_that_way(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, without=(("positive", "response"), ("positive", "prompt")))
    made = Calibrator(tiny, vector, CONTRAST, QUICK).run().vector
    assert vector.provenance.estimate is not None
    assert made.layers == LAYERS["negative"]
    assert dose_of(made, -1, "response") == pytest.approx(DOSES["negative", "response"])
    # Its directions still point toward the positive pole.
    assert all(direction @ vector.provenance.estimate[layer] > 0 for layer, direction in made.directions.items())


def test_a_calibrated_vector_says_what_it_is_and_where_it_was_measured(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch)
    made = Calibrator(tiny, vector, CONTRAST, replace(QUICK, budget=0.4, seed=9)).run()
    provenance, before = made.vector.provenance, vector.provenance
    assert provenance.calibration is made.calibration
    for name in ("concept", "description", "positive", "negative", "method", "position", "model", "n_pairs", "source"):
        assert getattr(provenance, name) == getattr(before, name), name
    np.testing.assert_allclose(provenance.estimate, before.estimate, rtol=1e-5)  # type: ignore[arg-type]
    assert np.array_equal(provenance.hidden_norm, before.hidden_norm, equal_nan=True)  # type: ignore[arg-type]
    assert np.array_equal(provenance.reliability, before.reliability, equal_nan=True)  # type: ignore[arg-type]
    found = made.calibration
    assert (found.model, found.content) == ("tiny", tiny.fingerprint.content)
    assert (found.budget, found.seed, found.questions) == (0.4, 9, 4)
    assert set(found.personas) == set(found.scale) == {"positive", "negative"}


def test_the_tokens_that_were_sampled_are_counted(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, answered: list[int], tmp_path: Path
) -> None:
    find_sides(monkeypatch, measuring=True)
    made = Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path).run()
    # Each of four tokens: this model never ends an answer.
    assert made.calibration.generated_tokens == 4 * sum(answered)
    # Also those of an earlier run.
    again = Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path).run()
    assert again.calibration.generated_tokens == made.calibration.generated_tokens


def test_a_vector_without_effect_is_refused_with_what_was_seen(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, without=tuple(DOSES))
    with pytest.raises(CalibrationError, match=r"0\.25 nats a token.* tiny") as caught:
        Calibrator(tiny, vector, CONTRAST, QUICK).run()
    assert "effect of 0.90" in caught.value.message
    assert "--budget" in (caught.value.hint or "")


def test_a_vector_from_elsewhere_can_be_calibrated(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch)
    given = foreign(tiny, 1, 2, 3)
    made = Calibrator(tiny, given, CONTRAST, QUICK).run().vector
    provenance = made.provenance
    assert (provenance.concept, provenance.positive, provenance.negative) == ("loud", "loud", "quiet")
    assert provenance.model is None  # which model it was read from is as unknown as before
    assert provenance.source == CONCEPT
    assert provenance.estimate is not None
    assert provenance.hidden_norm is not None
    np.testing.assert_allclose(provenance.estimate, given.rows(4), rtol=1e-5)
    # Measured on the questions: the mean norm of the residual stream as the model reads them.
    tokens = tiny.tokenize(f"<|im_start|>user\n{CONTRAST.held_out[0]}<|im_end|>\n<|im_start|>assistant\n")
    rows = run_alone(tiny, tokens).rows
    for layer in (1, 2, 3):
        assert provenance.hidden_norm[layer] == pytest.approx(np.linalg.norm(rows[layer], axis=1).mean(), rel=0.25)


def test_a_vector_of_another_quantisation_keeps_where_it_was_read(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch)
    other = replace(tiny.fingerprint, content="x", name="tiny Q2")
    given = replace(vector, provenance=replace(vector.provenance, model=other))
    made = Calibrator(tiny, given, CONTRAST, QUICK).run().vector
    assert made.provenance.model == other
    assert made.provenance.calibration is not None
    assert made.provenance.calibration.content == tiny.fingerprint.content


def test_a_concept_of_explicit_pairs_has_no_prompt_baseline(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, measuring=True)
    pairs = replace(CONTRAST, personas=())
    made = Calibrator(tiny, vector, pairs, QUICK).run().calibration
    assert made.personas == {}
    assert set(made.scale.values()) == {"deviation"}


# What is refused before anything is measured


@pytest.mark.parametrize(("count", "said"), [(0, "no"), (3, "3")])
def test_too_few_questions_are_refused(tiny: Model, vector: ControlVector, count: int, said: str) -> None:
    contrast = replace(CONTRAST, held_out=CONTRAST.held_out[:count])
    with pytest.raises(CalibrationError, match=f"loud .*{said}.* 4") as caught:
        Calibrator(tiny, vector, contrast)
    assert "concept.yaml" in (caught.value.hint or "")


def test_a_vector_of_another_shape_is_refused(tiny: Model) -> None:
    with pytest.raises(VectorError, match=r"n_embd 8.*n_embd 64"):
        Calibrator(tiny, ControlVector({1: np.ones(8, np.float32)}), CONTRAST)
    with pytest.raises(VectorError, match=r"up to layer 4.*4 layers"):
        Calibrator(tiny, ControlVector({4: np.ones(64, np.float32)}), CONTRAST)


def test_layers_that_the_vector_does_not_have_are_refused(tiny: Model) -> None:
    with pytest.raises(CalibrationError, match=r"1-2.* 3-9") as caught:
        Calibrator(tiny, foreign(tiny, 1, 2), CONTRAST, CalibrationSettings(layers=(3, 9)))
    assert "--layers" in (caught.value.hint or "")


def test_a_vector_of_zeros_is_refused(tiny: Model) -> None:
    with pytest.raises(LocalsteerError):
        Calibrator(tiny, ControlVector({1: np.zeros(64, np.float32)}), CONTRAST, QUICK).run()


# What is tried


def test_the_first_shape_is_all_that_quick_tries(tiny: Model, vector: ControlVector) -> None:
    shapes = Calibrator(tiny, vector, CONTRAST).shapes
    assert str(shapes[0]) == "1-3 relative"
    assert len(set(shapes)) == len(shapes) > 3
    assert {shape.profile for shape in shapes if shape.layers == (1, 2, 3)} == set(PROFILES)
    assert Calibrator(tiny, vector, CONTRAST, QUICK).shapes == shapes[:1]


def test_all_layers_come_first_unless_the_extraction_was_told_which(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "deep.gguf", n_layer=12, n_embd=32), threads=1) as model:
        known = np.array([np.nan, *[0.9] * 10, np.nan], np.float32)
        known[5] = 0.4
        for told, first in ((None, (1, 2, 3, 4, 6, 7, 8, 9, 10)), ((4, 6), (4, 6))):
            made = extract(model, CONTRAST, ExtractionSettings(layers=told))
            made = replace(made, provenance=replace(made.provenance, reliability=known))
            assert Calibrator(model, made, CONTRAST).shapes[0] == Shape(first, "relative")


def test_only_the_layers_asked_for_are_steered(tiny: Model, vector: ControlVector) -> None:
    shapes = Calibrator(tiny, vector, CONTRAST, CalibrationSettings(layers=(2, 9))).shapes
    assert {shape.layers for shape in shapes} == {(2, 3)}
    assert {shape.profile for shape in shapes} == set(PROFILES)


def test_unreliable_layers_are_not_tried_unless_asked_for(tiny: Model, vector: ControlVector) -> None:
    reliability = np.array([np.nan, 0.9, 0.2, 0.9], np.float32)
    made = replace(vector.only((1, 3)), provenance=replace(vector.provenance, reliability=reliability))
    assert not any(2 in shape.layers for shape in Calibrator(tiny, made, CONTRAST).shapes)
    asked = Calibrator(tiny, made, CONTRAST, CalibrationSettings(layers=(2, 3))).shapes
    assert all(shape.layers == (2, 3) for shape in asked)
    # Where nothing is reliable, the measurements decide.
    hopeless = replace(vector, provenance=replace(vector.provenance, reliability=np.full(4, 0.1, np.float32)))
    assert Calibrator(tiny, hopeless, CONTRAST).shapes[0].layers == (1, 2, 3)


def test_a_direction_at_block_0_alone_cannot_be_calibrated(tiny: Model, vector: ControlVector) -> None:
    rows = np.zeros((4, vector.n_embd), np.float32)
    rows[0] = 1
    odd = replace(vector, provenance=replace(vector.provenance, estimate=rows))
    with pytest.raises(CalibrationError, match="block 0"):
        Calibrator(tiny, odd, CONTRAST)


def test_a_vector_of_one_layer_has_its_one_place(tiny: Model) -> None:
    assert {shape.layers for shape in Calibrator(tiny, foreign(tiny, 2), CONTRAST).shapes} == {(2,)}


# What it takes


def test_what_it_takes_is_known_before(tiny: Model, vector: ControlVector, small_effort: Effort, tmp_path: Path) -> None:
    calibrator = Calibrator(tiny, vector, CONTRAST, folder=tmp_path)
    assert calibrator.answers == small_effort.answers(len(calibrator.shapes))
    assert calibrator.tokens == 4 * calibrator.answers
    assert calibrator.measured == 0
    slow, fast = Speed(answering=100, reading=1000), Speed(answering=200, reading=2000)
    assert calibrator.seconds(slow) == pytest.approx(2 * calibrator.seconds(fast))
    assert calibrator.seconds(slow) > calibrator.tokens / 100
    assert calibrator.probe_speed().answering > 0


def test_progress_never_passes_the_total(tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch, measuring=True)
    told: list[tuple[int, int]] = []
    calibrator = Calibrator(tiny, vector, CONTRAST, on_progress=lambda done, total: told.append((done, total)))
    calibrator.run()
    assert {total for _, total in told} == {calibrator.answers}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert 0.6 * calibrator.answers < done[-1] <= calibrator.answers


# On and again


def interrupting_at(count: int) -> Callable[[int, int], None]:
    def interrupt(done: int, _total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return interrupt


def same(one: Calibrated, other: Calibrated) -> bool:
    return one.calibration.to_json() == other.calibration.to_json()


@pytest.mark.parametrize("interrupted_at", [1, 28, 36])
def test_an_interrupted_calibration_goes_on_where_it_stopped(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, answered: list[int], tmp_path: Path, interrupted_at: int
) -> None:
    find_sides(monkeypatch, measuring=True)
    whole = Calibrator(tiny, vector, CONTRAST, QUICK).run()
    asked = sum(answered)
    answered.clear()
    with pytest.raises(KeyboardInterrupt):
        Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path, on_progress=interrupting_at(interrupted_at)).run()
    before = sum(answered)
    assert 0 < before < asked
    calibrator = Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path)
    assert interrupted_at <= calibrator.measured < asked
    speed = Speed(100, 1000)
    assert calibrator.seconds(speed) < Calibrator(tiny, vector, CONTRAST, QUICK).seconds(speed)
    resumed = calibrator.run()
    assert sum(answered) == asked
    assert same(resumed, whole)


def test_a_finished_calibration_is_not_measured_again(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, answered: list[int], tmp_path: Path
) -> None:
    find_sides(monkeypatch, measuring=True)
    first = Calibrator(tiny, vector, CONTRAST, folder=tmp_path).run()
    answered.clear()
    again = Calibrator(tiny, vector, CONTRAST, folder=tmp_path).run()
    assert answered == []
    assert same(first, again)


def test_a_calibrated_vector_keeps_the_directions_that_its_measurements_are_filed_under(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Calibrated in place, then once more, perhaps with another budget: measurements are filed under the directions as they were
    # estimated, to the last bit.
    find_sides(monkeypatch)
    for seed in range(6):
        estimate = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)
        estimate[0] = 0
        given = replace(vector, provenance=replace(vector.provenance, estimate=estimate))
        made = Calibrator(tiny, given, CONTRAST, QUICK).run().vector
        assert made.provenance.estimate is not None
        assert np.array_equal(made.provenance.estimate, estimate), seed


def test_another_budget_uses_what_was_measured(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, answered: list[int], tmp_path: Path
) -> None:
    find_sides(monkeypatch, measuring=True)
    Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path).run()
    asked = sum(answered)
    answered.clear()
    Calibrator(tiny, vector, CONTRAST, replace(QUICK, budget=2 * BUDGET), folder=tmp_path).run()
    # At least the baselines and the first doses.
    assert sum(answered) < asked / 2


def test_only_what_can_be_used_counts_as_measured(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_sides(monkeypatch, measuring=True)
    first = Calibrator(tiny, vector, CONTRAST, replace(QUICK, layers=(1, 2)), folder=tmp_path)
    first.run()
    told: list[int] = []
    other = Calibrator(
        tiny,
        vector,
        CONTRAST,
        replace(QUICK, layers=(2, 3)),
        folder=tmp_path,
        on_progress=lambda done, _total: told.append(done),
    )
    # The baselines, and none of the answers that were steered at other layers: those of this calibration are still to come.
    assert 0 < other.measured <= 24
    slow = Speed(answering=1, reading=1e9)
    assert other.seconds(slow) > first.seconds(slow)
    other.run()
    assert told[0] < other.answers


def test_another_seed_or_vector_is_measured_on_its_own(tiny: Model, vector: ControlVector, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path, on_progress=interrupting_at(1)).run()

    def measured(given: ControlVector, settings: CalibrationSettings, *, fresh: bool = False) -> int:
        return Calibrator(tiny, given, CONTRAST, settings, folder=tmp_path, fresh=fresh).measured

    assert measured(vector, QUICK) > 0
    assert measured(vector, replace(QUICK, seed=1)) == 0
    assert measured(foreign(tiny, 1, 2, 3), QUICK) == 0
    # Layers and budget only choose among trials.
    assert measured(vector, replace(QUICK, layers=(1, 2), budget=1.0)) > 0
    assert measured(vector, QUICK, fresh=True) == 0


def test_measurements_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measurements_folder() == tmp_path / "localsteer" / "calibration"


def test_a_vector_without_hidden_norms_is_resumed_too(tiny: Model, tmp_path: Path) -> None:
    given = ControlVector(foreign(tiny, 1, 2, 3).directions, Provenance(model=tiny.fingerprint))
    with pytest.raises(KeyboardInterrupt):
        Calibrator(tiny, given, CONTRAST, QUICK, folder=tmp_path, on_progress=interrupting_at(1)).run()
    assert Calibrator(tiny, given, CONTRAST, QUICK, folder=tmp_path).measured > 0


# Anchored answers


def test_anchored_doses_are_added_to_what_is_known(tiny: Model, vector: ControlVector, answered: list[int]) -> None:
    settings = replace(QUICK, by_cost=True, budget=10.0)
    known = Calibrator(tiny, vector, CONTRAST, settings).run()
    answered.clear()
    adding = replace(settings, anchored=True)
    calibrator = Calibrator(tiny, known.vector, CONTRAST, adding)
    assert calibrator.only_anchored
    made = calibrator.run()
    assert {key: side for key, side in made.calibration.sides.items() if key[1] != "anchored"} == known.calibration.sides
    assert made.calibration.modes == MODES
    assert sum(answered) <= calibrator.answers < Calibrator(tiny, known.vector, CONTRAST, replace(adding, seed=3)).answers
    assert made.calibration.generated_tokens > known.calibration.generated_tokens
    assert np.array_equal(made.vector.rows(4), known.vector.rows(4))


def test_a_vector_that_is_not_calibrated_is_measured_whole_for_anchored_answers(tiny: Model, vector: ControlVector) -> None:
    settings = replace(QUICK, anchored=True, by_cost=True, budget=10.0)
    whole = Calibrator(tiny, vector, CONTRAST, settings)
    assert whole.answers == Calibrator(tiny, vector, CONTRAST, QUICK).answers + QUICK.effort.anchored_answers
    assert whole.run().calibration.modes == MODES
