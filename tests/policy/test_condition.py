from __future__ import annotations

import warnings
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsteer.policy.condition import ConditionError, parse_condition


def holds(text: str, **values: bool) -> bool:
    return parse_condition(text).holds(values.__getitem__)


def asked(text: str, values: Mapping[str, bool]) -> list[str]:
    """The names that were asked for, in their order."""
    names: list[str] = []

    def value_of(name: str) -> bool:
        names.append(name)
        return values[name]

    parse_condition(text).holds(value_of)
    return names


# What holds


@pytest.mark.parametrize("a", [False, True])
@pytest.mark.parametrize("b", [False, True])
def test_a_condition_of_two_classifiers_holds_as_it_reads(a: bool, b: bool) -> None:
    assert holds("a", a=a) == a
    assert holds("not a", a=a) == (not a)
    assert holds("a and b", a=a, b=b) == (a and b)
    assert holds("a or b", a=a, b=b) == (a or b)
    assert holds("a and not b", a=a, b=b) == (a and not b)
    assert holds("not (a or b)", a=a, b=b) == (not (a or b))
    assert holds("not a or b", a=a, b=b) == ((not a) or b)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a or b and c", "a or (b and c)"),
        ("a and b or c", "(a and b) or c"),
        ("not a and b", "(not a) and b"),
        ("not a or b and not c", "(not a) or (b and (not c))"),
    ],
)
def test_not_binds_closer_than_and_and_and_closer_than_or(text: str, same: str) -> None:
    for number in range(8):
        values = {name: bool(number >> place & 1) for place, name in enumerate("abc")}
        assert holds(text, **values) == holds(same, **values)
    assert {holds(text, a=a, b=b, c=False) for a in (False, True) for b in (False, True)} == {False, True}


def test_parentheses_change_what_holds() -> None:
    assert holds("a or b and c", a=True, b=False, c=False)
    assert not holds("(a or b) and c", a=True, b=False, c=False)


def test_names_are_told_once_and_in_their_order() -> None:
    assert parse_condition("c and (a or not b) and a or c").names == ("c", "a", "b")


def test_space_around_and_within_a_condition_does_not_matter() -> None:
    assert parse_condition("  a   and\tb ").names == ("a", "b")
    assert holds("\n(a\n or b)\n", a=False, b=True)


@pytest.mark.parametrize("text", ["(" * 100 + "a" + ")" * 100, "not " * 50 + "a", " or ".join(["a"] * 5000)])
def test_long_and_nested_conditions_hold(text: str) -> None:
    assert holds(text, a=True)


# What is asked


@pytest.mark.parametrize(
    ("text", "values", "names"),
    [
        ("cheap and costly", {"cheap": False}, ["cheap"]),
        ("cheap and costly", {"cheap": True, "costly": False}, ["cheap", "costly"]),
        ("cheap or costly", {"cheap": True}, ["cheap"]),
        ("cheap or costly", {"cheap": False, "costly": True}, ["cheap", "costly"]),
        ("cheap and not costly", {"cheap": False}, ["cheap"]),
        ("a and b and c", {"a": True, "b": False}, ["a", "b"]),
        ("(a or b) and c", {"a": True, "c": True}, ["a", "c"]),
        ("a or not (b and c)", {"a": False, "b": False}, ["a", "b"]),
    ],
)
def test_what_cannot_change_the_outcome_is_not_asked_for(text: str, values: dict[str, bool], names: list[str]) -> None:
    assert asked(text, values) == names


def test_nothing_is_asked_for_when_a_condition_is_parsed() -> None:
    condition = parse_condition("a and b")
    with pytest.raises(KeyError, match="a"):
        condition.holds(dict[str, bool]().__getitem__)


