"""A terminal with a prompt at its bottom, above which the chat is shown.

What is finished of an answer is printed above the prompt once and for all; the block of Markdown that still grows is part of the
prompt itself, which prompt_toolkit redraws without flicker.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import click
from prompt_toolkit.application import Application, get_app, in_terminal
from rich.console import RenderableType
from rich.text import Text

from localsteer.building.own_answers import Progress
from localsteer.chat.columns import columns
from localsteer.chat.conversation import Heard
from localsteer.chat.markdown import ansi, finished, rendered
from localsteer.chat.screen import ShouldStop, harmless

T = TypeVar("T")

# Seconds between two drawings of a growing block. One takes 3 to 6 ms, so eight a second cost under 5 % of a core beside the
# tokens; the eye reads no faster.
_REDRAW = 0.125
# Lines of the terminal that the prompt, the status line and a menu keep for themselves.
KEPT_LINES = 6


class LiveScreen:
    """Shows a chat above a prompt, from a thread that is not the prompt's.

    Args:
        plain: show answers as they are written, without rendering Markdown.

    Attributes:
        loop: the prompt's event loop, once it runs.
        busy: what goes on, for the status line; "" while nothing does.
        speed: tokens a second of what is being written.
    """

    def __init__(self, *, plain: bool = False) -> None:
        self.plain = plain
        self.loop: asyncio.AbstractEventLoop | None = None
        self.redraw: Callable[[], None] = lambda: None
        self.busy = ""
        self.speed = 0.0
        self._stop = threading.Event()
        self._tail = ""

    @property
    def tail(self) -> str:
        """What still grows, drawn: the prompt shows it above itself."""
        return self._tail

    def request_stop(self) -> None:
        """Ctrl-C was pressed."""
        self._stop.set()

    # ---- what a session asks for

    @property
    def width(self) -> int:
        """Characters in a line."""
        return shutil.get_terminal_size().columns

    def say(self, text: str) -> None:
        """Above the prompt."""
        self._print(harmless(text) + "\n")

    def show(self, renderable: RenderableType) -> None:
        """Above the prompt."""
        self._print(ansi(renderable, self.width))

    def note(self, text: str) -> None:
        """Above the prompt, dim."""
        self.show(Text(harmless(text), "dim"))

    def error(self, text: str) -> None:
        """Above the prompt, red."""
        self.show(Text(harmless(text), "red"))

    @contextlib.contextmanager
    def answer(self) -> Iterator[Heard]:
        """Finished blocks above the prompt, the one that grows on top of it, reasoning folded to a line."""
        writing = _Writing(self)
        with self._works("answering"):
            try:
                yield writing.hear
            finally:
                writing.end()

    @contextlib.contextmanager
    def side_by_side(self, titles: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        """Columns that grow on top of the prompt; whole when all have ended."""
        texts = [""] * len(titles)
        drawn = 0.0

        def tell(number: int, piece: str) -> None:
            nonlocal drawn
            texts[number] += harmless(piece)
            if time.monotonic() - drawn >= _REDRAW:
                drawn = time.monotonic()
                self.grow(ansi(columns(titles, texts, self.width, lines=self.room - 2), self.width))

        with self._works("answering"):
            try:
                yield tell
            finally:
                self._print(ansi(columns(titles, texts, self.width), self.width), tail="")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """In the status line. Ctrl-C ends the work."""

        def tell(what: str, done: int, total: int) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self.busy = f"{what} {done}/{total}"
            self.redraw()

        with self._works(self.busy):
            yield tell

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[ShouldStop]:
        """Ctrl-C is the prompt's, which tells."""
        yield self._stop.is_set

    def edit(self, text: str) -> str | None:
        """In $EDITOR, which has the terminal for itself meanwhile."""
        return self._in_terminal(lambda: click.edit(text))

    def copy(self, text: str) -> None:
        """By the terminal's own way (OSC 52), which works through ssh as well."""
        encoded = base64.b64encode(text.encode()).decode()
        self._print(f"\x1b]52;c;{encoded}\x07")

    def run_full_screen(self, application: Application[None], meanwhile: Callable[[], None], ended: Callable[[], None]) -> None:
        """In the prompt's place."""
        assert self.loop is not None

        async def run() -> None:
            try:
                async with in_terminal():
                    await application.run_async()
            except EOFError:  # the terminal is gone, which the prompt sees as well
                pass
            finally:
                ended()

        running = asyncio.run_coroutine_threadsafe(run(), self.loop)
        try:
            meanwhile()
        except BaseException:
            running.cancel()
            raise
        running.result()

    # ---- drawing

    @property
    def room(self) -> int:
        """Lines that what grows may take."""
        return max(shutil.get_terminal_size().lines - KEPT_LINES, 4)

    def grow(self, drawn: str) -> None:
        """Show what is not finished yet, its last lines where it is longer than the terminal."""
        self._tail = "".join(drawn.splitlines(keepends=True)[-self.room :])
        self.redraw()

    def print_finished(self, drawn: str) -> None:
        """Something that grew is finished: it goes above the prompt, and no longer grows there."""
        self._print(drawn, tail="")

    def _print(self, drawn: str, tail: str | None = None) -> None:
        def write() -> None:
            if tail is not None:
                self._tail = tail
            output = get_app().output
            output.write_raw(drawn.replace("\r\n", "\n").replace("\n", "\r\n"))
            output.flush()

        self._in_terminal(write)

    def _in_terminal(self, function: Callable[[], T]) -> T:
        """With the prompt out of the way; waits for it, so that what is printed keeps its order."""
        if self.loop is None:
            return function()

        async def run() -> T:
            async with in_terminal():
                return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result()

    @contextlib.contextmanager
    def _works(self, what: str) -> Iterator[None]:
        before, self.busy = self.busy, what
        try:
            yield
        finally:
            self.busy = before
            self.redraw()

    def begin(self) -> None:
        """A line is worked on: a Ctrl-C before it was for something else."""
        self._stop.clear()


