from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.errors import ExpressionError, LocalsteerError, VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.steering.expression import Steering, Term, parse_steering
from localsteer.steering.plan import Plan, relative_dose, resolve, resolve_opposite
from localsteer.vector.calibration import Interval, Mode, Pole
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import DOSES, LAYERS, calibrated
from tests.vector.test_probe import PROBE

Floats = NDArray[np.float32]

MODEL = Fingerprint("Tiny", "llama", 6, 4, "vocabulary", "content")
NORMS = np.array([np.nan, 1, 2, 4, 8, 16], np.float32)


def added(vector: str, strength: float = 1.0, first: int | None = None, last: int | None = None) -> Term:
    return Term(vector, strength, None if first is None else (first, last or first))


def removed(vector: str, first: int | None = None, last: int | None = None) -> Term:
    return Term(vector, 1.0, None if first is None else (first, last or first), ablate=True)


# Reading an expression

READINGS: list[tuple[str, list[Term]]] = [
    ("", []),
    ("  \t\n", []),
    ("happy", [added("happy")]),
    ("  happy  ", [added("happy")]),
    ("+happy", [added("happy")]),
    ("+ happy", [added("happy")]),
    ("-happy", [added("happy", -1)]),
    ("- happy", [added("happy", -1)]),
    ("0.5 happy", [added("happy", 0.5)]),
    ("0.5*happy", [added("happy", 0.5)]),
    ("0.5 * happy", [added("happy", 0.5)]),
    ("- 0.5 happy", [added("happy", -0.5)]),
    ("-.5 happy", [added("happy", -0.5)]),
    ("2. happy", [added("happy", 2)]),
    ("0 happy", [added("happy", 0)]),
    ("1e-3 happy", [added("happy", 0.001)]),
    ("1E+2 happy", [added("happy", 100)]),
    ("2.5e1*happy", [added("happy", 25)]),
    ("0.5 'happy'", [added("happy", 0.5)]),
    ("0.5'happy'", [added("happy", 0.5)]),
    ("happy + sad", [added("happy"), added("sad")]),
    ("happy+sad", [added("happy"), added("sad")]),
    ("happy+0.5 sad", [added("happy"), added("sad", 0.5)]),
    ("happy - sad", [added("happy"), added("sad", -1)]),
    ("happy -sad", [added("happy"), added("sad", -1)]),
    ("happy-sad", [added("happy-sad")]),
    ("happy-sad-0.5", [added("happy-sad-0.5")]),
    ("-happy-sad - glad-mad", [added("happy-sad", -1), added("glad-mad", -1)]),
    ('"happy"-sad', [added("happy"), added("sad", -1)]),
    ("happy@3 -sad", [added("happy", 1, 3), added("sad", -1)]),
    ("happy@10-20", [added("happy", 1, 10, 20)]),
    ("happy@7", [added("happy", 1, 7)]),
    ("happy@1-1", [added("happy", 1, 1)]),
    ("0.5 happy@10-20+sad@3-4", [added("happy", 0.5, 10, 20), added("sad", 1, 3, 4)]),
    (
        "0.5 happy + 0.3 formal - verbose@10-20",
        [added("happy", 0.5), added("formal", 0.3), added("verbose", -1, 10, 20)],
    ),
    ("!refusal", [removed("refusal")]),
    ("! refusal", [removed("refusal")]),
    ("+!refusal", [removed("refusal")]),
    ("!refusal@2-3", [removed("refusal", 2, 3)]),
    ("happy + !refusal - sad", [added("happy"), removed("refusal"), added("sad", -1)]),
    ("happy+!refusal", [added("happy"), removed("refusal")]),
    ("!'my refusal'@4", [removed("my refusal", 4)]),
    ("!0.5", [removed("0.5")]),
    # One name twice is two terms: their order and layers are the user's.
    ("happy + happy@2", [added("happy"), added("happy", 1, 2)]),
    # What looks like a number, or begins like one, and is a name.
    ("3d", [added("3d")]),
    ("2 3d", [added("3d", 2)]),
    ("1e5x", [added("1e5x")]),
    ("0.5happy", [added("0.5happy")]),
    ("'0.5'", [added("0.5")]),
    ("2 '0.5'", [added("0.5", 2)]),
    # Paths.
    ("./happy.gguf", [added("./happy.gguf")]),
    ("0.5 /models/v1.2/happy_3.gguf@2-4", [added("/models/v1.2/happy_3.gguf", 0.5, 2, 4)]),
    ("~/happy.gguf - ../sad.gguf", [added("~/happy.gguf"), added("../sad.gguf", -1)]),
    (r"C:\vectors\happy.gguf", [added(r"C:\vectors\happy.gguf")]),
    ('"my vectors/happy + sad@3.gguf"', [added("my vectors/happy + sad@3.gguf")]),
    ("'say \"hi\".gguf'@3", [added('say "hi".gguf', 1, 3)]),
    ("\"it's\" + 'b'", [added("it's"), added("b")]),
    ("glücklich + 幸せ", [added("glücklich"), added("幸せ")]),
]


