from __future__ import annotations

import numpy as np
import pytest

from localsteer.errors import LocalsteerError
from localsteer.steering.dose import DoseLimit, relative_dose
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve, resolve_opposite
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import hidden_norms
from tests.steering.made import LOUD, MODEL, NORMS, Floats, calibrated_plan, unit


def test_the_relative_dose_by_hand() -> None:
    values = np.array([[0, 0], [3, 4], [0, 0], [0, -6]], np.float32)
    assert relative_dose(values, np.array([np.nan, 10, 7, 3], np.float32)) == pytest.approx(0.5 + 2)


def test_layers_without_a_norm_do_not_count_into_the_dose() -> None:
    values = np.array([[0, 0], [3, 4], [1, 1]], np.float32)
    assert relative_dose(values, np.array([np.nan, 10, np.nan], np.float32)) == pytest.approx(0.5)


@pytest.mark.filterwarnings("error")
def test_a_dose_past_all_float32_squares_is_a_number() -> None:
    assert relative_dose(np.array([[3e30, 4e30]], np.float32), np.array([10], np.float32)) == pytest.approx(5e29)


# The largest one

# Those of the model that the calibrated vectors were measured on: 2, 4, 6 ...
OWN = hidden_norms(MODEL)


def held(expression: str, dose: float, hidden_norm: Floats = OWN, **vectors: ControlVector) -> Plan:
    return calibrated_plan(expression, vectors=vectors, limit=DoseLimit(dose, hidden_norm))


def test_a_plan_within_the_largest_dose_is_let_through() -> None:
    for expression, dose in (("loud", 0.3), ("loud", 5), ("loud - loud", 0.401), ("", 0.01)):
        assert held(expression, dose).notes == ()


@pytest.mark.parametrize("expression", ["!loud", "0.1 loud + !loud"])
def test_a_removal_cannot_be_held_below_a_dose(expression: str) -> None:
    with pytest.raises(LocalsteerError) as caught:
        held(expression, 1000)
    assert expression in caught.value.message
    assert "--max-dose" in (caught.value.hint or "")


def test_a_plan_above_the_largest_dose_is_refused_with_both() -> None:
    with pytest.raises(LocalsteerError) as caught:
        held("-loud", 0.2)
    for part in ("-loud", "0.40", "--max-dose", "0.2"):
        assert part in caught.value.message
    assert "0.5 times" in (caught.value.hint or "")


def test_the_opposite_is_held_as_well() -> None:
    steering, limit = parse_steering("loud"), DoseLimit(0.35, OWN)
    assert resolve(steering, MODEL, lambda _name: LOUD, limit=limit)
    with pytest.raises(LocalsteerError, match="-loud"):
        resolve_opposite(steering, MODEL, lambda _name: LOUD, limit=limit)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("strength", "dose"), [(1, 0.2), (1, 0.1), (1, 0.0021), (1, 0.29), (1e25, 0.3)])
def test_the_strength_that_the_guard_proposes_is_let_through(strength: float, dose: float) -> None:
    with pytest.raises(LocalsteerError, match="--max-dose allows") as caught:
        held(f"{strength} loud", dose)
    factor = float((caught.value.hint or "").split("A strength of ")[1].split(" times")[0])
    assert factor > 0
    held(f"{factor * strength} loud", dose)


@pytest.mark.parametrize("norms", [None, np.where(np.arange(6) == 1, np.float32(np.nan), NORMS)])
def test_a_vector_that_does_not_say_the_norms_is_held_by_those_of_the_model(norms: Floats | None) -> None:
    silent = ControlVector(unit(1).directions, Provenance(model=MODEL, hidden_norm=norms))
    assert held("a", 2.0, a=silent).notes == ()
    with pytest.raises(LocalsteerError, match="--max-dose"):
        held("a", 1.9, a=silent)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lie", [1e30, 1e-30, 3.0])
def test_what_a_file_says_of_hidden_norms_changes_no_limit_and_is_told(lie: float) -> None:
    lying = ControlVector(unit(1).directions, Provenance(model=MODEL, hidden_norm=OWN * np.float32(lie)))
    with pytest.raises(LocalsteerError, match="--max-dose"):
        held("a", 1.9, a=lying)
    (told,) = held("a", 2.0, a=lying).notes
    assert told.startswith("a has a relative dose of 2 on this model")
    honest = ControlVector(unit(1).directions, Provenance(model=MODEL, hidden_norm=OWN * np.float32(1.5)))
    assert held("a", 2.0, a=honest).notes == ()


def test_norms_are_told_where_they_are_off_by_more_than_a_factor_of_two() -> None:
    plan = calibrated_plan("loud")
    assert plan.edit is not None
    limit = DoseLimit(5, OWN)
    assert limit.dose_of(plan.edit) == pytest.approx(0.3)
    for told, is_told in ((None, False), (0.14, True), (0.16, False), (0.3, False), (0.59, False), (0.61, True), (1.0, True)):
        assert bool(limit.check(plan.steering, plan.edit, told)) is is_told


def test_one_vector_cannot_lie_for_another() -> None:
    # Of two readings the first counts, so its vector speaks for both.
    lying = ControlVector(unit(2).directions, Provenance(model=MODEL, hidden_norm=OWN * np.float32(1e30)))
    with pytest.raises(LocalsteerError, match="--max-dose"):
        held("0.001 a + 100 u", 1.0, a=lying, u=unit(1))
