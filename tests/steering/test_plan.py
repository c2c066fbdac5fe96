from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from localsteer.errors import LocalsteerError, VectorError
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve, resolve_opposite
from localsteer.vector.calibration import Mode, Pole
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import DOSES, LAYERS
from tests.steering.made import HAPPY, LOUD, MODEL, NORMS, SAD, Floats, calibrated_plan, plan, rows, unit, vector


def test_nothing_is_done_without_terms() -> None:
    made = plan("")
    assert made.edit.added.shape == (6, 4)
    assert not made.edit.added.any()
    assert made.edit.removed == {}
    assert made.notes == ()


def test_one_vector_is_added_at_its_layers() -> None:
    made = plan("happy")
    assert np.array_equal(made.edit.added, rows(HAPPY))
    assert made.edit.added.dtype == np.float32
    assert made.edit.removed == {}
    assert str(made.steering) == "happy"


def test_terms_add_up() -> None:
    assert np.allclose(plan("0.5 happy - 2 sad").edit.added, 0.5 * rows(HAPPY) - 2 * rows(SAD), atol=1e-6)
    assert np.allclose(plan("happy - sad + happy").edit.added, plan("2 happy - sad").edit.added, atol=1e-6)
    assert not plan("happy - happy").edit.added.any()


def test_resolving_leaves_the_vectors_alone() -> None:
    before = rows(HAPPY).copy()
    made = plan("3 happy + !happy@2")
    made.edit.added[:] = 7
    made.edit.removed[2][:] = 7
    assert np.array_equal(rows(HAPPY), before)


@pytest.mark.parametrize(("layers", "kept"), [("@2", [2]), ("@2-3", [2, 3]), ("@1-2", [1, 2]), ("@3-5", [3])])
def test_layers_are_trimmed(layers: str, kept: list[int]) -> None:
    made = plan(f"2 happy{layers}").edit.added
    assert np.flatnonzero(made.any(axis=1)).tolist() == kept
    assert np.array_equal(made[kept], 2 * rows(HAPPY)[kept])


def test_layers_belong_to_their_term() -> None:
    made = plan("happy@1 + sad@4").edit.added
    assert np.array_equal(made[1], HAPPY.directions[1])
    assert np.array_equal(made[4], SAD.directions[4])
    assert not made[[0, 2, 3, 5]].any()


@pytest.mark.parametrize("expression", ["happy@4-5", "!happy@4-5"])
def test_layers_that_a_vector_does_not_have_are_refused(expression: str) -> None:
    with pytest.raises(VectorError, match=r"^happy: .*1-3.*4-5"):
        plan(expression)


@pytest.mark.parametrize(("layers", "last"), [("@6", 6), ("@2-6", 6), ("@2-99", 99)])
def test_layers_that_the_model_does_not_have_are_refused(layers: str, last: int) -> None:
    with pytest.raises(VectorError, match=f"layer {last}, and Tiny has layers 1 to 5"):
        plan(f"happy{layers}")


def test_a_vector_that_does_not_fit_is_refused_by_its_name() -> None:
    wide = vector(1, model=replace(MODEL, n_layer=9), norms=None)
    with pytest.raises(VectorError, match=r"^wide does not fit"):
        plan("happy + wide", wide=wide)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strength", ["1e300", "1e38"])
def test_strengths_that_overflow_are_refused(strength: str) -> None:
    with pytest.raises(VectorError, match=r"happy.* too large"):
        plan(f"{strength} happy", happy=HAPPY * 1e3)


def test_an_error_of_loading_is_passed_on() -> None:
    def load(name: str) -> ControlVector:
        raise VectorError(f"no {name}")

    with pytest.raises(VectorError, match="no glad"):
        resolve(parse_steering("glad"), MODEL, load)


def test_what_steers_the_reasoning_leaves_the_answer_alone() -> None:
    made = plan("0.5 happy@thinking - sad")
    assert np.array_equal(made.edit.added, -rows(SAD))
    assert made.thinking is not None
    assert np.allclose(made.thinking.added, 0.5 * rows(HAPPY))
    only = plan("happy@thinking")
    assert only.effects == {"answer": None, "thinking": only.thinking}
    assert only.relative_dose == plan("happy").relative_dose is not None
    assert plan("happy").effects["thinking"] is None


def test_each_part_of_the_reply_has_a_dose_of_its_own() -> None:
    """They are never added up."""
    both, louder = plan("happy@thinking + 2 happy"), plan("2 happy")
    assert both.relative_dose == louder.relative_dose


def test_directions_of_no_length_remove_nothing() -> None:
    none = vector(1, norms=None) * 0.0
    assert plan("!a + !a", a=none).edit.removed == {}


# Removal


def projector(basis: Floats) -> Floats:
    result: Floats = basis.T @ basis
    return result


