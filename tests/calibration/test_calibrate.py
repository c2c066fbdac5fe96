from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.calibration.calibrate import Calibrated, CalibrationSettings, Calibrator, measurements_folder
from localsteer.calibration.effort import ANCHORED, Effort
from localsteer.calibration.findings import Findings
from localsteer.calibration.interview import Speed
from localsteer.calibration.search import Search
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.descriptions import everyday_questions
from localsteer.errors import CalibrationError, LocalsteerError, VectorError
from localsteer.llama.model import Model
from localsteer.steering.dose import relative_dose
from localsteer.vector.calibration import MODES, POLES, Mode, Pole
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import BUDGET, CONCEPT, DOSES, LAYERS, find_sides, make_small
from tests.conftest import random_rows, run_alone

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
    assert made.layers == vector.layers
    assert relative_dose(made.rows(4), vector.provenance.hidden_norm) == pytest.approx(0.4)  # type: ignore[arg-type]
    assert dose_of(made, -1, "response") == pytest.approx(DOSES["negative", "response"])
    # Its directions still point toward the positive pole.
    assert all(direction @ vector.provenance.estimate[layer] > 0 for layer, direction in made.directions.items())


def test_a_calibrated_vector_says_what_it_is_and_where_it_was_measured(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch)
    made = Calibrator(tiny, vector, CONTRAST, replace(QUICK, budget=0.3, seed=9)).run()
    provenance, before = made.vector.provenance, vector.provenance
    assert provenance.calibration is made.calibration
    for name in ("concept", "description", "positive", "negative", "method", "position", "model", "n_pairs", "source"):
        assert getattr(provenance, name) == getattr(before, name), name
    np.testing.assert_allclose(provenance.estimate, before.estimate, rtol=1e-5)  # type: ignore[arg-type]
    assert np.array_equal(provenance.hidden_norm, before.hidden_norm, equal_nan=True)  # type: ignore[arg-type]
    assert np.array_equal(provenance.reliability, before.reliability, equal_nan=True)  # type: ignore[arg-type]
    found = made.calibration
    assert (found.model, found.content) == ("tiny", tiny.fingerprint.content)
    assert (found.budget, found.seed, found.questions) == (0.3, 9, 4)
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
    find_sides(monkeypatch, without=tuple(DOSES), limit="measured")
    with pytest.raises(CalibrationError, match=r"does nothing inside the budget of 0\.4 nats a token on tiny") as caught:
        Calibrator(tiny, vector, CONTRAST, QUICK).run()
    assert "effect of 0.90" in caught.value.message
    assert "--budget" in (caught.value.hint or "")
    assert "--by-cost" in (caught.value.hint or "")


def test_a_vector_that_costs_too_much_at_every_dose_is_refused_with_the_least_cost(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, without=tuple(DOSES))
    settings = replace(QUICK, budget=0.05)
    with pytest.raises(CalibrationError, match=r"within the budget of 0\.05 nats a token on tiny") as caught:
        Calibrator(tiny, vector, CONTRAST, settings).run()
    assert "toward loud, the least that any costs is 0.10 nats a token, at a relative dose of 0.150" in caught.value.message
    assert "--budget" in (caught.value.hint or "")


def test_a_vector_whose_answers_are_refused_at_any_dose_says_that_and_not_that_it_does_nothing(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, without=tuple(DOSES), limit="refusals")
    with pytest.raises(CalibrationError, match="toward loud, answers are refused at any that was tried") as caught:
        Calibrator(tiny, vector, CONTRAST, QUICK).run()
    assert "may be chance" not in str(caught.value)
    assert "--budget" not in (caught.value.hint or "")


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
    for layer in (1, 2, 3):
        one, other = provenance.estimate[layer], given.directions[layer]
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(1)
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


@pytest.mark.parametrize("contrast", [replace(CONTRAST, personas=()), None])
def test_without_personas_there_is_no_prompt_baseline(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, contrast: Contrast | None
) -> None:
    find_sides(monkeypatch, measuring=True)
    calibrator = Calibrator(tiny, vector, contrast, QUICK)
    made = calibrator.run().calibration
    assert made.personas == {}
    assert set(made.scale.values()) == {"deviation"}
    assert calibrator.answers == Calibrator(tiny, vector, CONTRAST, QUICK).answers - 2 * QUICK.effort.persona


def test_a_vector_of_which_nothing_is_known_is_measured_on_everyday_questions(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch)
    made = Calibrator(tiny, foreign(tiny, 1, 2, 3), None, QUICK).run()
    assert made.calibration.questions == len(everyday_questions())
    assert (made.vector.provenance.concept, made.vector.provenance.source) == ("", "")
    assert made.vector.provenance.dosing is not None


