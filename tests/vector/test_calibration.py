from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from localsteer.errors import VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.calibration import MODES, OTHER, POLES, SIGN, Calibration, Interval, Pole, Side, pole_of
from tests.calibration.made import calibration, hidden_norms, nothing, point, side

MODEL = Fingerprint("Tiny Großmodell", "llama", 6, 4, "vocabulary", "content")
MADE = calibration(MODEL)


@pytest.mark.parametrize("pole", POLES)
def test_a_strength_is_toward_the_pole_of_its_sign(pole: Pole) -> None:
    assert abs(SIGN[pole]) == 1
    assert pole_of(SIGN[pole]) == pole_of(0.5 * SIGN[pole]) == pole
    assert pole_of(-SIGN[pole]) == OTHER[pole]


def test_the_tensors_hold_the_dose_of_the_first_pole_that_has_one() -> None:
    assert (MADE.main_pole, MADE.main_dose) == ("positive", 0.3)
    quiet = calibration(MODEL, without=(("positive", "response"),))
    assert (quiet.main_pole, quiet.main_dose) == ("negative", 0.4)


# There and back


@pytest.mark.parametrize(
    "made",
    [
        MADE,
        calibration(MODEL, without=(("negative", "response"), ("negative", "prompt"))),
        replace(MADE, personas={}, scale=dict.fromkeys(POLES, "deviation")),
        replace(MADE, sides={key: replace(nothing(one), curve=()) for key, one in MADE.sides.items()}),
        replace(MADE, budget=1 / 3, seed=0),
    ],
    ids=["whole", "one pole", "no personas", "nothing measured", "numbers"],
)
def test_a_calibration_comes_back_from_text_as_it_was(made: Calibration) -> None:
    found = Calibration.from_json(made.to_json())
    assert found == made
    assert set(found.sides) == {(pole, mode) for pole in POLES for mode in MODES}


def test_the_text_is_json_for_other_programs_even_where_an_answer_was_empty() -> None:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    unknown = Interval(float("nan"), float("nan"), float("nan"))
    empty = replace(point(0.9), effect=unknown, cost=unknown)
    measured = MADE.sides["positive", "response"]
    made = replace(MADE, sides={**MADE.sides, ("positive", "response"): replace(measured, curve=(*measured.curve, empty))})
    text = made.to_json()
    json.loads(text, parse_constant=refuse)
    assert Calibration.from_json(text).sides["positive", "response"].curve[:-1] == measured.curve


def test_a_calibration_without_anchored_doses_is_whole() -> None:
    made = replace(MADE, sides={key: side for key, side in MADE.sides.items() if key[1] != "anchored"})
    found = Calibration.from_json(made.to_json())
    assert found == made
    assert found.modes == ("response", "prompt")
    # They are those of the response, then.
    assert found.side(-1.0, "anchored") is found.sides["negative", "response"]


# Damage