def test_a_removal_adds_nothing() -> None:
    made = plan("!happy")
    assert not made.edit.added.any()
    assert sorted(made.edit.removed) == [1, 2, 3]
    assert made.relative_dose is None  # not a dose of 0, which would read as no steering


def test_one_removed_direction_is_a_unit_vector_along_it() -> None:
    made = plan("!happy@2")
    assert sorted(made.edit.removed) == [2]
    (row,) = made.edit.removed[2]
    direction = HAPPY.directions[2]
    assert made.edit.removed[2].dtype == np.float32
    assert abs(row @ direction) == pytest.approx(np.linalg.norm(direction), rel=1e-6)
    assert np.linalg.norm(row) == pytest.approx(1, rel=1e-6)


def test_several_removed_directions_have_an_orthonormal_basis() -> None:
    made = plan("!happy + !sad")
    assert {layer: len(basis) for layer, basis in made.edit.removed.items()} == {1: 1, 2: 2, 3: 2, 4: 1}
    for layer, basis in made.edit.removed.items():
        assert np.allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-6)
        for each in (HAPPY, SAD):
            if layer in each.directions:
                rest = each.directions[layer] - projector(basis) @ each.directions[layer]
                assert np.linalg.norm(rest) < 1e-5


def test_the_order_of_removals_does_not_matter() -> None:
    third = vector(2, 3, seed=3)
    one = plan("!happy + !sad + !third", third=third).edit.removed
    for expression in ("!third + !sad + !happy", "!sad + !happy + !third"):
        other = plan(expression, third=third).edit.removed
        assert one.keys() == other.keys()
        for layer in one:
            assert np.allclose(projector(one[layer]), projector(other[layer]), atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.3, 1e3])
def test_removing_one_direction_twice_is_removing_it_once(factor: float) -> None:
    once, twice = plan("!happy").edit.removed, plan("!happy + !again", again=HAPPY * factor).edit.removed
    assert [len(basis) for basis in twice.values()] == [1, 1, 1]
    assert all(np.allclose(projector(once[layer]), projector(twice[layer]), atol=1e-5) for layer in once)


def test_a_zero_direction_removes_nothing() -> None:
    zero = ControlVector({2: np.zeros(4, np.float32)})
    assert plan("!zero", zero=zero).edit.removed == {}
    assert len(plan("!zero + !happy", zero=zero).edit.removed[2]) == 1


def test_adding_and_removing_go_together() -> None:
    made = plan("0.5 happy + !sad@4")
    assert np.array_equal(made.edit.added, np.float32(0.5) * rows(HAPPY))
    assert sorted(made.edit.removed) == [4]


# The dose


@pytest.mark.parametrize(
    ("expression", "dose"),
    [("u", 4 + 2 + 1), ("-u", 7), ("0.5 u", 3.5), ("u@2", 2), ("u + u@3", 8), ("u - u", 0), ("0 u", 0)],
)
def test_the_dose_of_a_plan_counts_what_is_added_in_all(expression: str, dose: float) -> None:
    assert plan(expression, u=unit(1, 2, 3)).relative_dose == pytest.approx(dose)


def test_the_dose_is_unknown_where_no_vector_says_the_norms() -> None:
    assert plan("a", a=vector(1, norms=None)).relative_dose is None


def test_norms_of_another_number_of_layers_tell_another_model() -> None:
    with pytest.raises(VectorError, match=r"^a does not fit this model: it has 5 layers"):
        plan("a", a=vector(1, model=None, norms=np.ones(5, np.float32)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e-45, 3e38])
def test_doses_of_the_smallest_and_the_largest_numbers_are_limited(value: float) -> None:
    norms = np.array([np.nan, *[1 / value if value > 1 else value] * 5], np.float32)
    found = plan("a", a=ControlVector({1: np.full(4, value, np.float32)}, Provenance(hidden_norm=norms)))
    assert found.relative_dose is not None
    assert 0 < found.relative_dose < np.inf
    with pytest.raises(LocalsteerError, match=r"--max-dose allows 0\.1"):
        DoseLimit(0.1, norms).check(found.steering, found.edit, found.relative_dose)


@pytest.mark.parametrize("expression", ["a + u", "u + a"])
def test_the_norms_of_one_vector_do_for_all(expression: str) -> None:
    # They are the model's, not the vector's.
    foreign = ControlVector({3: np.full(4, 2, np.float32)})
    assert plan(expression, a=foreign, u=unit(1)).relative_dose == pytest.approx(4 + 1)


@pytest.mark.parametrize("expression", ["low + high", "high + low"])
def test_norms_measured_at_different_layers_go_together(expression: str) -> None:
    def measured(*layers: int) -> ControlVector:
        made = unit(*layers)
        norms = np.where(np.isin(np.arange(6), layers), NORMS, np.float32(np.nan))
        return replace(made, provenance=replace(made.provenance, hidden_norm=norms))

    assert plan(expression, low=measured(1, 2), high=measured(4)).relative_dose == pytest.approx(4 + 2 + 0.5)