@pytest.mark.parametrize("count", [0, 3])
def test_a_concept_with_too_few_questions_is_measured_on_everyday_ones(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    find_sides(monkeypatch)
    few = replace(CONTRAST, held_out=CONTRAST.held_out[:count])
    assert Calibrator(tiny, vector, few, QUICK).run().calibration.questions == len(everyday_questions())


# Where the search begins


def searched(monkeypatch: pytest.MonkeyPatch) -> list[Search]:
    """The searches that are run; they find the sides of `find_sides`."""
    find_sides(monkeypatch)
    begun: list[Search] = []
    run = Search.run

    def remember(self: Search) -> Findings:
        begun.append(self)
        return run(self)

    monkeypatch.setattr(Search, "run", remember)
    return begun


def test_the_search_begins_at_the_doses_of_teacher_forcing(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = searched(monkeypatch)
    Calibrator(tiny, vector, CONTRAST, replace(QUICK, by_cost=True, budget=0.3, seed=5)).run()
    (search,) = begun
    dosing = vector.provenance.dosing
    assert dosing is not None
    for pole, side in dosing.sides.items():
        assert search.near[pole] == side.dose["response"]
        assert search.prompt_share[pole] * search.near[pole] == pytest.approx(side.dose["prompt"])
        assert search.most[pole] == np.inf  # this model does not refuse
    assert (search.budget, search.seed, search.by_cost, search.anchored) == (0.3, 5, True, False)
    # What a relative dose of 1 adds.
    hidden = vector.provenance.hidden_norm
    assert hidden is not None
    assert search.layers == (1, 2, 3)
    assert sum(norm / hidden[layer] for layer, norm in zip(search.layers, search.norms, strict=True)) == pytest.approx(1)


def test_an_effect_must_be_shown_unless_the_cost_alone_is_asked_for(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = searched(monkeypatch)
    Calibrator(tiny, vector, CONTRAST, CalibrationSettings()).run()
    assert [(one.by_cost, one.anchored, one.seed) for one in begun] == [(False, False, 0)]


def test_the_dose_at_which_refusals_begin_goes_with_the_search(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = searched(monkeypatch)
    dosing = vector.provenance.dosing
    assert dosing is not None
    sides = {**dosing.sides, "negative": replace(dosing.sides["negative"], most=0.123)}
    refusing = replace(vector, provenance=replace(vector.provenance, dosing=replace(dosing, sides=sides)))
    Calibrator(tiny, refusing, CONTRAST, QUICK).run()
    assert begun[0].most == {"positive": np.inf, "negative": 0.123}


def test_a_vector_that_was_not_dosed_here_is_dosed_first(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = searched(monkeypatch)
    told: list[str] = []

    def doses(given: ControlVector) -> None:
        Calibrator(tiny, given, CONTRAST, QUICK, on_dosing=lambda what, _done, _total: told.append(what)).run()

    doses(vector)
    assert told == []
    undosed = replace(vector, provenance=replace(vector.provenance, dosing=None))
    doses(undosed)
    assert "dosing" in told
    told.clear()
    dosing = vector.provenance.dosing
    assert dosing is not None
    elsewhere = replace(vector, provenance=replace(vector.provenance, dosing=replace(dosing, content="another file")))
    doses(elsewhere)
    assert "dosing" in told
    assert begun[0].near == begun[1].near == begun[2].near


def test_the_same_directions_are_searched_at_the_same_doses_however_long_they_were(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = searched(monkeypatch)
    undosed = replace(vector, provenance=replace(vector.provenance, dosing=None))
    for given in (vector, replace(undosed, directions=(vector * 7).directions)):
        Calibrator(tiny, given, CONTRAST, QUICK).run()
    assert begun[0].norms == pytest.approx(begun[1].norms, rel=1e-5)
    assert [begun[0].near[pole] for pole in POLES] == pytest.approx([begun[1].near[pole] for pole in POLES], rel=0.05)


def test_a_vector_that_is_calibrated_is_searched_as_before(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = searched(monkeypatch)
    once = Calibrator(tiny, vector, CONTRAST, QUICK).run().vector
    again = Calibrator(tiny, once, CONTRAST, QUICK).run().vector
    assert begun[0].layers == begun[1].layers
    assert begun[0].norms == pytest.approx(begun[1].norms, rel=1e-5)
    assert begun[0].near == begun[1].near
    np.testing.assert_allclose(again.rows(4), once.rows(4), rtol=1e-4)


def test_only_the_layers_asked_for_are_steered(tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = searched(monkeypatch)
    calibrator = Calibrator(tiny, vector, CONTRAST, replace(QUICK, layers=(2, 9)))
    assert calibrator.dosed.layers == (2, 3)
    calibrator.run()
    assert begun[0].layers == (2, 3)
    # By the same relative dose at each, dosed anew.
    hidden = vector.provenance.hidden_norm
    assert hidden is not None
    assert [norm / hidden[layer] for layer, norm in zip((2, 3), begun[0].norms, strict=True)] == pytest.approx([0.5, 0.5])
    assert calibrator.dosed.provenance.dosing is not None
    assert vector.provenance.dosing is not None
    assert calibrator.dosed.provenance.dosing.document() != vector.provenance.dosing.document()


def test_a_layer_that_was_read_can_be_asked_for_though_it_was_not_steered(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = searched(monkeypatch)
    Calibrator(tiny, vector.only((1,)), CONTRAST, replace(QUICK, layers=(2, 3))).run()
    assert begun[0].layers == (2, 3)


def test_a_vector_from_elsewhere_may_be_steered_at_some_of_its_layers(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    given = foreign(tiny, 1, 2, 3)
    dosed = Calibrator(tiny, given, CONTRAST, replace(QUICK, layers=(2, 3))).dosed
    assert dosed.layers == (2, 3)
    ratio = np.linalg.norm(dosed.directions[2]) / np.linalg.norm(dosed.directions[3])
    assert ratio == pytest.approx(np.linalg.norm(given.directions[2]) / np.linalg.norm(given.directions[3]), rel=1e-5)


# What is refused before anything is measured


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


# What it takes


def test_whether_measurements_are_kept_is_known_before(tiny: Model, vector: ControlVector, tmp_path: Path) -> None:
    # A foreign vector is dosed first.
    for given in (vector, foreign(tiny, 1, 2, 3)):
        assert Calibrator(tiny, given, CONTRAST, QUICK, folder=tmp_path).keeps
        assert not Calibrator(tiny, given, CONTRAST, QUICK).keeps


def test_what_it_takes_is_known_before(tiny: Model, vector: ControlVector, small_effort: Effort, tmp_path: Path) -> None:
    calibrator = Calibrator(tiny, vector, CONTRAST, folder=tmp_path)
    assert calibrator.answers == small_effort.answers(personas=True, anchored=False)
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
    assert calibrator.seconds(Speed(1, 1)) >= 0


# On and again


def interrupting_at(count: int) -> Callable[[int, int], None]:
    def interrupt(done: int, _total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return interrupt


def same(one: Calibrated, other: Calibrated) -> bool:
    return one.calibration.to_json() == other.calibration.to_json()


@pytest.mark.parametrize("interrupted_at", [1, 7, 11])
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


@pytest.mark.parametrize("without", [(), (("positive", "response"), ("positive", "prompt"))], ids=["both", "negative only"])
def test_a_vector_that_was_calibrated_in_place_is_not_measured_again(
    tiny: Model,
    vector: ControlVector,
    monkeypatch: pytest.MonkeyPatch,
    answered: list[int],
    tmp_path: Path,
    without: tuple[tuple[Pole, Mode], ...],
) -> None:
    # Then once more, perhaps with another budget.
    find_sides(monkeypatch, without=without, measuring=True)
    first = Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path)
    write_vector(first.run().vector, tmp_path / "loud.gguf")
    answered.clear()
    again = Calibrator(tiny, read_vector(tmp_path / "loud.gguf"), CONTRAST, QUICK, folder=tmp_path)
    assert again.measured == first.measured
    again.run()
    assert answered == []


def test_a_calibrated_vector_keeps_the_directions_as_they_were_estimated(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    # All but the answers at another dose: those of a steered prompt.
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
    # What was steered at other layers tells nothing.
    assert other.measured == 0
    slow = Speed(answering=1, reading=1e9)
    assert other.seconds(slow) > first.seconds(slow)
    other.run()
    assert 0 < told[0] < other.answers


def test_another_seed_or_vector_is_measured_on_its_own(tiny: Model, vector: ControlVector, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Calibrator(tiny, vector, CONTRAST, QUICK, folder=tmp_path, on_progress=interrupting_at(1)).run()

    def measured(given: ControlVector, settings: CalibrationSettings, *, fresh: bool = False) -> int:
        return Calibrator(tiny, given, CONTRAST, settings, folder=tmp_path, fresh=fresh).measured

    assert measured(vector, QUICK) > 0
    assert measured(vector, replace(QUICK, seed=1)) == 0
    assert measured(foreign(tiny, 1, 2, 3), QUICK) == 0
    # The budget only chooses among trials.
    assert measured(vector, replace(QUICK, budget=1.0)) > 0
    assert measured(vector, QUICK, fresh=True) == 0


def test_measurements_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measurements_folder() == tmp_path / "localsteer" / "calibration"


def test_a_vector_without_hidden_norms_is_resumed_too(tiny: Model, tmp_path: Path) -> None:
    given = ControlVector(foreign(tiny, 1, 2, 3).directions, Provenance(model=tiny.fingerprint))
    with pytest.raises(KeyboardInterrupt):
        Calibrator(tiny, given, CONTRAST, QUICK, folder=tmp_path, on_progress=interrupting_at(1)).run()
    again = Calibrator(tiny, given, CONTRAST, QUICK, folder=tmp_path)
    assert again.measured == 0  # which it is, is known when it is dosed
    assert again.dosed.provenance.dosing is not None
    assert again.measured > 0


# Anchored answers


def test_anchored_doses_are_added_to_what_is_known(tiny: Model, vector: ControlVector, answered: list[int]) -> None:
    settings = replace(QUICK, by_cost=True, budget=10.0)
    known = Calibrator(tiny, vector, CONTRAST, settings).run()
    answered.clear()
    adding = replace(settings, anchored=True)
    calibrator = Calibrator(tiny, known.vector, CONTRAST, adding)
    assert calibrator.adds
    made = calibrator.run()
    assert {key: side for key, side in made.calibration.sides.items() if key[1] != "anchored"} == known.calibration.sides
    assert made.calibration.modes == MODES
    assert sum(answered) <= calibrator.answers < Calibrator(tiny, known.vector, CONTRAST, replace(adding, seed=3)).answers
    assert made.calibration.generated_tokens > known.calibration.generated_tokens
    assert np.array_equal(made.vector.rows(4), known.vector.rows(4))


def test_a_vector_that_is_not_calibrated_is_measured_whole_for_anchored_answers(tiny: Model, vector: ControlVector) -> None:
    settings = replace(QUICK, anchored=True, by_cost=True, budget=10.0)
    whole = Calibrator(tiny, vector, CONTRAST, settings)
    assert whole.answers == Calibrator(tiny, vector, CONTRAST, QUICK).answers + 2 * len(ANCHORED) * QUICK.effort.anchored
    assert whole.run().calibration.modes == MODES


def test_where_an_effect_of_one_is_another_now_all_is_measured_anew(
    tiny: Model, vector: ControlVector, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(QUICK, by_cost=True, budget=10.0)
    known = Calibrator(tiny, vector, CONTRAST, settings).run()
    other = replace(known.calibration, scale=dict.fromkeys(POLES, "another one"))
    given = replace(known.vector, provenance=replace(known.vector.provenance, calibration=other))
    with caplog.at_level(logging.WARNING):
        made = Calibrator(tiny, given, CONTRAST, replace(settings, anchored=True)).run().calibration
    assert len([record for record in caplog.records if "measured anew" in record.message]) == 1
    whole = Calibrator(tiny, given, CONTRAST, replace(settings, anchored=True), fresh=True).run().calibration
    assert (made.scale, made.modes) == (known.calibration.scale, MODES)
    assert (made.unsteered, made.personas, made.sides) == (whole.unsteered, whole.personas, whole.sides)


@pytest.mark.parametrize("change", [{"budget": 9.0}, {"seed": 1}, {"quick": False}, {"layers": (1, 2)}, {"anchored": False}])
def test_anchored_doses_are_only_added_to_what_was_measured_alike(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    find_sides(monkeypatch, without=(("positive", "anchored"), ("negative", "anchored")), measuring=True)
    settings = replace(QUICK, budget=10.0)
    known = Calibrator(tiny, vector, CONTRAST, settings).run().vector
    adding = replace(settings, anchored=True)
    assert Calibrator(tiny, known, CONTRAST, adding).adds
    assert not Calibrator(tiny, known, CONTRAST, replace(adding, **change)).adds
    assert not Calibrator(tiny, known, CONTRAST, adding, fresh=True).adds
    assert not Calibrator(tiny, vector, CONTRAST, adding).adds
    assert not Calibrator(tiny, known, replace(CONTRAST, source="of other voices"), adding).adds


def test_by_cost_a_pole_that_was_left_without_a_dose_is_looked_at_again(
    tiny: Model, vector: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchored: tuple[tuple[Pole, Mode], ...] = (("positive", "anchored"), ("negative", "anchored"))
    find_sides(monkeypatch, without=(*anchored, ("negative", "response")), measuring=True)
    settings = replace(QUICK, budget=10.0)
    known = Calibrator(tiny, vector, CONTRAST, settings).run().vector
    adding = replace(settings, anchored=True)
    assert Calibrator(tiny, known, CONTRAST, adding).adds
    assert not Calibrator(tiny, known, CONTRAST, replace(adding, by_cost=True)).adds
