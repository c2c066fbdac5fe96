from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.errors import VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.steering.dose import relative_dose
from localsteer.vector.calibration import Mode, Pole
from localsteer.vector.control_vector import ControlVector, Provenance, format_layers
from tests.calibration.made import DOSES, LAYERS, calibrated, hidden_norms
from tests.vector.made_dosing import dosing

MODEL = Fingerprint("Tiny", "llama", 6, 3, "vocabulary", "content")


def row(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def vector(*layers: int, value: float = 1.0, provenance: Provenance | None = None) -> ControlVector:
    return ControlVector({layer: row(layer, value, 0) for layer in layers}, provenance or Provenance())


def of(model: Fingerprint | None, **others: str) -> Provenance:
    return Provenance(model=model, **others)  # type: ignore[arg-type]


# What is refused


def test_no_layers_are_refused() -> None:
    with pytest.raises(VectorError, match="at least one layer"):
        ControlVector({})


@pytest.mark.parametrize("layer", [0, -1])
def test_block_0_is_refused(layer: int) -> None:
    with pytest.raises(VectorError, match=f"block {layer}\\b"):
        vector(3, layer)


def test_different_widths_are_refused() -> None:
    with pytest.raises(VectorError, match=r"\(2,\).*\(3,\)"):
        ControlVector({1: row(1, 2, 3), 2: row(1, 2)})


@pytest.mark.parametrize("shape", [(), (1, 3)])
def test_a_direction_that_is_no_row_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(VectorError, match="shape"):
        ControlVector({1: np.ones(shape, np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(VectorError, match=r"direction\.2\b.*finite"):
        ControlVector({1: row(1, 2, 3), 2: row(0, value, 0)})


def test_scaling_out_of_float32_is_refused() -> None:
    with np.errstate(all="ignore"), pytest.raises(VectorError, match="finite"):
        vector(1, value=1e30) * 1e30


SIX = np.ones(6, np.float32)
TANGLED: dict[str, Callable[[], object]] = {
    "a hidden norm of zero": lambda: Provenance(hidden_norm=0 * SIX),
    "a negative hidden norm": lambda: Provenance(hidden_norm=-SIX),
    "an infinite hidden norm": lambda: Provenance(hidden_norm=np.inf * SIX),
    "an infinite reliability": lambda: Provenance(reliability=-np.inf * SIX),
    "a hidden norm too few": lambda: Provenance(model=MODEL, hidden_norm=SIX[:5]),
    "a reliability too many": lambda: Provenance(model=MODEL, reliability=np.ones(7, np.float32)),
    "norms and reliability of two models": lambda: Provenance(hidden_norm=SIX, reliability=SIX[:5]),
    "a flat estimate": lambda: Provenance(estimate=SIX),
    "an estimate of fewer layers": lambda: Provenance(model=MODEL, estimate=np.ones((5, 3), np.float32)),
    "an infinite estimate": lambda: Provenance(estimate=np.full((6, 3), np.inf, np.float32)),
    "fewer pairs than none": lambda: Provenance(n_pairs=-1),
    "more pairs than can be counted": lambda: Provenance(n_pairs=1 << 32),
    "a direction that the model does not have": lambda: vector(6, provenance=of(MODEL)),
    "a direction above all norms": lambda: vector(3, provenance=Provenance(hidden_norm=row(1, 2, 3))),
    "a model of another width": lambda: vector(1, provenance=of(replace(MODEL, n_embd=4))),
    "an estimate of another width": lambda: vector(1, provenance=Provenance(estimate=np.ones((6, 4), np.float32))),
    "an estimate that is no number": lambda: vector(1, provenance=Provenance(estimate=np.full((6, 3), np.nan, np.float32))),
    "no dose at all": lambda: calibrated(MODEL, without=(("positive", "response"), ("negative", "response"))),
}


@pytest.mark.parametrize("make", TANGLED.values(), ids=TANGLED)
def test_what_does_not_go_together_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(VectorError):
        make()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-44, 1e36])
def test_the_length_of_an_estimate_does_not_matter(scale: float) -> None:
    given = calibrated(MODEL)
    estimate = (np.ones((6, 3), np.float32) * np.float32(scale)).astype(np.float32)
    made = replace(given, provenance=replace(given.provenance, estimate=estimate)).at(1.0)
    assert np.linalg.norm(made.directions[1]) == pytest.approx(np.linalg.norm(given.at(1.0).directions[1]))


# Its parts


def test_layers_ascend_whatever_the_order_given() -> None:
    made = vector(5, 1, 3)
    assert made.layers == (1, 3, 5)
    assert list(made.directions) == [1, 3, 5]
    assert made.n_embd == 3


def test_directions_cannot_be_replaced_later() -> None:
    given = {1: row(1, 2, 3)}
    made = ControlVector(given)
    given[2] = row(4, 5, 6)
    assert made.layers == (1,)
    with pytest.raises(TypeError):
        made.directions[2] = row(4, 5, 6)  # type: ignore[index]


def test_rows_are_zero_where_nothing_is_steered() -> None:
    assert np.array_equal(vector(1, 3).rows(5), [[0, 0, 0], [1, 1, 0], [0, 0, 0], [3, 1, 0], [0, 0, 0]])
    assert vector(1).rows(2).dtype == np.float32


def test_a_new_name_changes_nothing_else() -> None:
    made = vector(1, 2, provenance=of(MODEL, concept="happy", method="pca"))
    named = made.named("glad")
    assert named.provenance.concept == "glad"
    assert named.provenance.method == "pca"
    assert named.provenance.model == MODEL
    assert np.array_equal(named.rows(4), made.rows(4))
    assert made.provenance.concept == "happy"


# Arithmetic


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        (lambda a, b: a + b, {1: (1, 1, 0), 2: (4, 8, 0), 3: (3, 7, 0)}),
        (lambda a, b: a - b, {1: (1, 1, 0), 2: (0, -6, 0), 3: (-3, -7, 0)}),
        (lambda a, b: b - a, {1: (-1, -1, 0), 2: (0, 6, 0), 3: (3, 7, 0)}),
        (lambda a, b: -a, {1: (-1, -1, 0), 2: (-2, -1, 0)}),
        (lambda a, b: a * 0.5, {1: (0.5, 0.5, 0), 2: (1, 0.5, 0)}),
        (lambda a, b: -3 * b, {2: (-6, -21, 0), 3: (-9, -21, 0)}),
        (lambda a, b: a / 4, {1: (0.25, 0.25, 0), 2: (0.5, 0.25, 0)}),
        (lambda a, b: a + b * 2 - a, {1: (0, 0, 0), 2: (4, 14, 0), 3: (6, 14, 0)}),
    ],
)
def test_arithmetic(
    combine: Callable[[ControlVector, ControlVector], ControlVector], expected: dict[int, tuple[float, float, float]]
) -> None:
    result = combine(vector(1, 2), vector(2, 3, value=7))
    assert {layer: tuple(direction.tolist()) for layer, direction in result.directions.items()} == expected
    assert {direction.dtype for direction in result.directions.values()} == {np.dtype(np.float32)}


