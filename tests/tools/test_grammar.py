from __future__ import annotations

import json
import re
from typing import Literal

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.llama.thinking import Thinking
from localsteer.tools.form import GENERIC, HARMONY, LLAMA, Form
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


def test_what_is_required_and_not_described_is_refused() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}
    tool = tool_of({"type": "function", "function": {"name": "bad", "parameters": parameters}})
    with pytest.raises(LocalsteerError, match=r'"bad".*"b" is required'):
        tool_grammar(QWEN_CODER, [tool], choice="required")


@pytest.mark.parametrize("name", ["a<b", "a>b", "a\nb", ""])
def test_a_name_of_an_argument_that_a_tag_cannot_hold_is_refused(name: str) -> None:
    tool = tool_of({"type": "function", "function": {"name": "bad", "parameters": {"properties": {name: {}}}}})
    for form in FORMS.values():
        if form.tags is None:
            tool_grammar(form, [tool], choice="auto")
        else:
            with pytest.raises(LocalsteerError, match=f'"bad".*{re.escape(json.dumps(name))}'):
                tool_grammar(form, [tool], choice="auto")


THOUGHT = "Which tool? <tool_call> [TOOL_CALLS] {"
THINK = Thinking("<think>", "</think>")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_reasoning_before_the_answer_is_free_and_calls_behind_it_are_not(form: Form) -> None:
    wrong = written(form, ("get_weather", {"city": "x", "days": 10}))
    right = written(form, CALLS[0])
    for begun, opens in ((True, ""), (False, "<think>"), (False, "\n<think>")):
        lark = tool_grammar(form, TOOLS, choice="auto", thinking=THINK, begun=begun)
        assert follows(lark, f"{opens}{THOUGHT}</think>\n\n{right}")
        assert follows(lark, f"{opens}{THOUGHT}</think>\n\nNo tool.")
        assert not follows(lark, f"{opens}{THOUGHT}</think>\n\n{wrong}")
        assert begun or follows(lark, right)
        assert begun or not follows(lark, wrong)


def test_the_marks_of_reasoning_may_be_tokens_that_add_no_text(tiny: Model) -> None:
    opens, closes = 1, 2  # any that are not in the texts
    marks = {"<think>": opens, "</think>": closes}
    matcher = Grammar(tiny, tool_grammar(HERMES, [MOVE], choice="auto", marks=marks, thinking=THINK)).matcher()
    for token in (ord("\n"), opens, *b"{<tool_call>", closes, *b"\n\n<tool_call>"):
        assert matcher.allows(token), token
        matcher.accept(token)
    assert np.flatnonzero(matcher.allowed()).size < 5


def test_a_call_in_a_channel_can_be_required() -> None:
    lark = tool_grammar(HARMONY, TOOLS, choice="required")
    header = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    assert follows(lark, header + '{"city": "Rome", "days": 3}')
    assert not follows(lark, header + '{"city": "Rome", "days": 10}')
    assert not follows(lark, "<|channel|>final<|message|>No.")


def test_without_a_tool_there_is_nothing_to_call() -> None:
    with pytest.raises(LocalsteerError, match="no tool"):
        tool_grammar(GENERIC, [], choice="auto")
