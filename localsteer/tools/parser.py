"""Calls of tools in an answer, read while it is written."""

from __future__ import annotations

import re
from collections.abc import Iterable

from localsteer.tools.form import Form, NoCallError, read_calls
from localsteer.tools.tool import Tool, ToolCall

_SPACE_AT_END = re.compile(r"\s*\Z")


class ToolCallParser:
    """Tells calls from text. What is between calls and says nothing is left out.

    Args:
        form: how the model writes calls.
        tools: those that it may call.

    Attributes:
        unfinished: once the answer has ended, the beginning of a call that was cut off; no text, and no call either.
    """

    def __init__(self, form: Form, tools: Iterable[Tool]) -> None:
        self.unfinished = ""
        self._form = form
        self._tools = {tool.name: tool for tool in tools}
        self._held = ""
        self._mark = ""  # what the call began with that is being read
        self._reading = False
        self._at_start = True
        self._has_called = False

    def push(self, text: str) -> list[str | ToolCall]:
        """What is certain with this piece of the answer: text, and whole calls, in their order."""
        self._held += text
        return self._all(final=False)

    def finish(self) -> list[str | ToolCall]:
        """What is left at the end of the answer."""
        found = self._all(final=True)
        rest, self._held = self._mark + self._held, ""
        if self._reading and self._begins_a_call(rest):
            self.unfinished = rest
        elif rest.strip() or not self._has_called:
            found.append(rest)
        return _joined(found)

    def _all(self, *, final: bool) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        while self._held:
            if not self._reading:
                if text := self._text():
                    found.append(text)
                if not self._reading:
                    break
            try:
                read = read_calls(self._form, self._held, self._tools, final=final)
            except NoCallError:
                # Text after all: the mark, or what looked like one.
                cut = 0 if self._mark else 1
                found.append(self._mark + self._held[:cut])
                self._held, self._mark, self._reading = self._held[cut:], "", False
                continue
            if read is None:
                break
            calls, length = read
            found += calls
            self._has_called = True
            self._held, self._mark, self._reading = self._held[length:], "", False
        return _joined(found)

    def _text(self) -> str:
        """Text up to the next call, or to what may become one."""
        held, begin = self._held, self._form.begin
        if self._at_start:
            if not held.strip():
                return ""
            self._at_start = False
            if self._form.kind == "bare" and held.lstrip()[0] in "{[":
                self._reading = True
                return ""
        at = held.find(begin) if begin else -1
        if at >= 0:
            self._held, self._mark, self._reading = held[at + len(begin) :], begin, True
            return held[:at].rstrip()
        longest = min(len(begin) - 1, len(held))
        open_end = next((size for size in range(longest, 0, -1) if begin.startswith(held[-size:])), 0)
        certain = len(held) - open_end
        space = _SPACE_AT_END.search(held, 0, certain)
        assert space is not None
        self._held = held[space.start() :]
        return held[: space.start()]

    def _begins_a_call(self, text: str) -> bool:
        names = "|".join(map(re.escape, self._tools))
        return bool(self._mark) or re.match(rf'\s*\[?\s*\{{\s*"name"\s*:\s*"({names})"', text) is not None


def _joined(found: list[str | ToolCall]) -> list[str | ToolCall]:
    """Texts that follow one another as one."""
    joined: list[str | ToolCall] = []
    for one in found:
        if isinstance(one, str) and joined and isinstance(joined[-1], str):
            joined[-1] += one
        elif one:
            joined.append(one)
    return joined
