"""Calls of tools in an answer, read while it is written."""

from __future__ import annotations

import re
from collections.abc import Iterable

from localsteer.llama.thinking import open_end
from localsteer.tools.form import GENERIC, Form
from localsteer.tools.reading import NoCallError, read_calls
from localsteer.tools.telling import CallTeller
from localsteer.tools.tool import MoreArguments, Tool, ToolCall

Found = list[str | ToolCall | MoreArguments]

# Whatever form their template teaches, small models write a call as plain JSON, too, and put it into a block of code.
_BARE = re.compile(r"\s*(?:```(?:json|tool_call)?[ \t]*\n?\s*)?(?=[{\[])")
_BARE_SO_FAR = re.compile(r"\s*(?:`{1,2}|```[a-z_]{0,9}[ \t]*\n?\s*)?\Z")
_CLOSES = re.compile(r"[]}>]")
_FENCE_ENDS = re.compile(r"\s*```\s*")
# The first key of an object that is none.
_NO_CALL = re.compile(r'\[?\s*\{\s*"(?!(?:name|arguments|parameters|type|id|function)")[^"]*"')


class ToolCallParser:
    """Tells calls from text. What is between calls and says nothing is left out.

    Args:
        form: how the model writes calls.
        tools: those that it may call.
        held: a grammar holds its calls to the form: they are told while they are written, a call without its arguments first, and
            then more and more of these.

    Attributes:
        unfinished: once the answer has ended, the beginning of a call that was cut off; no text, and no call either.
        whole: how many calls were whole so far; one that is told while it is written may never be.
    """

    def __init__(self, form: Form, tools: Iterable[Tool], *, held: bool = False) -> None:
        self.unfinished = ""
        self.whole = 0
        self._form = form
        self._tools = {tool.name: tool for tool in tools}
        self._is_held = held
        self._teller: CallTeller | None = None
        self._held = ""
        self._mark = ""  # what the call began with that is being read
        self._space = ""  # what stands before that: a part of the text where there is no call after all
        self._reading = False
        self._bare = form.kind == "bare"  # whether the call that is being read stands there without marks
        self._fenced = False  # whether the block of code of a call is still to be closed
        self._over = False  # whether brackets may still come that close nothing
        self._at_start = True

    def push(self, text: str) -> Found:
        """What is certain with this piece of the answer: text, and calls, in their order."""
        self._held += text
        told: Found = [*self._teller.push(text)] if self._teller is not None else []
        # A call ends with one of these: else its beginning would be read again with every token.
        if self._reading and not _CLOSES.search(text):
            return told
        return _joined([*told, *self._all(final=False)])

    def finish(self) -> Found:
        """What is left at the end of the answer."""
        found = self._all(final=True)
        rest, self._held = self._space + self._mark + self._held, ""
        if self._reading and self._begins_a_call(rest):
            self.unfinished = rest
        elif rest.strip() or not self.whole:
            found.append(rest)
        return _joined(found)

    def _all(self, *, final: bool) -> Found:
        found: Found = []
        while self._held:
            if not self._reading:
                if text := self._text():
                    found.append(text)
                if not self._reading:
                    break
                if self._is_held and "`" not in self._mark and (self._form.kind == "bare" or not self._bare):
                    self._teller = CallTeller(self._form, self._tools)
                    found += self._teller.push(self._held)
            try:
                if self._bare and _NO_CALL.match(self._held):
                    raise NoCallError
                read = read_calls(GENERIC if self._bare else self._form, self._held, self._tools, final=final)
            except NoCallError:
                if self._teller is not None and self._teller.told:
                    self.unfinished = self._mark + self._held  # it was told as far as it could be
                    self._held, self._mark, self._reading, self._teller = "", "", False, None
                    break
                self._teller = None
                # Text after all: the mark, or what looked like one.
                cut = 0 if self._mark else 1
                found.append(self._space + self._mark + self._held[:cut])
                self._held, self._mark, self._space, self._reading = self._held[cut:], "", "", False
                continue
            if read is None:
                break
            calls, length = read
            found += self._untold(calls)
            self.whole += len(calls)
            self._fenced, self._over = "```" in self._mark, self._bare
            self._held, self._mark, self._space, self._reading = self._held[length:], "", "", False
        return _joined(found)

    def _untold(self, calls: list[ToolCall]) -> Found:
        """What was not told yet of calls that are whole."""
        teller, self._teller = self._teller, None
        if teller is None or not teller.told:
            return [*calls]
        latest, *others = calls[teller.told - 1 :]
        # A key that stands there twice is told twice.
        more = latest.arguments[len(teller.arguments) :] if latest.arguments.startswith(teller.arguments) else ""
        return [*([MoreArguments(more)] if more else []), *others]

    def _text(self) -> str:
        """Text up to the next call, or to what may become one."""
        if self._fenced:
            if "```".startswith(self._held.strip()) and self._held.strip() != "```":
                return ""
            fence = _FENCE_ENDS.match(self._held)
            self._held, self._fenced = self._held[fence.end() if fence is not None else 0 :], False
        if self._over:
            self._held = self._held.lstrip(" \n}]")
            self._over = not self._held
        held, begin = self._held, self._form.begin
        if self._at_start:
            bare = _BARE.match(held)
            if bare is None and _BARE_SO_FAR.match(held):
                return ""
            self._at_start = False
            if bare is not None and not (begin and begin.startswith("[") and held.lstrip().startswith("[")):
                self._mark, self._held, self._reading, self._bare = bare[0], held[bare.end() :], True, True
                return ""
        at = held.find(begin) if begin else -1
        if at >= 0:
            self._held, self._mark, self._reading, self._bare = held[at + len(begin) :], begin, True, self._form.kind == "bare"
            text = held[:at].rstrip()
            self._space = held[len(text) : at]
            return text
        certain = len(held) - open_end(held, begin)
        certain = len(held[:certain].rstrip())
        self._held = held[certain:]
        return held[:certain]

    def _begins_a_call(self, text: str) -> bool:
        if self._mark and self._mark == self._form.begin:
            return True
        # Without a mark, JSON is a call only where it names a tool: an answer in JSON that was cut is an answer.
        names = "|".join(map(re.escape, self._tools))
        return re.match(rf'\s*\[?\s*\{{\s*"name"\s*:\s*"({names})"', text.removeprefix(self._mark)) is not None


def _joined(found: Found) -> Found:
    """Texts that follow one another as one."""
    joined: Found = []
    for one in found:
        if isinstance(one, str) and joined and isinstance(joined[-1], str):
            joined[-1] += one
        elif one:
            joined.append(one)
    return joined