def test_arithmetic_leaves_its_operands_alone() -> None:
    one, other = vector(1, 2), vector(2, 3, value=7)
    before = one.rows(4), other.rows(4)
    one + other, one - other, one * 9.0, -one, one / 3.0
    assert np.array_equal(one.rows(4), before[0])
    assert np.array_equal(other.rows(4), before[1])


def test_scaling_keeps_what_is_known() -> None:
    known = Provenance(concept="happy", model=MODEL, n_pairs=7, hidden_norm=row(1, 2, 3, 4, 5, 6), source="name: happy")
    made = (vector(1, provenance=known) * 2.5).provenance
    assert (made.concept, made.model, made.n_pairs, made.source) == ("happy", MODEL, 7, "name: happy")
    assert made.hidden_norm is known.hidden_norm


@pytest.mark.parametrize("turn", [lambda made: -made, lambda made: made * -0.5, lambda made: made / -2])
def test_a_turned_vector_moves_toward_the_other_pole(turn: Callable[[ControlVector], ControlVector]) -> None:
    made = turn(vector(1, provenance=Provenance(concept="mood", positive="happy", negative="sad"))).provenance
    assert (made.positive, made.negative) == ("sad", "happy")


def test_a_combination_says_what_it_is_of() -> None:
    norms = row(*range(1, 7))
    happy = vector(1, provenance=Provenance(concept="happy", method="mean", position="last", n_pairs=5, positive="glad"))
    formal = vector(
        2, provenance=Provenance(concept="formal", method="pca", position="last", model=MODEL, hidden_norm=norms, n_pairs=5)
    )
    made = (happy - formal).provenance
    assert made.concept == "happy - formal"
    assert (happy + formal).provenance.concept == "happy + formal"
    assert made.method == "mixed"
    assert made.position == "last"
    assert made.model == MODEL
    assert made.hidden_norm is norms
    assert (formal + formal).provenance.method == "pca"
    assert (formal + happy).provenance.hidden_norm is norms
    response = vector(1, provenance=Provenance(method="pca", position="response", hidden_norm=row(*range(2, 8))))
    assert (formal + response).provenance.position == "mixed"
    # Both were measured, and the first one's are kept.
    assert np.array_equal((formal + response).rows(6), formal.rows(6) + response.rows(6))
    assert (formal + response).provenance.hidden_norm == pytest.approx(norms)
    # A sum has no poles and pairs of its own: those of one part would be a lie.
    assert (made.positive, made.n_pairs) == ("", 0)


