"""A reply as programs want it: reasoning, text and calls of tools apart, told from each other while it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from localsteer.engine.phases import Division
from localsteer.llama.thinking import Thinking
from localsteer.tools.form import Form
from localsteer.tools.parser import ToolCallParser, open_end
from localsteer.tools.tool import Tool, ToolCall

# How every channel of gpt-oss begins.
_CHANNEL = "<|channel|>"


@dataclass(frozen=True)
class Reasoning:
    """What the model thinks."""

    text: str


Said = Reasoning | str | ToolCall


@dataclass(frozen=True)
class Reading:
    """How a reply is to be read.

    Attributes:
        division: into reasoning and answer; None where it is all answer.
        form: in which calls of tools are written; None where there are no tools.
        tools: those that may be called.
    """

    division: Division | None = None
    form: Form | None = None
    tools: tuple[Tool, ...] = ()

    def reader(self) -> ReplyReader:
        """For one reply."""
        return ReplyReader(self)

    def of(self, text: str) -> list[Said]:
        """A whole reply; texts that follow one another are one."""
        reader = self.reader()
        joined: list[Said] = []
        for said in [*reader.push(text), *reader.finish()]:
            last = joined[-1] if joined else None
            if isinstance(said, str) and isinstance(last, str):
                joined[-1] = last + said
            elif isinstance(said, Reasoning) and isinstance(last, Reasoning):
                joined[-1] = Reasoning(last.text + said.text)
            else:
                joined.append(said)
        return joined


class ReplyReader:
    """Reads one reply piece by piece.

    Args:
        reading: how.
    """

    def __init__(self, reading: Reading) -> None:
        division = reading.division
        self._thinking: Thinking | None = division.thinking if division is not None else None
        self._at: Literal["start", "thinking", "between", "answer"] = "answer" if self._thinking is None else "start"
        if division is not None and division.begun:
            self._at = "thinking"
        self._calls = ToolCallParser(reading.form, reading.tools) if reading.form is not None else None
        # A call in a channel of its own stands between those of the reasoning and of the answer.
        self._calling = reading.form.begin if reading.form is not None and reading.form.kind == "channel" else None
        self._held = ""
        self._trims = self._at == "thinking"  # white space at the beginning of a part is of the marks

    def push(self, text: str) -> list[Said]:
        """What is certain with this piece."""
        self._held += text
        return list(self._read(final=False))

    def finish(self) -> list[Said]:
        """What is left at the end."""
        said = list(self._read(final=True))
        return [*said, *(self._calls.finish() if self._calls is not None else ())]

    def _read(self, *, final: bool) -> Iterator[Said]:
        while self._held:
            before = self._at
            if self._at == "answer":
                yield from self._answer()
            else:
                assert self._thinking is not None
                if self._at == "thinking":
                    yield from self._thought(self._thinking, final=final)
                elif self._at == "between":
                    self._between(self._thinking, final=final)
                else:
                    self._start(self._thinking, final=final)
            if self._at == before:
                break

    def _start(self, thinking: Thinking, *, final: bool) -> None:
        begins = self._held.lstrip()
        marks = [mark for mark in (thinking.opens.lstrip(), thinking.answers) if mark]
        for mark in marks:
            if begins.startswith(mark):
                self._enter("answer" if mark == thinking.answers else "thinking", begins[len(mark) :])
                return
        if thinking.answers and begins.startswith(_CHANNEL):
            if not any(mark.startswith(begins) for mark in marks):
                self._at = "between"
        elif final or not any(mark.startswith(begins) for mark in marks):
            self._at = "answer"

    def _thought(self, thinking: Thinking, *, final: bool) -> Iterator[Said]:
        text = self._held.lstrip() if self._trims else self._held
        at = text.find(thinking.closes)
        if at >= 0:
            if thought := text[:at].rstrip():
                yield Reasoning(thought)
            self._enter("between" if thinking.answers else "answer", text[at + len(thinking.closes) :])
            return
        certain = len(text) if final else len(text) - open_end(text, thinking.closes)
        thought = text[:certain].rstrip()
        if thought:
            self._trims = False
            yield Reasoning(thought)
        self._held = "" if final else text[len(thought) :]

    def _between(self, thinking: Thinking, *, final: bool) -> None:
        """Between channels stands nothing that is said."""
        marks = (thinking.answers, thinking.opens, *((self._calling,) if self._calling is not None else ()))
        places = {mark: at for mark in marks if (at := self._held.find(mark)) >= 0}
        if places:
            mark = min(places, key=lambda one: places[one])
            if mark == self._calling:
                self._at, self._held, self._trims = "answer", self._held[places[mark] :], False
                return
            rest = self._held[places[mark] + len(mark) :]
            self._enter("answer" if mark == thinking.answers else "thinking", rest)
        elif final:
            self._held = ""

    def _answer(self) -> Iterator[Said]:
        text = self._held.lstrip() if self._trims else self._held
        self._held = ""
        if text:
            self._trims = False
            yield from self._calls.push(text) if self._calls is not None else (text,)

    def _enter(self, part: Literal["thinking", "between", "answer"], rest: str) -> None:
        self._at, self._held, self._trims = part, rest, True


def parts_of(said: Sequence[Said]) -> tuple[str, str, list[ToolCall]]:
    """The reasoning, the text and the calls."""
    reasoning = "".join(one.text for one in said if isinstance(one, Reasoning))
    text = "".join(one for one in said if isinstance(one, str))
    return reasoning, text, [one for one in said if isinstance(one, ToolCall)]
