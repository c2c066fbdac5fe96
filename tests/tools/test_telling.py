"""Arguments that are told while they are written: what was told adds up to the calls as they are read at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from localsteer.tools.form import GENERIC, HARMONY, LLAMA, Form
from localsteer.tools.parser import Found, ToolCallParser
from localsteer.tools.tool import MoreArguments, ToolCall, tool_of
from tests.tools.made import CALLS, FORMS, HERMES, KIMI, MISTRAL, QWEN_CODER, TOOLS, called, written

TAGGED = [form for form in FORMS.values() if form.tags is not None]


def told(form: Form, *pieces: str) -> Found:
    """What is told of an answer that comes in pieces, put together."""
    parser = ToolCallParser(form, TOOLS, held=True)
    return joined([*(one for piece in pieces for one in parser.push(piece)), *parser.finish()])


def joined(pieces: Found) -> Found:
    """What belongs together as one."""
    found: Found = []
    for one in pieces:
        last = found[-1] if found else None
        if isinstance(last, str) and isinstance(one, str):
            found[-1] = last + one
        elif isinstance(last, ToolCall) and isinstance(one, MoreArguments):
            found[-1] = ToolCall(last.name, last.arguments + one.text)
        else:
            found.append(one)
    return found


def assert_told(form: Form, text: str, expected: Sequence[str | ToolCall | MoreArguments]) -> None:
    assert told(form, text) == expected
    assert told(form, *text) == expected
    for cut in range(len(text)):
        assert told(form, text[:cut], text[cut:]) == expected, (text[:cut], text[cut:])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_told_adds_up_to_the_calls(form: Form) -> None:
    for calls in (CALLS[:1], CALLS[1:], CALLS, [("get_weather", {"city": ""}), *CALLS]):
        assert_told(form, written(form, *calls), called(*calls))


@pytest.mark.parametrize("form", [form for form in FORMS.values() if form.kind != "bare"])
def test_texts_around_calls_stay_where_they_are(form: Form) -> None:
    assert_told(form, f"I look.\n\n{written(form, *CALLS)}\n", ["I look.", *called(*CALLS)])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_arguments_are_told_before_they_are_whole(form: Form) -> None:
    text = written(form, ("get_weather", {"city": "a long name of a city", "days": 3}))
    parser = ToolCallParser(form, TOOLS, held=True)
    first = [one for letter in text[: text.index(" name of")] for one in parser.push(letter)]
    assert first[0] == ToolCall("get_weather", "")
    assert "".join(one.text for one in first if isinstance(one, MoreArguments)) == '{"city": "a long'


ODD = [
    r'{"city":"\u00e9\ud83d\ude00\ud83d\u0041\ude00 \/\n\\\"","days":3}',
    '{"city":  "a\tb" , "days" : 3 }',
    '{"city": "x", "days": 2, "more": {"a": [1, -2.50, 1E2, true, null, {}, []], "b": ""}}',
    r'{"city": "\ud83d"}',
    r'{"city": "\\\\ud83d"}',
    "{}",
]


@pytest.mark.parametrize("arguments", ODD)
@pytest.mark.parametrize("form", [HERMES, MISTRAL, KIMI, LLAMA, GENERIC])
def test_json_is_told_as_it_is_read(form: Form, arguments: str) -> None:
    text = written(form, ("get_weather", {})).replace("{}", arguments).replace("\0", "7")
    whole = ToolCallParser(form, TOOLS)
    assert_told(form, text, [*whole.push(text), *whole.finish()])


NOTE = tool_of(
    {
        "type": "function",
        "function": {
            "name": "note",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": ["string", "null"]}, "count": {"type": "integer"}},
            },
        },
    }
)


@pytest.mark.parametrize("value", ["null", "None", "nullable", "\n\nnull", "<![CDATA[a < b]]>", "<![CDATA[a", "<", "7", "</x"])
@pytest.mark.parametrize("form", TAGGED)
def test_texts_in_tags_are_told_as_they_are_read(form: Form, value: str) -> None:
    text = written(form, ("note", {"text": value, "count": 2}), ("note", {}))
    whole = ToolCallParser(form, [NOTE])
    expected = [*whole.push(text), *whole.finish()]
    for pieces in ([text], [*text]):
        parser = ToolCallParser(form, [NOTE], held=True)
        arguments = [""]
        for one in [*(one for piece in pieces for one in parser.push(piece)), *parser.finish()]:
            if isinstance(one, ToolCall):
                arguments.append(one.arguments)
            elif isinstance(one, MoreArguments):
                arguments[-1] += one.text
        assert arguments[1:] == [call.arguments for call in expected if isinstance(call, ToolCall)]


PICK = tool_of(
    {
        "type": "function",
        "function": {
            "name": "pick",
            "parameters": {
                "type": "object",
                "properties": {"from": {"type": "array"}, "as": {"type": ["object", "string"]}},
                "required": ["from"],
            },
        },
    }
)


@pytest.mark.parametrize("form", TAGGED)
def test_what_closes_a_tag_may_stand_in_strings_of_json(form: Form) -> None:
    assert form.tags is not None
    ends = form.tags.after + form.tail + form.closing
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("pick", {"from": [f"x{form.tags.after.strip()}y", 'a "b" \\'], "as": {ends: 1}}),
        ("pick", {"from": [ends, [ends]]}),
        ("pick", {"from": []}),
    )
    text = written(form, *calls)
    for held in (False, True):
        for pieces in ([text], [*text]):
            parser = ToolCallParser(form, [PICK], held=held)
            assert joined([*(one for piece in pieces for one in parser.push(piece)), *parser.finish()]) == called(*calls)


def test_a_call_in_a_channel_is_told_while_it_is_written() -> None:
    parser = ToolCallParser(HARMONY, TOOLS, held=True)
    assert parser.push(' to=functions.get_weather<|message|>{"city": "Ro') == [
        ToolCall("get_weather", ""),
        MoreArguments('{"city": "Ro'),
    ]
    assert parser.push('me"}') == [MoreArguments('me"}')]
    assert parser.finish() == []


def test_what_no_grammar_holds_is_told_as_a_whole() -> None:
    text = '```json\n{"name": "move", "arguments": {"how": "slow"}}\n```'
    assert told(GENERIC, *text) == told(HERMES, *text) == called(("move", {"how": "slow"}))
    parser = ToolCallParser(QWEN_CODER, TOOLS)
    assert not any(parser.push(written(QWEN_CODER, CALLS[0])[:-1]))


def test_a_call_that_is_cut_off_was_told_as_far_as_it_went() -> None:
    text = written(HERMES, ("get_weather", {"city": "Rome"}))
    assert told(HERMES, *text[: text.index('me"}')]) == [ToolCall("get_weather", '{"city": "Ro')]


def test_a_number_that_is_none_ends_the_telling() -> None:
    text = written(HERMES, ("get_weather", {"city": 1})).replace("1", "1e999")
    assert told(HERMES, *text) == [ToolCall("get_weather", '{"city": '), "\n</tool_call>"]
