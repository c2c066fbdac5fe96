"""Arguments of calls told while they are written.

That is for calls that a grammar holds to their form: what has begun so is a call, and is well formed. All that is told is the
beginning of the arguments as `read_calls` has them once the call is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Protocol

from localsteer.llama.channels import MESSAGE
from localsteer.llama.thinking import open_end
from localsteer.tools.form import IDENTITY, Form, Tags
from localsteer.tools.reading import CDATA, NAME, as_json, is_json, is_text, value_of
from localsteer.tools.text_argument import NULLS, TextArgument
from localsteer.tools.tool import MoreArguments, Tool, ToolCall

# What a string of JSON is made of; the first half of a character stands by itself only where no second half follows.
_IN_STRING = re.compile(
    r'[^"\\]+|\\[^u]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?=[^\\]|\\[^u]|\\u[0-9a-fA-F]{4}))"
)
# A number or a word is whole once something else follows it.
_TOKEN = re.compile(r'[{}\[\],:"]|[^\s{}\[\],:"]+(?=[\s{}\[\],:"])')
_NAME_ENDS = r"(?=[^\w.:/-])"
_BETWEEN = {",": ", ", ":": ": "}


class CallTeller:
    """Tells the calls that a text holds, from behind the mark by which the first one begins.

    Args:
        form: how they are written.
        tools: by their names.

    Attributes:
        told: how many calls have begun.
        arguments: what was told of the latest one's.
    """

    def __init__(self, form: Form, tools: Mapping[str, Tool]) -> None:
        self.told = 0
        self.arguments = ""
        self._tags, self._tail = form.tags, form.tail
        self._tools = tools
        self._held = ""
        self._writer: _Writer | None = None
        names = "|".join(map(re.escape, sorted(tools, key=len, reverse=True)))
        if form.kind == "channel":
            before, middle = "", MESSAGE  # as `PartReader` passes it on
        elif form.kind == "bare":
            before, middle = rf"\[?{_exactly(form.head)}", form.middle
        else:
            before, middle = _exactly((form.opening + form.head).removeprefix(form.begin)), form.middle
        name = f"(?P<name>{names})" + (_exactly(middle) or _NAME_ENDS)
        more = form.between is not None and (form.encloses or form.kind == "bare")
        self._head: re.Pattern[str] | None = re.compile(before + name)
        self._next = re.compile(_exactly(form.tail + (form.between or "") + form.head) + name) if more else None

    def push(self, text: str) -> list[ToolCall | MoreArguments]:
        """What is certain with this piece: calls that begin, without their arguments, and more of these."""
        told: list[ToolCall | MoreArguments] = []
        self._held += text
        while True:
            if self._writer is None:
                found = self._head.match(self._held) if self._head is not None else None
                if found is None:
                    return told
                self._held, self._head = self._held[found.end() :], self._next
                self.told, self.arguments = self.told + 1, ""
                tool = self._tools[found["name"]]
                self._writer = _Tagged(self._tags, self._tail, tool) if self._tags is not None else _Object()
                told.append(ToolCall(tool.name, ""))
            try:
                more = self._writer.push(self._held)
            except ValueError:  # a number that is none
                self._writer = self._head = None
                return told
            if more:
                self.arguments += more
                told.append(MoreArguments(more))
            if self._writer.rest is None:
                self._held = ""
                return told
            self._held, self._writer = self._writer.rest, None


class _Writer(Protocol):
    """Writes arguments as JSON; `rest` is what follows them, None before they are whole."""

    rest: str | None

    def push(self, text: str) -> str:
        """What is certain with this piece."""
        ...


class _Object:
    """An object of JSON, as `as_json` writes it."""

    def __init__(self) -> None:
        self.rest: str | None = None
        self._held = ""
        self._depth = 0
        self._in_string = False

    def push(self, text: str) -> str:
        self._held += text
        written = ""
        while self.rest is None and (piece := self._piece()):
            written += piece
        return written

    def _piece(self) -> str:
        """The next part that is certain; "" where there is none."""
        if self._in_string and not self._held.startswith('"'):
            found = _IN_STRING.match(self._held)
            piece = as_json(json.loads(f'"{found[0]}"', strict=False))[1:-1] if found is not None else ""
        else:
            self._held = self._held if self._in_string else self._held.lstrip()
            found = _TOKEN.match(self._held)
            piece = self._token(found[0]) if found is not None else ""
        self._held = self._held[found.end() :] if found is not None else self._held
        if piece and not self._depth:
            self.rest = self._held
        return piece

    def _token(self, token: str) -> str:
        if token == '"':
            self._in_string = not self._in_string
        elif token in "{}[]":
            self._depth += 1 if token in "{[" else -1
        elif token not in _BETWEEN:
            return as_json(json.loads(token))
        return _BETWEEN.get(token, token)


class _Tagged:
    """Arguments that have tags.

    Args:
        tags: how they are written.
        tail: what stands behind the last.
        tool: that is called.
    """

    def __init__(self, tags: Tags, tail: str, tool: Tool) -> None:
        self.rest: str | None = None
        self._tags = tags
        self._tail = tail
        self._tool = tool
        self._held = ""
        self._value: _Value | None = None
        self._first = True
        text, other = _exactly(tags.text), _exactly(tags.other)
        self._begins = re.compile(rf"{_exactly(tags.before)}(?P<key>{NAME.pattern}?)(?:(?P<text>{text})|{other})")

    def push(self, text: str) -> str:
        self._held += text
        written = ""
        while self.rest is None:
            if self._value is None:
                found = self._begins.match(self._held)
                if found is None:
                    return written + self._ended()
                self._held = self._held[found.end() :]
                written += f"{'{' if self._first else ', '}{as_json(found['key'])}: "
                self._first, self._value = False, _Value(self._tags, self._tool, found["key"], plain=found["text"] is not None)
            written += self._value.push(self._held)
            self._held = ""
            if self._value.rest is None:
                return written
            self._held, self._value = self._value.rest, None
        return written

    def _ended(self) -> str:
        if not self._tail or not self._held.startswith(self._tail):
            return ""
        self.rest = self._held
        return "{}" if self._first else "}"


class _Value:
    """The value of an argument that has a tag.

    Args:
        tags: how it is written.
        tool: that is called.
        key: of the argument.
        plain: the tag is that of a text.
    """

    def __init__(self, tags: Tags, tool: Tool, key: str, *, plain: bool) -> None:
        self.rest: str | None = None
        self._tags, self._tool, self._key, self._plain = tags, tool, key, plain
        about = TextArgument.of(tool.parameters, key) if tags.text == tags.other else None
        self._is_text = is_text(tags, tool, key, plain=plain)
        self._nulls = NULLS if about is not None and about.nullable else ()
        self._held = ""
        self._told = False  # whether a part of a text was

    def push(self, text: str) -> str:
        self._held += text
        end = self._held.find(self._tags.after)
        while end >= 0 and not self._is_text and not is_json(self._held[:end]):
            end = self._held.find(self._tags.after, end + 1)  # it stands in a string of JSON
        if end < 0:
            certain = len(self._held) - open_end(self._held, self._tags.after)
            if not self._is_text or not certain or (not self._told and self._may_be_other(self._held[:certain])):
                return ""
            piece, self._held = self._held[:certain], self._held[certain:]
            opened, self._told = "" if self._told else '"', True
            return opened + as_json(piece)[1:-1]
        value, self.rest = self._held[:end], self._held[end + len(self._tags.after) :]
        if self._told:
            return as_json(value)[1:]
        return as_json(value_of(self._tags, self._tool, self._key, value, plain=self._plain))

    def _may_be_other(self, begun: str) -> bool:
        """Whether what begins so may be read as something else than it says."""
        return begun.startswith(CDATA) or CDATA.startswith(begun) or any(null.startswith(begun.strip()) for null in self._nulls)


def _exactly(piece: str) -> str:
    return r"[\w.:-]*".join(map(re.escape, piece.split(IDENTITY)))