def test_the_opposite_plan() -> None:
    vectors = {"happy": HAPPY, "sad": replace(SAD, provenance=Provenance(hidden_norm=NORMS))}
    steering = parse_steering("0.5 happy - sad@4")
    made = resolve(steering, MODEL, vectors.__getitem__)
    opposite = resolve_opposite(steering, MODEL, vectors.__getitem__)
    assert opposite is not None
    assert np.array_equal(opposite.edit.added, -made.edit.added)
    assert str(opposite.steering) == "-0.5 happy + sad@4-4"
    assert opposite.relative_dose == made.relative_dose is not None
    assert opposite.notes == made.notes
    assert len(opposite.notes) == 1


def test_a_plan_that_removes_has_no_opposite() -> None:
    assert resolve_opposite(parse_steering("happy + !sad"), MODEL, lambda _name: HAPPY) is None


def test_vectors_are_loaded_by_the_name_in_the_expression() -> None:
    asked: list[str] = []

    def recording(name: str) -> ControlVector:
        asked.append(name)
        return HAPPY

    resolve(parse_steering("happy + '~/my file.gguf'@2 + !c:\\x.gguf"), MODEL, recording)
    assert asked == ["happy", "~/my file.gguf", "c:\\x.gguf"]


# Calibrated vectors


@pytest.mark.parametrize(
    ("expression", "mode", "pole", "share"),
    [
        ("loud", "response", "positive", 1),
        ("0.5 loud", "response", "positive", 0.5),
        ("-loud", "response", "negative", 1),
        ("-0.25 loud", "response", "negative", 0.25),
        ("loud", "prompt", "positive", 1),
        ("-loud", "prompt", "negative", 1),
        ("loud", "anchored", "positive", 1),
        ("-0.5 loud", "anchored", "negative", 0.5),
    ],
)
def test_each_pole_and_scope_has_its_calibrated_dose_and_layers(expression: str, mode: Mode, pole: Pole, share: float) -> None:
    made = calibrated_plan(expression, mode)
    assert made.mode == mode
    assert made.relative_dose == pytest.approx(share * DOSES[pole, mode])
    assert tuple(np.flatnonzero(made.edit.added.any(axis=1))) == LAYERS[pole]
    assert made.notes == ()
    estimate = LOUD.provenance.estimate
    assert estimate is not None
    for layer in LAYERS[pole]:
        assert np.sign(made.edit.added[layer] @ estimate[layer]) == (1 if pole == "positive" else -1)


@pytest.mark.parametrize("mode", ["response", "prompt"])
def test_the_opposite_of_a_calibrated_plan_has_the_dose_of_the_other_pole(mode: Mode) -> None:
    opposite = resolve_opposite(parse_steering("0.5 loud"), MODEL, lambda _name: LOUD, mode)
    assert opposite is not None
    assert opposite.mode == mode
    assert opposite.relative_dose == pytest.approx(0.5 * DOSES["negative", mode])
    assert np.array_equal(opposite.edit.added, calibrated_plan("-0.5 loud", mode).edit.added)


def test_layers_are_trimmed_after_the_dose_is_shared_out() -> None:
    whole, part = calibrated_plan("-loud").edit.added, calibrated_plan("-loud@3").edit.added
    assert np.flatnonzero(part.any(axis=1)).tolist() == [3]
    assert np.array_equal(part[3], whole[3])
    assert calibrated_plan("-loud@3").relative_dose == pytest.approx(DOSES["negative", "response"] / 2)


def test_layers_that_only_one_pole_has_have_no_opposite() -> None:
    assert resolve_opposite(parse_steering("loud@1"), MODEL, lambda _name: LOUD) is None
    assert resolve_opposite(parse_steering("loud@1-3"), MODEL, lambda _name: LOUD) is not None


def test_layers_of_the_other_pole_are_refused() -> None:
    with pytest.raises(VectorError, match=r"^loud: .*1-2.* none at 3"):
        calibrated_plan("loud@3")
    with pytest.raises(VectorError, match=r"^loud: .*2-3.* none at 1"):
        calibrated_plan("-loud@1")


def test_a_calibrated_vector_is_removed_where_it_steers() -> None:
    made = calibrated_plan("!loud")
    assert sorted(made.edit.removed) == [1, 2]
    assert made.notes == ()


def test_a_calibrated_vector_mixes_with_others() -> None:
    made = calibrated_plan("loud + happy").edit.added
    np.testing.assert_allclose(made, calibrated_plan("loud").edit.added + rows(HAPPY), atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strength", ["1e39", "1e300", "-1e300"])
def test_a_calibrated_strength_that_overflows_is_refused(strength: str) -> None:
    with pytest.raises(VectorError, match=r"loud.* too large") as caught:
        calibrated_plan(f"{strength} loud")
    assert ("-1e+300 loud" in caught.value.message) == strength.startswith("-")
