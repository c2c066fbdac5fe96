"""Grammars that let a model call tools in its own form, with arguments that satisfy their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from localsteer.errors import LocalsteerError
from localsteer.llama.json_schema import rule_of
from localsteer.llama.thinking import Thinking
from localsteer.tools.form import IDENTITY, Form, Tags
from localsteer.tools.reading import CDATA, NAME
from localsteer.tools.text_argument import NULLS, TextArgument, types_of
from localsteer.tools.tool import Tool

_ANY = "/(?s:.*)/"
_TEXT = f"TEXT: {_ANY}"
_THOUGHT = f"THOUGHT: {_ANY}"
_BLANK = r"BLANK: /\s+/"
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
    thinking: Thinking | None = None,
    begun: bool = False,
) -> str:
    """The grammar of answers that may call tools, or must, in llguidance's Lark.

    Args:
        form: how the model writes calls.
        tools: those that it may call; where one is to be called by its name, that one.
        choice: "auto" lets it answer by text as well, and holds it to the form as soon as it begins a call; not in channels.
        parallel: whether it may call several.
        marks: the tokens of those texts of the form, and of the marks of the reasoning, that the vocabulary has as tokens that
            add no text.
        thinking: the marks of the reasoning that may stand before the answer, and is free; None for none.
        begun: whether the reasoning has begun.

    Raises:
        LocalsteerError: there is no tool, or the schema of one cannot be followed.
    """
    if not tools:
        raise LocalsteerError("There is no tool to call.")
    write = _Writer(form, marks)
    before = write.thought(thinking, begun=begun) if thinking is not None else ["start: answer"]
    return "\n".join([*before, *_answer(write, tools, choice, parallel=parallel)])


def _answer(write: _Writer, tools: Sequence[Tool], choice: Literal["auto", "required"], *, parallel: bool) -> list[str]:
    form, marks = write.form, write.marks
    rules = [f"call: {' | '.join(f'call{number}' for number in range(len(tools)))}"]
    for number, tool in enumerate(tools):
        rules += write.call(tool, f"call{number}", head=form.kind in ("bare", "channel"))
    if form.kind == "channel":
        return [f"answer: {write.terms(form.opening)} call", *rules]
    if form.kind == "bare":
        mark = f"{write.terms(form.begin)}? " if form.begin else ""
        rules.append(f"calls: {mark}{f'(call | {_LIST})' if parallel else 'call'}")
        start = "calls" if choice == "required" else "calls | PLAIN"
        rules += [] if choice == "required" else [_PLAIN]
        return [f"answer: {start}", *rules]
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
    return [f"answer: {start}", *rules]


def _of_tool(tool: Tool, error: LocalsteerError) -> LocalsteerError:
    return LocalsteerError(f'The tool "{tool.name}": {error.message}', hint=error.hint)


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

    def thought(self, thinking: Thinking, *, begun: bool) -> list[str]:
        """The reasoning before the answer, as long as the model likes, or none."""
        opens, closes = thinking.opens.strip(), thinking.closes.strip()
        lazy = "" if closes in self.marks else "[lazy]"
        rules = [_THOUGHT, _BLANK, f"thought{lazy}: THOUGHT {self.terms(closes)}"]
        if begun:
            return ["start: thought BLANK? answer", *rules]
        lazy = "" if "<[" in self.terms(opens) else "[lazy]"
        return ["start: opened thought BLANK? answer | answer", f"opened{lazy}: BLANK? {self.terms(opens)}", *rules]

    def call(self, tool: Tool, name: str, *, head: bool) -> list[str]:
        """One call; what stands before its name only if that is asked for."""
        form = self.form
        try:
            begin = (form.head if head else "") + tool.name + form.middle
            if form.tags is not None:
                return self._tagged(tool, name, begin)
            return [f"{name}: {self.terms(begin)} {rule_of(tool.parameters)} {self.terms(form.tail)}"]
        except LocalsteerError as error:
            raise _of_tool(tool, error) from error

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
        if (unread := next((key for key in properties if not NAME.fullmatch(key)), None)) is not None:
            raise LocalsteerError(
                f"The argument {json.dumps(unread)} cannot have a tag: its name is empty, or holds <, > or a line break."
            )
        definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        rules, parts = [], []
        for number, (key, schema) in enumerate(properties.items()):
            part = f"{name}a{number}"
            if not types_of(schema, tool.parameters):
                if key in required:
                    raise LocalsteerError(f'The argument "{key}" is required, and by its schema there is no value for it.')
                continue
            parts.append(part if key in required else f"{part}?")
            about = TextArgument.of(tool.parameters, key)
            if about is not None:
                rules += self._text(part, tags, about)
                continue
            value = rule_of({**schema, **definitions} if isinstance(schema, dict) else schema)
            rules.append(f"{part}: {self.terms(f'{tags.before}{key}{tags.other}')} {value} {self.terms(tags.after)}")
        return [f"{name}: {' '.join([self.terms(begin), *parts, self.terms(self.form.tail)])}", *rules]

    def _text(self, name: str, tags: Tags, about: TextArgument) -> list[str]:
        """An argument that is a text: all up to what ends it, which cannot stand in it."""
        marks = "|".join(map(re.escape, sorted(self.marks, key=len, reverse=True)))
        token = re.search(marks, tags.after) if marks else None
        # What stands before a token belongs to the text as far as the parser sees, which takes as much as it can.
        end = tags.after[: token.start()] if token is not None else tags.after.rstrip()
        closes = _words(end.strip() or (token[0] if token is not None else ""))
        wanted = about.wanted()
        text = f"({' & '.join(wanted or [_ANY])}) {json.dumps(end, ensure_ascii=False) if end else ''}"
        behind = "+" if end.strip() else "*"
        terms = [f"({text})", f"~/(?s:.*){closes}(?s:.{behind})/"]
        if wanted:
            terms.append(f"~/{_words(CDATA)}(?s:.*)/")
        begin, others = self.terms(f"{tags.before}{about.name}{tags.text}"), ""
        if about.nullable:
            others = f" | {self.terms(f'{tags.before}{about.name}{tags.other}null{tags.after}')}"
            if tags.text == tags.other:
                terms.append(rf"~/\s*(?:{'|'.join(NULLS)})\s*{closes if end.strip() else ''}/")
        return [
            f"{name}: {begin} {name}text {self.terms(tags.after[len(end) :])}{others}",
            f"{name}text{'[lazy]' if end.strip() else ''}: {name.upper()}",
            f"{name.upper()}: {' & '.join(terms)}",
        ]


def _words(piece: str) -> str:
    """A text whose white space is free, as it is for who reads it, as a regular expression of llguidance's."""
    return r"\s*".join(re.escape(word).replace("/", r"\x2f") for word in piece.split())
