from __future__ import annotations

from dataclasses import replace

import pytest

from localsteer.vector.calibration import Interval, Mode
from tests.calibration.made import DOSES, calibrated
from tests.steering.made import MODEL, NOT_QUIET, calibrated_plan, plan, vector
from tests.vector.made_dosing import dosing
from tests.vector.test_probe import PROBE


def test_notes_are_told_once_and_in_order() -> None:
    foreign, requantised = vector(1, model=None), vector(2, model=replace(MODEL, content="x"))
    notes = plan("b + happy + a - b", a=foreign, b=requantised).notes
    assert [note.split()[0] for note in notes] == ["b", "a"]


def test_steering_by_a_policys_probe_is_noted() -> None:
    made = vector(1)
    probe = replace(made, provenance=replace(made.provenance, probe=replace(PROBE, layer=made.layers[0])))
    (told,) = plan("felt", felt=probe).notes
    assert f"felt is a policy's probe, fitted to tell texts apart at layer {made.layers[0]}" in told


# Calibrations


@pytest.mark.parametrize(("expression", "dose"), [("loud", "0.30"), ("-loud", "0.40"), ("0.99 loud", "0.30"), ("loud@1", "0.15")])
def test_nothing_is_said_within_the_calibrated_range(expression: str, dose: str) -> None:
    made = calibrated_plan(expression)
    assert made.notes == ()
    assert f"{made.relative_dose:.2f}" == dose


@pytest.mark.parametrize(
    ("expression", "mode", "note"),
    [
        # Measured: 0.25 nats at the dose, 1.00 at twice the dose, nothing above.
        ("1.4 loud", "response", "relative dose 0.42, calibrated up to 0.30. Answers at 0.42 cost 0.55 nats a token"),
        ("-1.4 loud", "response", "relative dose 0.56, calibrated up to 0.40. Answers at 0.56 cost 0.55 nats a token"),
        ("2 loud", "response", "relative dose 0.60, calibrated up to 0.30. Answers at 0.60 cost 1.00 nats a token"),
        ("5 loud", "response", "Answers already at 0.60, the strongest one measured, cost 1.00 nats a token"),
        ("1.4 loud", "prompt", "relative dose 0.17, calibrated up to 0.12. Answers at 0.17 cost 0.55 nats a token"),
    ],
)
def test_past_the_calibrated_range_the_measured_cost_is_told(expression: str, mode: Mode, note: str) -> None:
    (told,) = calibrated_plan(expression, mode).notes
    assert told.startswith(f"{expression} is past the calibrated range: ")
    assert note in told
    assert told.endswith("and 0.25 were allowed.")


def test_a_mixture_past_the_calibrated_range_was_not_measured() -> None:
    # happy alone has a dose of about 3, and nothing is known of what it costs.
    (fit, told) = calibrated_plan("loud + happy", vectors={"happy": vector(1, 2, 3, model=None)}).notes
    assert fit.startswith("happy does not say which model")
    assert told.startswith("loud + happy is past the calibrated range: ")
    assert told.endswith("calibrated up to 0.30. What the mixture costs was not measured.")


def test_a_mixture_within_the_range_of_its_strongest_part_is_not_warned_of() -> None:
    assert calibrated_plan("0.5 loud - 0.5 loud").notes == ()
    assert calibrated_plan("0.2 loud + 0.001 happy").notes == ()


def test_a_calibration_made_on_another_file_may_not_hold() -> None:
    other = replace(MODEL, name="Tiny Q2", content="x")
    notes = calibrated_plan("loud", model=other).notes
    assert len(notes) == 2
    assert "read from another file of the same model" in notes[0]
    assert notes[1] == (
        "loud was calibrated on Tiny, another file than this model (another quantisation, or tuned further): its doses may not "
        "hold here. `localsteer calibrate loud -o NEW.gguf` measures them."
    )


def test_a_pole_without_a_dose_takes_that_of_the_other_one_and_says_so() -> None:
    made = calibrated_plan("-0.5 loud", vectors={"loud": calibrated(MODEL, without=NOT_QUIET)})
    assert made.relative_dose == pytest.approx(0.5 * DOSES["positive", "response"])
    (told,) = made.notes
    assert told.startswith("-0.5 loud: ")
    assert "found no dose toward quiet (none within 0.25 nats a token does anything beyond doubt)" in told
    assert told.endswith("that of the response toward loud is used, relative dose 0.30.")


def test_a_pole_without_a_dose_that_was_dosed_before_says_that_this_is_used() -> None:
    quiet = calibrated(MODEL, without=NOT_QUIET)
    quiet = replace(quiet, provenance=replace(quiet.provenance, dosing=dosing(0.3, 0.05, content=MODEL.content)))
    made = calibrated_plan("-0.5 loud", vectors={"loud": quiet})
    assert made.relative_dose == pytest.approx(0.025)
    (told,) = made.notes
    assert told.endswith("the one it was built with is used, relative dose 0.05.")