@pytest.mark.parametrize(("expression", "terms"), READINGS, ids=[repr(expression) for expression, _ in READINGS])
def test_reading_and_printing_and_reading_again(expression: str, terms: list[Term]) -> None:
    steering = parse_steering(expression)
    assert steering == Steering(tuple(terms))
    assert parse_steering(str(steering)) == steering


DATED = [
    ("2024-01-05.gguf", [added("2024-01-05.gguf")]),
    ("0.5 7-up", [added("7-up", 0.5)]),
    ("!3-d@4", [removed("3-d", 4)]),
]


@pytest.mark.parametrize(("expression", "terms"), DATED)
def test_a_name_may_begin_with_a_number_and_a_minus(expression: str, terms: list[Term]) -> None:
    assert parse_steering(expression) == Steering(tuple(terms))
    assert parse_steering(str(Steering(tuple(terms)))) == Steering(tuple(terms))


ERRORS = [
    # Each expression, the column under which the caret stands, and a word of the message.
    ("+", 1, "name"),
    ("happy +", 7, "name"),
    ("happy + ", 8, "name"),
    ("happy + + sad", 8, "name"),
    ("happy - - sad", 8, "name"),
    ("--happy", 1, "name"),
    ("+-happy", 1, "name"),
    ("0.5", 3, "name"),
    ("0.5 ", 4, "name"),
    ("0.5 *", 5, "name"),
    ("0.5 -happy", 4, "name"),
    ("*happy", 0, "name"),
    ("@3", 0, "name"),
    ("2 @3", 2, "name"),
    ("!", 1, "name"),
    ("!!happy", 1, "name"),
    ("happy sad", 6, "between"),
    ("happy 0.5 sad", 6, "between"),
    ("happy 0.5", 6, "before the name: 0.5 happy"),
    ("calm + happy@8-23 .5 ", 18, "before the name: 0.5 happy@8-23"),
    ("happy*0.5", 5, "before the name: 0.5 happy"),
    ("0,5 happy", 4, "written with a point: 0.5"),
    ("happy, formal", 7, "not by a comma"),
    ("happy -0.5", 6, "before the name: -0.5 happy"),
    ("happy + 0.5", 6, "before the name: 0.5 happy"),
    ("-happy 0.5", 7, "before the name: -0.5 happy"),
    ("happy 0.5 + sad", 6, "before the name: 0.5 happy"),
    ("'my file.gguf' 0.5", 15, 'before the name: 0.5 "my file.gguf"'),
    ("!happy 0.5", 7, "takes no strength"),
    ("2 happy 0.5", 8, "between"),
    ("'happy' 'sad'", 8, "between"),
    ('happy"sad"', 5, "between"),
    ("happy!sad", 5, "between"),
    ("happy*2", 5, "before the name: 2 happy"),
    ("happy @3", 6, "between"),
    ("happy@3@4", 7, "between"),
    ("happy@3x", 7, "between"),
    ("my vectors/happy.gguf", 3, "between"),
    ("nan happy", 4, "between"),
    ("happy@", 6, "layers"),
    ("happy@ 3", 6, "layers"),
    ("happy@x", 6, "layers"),
    ("happy@-3", 6, "layers"),
    ("happy@0", 6, "Block 0"),
    ("happy@0-4", 6, "Block 0"),
    ("0.5 happy@5-4", 10, "above"),
    ("'happy", 0, "not closed"),
    ("0.5 \"happy'", 4, "not closed"),
    ("happy + ''", 8, "empty"),
    ('!""', 1, "empty"),
    ("-!happy", 1, "minus"),
    ("happy - !sad", 8, "minus"),
    ("0.5 !happy", 4, "strength"),
    ("0.5*!happy", 4, "strength"),
    ("happy + 0.5!sad", 11, "strength"),
    ("happy + 1e999 sad", 8, "too large"),
    ("0.5+happy", 3, "name"),
    ("happy + 0.5@3", 11, "name"),
    ("happy@" + "9" * 5000, 6, "layers"),
]


