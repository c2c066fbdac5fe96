from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from localsteer.steering.worth import in_short, is_shown, strongest_tried, why_no_dose, worth, worth_of
from localsteer.vector.calibration import Interval, Pole
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import calibrated
from tests.steering.made import MODEL, calibrated_plan, plan, vector
from tests.vector.made_dosing import dosing


def with_effect(effect: float, scale: str = "persona", *, shown: bool = True) -> ControlVector:
    """A calibrated vector whose strength 1 goes this far, in units of this."""
    made = calibrated(MODEL)
    calibration = made.provenance.calibration
    assert calibration is not None
    sides = dict(calibration.sides)
    sides["positive", "response"] = replace(sides["positive", "response"], effect=effect, shown=shown)
    found = replace(calibration, sides=sides, scale={"positive": scale, "negative": scale})
    return replace(made, provenance=replace(made.provenance, calibration=found))


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (0.1, "loud: hardly heard (0.1 of what a system prompt does); ask for loud in a system prompt"),
        (0.5, "loud: 0.5 times as far as a system prompt that asks for it"),
        (1.0, "loud: about as far as a system prompt that asks for it (1.0 times), for 0.25 nats"),
        (2.0, "loud: 2.0 times as far as a system prompt that asks for it, for 0.25 nats a token of coherence."),
    ],
)
def test_a_calibrated_vector_is_compared_with_the_system_prompt(effect: float, said: str) -> None:
    told = worth_of(with_effect(effect), 1.0)
    assert told is not None
    assert told.startswith(said)


def test_half_the_strength_goes_as_far_as_half_the_dose_was_measured_to() -> None:
    # Measured: 0.5 at half the dose, 0.9 at it.
    told = worth_of(with_effect(0.9), 0.5)
    assert told is not None
    assert "0.5 times as far" in told


@pytest.mark.parametrize(("strength", "price"), [(1.0, "0.30"), (0.5, "0.10"), (2.0, "1.00")])
def test_the_price_of_strength_one_comes_from_all_doses_and_others_from_those_beside_them(strength: float, price: str) -> None:
    made = with_effect(0.9)
    calibration = made.provenance.calibration
    assert calibration is not None
    sides = {key: replace(side, cost=0.3) for key, side in calibration.sides.items()}
    made = replace(made, provenance=replace(made.provenance, calibration=replace(calibration, sides=sides)))
    assert f"for {price} nats a token" in str(worth_of(made, strength))


def test_a_strength_beyond_all_that_was_measured_says_where_that_ended() -> None:
    made = with_effect(0.9)
    calibration = made.provenance.calibration
    assert calibration is not None
    side = calibration.sides["positive", "response"]
    assert side.dose is not None
    strongest = side.curve[-1].dose / side.dose
    assert "not known" not in str(worth_of(made, strongest))
    beyond = str(worth_of(made, strongest + 1))
    assert beyond.startswith(str(worth_of(made, strongest)))
    assert f"measured at {strongest:.2g} times strength 1, the strongest tried: what more does is not known." in beyond


@pytest.mark.parametrize(
    ("scale", "beside"),
    [
        ("other persona", "the system prompt for quiet goes the other way"),
        ("deviation", "unsteered answers differ from each other"),
    ],
)
def test_a_model_that_does_not_follow_the_persona_is_named(scale: str, beside: str) -> None:
    told = worth_of(with_effect(1.5, scale), 1.0)
    assert told is not None
    assert f"1.5 times as far as {beside}" in told
    assert f"{MODEL.name} does not measurably follow a system prompt that asks for loud" in told


def test_of_a_vector_without_personas_nothing_is_said_of_system_prompts_that_nobody_tried() -> None:
    made = with_effect(1.5, "deviation")
    calibration = made.provenance.calibration
    assert calibration is not None
    made = replace(made, provenance=replace(made.provenance, calibration=replace(calibration, personas={})))
    assert (
        worth_of(made, 1.0)
        == "loud: 1.5 times as far as unsteered answers differ from each other, for 0.25 nats a token of coherence."
    )
    none = calibrated(MODEL, without=(("negative", "response"),))
    assert none.provenance.calibration is not None
    none = replace(none, provenance=replace(none.provenance, calibration=replace(none.provenance.calibration, personas={})))
    assert "system prompt" not in str(worth_of(none, -1.0))