def test_a_scope_without_a_dose_says_whose_is_used_instead() -> None:
    # Strength 1 then adds what it adds to the response, which is toward the same pole.
    made = calibrated_plan("loud", "prompt", vectors={"loud": calibrated(MODEL, without=(("positive", "prompt"),))})
    (told,) = made.notes
    assert "found no dose toward loud with the prompt steered as well" in told
    assert made.relative_dose == pytest.approx(DOSES["positive", "response"])
    assert "toward the other pole" not in told


def test_an_anchored_answer_without_a_dose_of_its_own_says_why() -> None:
    fresh = calibrated_plan("happy", "anchored")
    (told,) = fresh.notes
    assert told.startswith("happy is not calibrated")
    assert told.endswith("`localsteer calibrate happy --anchored` looks for it.")
    assert calibrated_plan("happy").notes == calibrated_plan("!happy", "anchored").notes == ()
    # Looked for, and not found: to look again would be in vain.
    made = calibrated_plan("loud", "anchored", vectors={"loud": calibrated(MODEL, without=(("positive", "anchored"),))})
    (told,) = made.notes
    assert "found no dose for anchored answers toward loud (none within 0.25 nats a token does anything beyond doubt)" in told
    assert "--anchored" not in told
    assert made.relative_dose == pytest.approx(DOSES["positive", "response"])


def test_what_a_dose_past_the_range_costs_is_what_anchored_answers_cost() -> None:
    without = calibrated(MODEL, without=(("positive", "anchored"),))
    calibration = without.provenance.calibration
    assert calibration is not None
    dear = replace(calibration.sides["positive", "response"].curve[-1], cost=Interval(7.0, 7.0, 7.0))
    response = replace(calibration.sides["positive", "response"], curve=(dear,))
    sides = {**calibration.sides, ("positive", "response"): response}
    told = replace(without, provenance=replace(without.provenance, calibration=replace(calibration, sides=sides)))
    (free,) = calibrated_plan("5 loud", vectors={"loud": told}).notes
    assert "cost 7.00 nats" in free
    past = [note for note in calibrated_plan("5 loud", "anchored", vectors={"loud": told}).notes if "past" in note]
    assert past
    assert "cost 7.00 nats" not in past[0]
    # Where a pole has no dose, anchored answers were not even asked.
    sides["positive", "anchored"] = replace(sides["positive", "anchored"], curve=())
    told = replace(without, provenance=replace(without.provenance, calibration=replace(calibration, sides=sides)))
    assert any("cost 7.00 nats" in note for note in calibrated_plan("5 loud", "anchored", vectors={"loud": told}).notes)


def test_a_strength_far_past_a_pole_without_a_dose_is_past_the_one_that_is_used() -> None:
    notes = calibrated_plan("-5 loud", vectors={"loud": calibrated(MODEL, without=NOT_QUIET)}).notes
    assert any("is past strength 1: relative dose 1.50, and what was measured is 0.30." in note for note in notes)
    assert not any("calibrated up to" in note for note in notes)


# Dosings


def test_a_dosing_made_on_another_file_may_not_hold() -> None:
    made = vector(1)
    own = plan("glad", glad=made).relative_dose
    assert own is not None
    here = replace(made, provenance=replace(made.provenance, dosing=dosing(own, own, content=MODEL.content)))
    elsewhere = replace(made, provenance=replace(made.provenance, dosing=dosing(own, own, content="elsewhere")))
    assert plan("glad", glad=here).notes == ()
    (told,) = plan("glad", glad=elsewhere).notes
    assert told.startswith("glad was dosed on Model, another file than this model")


def test_a_vector_that_was_never_dosed_says_so() -> None:
    made = vector(1)
    (told,) = plan("glad", glad=replace(made, provenance=replace(made.provenance, n_pairs=8))).notes
    assert told.startswith("glad was never dosed")


@pytest.mark.parametrize(("expression", "past"), [("glad", False), ("1.5 glad", True), ("-glad", False), ("-1.1 glad", True)])
def test_past_the_dose_of_strength_one_it_is_told_up_to_which_the_text_held(expression: str, past: bool) -> None:
    made = vector(1)
    own = plan("glad", glad=made).relative_dose
    assert own is not None
    found = dosing(own, own / 2, content=MODEL.content)
    glad = replace(made, provenance=replace(made.provenance, dosing=found))
    notes = plan(expression, glad=glad).notes
    assert [note.split(":")[0] for note in notes] == ([f"{expression} is past strength 1"] if past else [])


def test_what_is_removed_beside_it_does_not_hide_that_a_dose_is_past_strength_one() -> None:
    made = vector(1)
    own = plan("glad", glad=made).relative_dose
    assert own is not None
    glad = replace(made, provenance=replace(made.provenance, dosing=dosing(own, own, content=MODEL.content)))
    assert any("past strength 1" in note for note in plan("1.5 glad + !happy", glad=glad).notes)
