"""Reads calls of tools in the form that a model writes them in, with the liberties that models take."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from localsteer.tools.form import IDENTITY, Form, Tags
from localsteer.tools.text_argument import NULLS, TextArgument
from localsteer.tools.tool import Tool, ToolCall

# Strings and brackets of JSON.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|"', re.DOTALL)
_IDENTITY = re.compile(r"[\w.:-]*")
_PARTS = re.compile(rf"\s+|{IDENTITY}|[^\s{IDENTITY}]+")
_CHANNEL = re.compile(r"([\w.:/-]+)[^{]*?<\|message\|>\s*")
NAME = re.compile(r"[^<>\n]+")
"""The name of an argument that has a tag."""
_MAY_QUOTE = re.compile(r'\s*[\[{"]')
_LONGEST_HEAD = 200
CDATA = "<![CDATA["
"""Begins a text that may hold marks, as in XML; some templates write it."""
# Mistral's models write a list, or a name and its arguments with an identifier or without, whatever their template shows.
_MISTRAL = Form("named", head="[TOOL_CALLS]", middle="[ARGS]", tail="", between="")
_MISTRALS = (_MISTRAL.middle, f"[CALL_ID]{IDENTITY}[ARGS]")
# Characters of a value that is no JSON, and may be Python's way to write one.
_LONGEST_LITERAL = 10_000

Tools = Mapping[str, Tool]


class NoCallError(ValueError):
    """What looked like a call is none."""


class _MoreError(Exception):
    """A call is not complete yet."""


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
    reader = _Reader(text, final=final)
    try:
        if form.kind == "channel":
            return _channel(reader, tools), reader.at
        as_objects = form.kind != "named"
        if form.begin == _MISTRAL.begin:
            as_objects = text.lstrip()[:1] in ("", "{", "[")
            form = form if as_objects else _MISTRAL
        return (_objects if as_objects else _named)(reader, form, tools), reader.at
    except _MoreError:
        return None


class _Reader:
    """Goes through a text, past what has to stand there; white space is free wherever there is some in the form.

    Args:
        text: the text.
        final: whether nothing follows it.
    """

    def __init__(self, text: str, *, final: bool) -> None:
        self.text = text
        self.final = final
        self.at = 0

    def blank(self) -> None:
        """Past white space."""
        self.at = len(self.text) - len(self.text[self.at :].lstrip())

    def literal(self, piece: str) -> None:
        """Past a text of the form.

        Raises:
            _MoreError: it has only begun.
            NoCallError: something else stands there.
        """
        self.blank()
        for part in _PARTS.findall(piece):
            if part.isspace():
                self.blank()
            elif part == IDENTITY:
                found = _IDENTITY.match(self.text, self.at)
                assert found is not None
                self.at = found.end()
            elif self.text.startswith(part, self.at):
                self.at += len(part)
            elif part.startswith(self.text[self.at :]):
                raise _MoreError
            else:
                raise NoCallError

    def passes(self, *pieces: str) -> bool:
        """Past the first of these that stands there; whether one does.

        Raises:
            _MoreError: nobody knows yet.
        """
        start, more = self.at, False
        for piece in pieces:
            try:
                self.literal(piece)
            except (NoCallError, _MoreError) as error:
                more |= isinstance(error, _MoreError)
                self.at = start
            else:
                return True
        if more and not self.final:
            raise _MoreError
        return False

    def closes(self, piece: str) -> None:
        """Past the marks behind a call, if they stand there; they may be cut off where nothing follows.

        Raises:
            _MoreError: nobody knows yet.
        """
        start = self.at
        try:
            self.literal(piece)
        except NoCallError:
            self.at = start
        except _MoreError:
            if not self.final:
                raise
            self.at = len(self.text)

    def json(self) -> Any:
        """Past an object or list of JSON, and what it says."""
        self.blank()
        start, depth = self.at, 0
        if self.text[start : start + 1] not in ("", "{", "["):
            raise NoCallError
        for token in _TOKENS.finditer(self.text, start):
            if token[0] in ("{", "["):
                depth += 1
            elif token[0] in ("}", "]"):
                depth -= 1
                if depth == 0:
                    self.at = token.end()
                    return _value_of(self.text[start : self.at])
            elif token[0] == '"':
                break  # a string that goes on
        raise _MoreError


def _channel(reader: _Reader, tools: Tools) -> list[ToolCall]:
    name = _CHANNEL.match(reader.text)
    if name is None:
        if reader.final or len(reader.text) > _LONGEST_HEAD:
            raise NoCallError
        raise _MoreError
    reader.at = name.end()
    return [_call({"name": name[1], "arguments": reader.json()}, tools)]


def _objects(reader: _Reader, form: Form, tools: Tools) -> list[ToolCall]:
    """Objects of JSON, one behind the other, or a list of them."""
    before = (form.opening + form.head).removeprefix(form.begin).partition("{")[0].strip(" \n[")
    if form.kind == "object" and before:
        reader.passes(before)
    values = [reader.json()]
    while form.encloses and form.between == "" and reader.passes("{"):
        reader.at -= 1
        values.append(reader.json())
    calls = [_call(call, tools, form) for value in values for call in (value if isinstance(value, list) else [value])]
    if not calls:
        raise NoCallError
    if form.kind == "object" and (after := (form.tail + form.closing).rpartition("}")[2].strip(" \n]")):
        reader.closes(after)
    return calls


def _named(reader: _Reader, form: Form, tools: Tools) -> list[ToolCall]:
    """Calls whose names stand outside the arguments, one behind the other."""
    reader.literal((form.opening + form.head).removeprefix(form.begin))
    calls = [_one_named(reader, form, tools)]
    while form.encloses and form.between is not None and reader.passes(form.between + form.head):
        calls.append(_one_named(reader, form, tools))
    if form.closing:
        reader.closes(form.closing)
    return calls


def _one_named(reader: _Reader, form: Form, tools: Tools) -> ToolCall:
    reader.blank()
    start, rest = reader.at, reader.text[reader.at :]
    if any(len(name) > len(rest) and name.startswith(rest) for name in tools):
        raise _MoreError
    middles = _MISTRALS if form is _MISTRAL else (form.middle,)
    for name in sorted(filter(rest.startswith, tools), key=len, reverse=True):
        reader.at = start + len(name)
        if reader.passes(*middles):
            break
        if any(middle.startswith(rest[len(name) :]) for middle in middles):
            raise _MoreError  # cut off
    else:
        raise NoCallError
    arguments = reader.json() if form.tags is None else _tagged(reader, form.tags, tools[name])
    if not isinstance(arguments, dict):
        raise NoCallError
    if form.tags is None:
        reader.closes(form.tail)
    elif form.tail and not reader.passes(form.tail):
        rest = "".join(reader.text[reader.at :].split())
        if not (reader.final and rest and "".join(form.tail.split()).startswith(rest)):
            raise _MoreError  # in the middle of an argument
        reader.at = len(reader.text)  # all is said; models leave out the last mark
    return ToolCall(name, _written(arguments))


def _tagged(reader: _Reader, tags: Tags, tool: Tool) -> dict[str, Any]:
    begins, ends, ends_json = _patterns_of(tags)
    arguments: dict[str, Any] = {}
    while begun := begins.match(reader.text, reader.at):
        key, plain = begun["key"], begun["text"] is not None
        found = ends.match(reader.text, begun.end())
        if found is None:
            break
        if not is_text(tags, tool, key, plain=plain) and _MAY_QUOTE.match(found["value"]) and not is_json(found["value"]):
            quoting = ends_json.match(reader.text, begun.end())
            if quoting is None and not reader.final:
                raise _MoreError
            found = quoting if quoting is not None and is_json(quoting["value"]) else found
        arguments[key] = value_of(tags, tool, key, found["value"], plain=plain)
        reader.at = found.end()
    return arguments


def is_text(tags: Tags, tool: Tool, key: str, *, plain: bool) -> bool:
    """Whether an argument that has a tag is a text without quotes; `plain` as in `value_of`."""
    return plain if tags.text != tags.other else TextArgument.of(tool.parameters, key) is not None


def is_json(text: str) -> bool:
    """Whether a text is a document of JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def value_of(tags: Tags, tool: Tool, key: str, text: str, *, plain: bool) -> Any:
    """What an argument that has a tag says; `plain`: the tag is that of a text, where texts have one of their own."""
    nullable = False
    if tags.text == tags.other:
        about = TextArgument.of(tool.parameters, key)
        plain, nullable = about is not None, about is not None and about.nullable
    if text.startswith(CDATA) and text.endswith("]]>"):
        text = text[len(CDATA) : -len("]]>")]
    if nullable and text.strip() in NULLS:
        return None
    return text if plain else _value(text)


