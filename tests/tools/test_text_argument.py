"""Texts without quotes, between tags: what their schemas want of them holds, and what ends them cannot stand in them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.tools.form import Form, Tags
from localsteer.tools.grammar import tool_grammar
from localsteer.tools.parser import ToolCallParser
from localsteer.tools.tool import Tool, ToolCall, tool_of
from tests.tools.made import DEEPSEEK_4, GLM, QWEN_CODER, written
from tests.tools.test_grammar import Choice, follows

FORMS = {"qwen coder": QWEN_CODER, "glm": GLM, "deepseek 4": DEEPSEEK_4}
CHOICES: tuple[Choice, ...] = ("auto", "required")
DEFINITIONS = {"name": {"type": "string", "minLength": 1, "maxLength": 3}, "colour": {"enum": ["red", "blue"]}}

BOUNDED: dict[str, Any] = {
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "longest": {"type": "string", "maxLength": 3},
    "pattern": {"type": "string", "pattern": "^[a-z]{3}-[0-9]{1,2}$"},
    "found anywhere": {"type": "string", "pattern": "b+c", "maxLength": 6},
    "alternatives": {"type": "string", "pattern": r"^\d{2}/\w$|x", "maxLength": 5},
    "classes": {"type": "string", "pattern": r"^[^\d/]\D\s\S.$"},
    "constants": {"type": "string", "enum": ["red", "blue", "</parameter>", "</arg_value>", "</｜DSML｜parameter>"]},
    "constants and more": {"type": "string", "enum": ["red", "blue"], "minLength": 4},
    "reference": {"$ref": "#/$defs/name"},
    "reference to constants": {"$ref": "#/$defs/colour"},
    "all": {"allOf": [{"type": "string"}, {"$ref": "#/$defs/name"}, {"pattern": "^[xy]"}]},
    "any": {"anyOf": [{"type": "string", "const": "a"}, {"type": "string", "minLength": 3, "maxLength": 3}]},
    "or null": {"type": ["string", "null"], "maxLength": 4},
    "one or null": {"oneOf": [{"type": "null"}, {"type": "string", "pattern": "^[0-9]{2}$"}]},
    "nothing": {"type": "string", "maxLength": 0},
    **{name: {"type": "string", "format": name} for name in ("date", "time", "date-time", "ipv4", "ipv6", "uuid")},
}


def tool(argument: object) -> Tool:
    parameters = {"type": "object", "$defs": DEFINITIONS, "properties": {"a": argument}, "required": ["a"]}
    return tool_of({"type": "function", "function": {"name": "say", "parameters": parameters}})


def drawn(model: Model, lark: str, seed: int) -> str:
    """What a model of random weights writes."""
    random = np.random.default_rng(seed)
    matcher = Grammar(model, lark).matcher()
    text = b""
    while not matcher.is_complete:
        allowed = np.flatnonzero(matcher.allowed())
        token = int(random.choice(allowed))
        if model.is_end(token):
            if allowed.size == 1:
                break
            continue
        text += model.token_bytes(token)
        matcher.accept(token)
        assert len(text) < 2000
    return text.decode()


@pytest.mark.parametrize("argument", BOUNDED.values(), ids=BOUNDED)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_model_of_random_weights_writes_what_the_schema_wants(tiny: Model, form: Form, argument: dict[str, Any]) -> None:
    one = tool(argument)
    lark = tool_grammar(form, [one], choice="required", parallel=False)
    validator = jsonschema.Draft202012Validator(one.parameters, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for seed in range(4):
        text = drawn(tiny, lark, seed)
        parser = ToolCallParser(form, [one])
        (call,) = [*parser.push(text), *parser.finish()]
        assert isinstance(call, ToolCall), text
        validator.validate(json.loads(call.arguments))


@pytest.mark.parametrize(
    ("argument", "allowed", "refused"),
    [
        ({"type": "string", "minLength": 2}, ["ab", "a longer text\n"], ["", "a"]),
        ({"type": "string", "pattern": "^a"}, ["a", "ab\nc"], ["", "ba"]),
        ({"type": "string", "pattern": "a$"}, ["a", "x\na"], ["ab"]),
        ({"type": "string", "pattern": r"^\$[0-9]+\.\d{2}$"}, ["$3.50"], ["3.50", "$3.5", "$3,50"]),
        ({"type": "string", "pattern": "^[[a]$"}, ["[", "a"], ["b"]),
        ({"type": "string", "pattern": "^[a-c&&b~~d]+$"}, ["a", "&", "~d"], ["e"]),
        ({"type": "string", "pattern": r"^[+--][--/][a\-][\w-z][\b^][x-]$"}, [",.--^-", "-/az\bx"], [",.b--x", ".-a-^x"]),
        ({"type": "string", "pattern": r"^[\u0041-\x43\[\]]+$"}, ["AB", "C[]"], ["D", "u"]),
        ({"type": "string", "pattern": r"^[^\s]+$"}, ["ab"], ["a b", "a\u00a0", "\ufeff", "\u2028b", "\u3000"]),
        ({"type": "string", "pattern": r"^\S[\S]$"}, ["ab"], ["a\u00a0", "\ufeffb", "a "]),
        ({"type": "string", "pattern": r"^[^\S]?x[^\D\W]?$"}, [" x1", "x"], ["yx", "\u0085x", "x\u0663"]),
        ({"type": "string", "pattern": r"^[(?=]\(?=$"}, ["(=", "?(="], ["a="]),
        ({"type": "string", "pattern": "^a/b|c$"}, ["a/b...", "...c"], ["b", "c."]),
        ({"type": "string", "format": "email"}, ["ann@example.org"], ["ann", "ann@", "@example.org"]),
        ({"type": "string", "format": "uri"}, ["https://example.org/a?b=c#d", "mailto:ann@example.org"], ["example", "a b"]),
        ({"type": "string", "format": "hostname"}, ["www.example.org"], ["-a", "a b"]),
        ({"type": "string", "format": "duration"}, ["P1DT2H", "PT5M", "P3W"], ["P", "PT", "1D"]),
        ({"type": "string", "format": "password"}, ["anything"], []),
        ({"type": ["string", "null"], "minLength": 2}, ["ab", None], ["a"]),
    ],
)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_texts_are_let_through_that_satisfy_their_schema(
    form: Form, argument: dict[str, Any], allowed: list[Any], refused: list[Any]
) -> None:
    for choice in CHOICES:
        lark = tool_grammar(form, [tool(argument)], choice=choice)
        for value in allowed:
            assert follows(lark, written(form, ("say", {"a": value}))), value
        for value in refused:
            assert not follows(lark, written(form, ("say", {"a": value}))), value


@pytest.mark.parametrize("argument", [{"type": "string"}, {"type": "string", "maxLength": 99}, {"type": ["string", "null"]}])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_ends_a_text_cannot_stand_in_it(form: Form, argument: dict[str, Any]) -> None:
    assert form.tags is not None
    lark = tool_grammar(form, [tool(argument)], choice="required")
    for inside in (form.tags.after, form.tags.after.strip()):
        assert not follows(lark, written(form, ("say", {"a": f"x{inside}y"})))
    assert follows(lark, written(form, ("say", {"a": f"x{form.tags.after.strip()[:-1]} y"})))


def test_what_ends_a_text_may_be_a_token(tiny: Model) -> None:
    end = "<|im_start|>"
    tags = Tags("<k>", "</k>", "</k>", f"\n{end}\n")
    form = Form("named", head="<call>", middle="", tail="</call>", between="", tags=tags)
    one = tool({"type": "string", "minLength": 2, "maxLength": 3})
    lark = tool_grammar(form, [one], choice="required", parallel=False, marks=tiny.control_tokens_in(*form.texts))
    assert end not in drawn(tiny, lark, 1)  # it adds no text
    matcher = Grammar(tiny, lark).matcher()
    for character in "<call>say<k>a</k>x\ny\n":
        matcher.accept(ord(character))
    (token,) = tiny.control_tokens_in(end).values()
    assert matcher.allows(token)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, "looks around"),
        ({"type": "string", "pattern": r"(a)\1"}, "refers back"),
        ({"type": "string", "pattern": "(?<!a)b"}, "looks around"),
        ({"type": "string", "pattern": r"\ba"}, "edge of a word"),
        ({"type": "string", "pattern": "a(^b)"}, "middle"),
        ({"type": "string", "$ref": "#name"}, "#name"),
        ({"type": "string", "$ref": "other.json#/a"}, "other.json"),
        ({"type": "string", "pattern": 7}, "pattern"),
        ({"type": "string", "not": {"const": "a"}}, "not"),
        ({"type": "string", "format": "iri"}, "iri"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "string", "minLength": "3"}, "length"),
        ({"type": "string", "maxLength": float("inf")}, "length"),
        ({"type": "string", "oneOf": [{"minLength": 2}, {"maxLength": 4}]}, "oneOf"),
        ({"type": "string", "allOf": [{"$ref": "#/properties/a"}]}, "itself"),
        ({"type": "string", "const": 1}, "no value"),
        ({"type": "string", "enum": []}, "no value"),
        (False, "no value"),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_name(argument: object, said: str) -> None:
    with pytest.raises(LocalsteerError, match=f'"say".*"a".*{said}'):
        tool_grammar(QWEN_CODER, [tool(argument)], choice="auto")


def test_an_argument_that_can_have_no_value_is_left_out() -> None:
    parameters = {"type": "object", "properties": {"a": False, "b": {"type": "string"}}, "required": ["b"]}
    one = tool_of({"type": "function", "function": {"name": "say", "parameters": parameters}})
    lark = tool_grammar(QWEN_CODER, [one], choice="required")
    assert follows(lark, written(QWEN_CODER, ("say", {"b": "x"})))
    assert not follows(lark, written(QWEN_CODER, ("say", {"a": 1, "b": "x"})))


def test_a_short_schema_that_says_very_much_is_refused_at_once() -> None:
    twice = {f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}] * 2} for number in range(20)}
    parameters = {"type": "object", "$defs": {**twice, "d20": {"type": "string", "minLength": 1}}}
    parameters |= {"properties": {"a": {"$ref": "#/$defs/d0"}}}
    one = tool_of({"type": "function", "function": {"name": "say", "parameters": parameters}})
    with pytest.raises(LocalsteerError, match="too much"):
        tool_grammar(QWEN_CODER, [one], choice="auto")


def test_a_text_may_be_long(tiny: Model) -> None:
    Grammar(tiny, tool_grammar(QWEN_CODER, [tool({"type": "string", "maxLength": 1_000_000})], choice="auto"))