def test_a_pole_without_a_dose_says_what_to_do_instead() -> None:
    told = worth_of(calibrated(MODEL, without=(("negative", "response"),)), -1.0)
    assert told is not None
    assert told.startswith(f"quiet: no dose on {MODEL.name}: none within 0.25 nats a token does anything beyond doubt")
    assert "system prompt" in told


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"limit": "refusals"}, "answers are refused at any that was tried"),
        ({"limit": "repetition"}, "answers repeat themselves at any that was tried"),
        ({"allowed": 0.05}, "the least that any costs is 0.10 nats a token, at a relative dose of 0.200, and 0.05 are allowed"),
        ({"curve": ()}, "none was tried, for the response has none"),
        ({"limit": "measured"}, "none within 0.25 nats a token does anything beyond doubt"),
    ],
)
def test_why_a_calibration_found_no_dose_is_said_as_it_was(changed: dict[str, Any], why: str) -> None:
    calibration = calibrated(MODEL, without=(("negative", "response"),)).provenance.calibration
    assert calibration is not None
    assert why_no_dose(replace(calibration.sides["negative", "response"], **changed), 0.25) == why


def test_where_nothing_was_said_at_any_dose_there_is_no_number() -> None:
    calibration = calibrated(MODEL, without=(("negative", "response"),)).provenance.calibration
    assert calibration is not None
    side = calibration.sides["negative", "response"]
    silent = tuple(replace(point, cost=Interval(*3 * (float("nan"),))) for point in side.curve)
    assert why_no_dose(replace(side, curve=silent), 0.25) == "nothing is said at any that was tried"


def test_a_dosed_vector_says_whether_anything_was_seen() -> None:
    made = vector(1)
    seen, unseen = (replace(made, provenance=replace(made.provenance, dosing=dosing(shown=one))) for one in (True, False))
    assert str(worth_of(seen, 1.0)).endswith(f"become 0.5 nats a token likelier beside those of {_other(seen)}.")
    assert "nothing beyond chance" in str(worth_of(unseen, 1.0))
    found = dosing()
    sides = {pole: replace(side, ratio=Interval(*3 * (float("nan"),)), shown=False) for pole, side in found.sides.items()}
    unknown = replace(made, provenance=replace(made.provenance, dosing=replace(found, sides=sides)))
    assert "nothing tells what it is about" in str(worth_of(unknown, 1.0))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (0.2, "beside those of -, 0.2 under a system prompt that asks for it."),
        (0.9, "beside those of -, 0.9 under a system prompt that asks for it; ask for it there, too."),
        (float("nan"), "beside those of -."),
        (-0.1, "beside those of -; a system prompt that asks for it makes them no likelier."),
    ],
)
def test_a_dosed_vector_is_compared_with_the_system_prompt(asked: float, said: str) -> None:
    found = dosing()
    sides = {pole: replace(side, asked=asked) for pole, side in found.sides.items()}
    made = ControlVector(vector(1).directions, Provenance(dosing=replace(found, sides=sides)))
    assert worth_of(made, 1.0) == f"+: its own answers become 0.5 nats a token likelier {said}"


@pytest.mark.parametrize("coherence", [1.7, float("inf"), float("nan")])
def test_a_dosed_vector_whose_answers_made_no_sense_says_so_wherever_it_is_told_and_used(coherence: float) -> None:
    found = dosing(content=MODEL.content)
    sides = {**found.sides, "positive": replace(found.sides["positive"], coherence=coherence)}
    given = vector(1)
    made = replace(given, provenance=replace(given.provenance, dosing=replace(found, sides=sides)))
    assert "made no sense" in str(worth_of(made, 1.0))
    assert any("made no sense" in note for note in plan("0.5 glad", glad=made).notes)
    assert not any("made no sense" in note for note in plan("-0.5 glad", glad=made).notes)