@pytest.mark.parametrize(("expression", "column", "word"), ERRORS)
def test_mistakes_show_their_place(expression: str, column: int, word: str) -> None:
    with pytest.raises(ExpressionError, match=word) as caught:
        parse_steering(expression)
    assert (caught.value.expression, caught.value.column) == (expression, column)
    problem, shown, caret = caught.value.message.splitlines()
    assert problem.endswith(".")
    assert shown.removeprefix("  ") == expression
    assert caret.index("^") - 2 == column


# Printing one

PRINTED = [
    ([], ""),
    ([added("happy")], "happy"),
    ([added("happy", -1)], "-happy"),
    ([added("happy", 0.5), added("formal", 0.3), added("verbose", -1, 10, 20)], "0.5 happy + 0.3 formal - verbose@10-20"),
    ([added("happy", -2), added("sad", -0.25)], "-2 happy - 0.25 sad"),
    ([added("happy", 3.0)], "3 happy"),
    ([added("happy", 1e-7)], "1e-07 happy"),
    ([added("happy", 0.1 + 0.2)], "0.30000000000000004 happy"),
    ([added("happy", 1, 7)], "happy@7-7"),
    ([removed("refusal", 2, 3), added("happy", -1), removed("b c")], '!refusal@2-3 - happy + !"b c"'),
    ([added("my file.gguf", 0.5)], '0.5 "my file.gguf"'),
    ([added('say "hi"')], "'say \"hi\"'"),
    ([added("it's")], '"it\'s"'),
    ([added("-sad", 1)], '"-sad"'),
    ([added("0.5")], '"0.5"'),
    ([added("1e-3", 1e-3)], '0.001 "1e-3"'),
]


@pytest.mark.parametrize(("terms", "text"), PRINTED, ids=[text for _, text in PRINTED])
def test_printing(terms: list[Term], text: str) -> None:
    assert str(Steering(tuple(terms))) == text
    assert parse_steering(text) == Steering(tuple(terms))


def test_a_term_says_its_own_expression() -> None:
    assert str(added("happy", 0.5, 2, 3)) == "0.5 happy@2-3"


@pytest.mark.parametrize("strength", [1 / 3, 1e-300, 1.7976931348623157e308, 5e-324, 123456789.125, 1e16, 2.0**60])
def test_a_strength_is_printed_to_the_last_bit(strength: float) -> None:
    assert parse_steering(str(Steering((added("happy", -strength),)))).terms[0].strength == -strength


def test_a_name_with_both_quotes_cannot_be_printed() -> None:
    with pytest.raises(LocalsteerError, match="both kinds of quotes"):
        str(Steering((added("\"'"),)))


def random_steering(random: np.random.Generator, letters: str) -> Steering:
    def name() -> str:
        return "".join(random.choice(list(letters), random.integers(1, 8)))

    def layers() -> tuple[int, int] | None:
        first = int(random.integers(1, 40))
        return (first, first + int(random.integers(0, 20))) if random.random() < 0.4 else None

    def strength() -> float:
        return float(random.choice([1, -1, 0.5, round(random.normal(), 2), random.normal() * 10.0 ** random.integers(-30, 30)]))

    terms = [
        Term(name(), 1.0, layers(), ablate=True) if random.random() < 0.2 else Term(name(), strength(), layers())
        for _ in range(random.integers(0, 5))
    ]
    return Steering(tuple(terms))