def _patterns_of(tags: Tags) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """What begins an argument, and all up to its end: as soon as the tag is closed, and where that may stand in strings of JSON.

    A line break that the form has beside a value is none of the value's, all other white space is.
    """
    text, other = (f"{_words(middle)}{_break(middle.endswith(chr(10)))}" for middle in (tags.text, tags.other))
    after = f"{_break(tags.after.startswith(chr(10)))}{_words(tags.after)}"
    middle = f"(?:(?P<text>{text})|{other})"
    return (
        re.compile(rf"\s*{_words(tags.before)}(?P<key>{NAME.pattern}?){middle}"),
        re.compile(rf"(?P<value>.*?){after}", re.DOTALL),
        re.compile(rf'(?P<value>(?>"(?:[^"\\]|\\.)*"|[^"])*?){after}', re.DOTALL),
    )


def _words(piece: str) -> str:
    return r"\s*".join(re.escape(word) for word in piece.split())


def _break(there: bool) -> str:
    return r"\n?" if there else ""


def _written(arguments: dict[str, Any]) -> str:
    """Arguments as JSON that every program reads: no infinite number, no half of a character.

    Raises:
        NoCallError: a number in it is none.
    """
    try:
        return as_json(arguments)
    except ValueError as error:
        raise NoCallError from error


def as_json(value: object) -> str:
    """A value as calls have it.

    Raises:
        ValueError: a number in it is none.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()


def _value(text: str) -> Any:
    """What an argument says that may be no text; some templates show values as Python writes them."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            for kind in (SyntaxWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)  # from Python 3.12 on it also prints what it thinks of '\d'
            value = ast.literal_eval(text) if len(text) <= _LONGEST_LITERAL else text
        json.dumps(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return value


def _value_of(text: str) -> Any:
    """JSON; some templates show their braces doubled, and models write them so."""
    try:
        # A line break in a string is taken as it was meant.
        return json.loads(text[1:-1] if text.startswith("{{") and text.endswith("}}") else text, strict=False)
    except (ValueError, RecursionError) as error:
        raise NoCallError from error


def _call(value: object, tools: Tools, form: Form | None = None) -> ToolCall:
    """A call that is an object of JSON, by the form's keys or the usual ones."""
    if not isinstance(value, dict):
        raise NoCallError
    name = value.get(form.name if form is not None else "name", value.get("name"))
    if not isinstance(name, str) or name not in tools:
        raise NoCallError
    arguments = value.get("arguments", value.get("parameters", {}))
    if form is not None:
        arguments = value.get(form.key, arguments)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise NoCallError from error
    if not isinstance(arguments, dict):
        raise NoCallError
    return ToolCall(name, _written(arguments))
