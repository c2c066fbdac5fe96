from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest

from localsteer.tools.form import GENERIC, LLAMA, Form
from localsteer.tools.parser import Found, ToolCallParser
from localsteer.tools.tool import MoreArguments, ToolCall
from tests.tools.made import (
    CALLS,
    DEEPSEEK,
    FORMS,
    FUNCTIONARY,
    HERMES,
    KIMI,
    MISTRAL,
    NEW_MISTRAL,
    QWEN_CODER,
    TOOLS,
    called,
    written,
)


def parsed(form: Form, *pieces: str) -> tuple[Sequence[str | ToolCall | MoreArguments], str]:
    """What is found in an answer that comes in pieces, texts put together, and what of a call is left."""
    parser = ToolCallParser(form, TOOLS)
    found: Found = []
    for one in [*(one for piece in pieces for one in parser.push(piece)), *parser.finish()]:
        if isinstance(one, str) and found and isinstance(found[-1], str):
            found[-1] += one
        else:
            found.append(one)
    return found, parser.unfinished


def assert_parsed(form: Form, text: str, expected: Sequence[str | ToolCall], unfinished: str = "") -> None:
    """Wherever it is cut, and letter by letter."""
    assert parsed(form, text) == (expected, unfinished)
    for cut in range(len(text)):
        assert parsed(form, text[:cut], text[cut:]) == (expected, unfinished), (text[:cut], text[cut:])
    assert parsed(form, *text) == (expected, unfinished)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_calls_are_found_in_a_models_own_form(form: Form) -> None:
    for calls in (CALLS[:1], CALLS[1:], CALLS):
        assert_parsed(form, written(form, *calls), called(*calls))


@pytest.mark.parametrize("form", [form for form in FORMS.values() if form.kind != "bare"])
def test_text_may_stand_before_a_call(form: Form) -> None:
    assert_parsed(form, f"I look.\n\n{written(form, *CALLS)}\n", ["I look.", *called(*CALLS)])


def test_text_may_stand_between_calls_and_behind() -> None:
    text = f"One {written(HERMES, CALLS[0])}\nand {written(HERMES, CALLS[1])} done."
    assert_parsed(HERMES, text, ["One", *called(CALLS[0]), "\nand", *called(CALLS[1]), " done."])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "Plain text. \n",
        "a < b <tool",
        "[TOOL",
        "<tool_call> is a mark",
        "[TOOL_CALLS] too",
        "The mark:\n\n<tool_call> begins a call",
        "Both  [TOOL_CALLS] and\n\t<tool_call>, \n<|python_tag|> too",
        '{"name": "Bob"}',
        "[1, 2]",
        "{x",
        '{"a": {"name": "move"}}',
    ],
)
def test_what_is_no_call_is_text_as_it_stands(form: Form, text: str) -> None:
    if not (form.begin and form.begin in text and text.endswith("x")):
        assert_parsed(form, text, [text] if text else [])


