from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.tools.form import GENERIC, LLAMA, Form
from localsteer.tools.grammar import tool_grammar
from localsteer.tools.parser import ToolCallParser
from localsteer.tools.tool import Tool, ToolCall, tool_of
from tests.tiny_models import VOCABULARY
from tests.tools.made import CALLS, FORMS, HERMES, MISTRAL, MOVE, QWEN_CODER, TOOLS, WEATHER, written

Choice = Literal["auto", "required"]


def follows(lark: str, text: str) -> bool:
    matcher = LLMatcher(LLTokenizer("byte"), lark + '\n%llguidance {"no_forcing": true}')
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_are_let_through_in_a_models_own_form(form: Form, choice: Choice) -> None:
    lark = tool_grammar(form, TOOLS, choice=choice)
    for calls in (CALLS[:1], CALLS[1:], CALLS):
        assert follows(lark, written(form, *calls)), written(form, *calls)
    one = tool_grammar(form, TOOLS, choice=choice, parallel=False)
    assert follows(one, written(form, CALLS[0]))
    assert not follows(tool_grammar(form, TOOLS, choice="required", parallel=False), written(form, *CALLS))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_text_is_let_through_only_where_no_call_must_be_made(form: Form) -> None:
    for text in ("", "No tool is needed. é\n", "a < b"):
        assert follows(tool_grammar(form, TOOLS, choice="auto"), text)
        assert not follows(tool_grammar(form, TOOLS, choice="required"), text)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "call",
    [
        ("get_weather", {}),
        ("get_weather", {"city": 5}),
        ("get_weather", {"city": "x", "days": 10}),
        ("get_weather", {"city": "x", "other": 1}),
        ("move", {"to": {"x": "far"}, "how": "slow"}),
        ("move", {"to": {"x": 1}, "how": "slowly"}),
        ("nothing", {}),
    ],
)
def test_arguments_satisfy_their_schemas(form: Form, call: tuple[str, dict[str, object]]) -> None:
    if form.tags is not None and call[1] == {"city": 5}:
        return  # a text without quotes
    for choice in ("auto", "required"):
        assert not follows(tool_grammar(form, TOOLS, choice=choice), written(form, call))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_tool_without_parameters_takes_none(form: Form) -> None:
    now = tool_of({"type": "function", "function": {"name": "now"}})
    lark = tool_grammar(form, [now], choice="required")
    assert follows(lark, written(form, ("now", {})))
    assert not follows(lark, written(form, ("now", {"a": 1})))


def test_a_tool_that_is_named_is_the_only_one() -> None:
    lark = tool_grammar(HERMES, [MOVE], choice="required", parallel=False)
    assert follows(lark, written(HERMES, CALLS[1]))
    assert not follows(lark, written(HERMES, CALLS[0]))


def test_a_mark_is_never_text() -> None:
    for form in (one for one in FORMS.values() if one.kind != "bare"):
        lark = tool_grammar(form, TOOLS, choice="auto")
        assert not follows(lark, f"The mark {form.begin} is text.")
        assert follows(lark, f"I look.\n{written(form, CALLS[1])}")
    assert not follows(tool_grammar(LLAMA, TOOLS, choice="auto"), '{"name": "Bob"}')


def test_a_mark_may_be_a_token_that_adds_no_text(tiny: Model) -> None:
    mark = VOCABULARY.index("<|im_start|>")
    for choice in ("auto", "required"):
        matcher = Grammar(tiny, tool_grammar(MISTRAL, [MOVE], choice=choice, marks={"[TOOL_CALLS]": mark})).matcher()
        assert matcher.allows(ord("x")) == (choice == "auto")
        matcher.accept(mark)
        for character in '[{"name": "move", "arguments": {':
            assert np.flatnonzero(matcher.allowed()).size < 5
            matcher.accept(ord(character))


def test_a_model_with_random_weights_calls_as_it_must(tiny: Model) -> None:
    move = tool_of(
        {
            "type": "function",
            "function": {
                "name": "move",
                "parameters": {"type": "object", "properties": {"to": {"enum": [1, 2]}}, "required": ["to"]},
            },
        }
    )
    for form in FORMS.values():
        matcher = Grammar(tiny, tool_grammar(form, [move], choice="required", parallel=False)).matcher()
        text = b""
        while not matcher.is_complete:
            token = int(np.flatnonzero(matcher.allowed())[-1])
            if tiny.is_end(token):
                break
            text += tiny.token_bytes(token)
            matcher.accept(token)
        parser = ToolCallParser(form, [move])
        (call,) = [*parser.push(text.decode()), *parser.finish()]
        assert isinstance(call, ToolCall)
        assert json.loads(call.arguments)["to"] in (1, 2)


def test_what_a_schema_wants_and_cannot_be_had_is_refused_with_the_tools_name() -> None:
    def tool(argument: object) -> Tool:
        parameters = {"type": "object", "properties": {"a": argument}, "required": ["a"]}
        return tool_of({"type": "function", "function": {"name": "bad", "parameters": parameters}})

    for form in FORMS.values():
        with pytest.raises(LocalsteerError, match=r'"bad".*1152921504606846977'):
            tool_grammar(form, [WEATHER, tool({"const": 2**60 + 1})], choice="auto")
    with pytest.raises(LocalsteerError, match=r'"bad".*pattern'):
        tool_grammar(QWEN_CODER, [tool({"type": "string", "pattern": "^a"})], choice="auto")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"properties": {"a": {"type": "string", "const": 1}}, "required": ["a"]}, "no text"),
        ({"properties": {"a": {"type": "string", "enum": []}}, "required": ["a"]}, "no text"),
        ({"properties": {"a": {"type": "string"}}, "required": ["b"]}, '"b" is required'),
    ],
)
def test_arguments_in_tags_that_nobody_can_give_are_refused(parameters: dict[str, object], said: str) -> None:
    tool = tool_of({"type": "function", "function": {"name": "bad", "parameters": {"type": "object", **parameters}}})
    with pytest.raises(LocalsteerError, match=f'"bad".*{said}'):
        tool_grammar(QWEN_CODER, [tool], choice="required")


def test_without_a_tool_there_is_nothing_to_call() -> None:
    with pytest.raises(LocalsteerError, match="no tool"):
        tool_grammar(GENERIC, [], choice="auto")
