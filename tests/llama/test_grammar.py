"""Grammars that a tiny model follows, and those that cannot be followed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama import json_schema
from localsteer.llama.grammar import Grammar, Matcher
from localsteer.llama.model import Model
from tests.tiny_models import SPECIAL_TOKENS, VOCABULARY

END = VOCABULARY.index("<|im_end|>")
START = VOCABULARY.index("<|im_start|>")


def allowed(matcher: Matcher) -> set[int]:
    return set(np.flatnonzero(matcher.allowed()).tolist())


def test_it_says_token_by_token_what_may_come_next(tiny: Model) -> None:
    matcher = Grammar(tiny, 'start: "the" | "to"').matcher()
    assert allowed(matcher) == {ord("t")}
    assert (matcher.allows(ord("t")), matcher.allows(ord("h")), matcher.is_complete) == (True, False, False)
    matcher.accept(ord("t"))
    he = VOCABULARY.index("he")
    assert allowed(matcher) == {ord("h"), ord("o"), he}
    matcher.accept(he)
    assert matcher.is_complete
    assert allowed(matcher) == {token for token in range(tiny.n_vocab) if tiny.is_end(token)}
    assert matcher.allows(END)


def test_an_end_may_come_wherever_a_text_is_complete(tiny: Model) -> None:
    matcher = Grammar(tiny, 'start: "a"+').matcher()
    assert not matcher.allows(END)
    matcher.accept(ord("a"))
    assert (matcher.allows(END), matcher.allows(ord("a")), matcher.is_complete) == (True, True, False)
    matcher.accept(END)
    assert matcher.is_complete


def test_each_answer_begins_anew(tiny: Model) -> None:
    grammar = Grammar(tiny, 'start: "a" "b"')
    one, other = grammar.matcher(), grammar.matcher()
    one.accept(ord("a"))
    assert allowed(one) == {ord("b")}
    assert allowed(other) == allowed(grammar.matcher()) == {ord("a")}


def test_tokens_that_add_no_text_have_names_and_numbers(tiny: Model) -> None:
    matcher = Grammar(tiny, f'start: <|im_start|> <[{START}]> "x"').matcher()
    for _ in range(2):
        assert allowed(matcher) == {START}
        matcher.accept(START)
    assert allowed(matcher) == {ord("x")}
    # Their names are text where they stand as text.
    spelled = Grammar(tiny, f'start: "{SPECIAL_TOKENS[1]}"').matcher()
    assert allowed(spelled) == {ord("<")}


def test_no_half_of_a_character_is_left(tiny: Model) -> None:
    matcher = Grammar(tiny, "start: /.{1,3}/").matcher()
    for byte in "é".encode()[:1], "é".encode()[1:]:
        assert not matcher.allows(END)
        matcher.accept(byte[0])
    assert matcher.allows(END)
    assert not matcher.allows(0xFF)


@pytest.mark.parametrize(
    "lark",
    [
        "",
        "yes or no",
        'word: "yes"',
        "start: word",
        'start: "yes',
        "start: /[a-z/",
        "start: /(?=a)/",
        "start: <|no such token|>",
        "start: <[5000]>",
        "start: start",
        'start: "\ud800"',
        'start: "\0"',
        'start: x\nx[lazy, temperature=0.5]: "a"',
        'start: %json {"type": "no type"}',
        f'start: "{"x" * 400_000}"',
    ],
)
def test_a_grammar_that_cannot_be_read_is_an_error(tiny: Model, lark: str) -> None:
    with pytest.raises(LocalsteerError, match="grammar"):
        Grammar(tiny, lark)


def chain(rule: str, last: str, count: int) -> str:
    rules = "\n".join(rule.format(number, number + 1) for number in range(count))
    return f"start: {last}0\n{rules}\n{last}{count}: 'a'".replace("'", '"')


PATTERNS = [{"type": "string", "pattern": f"a{number}"} for number in range(300)]


# Some of them ended the process, others took minutes, or gigabytes.
@pytest.mark.parametrize(
    "lark",
    [
        chain("r{}: r{}", "r", 20_000),
        chain("A{}: 'x' A{}", "A", 10_000),
        "start: " + "(" * 20_000 + '"a"' + ")" * 20_000,
        "start: /" + "(" * 2000 + "a" + ")" * 2000 + "/",
        "start: x\nx: " + " | ".join(f'"a" x "b{number}"' for number in range(3000)) + ' | ""',
        'start: a::0x7fffffffffffffff\na::_: "x" | a::incr(_)',
        json_schema.of_schema({"allOf": PATTERNS}),
        json_schema.of_schema({"type": "object", "patternProperties": {f"^a.*{n}b": {} for n in range(300)}}),
        json_schema.of_schema({"type": "string", "pattern": f"^{'a?' * 5000}$"}),
    ],
    ids=range(9),
)
def test_what_is_too_much_is_an_error(tiny: Model, lark: str) -> None:
    with pytest.raises(LocalsteerError, match="grammar"):
        Grammar(tiny, lark)


@pytest.mark.parametrize(
    "schema", [{"type": "string", "pattern": "^(a?){1000}$"}, {"type": "string", "pattern": "^(((.?){1000}){1000}){1000}$"}]
)
def test_a_pattern_that_counts_far_is_followed_or_gives_up(tiny: Model, schema: dict[str, Any]) -> None:
    matcher = Grammar.from_schema(tiny, schema).matcher()
    with contextlib.suppress(ModelError):
        for character in b'"aaaaaaaaaaaa':
            assert matcher.allowed()[character]
            matcher.accept(character)


def test_gbnf_and_lark_mean_the_same(tiny: Model) -> None:
    for grammar in (Grammar.from_text(tiny, 'root ::= "a" [b-d]'), Grammar.from_text(tiny, "start: /a[b-d]/")):
        matcher = grammar.matcher()
        matcher.accept(ord("a"))
        assert allowed(matcher) == set(b"bcd")


def test_a_text_that_is_too_long_is_not_looked_into(tiny: Model) -> None:
    with pytest.raises(LocalsteerError, match="1,000,000 characters"):
        Grammar.from_text(tiny, "x" * 1_000_000)


# Where the work grew with the square of the lines, the first took hours; where with tokens times names, the second took 10 s.
def test_what_is_long_and_says_little_is_read_soon(tiny: Model) -> None:
    assert allowed(Grammar(tiny, 'start: "a"' + "\n" * 350_000).matcher()) == {ord("a")}

    class ManyTokens:
        n_vocab = 40_000

        end_tokens = frozenset({256})

        def token_bytes(self, token: int, *, special: bool = False) -> bytes:
            return bytes([token]) if token < 256 else f"<unused{token}>".encode() if special else b""

    model: Any = ManyTokens()
    matcher = Grammar(model, "start: <unused300>\n//" + " <unused" * 40_000).matcher()
    assert allowed(matcher) == {300}


def test_its_parser_is_loaded_where_a_grammar_is_made() -> None:
    code = "import sys, localsteer.commands, localsteer.llama.sampling; print('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_its_parser_it_says_what_to_install(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(LocalsteerError, match="pip install llguidance"):
        Grammar(tiny, 'start: "a"')