def test_a_dosed_vector_that_does_nothing_says_so_when_it_is_used() -> None:
    given = vector(1)
    made = replace(given, provenance=replace(given.provenance, dosing=dosing(content=MODEL.content, shown=False)))
    assert any("nothing beyond chance was seen" in note for note in plan("0.2 glad", glad=made).notes)


def _other(made: ControlVector) -> str:
    return made.provenance.negative or "-"


def test_an_effect_is_shown_where_there_is_a_dose_and_no_doubt() -> None:
    made = vector(1)
    assert not is_shown(made, "positive")
    for shown in (True, False):
        assert is_shown(replace(made, provenance=replace(made.provenance, dosing=dosing(shown=shown))), "positive") is shown
    made = calibrated(MODEL, without=(("negative", "response"),))
    calibration = made.provenance.calibration
    assert calibration is not None
    assert is_shown(made, "positive")
    assert not is_shown(made, "negative")
    doubtful = {key: replace(side, shown=False) for key, side in calibration.sides.items()}
    made = replace(made, provenance=replace(made.provenance, calibration=replace(calibration, sides=doubtful)))
    assert not is_shown(made, "positive")


def test_nothing_is_said_of_a_vector_that_was_not_measured() -> None:
    assert list(worth(vector(1))) == []
    assert plan("happy").worth == ()


def test_a_plan_tells_it_for_each_of_its_vectors_but_for_what_is_removed() -> None:
    (told,) = calibrated_plan("loud").worth
    assert told.startswith("loud: ")
    assert calibrated_plan("!loud").worth == ()
    poles: list[Pole] = [pole for pole, _ in worth(calibrated(MODEL))]
    assert poles == ["positive", "negative"]


def test_the_strongest_strength_that_was_tried() -> None:
    made = vector(1)
    assert strongest_tried(made, "positive") is None
    dosed = replace(made, provenance=replace(made.provenance, dosing=dosing(0.5, 0.25)))
    assert strongest_tried(dosed, "negative") == 2.0
    assert strongest_tried(calibrated(MODEL), "positive") == pytest.approx(2.0)
    # Strength -1 has the other side's dose, where none was found toward it.
    one_sided = calibrated(MODEL, without=(("negative", "response"),))
    assert strongest_tried(one_sided, "negative") is not None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ("its answers 0.5 nats likelier", "0.10")),
        ({"asked": 0.83}, ("its answers 0.5 nats likelier, prompted 0.8", "0.10")),
        ({"asked": -0.83}, ("its answers 0.5 nats likelier, prompted 0.0", "0.10")),
        ({"coherence": -0.3}, ("its answers 0.5 nats likelier", "0.00")),
        ({"shown": False}, ("nothing beyond chance was seen", "")),
        ({"coherence": 1.7}, ("answers made no sense at any dose", "")),
        ({"ratio": Interval(*3 * (float("nan"),)), "shown": False}, ("what it does was not measured", "")),
    ],
)
def test_a_dosed_vector_in_short(changed: dict[str, Any], said: tuple[str, str]) -> None:
    found = dosing()
    sides = {**found.sides, "positive": replace(found.sides["positive"], **changed)}
    made = ControlVector(vector(1).directions, Provenance(dosing=replace(found, sides=sides)))
    assert in_short(made, "positive") == said


@pytest.mark.parametrize(
    ("scale", "effect", "shown", "said"),
    [
        ("persona", 1.2, True, "1.2 times a system prompt"),
        ("persona", 1.2, False, "1.2 times a system prompt (?)"),
        ("persona", 0.1, True, "hardly heard, 0.1"),
        ("other persona", 0.4, True, "0.4 times an opposite prompt"),
        ("deviation", 0.4, True, "0.4 times as far as answers differ"),
    ],
)
def test_a_calibrated_vector_in_short(scale: str, effect: float, shown: bool, said: str) -> None:
    assert in_short(with_effect(effect, scale, shown=shown), "positive") == (said, "0.25")


def test_without_a_dose_or_a_measurement_there_is_no_number() -> None:
    told = in_short(calibrated(MODEL, without=(("negative", "response"),)), "negative")
    assert told == ("no dose: none within 0.25 nats a token does anything beyond doubt", "")
    assert in_short(ControlVector(vector(1).directions, Provenance()), "positive") is None
