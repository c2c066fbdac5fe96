"""The forms in which models write calls of tools, each as its makers trained it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from localsteer.tools.tool import Tool, ToolCall

# Strings and brackets of JSON.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|"', re.DOTALL)
# How Mistral writes a call since 2025.
_NAMED_ARGUMENTS = re.compile(r"\s*([\w.:/-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*")
_CHANNEL = re.compile(r"([\w.:/-]+)[^{]*?<\|message\|>\s*")
_LONGEST_HEAD = 200
_NAME_SO_FAR = re.compile(r"\s*[\w.:/-]+(?:\[[\w\]]*)*")
_FUNCTION = re.compile(r"\s*<function=([\w.:/-]+)>\n?")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)

Tools = Mapping[str, Tool]


@dataclass(frozen=True)
class Form:
    """How a model writes calls.

    Attributes:
        kind: "tags": each call between two marks; "list": a mark, then a list of calls; "bare": an answer that is a call, or a
            list of them; "xml": as "tags", with a tag for each argument; "channel": one call in a channel that is named for it.
        begin: the mark; where a model's vocabulary has it as a token that adds no text, it must be shown to who reads calls.
        end: the mark behind a call.
        key: of a call's arguments.
    """

    kind: Literal["tags", "list", "bare", "xml", "channel"]
    begin: str
    end: str = ""
    key: str = "arguments"


HERMES = Form("tags", "<tool_call>", "</tool_call>")
QWEN_CODER = Form("xml", "<tool_call>", "</tool_call>")
MISTRAL = Form("list", "[TOOL_CALLS]")
LLAMA = Form("bare", "<|python_tag|>", key="parameters")
# gpt-oss: the channel `commentary to=functions.NAME`.
HARMONY = Form("channel", " to=functions.")
# For models whose template knows no tools.
GENERIC = Form("bare", "")


def form_of(template: str) -> Form | None:
    """The form that a chat template has its model write, told by the marks in it; None where it is none of these."""
    if "<function=" in template and "<parameter=" in template:
        return QWEN_CODER
    if "<|channel|>" in template and HARMONY.begin.strip() in template:
        return HARMONY
    for form, mark in ((HERMES, "<tool_call>"), (MISTRAL, "[TOOL_CALLS]"), (LLAMA, "<|python_tag|>"), (LLAMA, '"parameters":')):
        if mark in template:
            return form
    return None


class NoCallError(ValueError):
    """What looked like a call is none."""


def read_calls(form: Form, text: str, tools: Tools, *, final: bool) -> tuple[list[ToolCall], int] | None:
    """The calls that a text begins with, behind the mark, and how long they are; None where they are not complete yet.

    Args:
        form: how they are written.
        text: the text.
        tools: by their names; nothing else is a call.
        final: whether nothing follows.

    Raises:
        NoCallError: the text begins with no call.
    """
    if form.kind == "xml":
        return _read_xml(form, text, tools)
    head = {"list": _NAMED_ARGUMENTS, "channel": _CHANNEL}.get(form.kind)
    name = head.match(text) if head is not None else None
    if form.kind == "list" and name is None and _NAME_SO_FAR.fullmatch(text) and not final:
        return None
    if form.kind == "channel" and name is None:
        if final or len(text) > _LONGEST_HEAD:
            raise NoCallError
        return None
    start = name.end() if name else len(text) - len(text.lstrip())
    end = _end_of_json(text, start)
    if end is None:
        return None
    value = _value_of(text[start:end])
    if name is not None:
        value = {"name": name[1], "arguments": value}
    calls = [_call(each, tools) for each in (value if isinstance(value, list) else [value])]
    if not calls:
        raise NoCallError
    if form.end:
        rest = text[end:].lstrip()
        if rest.startswith(form.end):
            end = text.index(form.end, end) + len(form.end)
        elif form.end.startswith(rest) and not final:
            return None
    return calls, end


def _value_of(text: str) -> Any:
    """JSON; some templates show their braces doubled, and models write them so."""
    try:
        # A line break in a string is taken as it was meant.
        return json.loads(text[1:-1] if text.startswith("{{") and text.endswith("}}") else text, strict=False)
    except (ValueError, RecursionError) as error:
        raise NoCallError from error


def _call(value: object, tools: Tools) -> ToolCall:
    if not isinstance(value, dict) or value.get("name") not in tools:
        raise NoCallError
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise NoCallError from error
    if not isinstance(arguments, dict):
        raise NoCallError
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _end_of_json(text: str, start: int) -> int | None:
    """Where the object or list that begins there ends."""
    if start >= len(text):
        return None
    if text[start] not in "{[":
        raise NoCallError
    depth = 0
    for token in _TOKENS.finditer(text, start):
        if token[0] in ("{", "["):
            depth += 1
        elif token[0] in ("}", "]"):
            depth -= 1
            if depth == 0:
                return token.end()
        elif token[0] == '"':
            return None  # a string that goes on
    return None


def _read_xml(form: Form, text: str, tools: Tools) -> tuple[list[ToolCall], int] | None:
    function = _FUNCTION.match(text)
    if function is None:
        if "<function=".startswith(text.lstrip()[: len("<function=")]) and ">" not in text:
            return None
        raise NoCallError
    if function[1] not in tools:
        raise NoCallError
    arguments, at = {}, function.end()
    while parameter := _PARAMETER.match(text, at):
        arguments[parameter[1]] = _value(parameter[2], tools[function[1]], parameter[1])
        at = parameter.end()
    end = re.compile(rf"\s*</function>\s*{re.escape(form.end)}").match(text, at)
    return ([ToolCall(function[1], json.dumps(arguments, ensure_ascii=False))], end.end()) if end is not None else None


def _value(text: str, tool: Tool, name: str) -> Any:
    """An argument: what may be a text is one."""
    if is_text(tool, name):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def is_text(tool: Tool, name: str) -> bool:
    """Whether an argument is a text by its schema, and written without quotes where each has a tag."""
    properties = tool.parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, dict) else None
    return isinstance(schema, dict) and schema.get("type") == "string"