@pytest.mark.parametrize(
    "letters",
    [
        "ab-",
        "a'-+@*! ",
        'a"-+@*! ',
        "0123456789.ea",
        "./~\\:_ab%$#",
        "äß幸\u00a0\u2028",
        "0123.e-",
    ],
)
def test_whatever_is_printed_reads_the_same(letters: str) -> None:
    random = np.random.default_rng(len(letters))
    for _ in range(200):
        steering = random_steering(random, letters)
        assert parse_steering(str(steering)) == steering


def test_no_text_is_answered_with_anything_but_terms_or_an_expression_error() -> None:
    random = np.random.default_rng(0)
    letters = list("ab01.e+-*!@'\" \t3")
    outcomes: set[bool] = set()
    for _ in range(3000):
        text = "".join(random.choice(letters, random.integers(1, 12)))
        try:
            steering, column = parse_steering(text), None
        except ExpressionError as error:
            steering, column = Steering(), error.column
        outcomes.add(column is None)
        if column is None:
            assert bool(steering) == bool(text.strip())
            assert all(term.vector for term in steering.terms)
        else:
            assert 0 <= column <= len(text)
    assert outcomes == {True, False}


# The opposite


def test_the_opposite_turns_all_signs() -> None:
    opposite = parse_steering("0.5 happy@3-4 - sad").opposite
    assert opposite is not None
    assert str(opposite) == "-0.5 happy@3-4 + sad"


def test_a_removal_has_no_opposite() -> None:
    assert parse_steering("happy + !sad").opposite is None


@pytest.mark.parametrize(("expression", "steers"), [("", False), ("0 happy", True), ("!happy", True)])
def test_only_the_empty_expression_steers_nothing(expression: str, steers: bool) -> None:
    assert bool(parse_steering(expression)) is steers


# What it does to a model


def vector(*layers: int, seed: int = 0, model: Fingerprint | None = MODEL, norms: Floats | None = NORMS) -> ControlVector:
    random = np.random.default_rng(seed)
    directions = {layer: random.standard_normal(MODEL.n_embd).astype(np.float32) for layer in layers}
    return ControlVector(directions, Provenance(model=model, hidden_norm=norms))


HAPPY, SAD = vector(1, 2, 3), vector(2, 3, 4, seed=1)


def plan(expression: str, **vectors: ControlVector) -> Plan:
    known = {"happy": HAPPY, "sad": SAD, **vectors}
    return resolve(parse_steering(expression), MODEL, known.__getitem__)


def rows(vector: ControlVector) -> Floats:
    return vector.rows(MODEL.n_layer)


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


def test_notes_are_told_once_and_in_order() -> None:
    foreign, requantised = vector(1, model=None), vector(2, model=replace(MODEL, content="x"))
    notes = plan("b + happy + a - b", a=foreign, b=requantised).notes
    assert [note.split()[0] for note in notes] == ["b", "a"]


def test_steering_by_a_policys_probe_is_noted() -> None:
    made = vector(1)
    probe = replace(made, provenance=replace(made.provenance, probe=replace(PROBE, layer=made.layers[0])))
    (told,) = plan("felt", felt=probe).notes
    assert f"felt is a policy's probe, fitted to tell texts apart at layer {made.layers[0]}" in told


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


def test_the_relative_dose_by_hand() -> None:
    values = np.array([[0, 0], [3, 4], [0, 0], [0, -6]], np.float32)
    assert relative_dose(values, np.array([np.nan, 10, 7, 3], np.float32)) == pytest.approx(0.5 + 2)


def test_layers_without_a_norm_do_not_count_into_the_dose() -> None:
    values = np.array([[0, 0], [3, 4], [1, 1]], np.float32)
    assert relative_dose(values, np.array([np.nan, 10, np.nan], np.float32)) == pytest.approx(0.5)


def unit(*layers: int) -> ControlVector:
    """A vector whose added norm at every layer is 4."""
    return ControlVector({layer: np.full(4, 2, np.float32) for layer in layers}, Provenance(model=MODEL, hidden_norm=NORMS))


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
        found.refuse_above(0.1)


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