class _Writing:
    """An answer while it comes."""

    def __init__(self, screen: LiveScreen) -> None:
        self._screen = screen
        self._text = ""  # of the answer, what is not printed yet
        self._thought = ""
        self._thinking_since: float | None = None
        self._printed = False
        self._drawn = 0.0
        self._begun = time.monotonic()
        self._pieces = 0

    def hear(self, piece: str, reasoning: bool) -> None:
        """The next piece."""
        self._pieces += 1
        if reasoning:
            self._thought += harmless(piece)
            if self._thinking_since is None:
                self._thinking_since = time.monotonic()
        else:
            self._fold()
            self._text += harmless(piece)
        now = time.monotonic()
        if now - self._drawn < _REDRAW:
            return
        self._drawn = now
        self._screen.speed = self._pieces / max(now - self._begun, 1e-3)
        width = self._screen.width
        if reasoning:
            self._screen.grow(ansi(Text(f"thinking: {self._thought.split(chr(10))[-1]}"[-width * 2 :], "dim italic"), width))
            return
        if end := self._finished():
            self._print(self._text[:end])
            self._text = self._text[end:]
        self._screen.grow(self._draw(self._text))

    def end(self) -> None:
        """There is no more."""
        self._fold()
        if self._text.strip():
            self._print(self._text)
        self._screen.print_finished("\n")

    def _fold(self) -> None:
        if self._thinking_since is not None:
            seconds, words = time.monotonic() - self._thinking_since, len(self._thought.split())
            line = Text(f"[thought {words} words in {seconds:.0f} s; /thinking shows them]", "dim")
            self._screen.print_finished(ansi(line, self._screen.width))
            self._thinking_since = None

    def _finished(self) -> int:
        return self._text.rfind("\n") + 1 if self._screen.plain else finished(self._text)

    def _draw(self, text: str) -> str:
        if self._screen.plain:
            return text if text.endswith("\n") else f"{text}\n"
        gap = "\n" if self._printed and text.strip() else ""
        return gap + ansi(rendered(text), self._screen.width).strip("\n") + "\n"

    def _print(self, text: str) -> None:
        self._screen.print_finished(self._draw(text))
        self._printed = True
