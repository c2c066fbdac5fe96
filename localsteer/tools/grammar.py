"""Grammars that let a model call tools in its own form, with arguments that satisfy their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from localsteer.errors import LocalsteerError
from localsteer.llama.json_schema import rule_of
from localsteer.tools.form import IDENTITY, Form
from localsteer.tools.reading import is_text
from localsteer.tools.tool import Tool

_TEXT = "TEXT: /(?s:.*)/"
# A text that no bare call begins with.
_PLAIN = r"PLAIN: /\s*([^{\[\s](?s:.*))?/"
_LIST = '"[" call (", " call)* "]"'
# Mistral wants nine letters and digits; Kimi and Command count.
_IDENTITY = "/[a-zA-Z0-9]{1,9}/"


def tool_grammar(
    form: Form,
    tools: Sequence[Tool],
    *,
    choice: Literal["auto", "required"],
    parallel: bool = True,
    marks: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """The grammar of answers that may call tools, or must, in llguidance's Lark.

    Args:
        form: how the model writes calls.
        tools: those that it may call; where one is to be called by its name, that one.
        choice: "auto" lets it answer by text as well, and holds it to the form as soon as it begins a call.
        parallel: whether it may call several.
        marks: the tokens of those texts of the form that the vocabulary has as tokens that add no text.

    Raises:
        LocalsteerError: there is no tool, or the schema of one cannot be followed.
    """
    if not tools:
        raise LocalsteerError("There is no tool to call.")
    write = _Writer(form, marks)
    rules = [f"call: {' | '.join(f'call{number}' for number in range(len(tools)))}"]
    for number, tool in enumerate(tools):
        rules += write.call(tool, f"call{number}", head=form.kind == "bare")
    if form.kind == "bare":
        mark = f"{write.terms(form.begin)}? " if form.begin else ""
        rules.append(f"calls: {mark}{f'(call | {_LIST})' if parallel else 'call'}")
        start = "calls" if choice == "required" else "calls | PLAIN"
        rules += [] if choice == "required" else [_PLAIN]
        return "\n".join([f"start: {start}", *rules])
    before = form.opening + form.head
    # A mark that is a word ("functools") may well stand in an answer: with all that follows it up to a name it begins a call.
    begin = form.begin if form.begin in marks or set(form.begin) & set("<[|") else before
    mark, rest = write.terms(begin), write.terms(before.removeprefix(begin))
    parallel = parallel and form.between is not None
    if parallel and form.encloses:
        more = write.terms((form.between or "") + form.head)
        rules.append(f"marked: {rest} call ({more} call)* {write.terms(form.closing)}")
    else:
        rules.append(f"marked: {rest} call {write.terms(form.closing)}")
    again = parallel and not form.encloses
    if choice == "required":
        between = write.terms(form.between or "")
        start = f"{mark} marked ({between} {mark} marked)*" if again else f"{mark} marked"
    else:
        # No text can hold a mark that is text: as soon as it stands there, a call follows.
        token = form.begin in marks
        rules += [f"called: {f'TEXT {mark}' if token else 'begun'} marked", _TEXT]
        rules += [] if token else [f"begun[lazy]: TEXT {mark}"]
        start = "called* TEXT" if again else "called | TEXT"
    return "\n".join([f"start: {start}", *rules])


@dataclass(frozen=True)
class _Writer:
    """Writes rules for one form; `marks` as in `tool_grammar`."""

    form: Form
    marks: Mapping[str, int] = field(default_factory=dict)

    def terms(self, piece: str) -> str:
        """A text of the form: control tokens by their numbers, all else as it stands."""
        marks = [re.escape(mark) for mark in sorted(self.marks, key=len, reverse=True)]
        parts = re.split("|".join([*(f"({mark})" for mark in marks), f"({IDENTITY})"]), piece)
        return " ".join(self._term(part) for part in parts if part)

    def _term(self, part: str) -> str:
        if part == IDENTITY:
            return _IDENTITY
        return f"<[{self.marks[part]}]>" if part in self.marks else json.dumps(part, ensure_ascii=False)

    def call(self, tool: Tool, name: str, *, head: bool) -> list[str]:
        """One call; what stands before its name only if that is asked for."""
        form = self.form
        try:
            begin = (form.head if head else "") + tool.name + form.middle
            if form.tags is not None:
                return self._tagged(tool, name, begin)
            return [f"{name}: {self.terms(begin)} {rule_of(tool.parameters)} {self.terms(form.tail)}"]
        except LocalsteerError as error:
            raise LocalsteerError(f'The tool "{tool.name}": {error.message}', hint=error.hint) from error

    def _tagged(self, tool: Tool, name: str, begin: str) -> list[str]:
        """A tag for each argument, in the schema's order."""
        tags = self.form.tags
        assert tags is not None
        properties = tool.parameters.get("properties", {})
        required = tool.parameters.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise LocalsteerError("properties is no object, or required no list.")
        if stray := next((key for key in required if key not in properties), None):
            raise LocalsteerError(f'The argument "{stray}" is required, and nothing says what it is.')
        definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        rules, parts = [], []
        for number, (key, schema) in enumerate(properties.items()):
            part = f"{name}a{number}"
            parts.append(part if key in required else f"{part}?")
            if not is_text(tool, key):
                value = rule_of({**schema, **definitions} if isinstance(schema, dict) else schema)
                rules.append(f"{part}: {self.terms(f'{tags.before}{key}{tags.other}')} {value} {self.terms(tags.after)}")
                continue
            before = self.terms(f"{tags.before}{key}{tags.text}")
            after = self.terms(tags.after)
            if not _says_more(schema):
                # No text holds a token without a text; what ends at a text ends at the first one.
                rules += [f"{part}: {before} {part}text", f"{part}text{'' if '<[' in after else '[lazy]'}: /(?s:.*)/ {after}"]
            elif schema.keys() & {"enum", "const"}:
                texts = [text for text in schema.get("enum", [schema.get("const")]) if isinstance(text, str)]
                if not texts:
                    raise LocalsteerError(f'The argument "{key}" is a text, and no text is allowed.')
                rules.append(f"{part}: {before} ({' | '.join(json.dumps(text) for text in texts)}) {after}")
            else:
                said = ", ".join(sorted(_says_more(schema)))
                raise LocalsteerError(
                    f'The argument "{key}" is a text that is written without quotes, and cannot be held to {said}.'
                )
        return [f"{name}: {' '.join([self.terms(begin), *parts, self.terms(self.form.tail)])}", *rules]


def _says_more(schema: dict[str, Any]) -> set[str]:
    """What a schema wants of a text."""
    return {"enum", "const", "minLength", "maxLength", "pattern"} & schema.keys()