def test_a_call_of_what_is_no_tool_is_text() -> None:
    text = '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'
    assert_parsed(HERMES, text, [text])
    assert_parsed(LLAMA, '{"name": "other", "parameters": {}}', ['{"name": "other", "parameters": {}}'])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, '<tool_call>{"name":"move","arguments":{}}</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "move", "arguments": "{}"}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "move", "arguments": {}}'),
        (HERMES, '<tool_call>\n{"name": "move", "parameters": {}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "move"}\n</tool_call>'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "move", "arguments": {}, "id": "1"}]'),
        (MISTRAL, "[TOOL_CALLS]move[ARGS]{}"),
        (MISTRAL, "[TOOL_CALLS]move[CALL_ID]x1[ARGS]{}"),
        (NEW_MISTRAL, "[TOOL_CALLS]move[ARGS]{}"),
        (NEW_MISTRAL, '[TOOL_CALLS] [{"name": "move", "arguments": {}}]'),
        (LLAMA, '<|python_tag|>{"name": "move", "parameters": {}}'),
        (LLAMA, ' \n{"type": "function", "name": "move", "parameters": {}}'),
        (GENERIC, '[{"name": "move", "arguments": {}}]'),
        (QWEN_CODER, "<tool_call><function=move></function></tool_call>"),
        (HERMES, '```json\n{\n  "name": "move",\n  "arguments": {}\n}\n```'),
        (HERMES, '{"name": "move", "arguments": {}}'),
        (HERMES, ' ```tool_call\n{"name": "move", "arguments": {}}```\n'),
        (QWEN_CODER, '```\n[{"name": "move", "arguments": {}}]\n```'),
        (GENERIC, '```json\n{"name": "move", "arguments": {}}\n```'),
        (HERMES, '{{"name": "move", "arguments": {}}}'),
        (HERMES, '{"name": "move", "arguments": {}}\n}'),
        (GENERIC, '{"name": "move",\n "arguments": {}}'),
        (HERMES, '<tool_call>\n{{"name": "move", "arguments": {}}}\n</tool_call>'),
    ],
)
def test_models_take_some_liberty(form: Form, text: str) -> None:
    assert_parsed(form, text, called(("move", {})))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_call_that_is_cut_off_is_neither_text_nor_call(form: Form) -> None:
    text = written(form, CALLS[0])
    cut = text[: text.index("city") + 6]
    found, unfinished = parsed(form, *cut)
    assert (found, unfinished) == ([], cut)


def test_calls_come_as_soon_as_they_are_complete_and_text_at_once() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.push("Hi the") == ["Hi the"]
    assert parser.push("re <tool_") == ["re"]
    assert parser.push('call>{"name": "move", "arguments": {"a": 1}}') == []
    assert parser.push("</tool_call>") == called(("move", {"a": 1}))
    assert parser.push("\n") == []
    assert parser.push("bye") == ["\nbye"]
    assert parser.finish() == []


def test_arguments_are_json_that_every_program_reads() -> None:
    for text in ('{"name": "get_weather", "arguments": {"city": NaN}}', '{"name": "get_weather", "arguments": {"city": 1e999}}'):
        found, _ = parsed(HERMES, f"<tool_call>\n{text}\n</tool_call>")
        assert not any(isinstance(one, ToolCall) for one in found)
    (call,), _ = parsed(HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "\\ud83d"}}\n</tool_call>')
    assert isinstance(call, ToolCall)
    assert call.arguments.encode("utf-8")


@pytest.mark.parametrize("text", ["```json\n[1, 2, 3, 4", '```json\n{"name": "Alice", "age": 3', ' {"name": "Alice"'])
def test_an_answer_in_json_that_was_cut_is_an_answer(text: str) -> None:
    found, unfinished = parsed(GENERIC, text)
    assert "".join(one for one in found if isinstance(one, str)).strip() == text.strip()
    assert not unfinished


def test_a_value_as_python_writes_it_is_read_and_nothing_is_printed_about_it() -> None:
    text = "<tool_call>\n<function=move>\n<parameter=to>\n{'x': '\\d'}\n</parameter>\n</function>\n</tool_call>"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert_parsed(QWEN_CODER, text, called(("move", {"to": {"x": "\\d"}})))
    assert [str(one.message) for one in told] == []


def test_a_call_without_its_last_mark_is_a_call() -> None:
    whole = written(QWEN_CODER, *CALLS[:1])
    assert parsed(QWEN_CODER, whole.removesuffix("</tool_call>").rstrip() + "\n")[0] == called(*CALLS[:1])


@pytest.mark.parametrize("form", [HERMES, QWEN_CODER, DEEPSEEK, KIMI, FUNCTIONARY])
def test_a_last_mark_that_is_cut_off_is_no_text(form: Form) -> None:
    whole = written(form, *CALLS[:1])
    for cut in range(whole.rindex("}" if form.tags is None else "</parameter>") + 1, len(whole)):
        if form.tags is not None and not whole[:cut].rstrip().endswith(("</function>", "</tool_call")):
            continue  # an argument may follow
        assert parsed(form, *whole[:cut])[0] == called(*CALLS[:1]), whole[:cut]