def test_vectors_of_different_widths_do_not_combine() -> None:
    with pytest.raises(VectorError, match=r"n_embd 3 and 2"):
        vector(1) + ControlVector({1: row(1, 2)})


def test_vectors_of_models_of_different_depth_do_not_combine() -> None:
    deep = replace(MODEL, name="Deep", n_layer=9)
    with pytest.raises(VectorError, match="Tiny has 6 layers, Deep has 9"):
        vector(1, provenance=of(MODEL)) - vector(1, provenance=of(deep))


def test_vectors_that_know_another_number_of_layers_do_not_combine() -> None:
    with pytest.raises(VectorError, match="Tiny has 6 layers, the other has 2"):
        vector(1, provenance=of(MODEL)) + vector(1, provenance=Provenance(hidden_norm=row(1, 2)))


def test_vectors_of_different_models_of_one_shape_combine() -> None:
    other = replace(MODEL, name="Other", architecture="qwen2", vocabulary="x", content="y")
    assert (vector(1, provenance=of(MODEL)) + vector(2, provenance=of(other))).provenance.model == MODEL


# At a strength


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -2.0])
def test_a_vector_without_a_calibration_is_multiplied(strength: float) -> None:
    made = vector(1, 2, provenance=Provenance(positive="happy", negative="sad"))
    assert np.array_equal(made.at(strength).rows(4), (made * strength).rows(4))
    assert np.array_equal(made.at(strength, "prompt").rows(4), (made * strength).rows(4))
    assert made.at(strength).provenance.positive == ("sad" if strength < 0 else "happy")


@pytest.mark.parametrize("strength", [1.0, 0.25, 3.0, -1.0, -0.5])
@pytest.mark.parametrize("mode", ["response", "prompt"])
def test_a_calibrated_vector_has_a_dose_for_each_pole_and_scope(strength: float, mode: Mode) -> None:
    given = calibrated(MODEL)
    made = given.at(strength, mode)
    pole: Pole = "positive" if strength > 0 else "negative"
    estimate, hidden = given.provenance.estimate, given.provenance.hidden_norm
    assert estimate is not None
    assert hidden is not None
    assert made.layers == LAYERS[pole]
    assert sum(np.linalg.norm(row) / hidden[layer] for layer, row in made.directions.items()) == pytest.approx(
        abs(strength) * DOSES[pole, mode], rel=1e-5
    )
    for layer, direction in made.directions.items():
        assert direction.dtype == np.float32
        cosine = direction @ estimate[layer] / np.linalg.norm(direction) / np.linalg.norm(estimate[layer])
        assert cosine == pytest.approx(np.sign(strength), rel=1e-5)


def test_strength_one_of_a_calibrated_vector_is_the_vector_itself() -> None:
    made = calibrated(MODEL)
    np.testing.assert_allclose(made.at(1).rows(6), made.rows(6), rtol=1e-5)
    assert made.at(1).provenance.positive == "loud"
    assert made.at(-1).provenance.positive == "quiet"


def test_strength_zero_adds_nothing() -> None:
    assert not calibrated(MODEL).at(0).rows(6).any()


NO_QUIET: tuple[tuple[Pole, Mode], ...] = (("negative", "response"), ("negative", "prompt"))


@pytest.mark.parametrize(("mode", "dose"), [("response", 0.05), ("prompt", 0.025), ("anchored", 0.05)])
def test_a_pole_without_a_calibrated_dose_keeps_the_one_that_it_was_built_with(mode: Mode, dose: float) -> None:
    """Six times as much, that of the other pole, may be what makes a model refuse."""
    made = calibrated(MODEL, without=NO_QUIET)
    dosed = replace(made, provenance=replace(made.provenance, dosing=dosing(0.3, 0.05)))
    assert dosed.dose(-1, mode) == dose
    assert relative_dose(dosed.at(-2, mode).rows(6), hidden_norms(MODEL)) == pytest.approx(2 * dose)
    # The other pole goes by its calibration.
    assert np.array_equal(dosed.at(1).rows(6), made.at(1).rows(6))


