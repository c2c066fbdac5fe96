"""Tells what a model thinks from what it answers, while the reply is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from localsteer.engine.phases import Division
from localsteer.llama.channels import ENDS, MESSAGE, called_in, end_in, kind_of, may_begin_header
from localsteer.llama.thinking import Thinking, open_end


@dataclass(frozen=True)
class Reasoning:
    """What the model thinks."""

    text: str


class PartReader:
    """Reads one reply piece by piece: reasoning, and texts of the answer, marks left out.

    Args:
        division: how the reply is divided; None where it is all answer.
        calls: pass on a call that has a channel of its own, as " to=functions.NAME<|message|>..."; else it is left out.
    """

    def __init__(self, division: Division | None, *, calls: bool = False) -> None:
        self._thinking: Thinking | None = division.thinking if division is not None else None
        self._at: Literal["start", "thinking", "between", "answer", "call", "nothing"]
        self._at = "answer" if self._thinking is None else "start"
        if division is not None and division.begun:
            self._at = "thinking"
        self._calls = calls
        self._held = ""
        self._answered = False
        self._trims = self._at == "thinking"  # white space at the beginning of a part is of the marks

    def push(self, text: str) -> list[Reasoning | str]:
        """What is certain with this piece."""
        self._held += text
        return list(self._read(final=False))

    def finish(self) -> list[Reasoning | str]:
        """What is left at the end."""
        return list(self._read(final=True))

    def _read(self, *, final: bool) -> Iterator[Reasoning | str]:
        thinking = self._thinking
        while self._held:
            before = self._at, len(self._held)
            if thinking is None or (self._at == "answer" and not thinking.in_channels):
                yield from self._said(self._held)
                self._held = ""
            elif thinking.in_channels:
                yield from self._message(final=final) if self._at not in ("start", "between") else self._header(final=final)
            elif self._at == "thinking":
                yield from self._thought(thinking, final=final)
            elif self._at == "between":
                self._between(thinking, final=final)
            else:
                self._start(thinking, final=final)
            if (self._at, len(self._held)) == before:
                break

    def _said(self, text: str) -> Iterator[str]:
        text = text.lstrip() if self._trims else text
        if text:
            self._trims = False
            self._answered = self._answered or self._at == "answer"
            yield text

    # ---- marks around the reasoning

    def _start(self, thinking: Thinking, *, final: bool) -> None:
        begins = self._held.lstrip()
        marks = [mark for mark in (thinking.opens.lstrip(), thinking.answers) if mark]
        for mark in marks:
            if begins.startswith(mark):
                self._enter("answer" if mark == thinking.answers else "thinking", begins[len(mark) :])
                return
        if final or not any(mark.startswith(begins) for mark in marks):
            self._at = "answer"

    def _thought(self, thinking: Thinking, *, final: bool) -> Iterator[Reasoning]:
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
        """Between two parts stands nothing that is said."""
        places = {mark: at for mark in (thinking.answers, thinking.opens) if (at := self._held.find(mark)) >= 0}
        if places:
            mark = min(places, key=lambda one: places[one])
            self._enter("answer" if mark == thinking.answers else "thinking", self._held[places[mark] + len(mark) :])
        elif final:
            self._held = ""

    # ---- messages with headers

    def _header(self, *, final: bool) -> Iterator[str]:
        header, message, rest = self._held.partition(MESSAGE)
        if self._at == "start" and not (may_begin_header(header) and (message or not final)):
            self._at = "answer"
        elif message:
            kind = kind_of(header)
            if kind == "call":
                self._enter("call" if self._calls else "nothing", rest)
                if self._calls:
                    yield f" to=functions.{called_in(header)}{MESSAGE}"
                return
            if kind == "answer" and self._answered:
                yield "\n\n"  # a preamble, and what follows it
            self._enter("thinking" if kind == "thinking" else "answer", rest)
        elif final:
            self._held = ""

    def _message(self, *, final: bool) -> Iterator[Reasoning | str]:
        end = end_in(self._held)
        stop = end[0] if end is not None else len(self._held)
        if end is None and not final:
            stop -= max(open_end(self._held, mark) for mark in ENDS)
        text, at = self._held[:stop], self._at
        if at == "thinking":
            text = text.rstrip()
            if thought := text.lstrip() if self._trims else text:
                self._trims = False
                yield Reasoning(thought)
        elif at != "nothing":
            yield from self._said(text)
        if end is not None:
            self._enter("between", self._held[end[1] :])
        else:
            self._held = "" if final else self._held[len(text) :]

    def _enter(self, part: Literal["thinking", "between", "answer", "call", "nothing"], rest: str) -> None:
        self._at, self._held, self._trims = part, rest, True


def parts_of(division: Division | None, text: str) -> tuple[str, str]:
    """The reasoning and the answer of a whole reply."""
    reader = PartReader(division)
    parts = [*reader.push(text), *reader.finish()]
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    return reasoning, "".join(part for part in parts if isinstance(part, str))


def apart(
    division: Division | None, on_text: Callable[[str], None], on_reasoning: Callable[[str], None]
) -> tuple[Callable[[str], None], Callable[[], None]]:
    """Two functions: one takes a piece of a reply, marks and all, and tells of its parts; the other tells the rest at its end."""
    reader = PartReader(division)

    def tell(parts: list[Reasoning | str]) -> None:
        for part in parts:
            if isinstance(part, Reasoning):
                on_reasoning(part.text)
            else:
                on_text(part)

    return lambda text: tell(reader.push(text)), lambda: tell(reader.finish())