# Layers 1-2 toward loud and 2-3 toward quiet; doses of 0.3 and 0.4, or 0.12 and 0.16 with the prompt steered as well.
LOUD = calibrated(MODEL)
NOT_QUIET: tuple[tuple[Pole, Mode], ...] = (("negative", "response"), ("negative", "prompt"))


def calibrated_plan(
    expression: str,
    mode: Mode = "response",
    *,
    model: Fingerprint = MODEL,
    vectors: Mapping[str, ControlVector] | None = None,
) -> Plan:
    known = {"loud": LOUD, "happy": HAPPY, **(vectors or {})}
    return resolve(parse_steering(expression), model, known.__getitem__, mode)


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
    assert told.endswith("and the budget was 0.25.")


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
    assert notes[1] == "loud was calibrated on Tiny, another file than this model: its doses may not hold here."


def test_a_pole_without_a_dose_takes_that_of_the_other_one_and_says_so() -> None:
    made = calibrated_plan("-0.5 loud", vectors={"loud": calibrated(MODEL, without=NOT_QUIET)})
    assert made.relative_dose == pytest.approx(0.5 * DOSES["positive", "response"])
    (told,) = made.notes
    assert "found no dose toward quiet that does anything within 0.25 nats a token" in told
    assert told.endswith("that of the response toward loud is used.")


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
    assert "found no dose for anchored answers toward loud that does anything within 0.25 nats a token" in told
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


def test_a_strength_far_past_a_pole_without_a_dose_is_past_the_calibrated_range_too() -> None:
    notes = calibrated_plan("-5 loud", vectors={"loud": calibrated(MODEL, without=NOT_QUIET)}).notes
    assert any("past the calibrated range" in note for note in notes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strength", ["1e39", "1e300", "-1e300"])
def test_a_calibrated_strength_that_overflows_is_refused(strength: str) -> None:
    with pytest.raises(VectorError, match=r"loud.* too large"):
        calibrated_plan(f"{strength} loud")


# The dose guard


def test_a_plan_within_the_largest_dose_is_let_through() -> None:
    calibrated_plan("loud").refuse_above(0.3)
    calibrated_plan("loud").refuse_above(5)
    calibrated_plan("loud - loud").refuse_above(0.401)


@pytest.mark.parametrize("expression", ["!loud", "0.1 loud + !loud"])
def test_a_removal_cannot_be_held_below_a_dose(expression: str) -> None:
    with pytest.raises(LocalsteerError) as caught:
        calibrated_plan(expression).refuse_above(1000)
    assert expression in caught.value.message
    assert "--max-dose" in (caught.value.hint or "")


def test_a_plan_above_the_largest_dose_is_refused_with_both() -> None:
    with pytest.raises(LocalsteerError) as caught:
        calibrated_plan("-loud").refuse_above(0.2)
    assert caught.value.message == "-loud has a relative dose of 0.40, and --max-dose allows 0.2."
    assert "0.5 times" in (caught.value.hint or "")


@pytest.mark.parametrize("max_dose", [0.2, 0.1, 0.0021, 0.29])
def test_the_strength_that_the_guard_proposes_is_let_through(max_dose: float) -> None:
    with pytest.raises(LocalsteerError, match="--max-dose allows") as caught:
        calibrated_plan("loud").refuse_above(max_dose)
    factor = (caught.value.hint or "").split("A strength of ")[1].split(" times")[0]
    assert float(factor) > 0
    calibrated_plan(f"{factor} loud").refuse_above(max_dose)


def test_a_dose_that_is_unknown_is_not_let_through() -> None:
    with pytest.raises(LocalsteerError, match="relative dose of a is unknown") as caught:
        plan("a", a=vector(1, norms=None)).refuse_above(100)
    assert "localsteer calibrate" in (caught.value.hint or "")


def test_a_layer_whose_norm_nobody_measured_is_not_let_through_either() -> None:
    # It is left out of the relative dose, which says little then.
    norms = np.where(np.arange(6) == 3, np.float32(np.nan), NORMS)
    with pytest.raises(LocalsteerError, match="unknown"):
        plan("100 a@3", a=vector(2, 3, norms=norms)).refuse_above(0.1)