def without_key(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def with_value(value: object, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


TEXTS = ["", "{", "[]", "5", "null", "{}", '"calibration"', MADE.to_json()[:-30], "[" * 100_000]
TEXTS += [MADE.to_json().replace('"dose": 0.3', f'"dose": {number}', 1) for number in ("Infinity", "-Infinity", "NaN", "1e999")]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_that_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(VectorError, match="calibration is damaged") as caught:
        Calibration.from_json(text)
    assert caught.value.hint == "Calibrate the vector again."


SIDE = ("sides", "positive/response")


DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"no {name}": without_key(name) for name in json.loads(MADE.to_json())},
    "a side missing": without_key("sides", "negative/prompt"),
    "no norms": without_key(*SIDE, "norms"),
    "no cost": without_key("unsteered", "cost"),
    "half an interval": without_key("personas", "positive", "effect", "low"),
    "an unknown key": with_value(1, "colour"),
    "an unknown key of a side": with_value(1, *SIDE, "colour"),
    "personas as a list": with_value([], "personas"),
    "sides as a list": with_value([], "sides"),
    "unsteered as null": with_value(None, "unsteered"),
    "a curve as a number": with_value(3, *SIDE, "curve"),
    "a dose as text": with_value("much", *SIDE, "dose"),
    "shown as a number": with_value(1, *SIDE, "shown"),
    "a budget as text": with_value("little", "budget"),
    "a layer without a norm": with_value([1.0], *SIDE, "norms"),
    "a negative length": with_value([1.0, -1.0], *SIDE, "norms"),
    "a length beyond all numbers": with_value([1.0, 10**400], *SIDE, "norms"),
    "a dose of nothing": with_value(0, *SIDE, "dose"),
    "a negative dose": with_value(-0.3, *SIDE, "dose"),
    "a dose without an effect": with_value(None, *SIDE, "effect"),
    "a dose without a curve": with_value([], *SIDE, "curve"),
    "a dose of no layers": lambda document: document["sides"]["positive/response"].update(layers=[], norms=[]),
    "block 0": with_value([0, 2], *SIDE, "layers"),
    "a layer twice": with_value([2, 2], *SIDE, "layers"),
    "half a layer": with_value([1.5, 2], *SIDE, "layers"),
    "a layer in words": with_value(["1", 2], *SIDE, "layers"),
    "layers as a number": with_value(2, *SIDE, "layers"),
    "a side of no pole": lambda document: document["sides"].update({"warm/response": document["sides"]["positive/response"]}),
    "a side of three words": lambda document: document["sides"].update({"a/b/c": document["sides"]["positive/response"]}),
    "half of the anchored doses": without_key("sides", "negative/anchored"),
    "a persona of no pole": lambda document: document["personas"].update(warm=document["unsteered"]),
    "a scale that is a number": with_value(1, "scale", "positive"),
    "a name that is a list": with_value([], "model"),
    "questions in words": with_value("four", "questions"),
    "a seed that is true": with_value(True, "seed"),
    "a measured dose of null": with_value(None, *SIDE, "curve", 0, "dose"),
    "a negative measured dose": with_value(-1, *SIDE, "curve", 0, "dose"),
    "a curve out of order": with_value(9.0, *SIDE, "curve", 0, "dose"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_calibration_is_refused(damage: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(MADE.to_json())
    damage(document)
    with pytest.raises(VectorError, match="calibration is damaged"):
        Calibration.from_json(json.dumps(document))


# Its sides


@pytest.mark.parametrize(
    ("strength", "pole"), [(1.0, "positive"), (0.1, "positive"), (0.0, "positive"), (-0.1, "negative"), (-3.0, "negative")]
)
def test_the_sign_of_a_strength_says_the_side(strength: float, pole: str) -> None:
    for mode in MODES:
        assert MADE.side(strength, mode) is MADE.sides[pole, mode]  # type: ignore[index]


@pytest.mark.parametrize(
    ("dose", "cost"),
    [(0.0, 0.0), (0.05, 0.1 / 3), (0.15, 0.1), (0.225, 0.175), (0.3, 0.25), (0.45, 0.625), (0.6, 1.0), (0.61, 1.0), (50.0, 1.0)],
)
def test_the_cost_is_linear_between_what_was_measured(dose: float, cost: float) -> None:
    assert MADE.sides["positive", "response"].cost_at(dose) == pytest.approx(cost)


def test_where_nothing_was_measured_no_cost_is_known() -> None:
    nothing = Side((1,), (), None, None, None, ())
    assert (nothing.cost_at(0.3), nothing.effect_at(0.3)) == (0.0, 0.0)


def test_the_effect_at_a_dose_follows_what_was_measured_through_that_of_strength_one() -> None:
    found = side("positive", 0.3, hidden_norms(MODEL))
    # Measured: 0.5 at 0.15, 0.9 at 0.3, 1.2 at 0.6; 0.45 are expected at strength 1.
    half = replace(found, effect=0.45)
    assert [half.effect_at(dose) for dose in (0.0, 0.15, 0.3, 0.6)] == pytest.approx([0.0, 0.25, 0.45, 0.6])


def test_a_file_from_before_there_were_long_answers_stays_as_it_was() -> None:
    assert "long_answers" not in MADE.document()
    held = replace(MADE, long_answers=6)
    assert Calibration.from_json(held.to_json()) == held


def test_a_file_that_names_a_profile_is_read() -> None:
    document = calibration(MODEL).document()
    for one in document["sides"].values():
        one |= {"profile": "relative"}
        for key in ("limit", "between"):
            del one[key]
    read = Calibration.from_json(json.dumps(document))
    assert read.sides["positive", "response"].dose == 0.3
    assert read.sides["positive", "response"].between is None
