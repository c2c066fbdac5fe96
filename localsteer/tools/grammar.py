"""Grammars that let a model call tools in its own form, with arguments that satisfy their schemas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from localsteer.errors import LocalsteerError
from localsteer.llama.json_schema import rule_of
from localsteer.tools.form import Form, is_text
from localsteer.tools.tool import Tool

_TEXT = "TEXT: /(?s:.*)/"
# A text that no bare call begins with.
_PLAIN = r"PLAIN: /\s*([^{\[\s](?s:.*))?/"
_LIST_OF_ONE = '"[" call "]"'
_LIST = '"[" call (", " call)* "]"'


def tool_grammar(
    form: Form, tools: Sequence[Tool], *, choice: Literal["auto", "required"], parallel: bool = True, token: int | None = None
) -> str:
    """The grammar of answers that may call tools, or must, in llguidance's Lark.

    Args:
        form: how the model writes calls.
        tools: those that it may call; where one is to be called by its name, that one.
        choice: "auto" lets it answer by text as well, and holds it to the form as soon as it begins a call.
        parallel: whether it may call several.
        token: of the mark that calls begin with, where the vocabulary has it as one that adds no text.

    Raises:
        LocalsteerError: there is no tool, or the schema of one cannot be followed.
    """
    if not tools:
        raise LocalsteerError("There is no tool to call.")
    rules = [f"call: {' | '.join(f'call{number}' for number in range(len(tools)))}"]
    for number, tool in enumerate(tools):
        rules += _rules_of(form, tool, f"call{number}")
    mark = f"<[{token}]>" if token is not None else json.dumps(form.begin)
    if form.kind == "bare":
        rules.append(f"calls: {f'{mark}? ' if form.begin else ''}{f'(call | {_LIST})' if parallel else 'call'}")
        start = "calls" if choice == "required" else "calls | PLAIN"
        rules += [] if choice == "required" else [_PLAIN]
    else:
        if form.kind == "list":
            rules.append(f"marked: {_LIST if parallel else _LIST_OF_ONE}")
        else:
            rules.append(f'marked: "\\n"? call "\\n"? {json.dumps(form.end)}')
        again = parallel and form.kind != "list"
        if choice == "required":
            start = f'{mark} marked ("\\n"? {mark} marked)*' if again else f"{mark} marked"
        else:
            # No text can hold a mark that is text: as soon as it stands there, a call follows.
            rules += [f"called: {'begun' if token is None else f'TEXT {mark}'} marked", _TEXT]
            rules += [f"begun[lazy]: TEXT {mark}"] if token is None else []
            start = "called* TEXT" if again else "called | TEXT"
    return "\n".join([f"start: {start}", *rules])


def _rules_of(form: Form, tool: Tool, name: str) -> list[str]:
    """One call, without the marks around it."""
    try:
        if form.kind == "xml":
            return _rules_of_tags(tool, name)
        head = f'{{"name": {json.dumps(tool.name)}, "{form.key}": '
        return [f'{name}: {json.dumps(head)} {rule_of(tool.parameters)} "}}"']
    except LocalsteerError as error:
        raise LocalsteerError(f'The tool "{tool.name}": {error.message}', hint=error.hint) from error


def _rules_of_tags(tool: Tool, name: str) -> list[str]:
    """A tag for each argument, in the schema's order."""
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise LocalsteerError("properties is no object, or required no list.")
    definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    rules, parts = [], []
    for number, (key, schema) in enumerate(properties.items()):
        part = f"{name}a{number}"
        parts.append(part if key in required else f"{part}?")
        begin, end = json.dumps(f"<parameter={key}>\n"), "\n</parameter>\n"
        if is_text(tool, key) and not _says_more(schema):
            rules += [f"{part}: {begin} {part}text", f"{part}text[lazy]: /(?s:.*)/ {json.dumps(end)}"]
        elif is_text(tool, key) and schema.keys() & {"enum", "const"}:
            texts = schema["enum"] if "enum" in schema else [schema["const"]]
            rules.append(f"{part}: {begin} ({' | '.join(json.dumps(text) for text in texts)}) {json.dumps(end)}")
        elif is_text(tool, key):
            said = ", ".join(sorted(_says_more(schema)))
            raise LocalsteerError(f'The argument "{key}" is a text that is written without quotes, and cannot be held to {said}.')
        else:
            rules.append(
                f"{part}: {begin} {rule_of({**schema, **definitions} if isinstance(schema, dict) else schema)} {json.dumps(end)}"
            )
    head, end = json.dumps(f"<function={tool.name}>\n"), json.dumps("</function>")
    return [f"{name}: {head} {' '.join([*parts, end])}", *rules]


def _says_more(schema: dict[str, Any]) -> set[str]:
    """What a schema wants of a text."""
    return {"enum", "const", "minLength", "maxLength", "pattern", "format"} & schema.keys()
