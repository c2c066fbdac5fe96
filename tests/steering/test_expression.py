from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from localsteer.errors import ExpressionError, LocalsteerError
from localsteer.steering.expression import PHASES, Steering, Term, parse_steering


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
    # The part of the reply.
    ("0.5 happy@answer", [added("happy", 0.5)]),
    ("0.5 happy@thinking - sad", [replace(added("happy", 0.5), phase="thinking"), added("sad", -1)]),
    ("happy@2-3@thinking+sad@3@answer", [replace(added("happy", 1, 2, 3), phase="thinking"), added("sad", 1, 3)]),
    ("!refusal@thinking", [replace(removed("refusal"), phase="thinking")]),
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
    ("happy@thinkin", 6, "answer or thinking"),
    ("happy@thinking@3", 14, "between"),
    ("happy@thinking@answer", 14, "between"),
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
    assert shown.removeprefix("  ") == expression[: column + 400]  # of a long one what is around the place
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
    for term, text in (
        (added("happy", 0.5, 2, 3), "0.5 happy@2-3"),
        (added("happy", -0.5, 2, 3), "-0.5 happy@2-3"),
        (added("happy", -1), "-happy"),
        (added("-sad", -1), '-"-sad"'),
        (removed("happy"), "!happy"),
    ):
        assert str(term) == text
        assert parse_steering(text) == Steering((term,))


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
        Term(name(), 1.0, layers(), ablate=True, phase=random.choice(PHASES))
        if random.random() < 0.2
        else Term(name(), strength(), layers(), phase=random.choice(PHASES))
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