# What is refused


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a and f(b)", "f(b)"),
        ("a.b", "a.b"),
        ("a or b[0]", "b[0]"),
        ("a == b", "a == b"),
        ("a and score > 0.5", "score > 0.5"),
        ("a is b", "a is b"),
        ("1", "1"),
        ("a or 0", "0"),
        ("True", "True"),
        ("not None", "None"),
        ("'a'", "'a'"),
        ("a & b", "a & b"),
        ("~a", "~a"),
        ("-a", "-a"),
        ("leak-ing", "leak-ing"),
        ("a, b", "a, b"),
        ("a if b else c", "a if b else c"),
        ("lambda: a", "lambda: a"),
        ("[a]", "[a]"),
        ("(a := b)", "a := b"),
        ("__import__('os').system('true')", "__import__('os').system('true')"),
        ("a and (b.\nc)", "b.\nc"),
    ],
)
def test_what_is_more_than_names_and_the_four_is_refused_and_shown(text: str, shown: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_condition(text)
    assert str(caught.value).startswith(f'"{shown}" has no place in a condition: join names of classifiers by "and"')


@pytest.mark.parametrize(
    "text", ["", "  ", "a b", "a and", "and", "not", "(a", "a)", "a && b", "a || b", "!a", "pass", "a = b", "é-", "\0", "# a"]
)
def test_what_does_not_parse_is_refused_and_shown(text: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_condition(text)
    assert str(caught.value) == f'"{text.strip()}" is no condition such as "leaking and not friendly"'


@pytest.mark.parametrize("text", [r"'\d' and a", "1or a", "0x1for a"])
def test_what_python_thinks_of_it_is_not_printed(text: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ConditionError):
            parse_condition(text)
    assert [str(one.message) for one in told] == []


@pytest.mark.parametrize("count", [101, 300, 1500, 20_000, 200_000])
def test_nesting_that_would_break_an_answer_is_refused_when_it_is_parsed(count: int) -> None:
    for text in ("not " * count + "a", "(" * count + "a" + ")" * count if count > 200 else "not " * count + "b"):
        with pytest.raises(ConditionError):
            parse_condition(text)


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".b" * 3000,
        "a" + "()" * 3000,
        "-" * 3000 + "a",
        "0x" + "f" * 6000,
        "9" * 6000,
        "f'{a!r:{b}}'",
        "f'''{a\n}'''",
        "b'\\xff'",
    ],
    ids=["attributes", "calls", "signs", "hexadecimal", "decimal", "format", "lines", "bytes"],
)
def test_what_is_hard_to_print_is_refused_all_the_same(text: str) -> None:
    with pytest.raises(ConditionError):
        parse_condition(text)


TOKENS = [
    "a",
    "b",
    "_c1",
    "and",
    "or",
    "not",
    "(",
    ")",
    "if",
    "else",
    "lambda",
    ":",
    "-",
    ".",
    ",",
    "[",
    "]",
    "1",
    "'",
    '"',
    "\\",
]
TOKENS += [
    "{",
    "}",
    "f'",
    "=",
    "<",
    "*",
    "await",
    "yield",
    "for",
    "in",
    "is",
    "#",
    "\n",
    "\t",
    " ",
    "é",
    "ﬁ",
    "\0",
    "\ud800",
    ";",
    "...",
]


@settings(max_examples=1000)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(TOKENS), max_size=14).map(" ".join)))
def test_any_text_is_a_condition_or_a_condition_error(text: str) -> None:
    try:
        condition = parse_condition(text)
    except ConditionError:
        return
    assert condition.names
    assert condition.holds(lambda _: True) in (False, True)
    assert set(asked(text, dict.fromkeys(condition.names, False))) <= set(condition.names)


NAMES = st.sampled_from(["a", "b", "c", "d"])
CONDITIONS = st.recursive(
    NAMES,
    lambda inner: st.one_of(
        inner.map("not ({})".format),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: " and ".join(f"({part})" for part in parts)),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: " or ".join(f"({part})" for part in parts)),
    ),
    max_leaves=12,
)


@given(CONDITIONS, st.fixed_dictionaries({name: st.booleans() for name in "abcd"}))
def test_a_condition_holds_where_python_says_so(text: str, values: dict[str, bool]) -> None:
    assert holds(text, **values) == eval(text, {"__builtins__": {}}, values)