def test_where_nothing_else_is_known_a_pole_without_a_dose_is_steered_by_the_other_one() -> None:
    made = calibrated(MODEL, without=NO_QUIET)
    assert made.dose(-0.5) == made.dose(1) == DOSES["positive", "response"]
    assert np.array_equal(made.at(-0.5).rows(6), (made * -0.5).rows(6))


def test_a_vector_that_was_never_measured_has_no_dose() -> None:
    assert vector(1).dose(1) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made * 1.0,
        lambda made: made / 2,
        lambda made: -made,
        lambda made: made + made,
        lambda made: made.at(1),
        lambda made: made.at(-1, "prompt"),
    ],
)
def test_arithmetic_ends_a_calibration(change: Callable[[ControlVector], ControlVector]) -> None:
    # What was measured was strength 1 of the vector as it was; twice the new one is twice what it adds.
    made = change(calibrated(MODEL))
    assert made.provenance.calibration is None
    assert np.array_equal(made.at(-2).rows(6), (made * -2).rows(6))


def test_a_trimmed_calibrated_vector_stays_trimmed() -> None:
    made = calibrated(MODEL).only([2])
    assert made.at(1).layers == made.at(-1).layers == (2,)


# Layers


def test_only_some_layers() -> None:
    made = vector(1, 2, 3, 4, provenance=of(MODEL)).only(range(2, 4))
    assert made.layers == (2, 3)
    assert np.array_equal(made.directions[3], row(3, 1, 0))
    assert made.provenance.model == MODEL
    assert vector(1, 2).only(range(2, 99)).layers == (2,)
    assert vector(1, 2, 3).only(layer for layer in (3, 1)).layers == (1, 3)


def test_none_of_the_wanted_layers_is_an_error_that_says_which_there_are() -> None:
    with pytest.raises(VectorError, match=r"1-2,5.* none at 3-4"):
        vector(1, 2, 5).only([4, 3])


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([1, 2], "1-2"),
        ([4, 5, 6, 9], "4-6,9"),
        ([9, 5, 4, 6], "4-6,9"),
        ([1, 3, 5], "1,3,5"),
        ([1, 2, 3, 5, 6, 10, 12, 13], "1-3,5-6,10,12-13"),
    ],
)
def test_layers_as_ranges(layers: list[int], text: str) -> None:
    assert format_layers(layers) == text


# Which model it fits


def test_its_own_file_fits_without_a_note() -> None:
    assert vector(1, 5, provenance=of(MODEL)).check_fits(MODEL) is None


def test_a_renamed_file_is_still_its_own() -> None:
    assert vector(1, provenance=of(MODEL)).check_fits(replace(MODEL, name="renamed")) is None


@pytest.mark.parametrize(
    ("own", "note"),
    [
        (replace(MODEL, content="other"), "happy.*another file of the same model"),
        (replace(MODEL, content="another"), "happy.*another file of the same model"),
        (replace(MODEL, name="Other", content="x", vocabulary="x"), "read from Other.*same shape as Tiny"),
        (replace(MODEL, name="Other", content="x", architecture="qwen2"), "read from Other.*same shape as Tiny"),
        (None, "happy does not say which model.*Tiny"),
    ],
)
def test_a_model_that_may_fit_gets_a_note(own: Fingerprint | None, note: str) -> None:
    found = vector(1, 5, provenance=of(own)).check_fits(MODEL, name="happy")
    assert re.search(note, found or "")


@pytest.mark.parametrize("own", [MODEL, None])
def test_another_width_is_refused_with_both_shapes(own: Fingerprint | None) -> None:
    wider = replace(MODEL, name="Wide", n_embd=4, n_layer=8)
    with pytest.raises(VectorError, match=r"^happy does not fit.*n_embd 3, Wide has 8 layers and n_embd 4") as caught:
        vector(1, 5, provenance=of(own)).check_fits(wider, name="happy")
    assert ("6 layers" if own else "up to layer 5") in caught.value.message
    assert caught.value.hint is not None


@pytest.mark.parametrize("n_layer", [5, 7])
def test_another_number_of_layers_is_refused(n_layer: int) -> None:
    with pytest.raises(VectorError, match=f"6 layers.*Tiny has {n_layer} layers"):
        vector(1, provenance=of(MODEL)).check_fits(replace(MODEL, n_layer=n_layer))


def test_a_foreign_vector_may_steer_up_to_the_last_layer() -> None:
    assert vector(5).check_fits(MODEL) is not None
    with pytest.raises(VectorError, match="up to layer 6"):
        vector(6).check_fits(MODEL)
