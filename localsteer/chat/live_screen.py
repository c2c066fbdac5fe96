"""A terminal with a prompt at its bottom, above which the chat is shown.

What is finished of an answer is printed above the prompt once and for all; the block of Markdown that still grows is part of the
prompt itself, which prompt_toolkit redraws without flicker.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import click
from prompt_toolkit.application import Application, in_terminal
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.output import Output
from prompt_toolkit.renderer import HeightIsUnknownError
from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from localsteer.building.own_answers import Progress
from localsteer.chat.columns import columns
from localsteer.chat.conversation import Heard
from localsteer.chat.markdown import ansi, fragments, rendered
from localsteer.chat.pace import Pace
from localsteer.chat.screen import ShouldStop, harmless
from localsteer.chat.transcript import brief
from localsteer.chat.writing import MarkdownWriting, RawWriting, Writing

T = TypeVar("T")

# Lines of the terminal that the prompt, the status line and a menu keep for themselves.
KEPT_LINES = 6
# What the status line says meanwhile.
ANSWERING = "answering"
# Seconds after which a thread that waits for the prompt looks whether that is still there.
_STILL_THERE = 0.2
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m|\x1b\].*?\x07")


class LiveScreen:
    """Shows a chat above a prompt, from a thread that is not the prompt's.

    Args:
        output: the terminal.
        progress: shows how far a long work is while there is no prompt yet.
        plain: show answers as they are written, without rendering Markdown.

    Attributes:
        application: the prompt while it runs; None before and after, when all is simply printed.
        busy: what goes on, for the status line; "" while nothing does.
        speed: tokens a second of what is being written.
    """

    def __init__(self, output: Output, progress: Callable[[], AbstractContextManager[Progress]], *, plain: bool = False) -> None:
        self.output = output
        self.plain = plain
        self.application: Application[str] | None = None
        self.busy = ""
        self.speed = 0.0
        self._early_progress = progress
        self._stop = threading.Event()
        self._tail: StyleAndTextTuples = []
        self._covered = False  # whether something else fills the terminal
        self._later: list[str] = []  # what is to be printed then

    @property
    def tail(self) -> StyleAndTextTuples:
        """What still grows, drawn: the prompt shows it above itself."""
        return self._tail

    def request_stop(self) -> None:
        """Ctrl-C was pressed."""
        self._stop.set()

    def stop_requested(self) -> bool:
        """Whether what goes on is to be stopped."""
        return self._stop.is_set()

    def allow(self) -> None:
        """What comes next is not to be stopped: a Ctrl-C before was for something else."""
        self._stop.clear()

    def redraw(self) -> None:
        """The prompt, soon."""
        if (application := self.application) is not None:
            application.invalidate()

    # ---- what a session asks for

    @property
    def width(self) -> int:
        """Characters in a line."""
        return shutil.get_terminal_size().columns

    def say(self, text: str) -> None:
        """Above the prompt, broken between words."""
        self.show(Text(harmless(text)))

    def show(self, renderable: RenderableType) -> None:
        """Above the prompt."""
        self._print(ansi(renderable, self.width))

    def note(self, text: str) -> None:
        """Above the prompt, dim."""
        self.show(Text(harmless(text), "dim"))

    def error(self, text: str) -> None:
        """Above the prompt, red."""
        self.show(Text(harmless(text), "red"))

    def recall(self, question: str, answer: str) -> None:
        """As it stood there."""
        self.ask(brief(question))
        self.show(Text(harmless(answer)) if self.plain else rendered(harmless(answer)))

    def ask(self, line: str) -> None:
        """A line that was sent, above what comes of it."""
        self.show(Text(harmless(f"> {line}"), "bold"))

    @contextlib.contextmanager
    def answer(self) -> Iterator[Heard]:
        """Finished blocks above the prompt, the one that grows on top of it, reasoning folded to a line."""
        shown = _Answer(self, RawWriting() if self.plain else MarkdownWriting())
        with self._works(ANSWERING):
            try:
                yield shown.hear
            finally:
                shown.end()

    @contextlib.contextmanager
    def side_by_side(self, titles: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        """Columns that grow on top of the prompt; whole when all have ended."""
        texts = [""] * len(titles)
        pace = Pace()

        def tell(number: int, piece: str) -> None:
            texts[number] += harmless(piece)
            with pace.drawing() as is_due:
                if is_due:
                    self.grow(ansi(columns(titles, texts, self.width, lines=self.room - 2), self.width))

        with self._works(ANSWERING):
            try:
                yield tell
            finally:
                self._print(ansi(columns(titles, texts, self.width), self.width), tail="")

    def progress(self) -> AbstractContextManager[Progress]:
        """In the status line. Ctrl-C ends the work."""
        return self._progress() if self.application is not None else self._early_progress()

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Progress]:
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

        async def run() -> None:
            try:
                async with in_terminal():
                    await application.run_async()
            except EOFError:  # the terminal is gone, which the prompt sees as well
                pass
            finally:
                ended()

        self._covered = True
        try:
            running = self._started(run())
            try:
                meanwhile()
            except BaseException:
                running.cancel()
                raise
            self._wait_for(running)
        finally:
            self._covered = False
            later, self._later = self._later, []
            if later:
                self._print("".join(later))

    # ---- drawing

    @property
    def room(self) -> int:
        """Lines that what grows may take."""
        return max(shutil.get_terminal_size().lines - KEPT_LINES, 4)

    def grow(self, drawn: str) -> None:
        """Show what is not finished yet, its last lines where it is longer than the terminal."""
        self._tail = fragments("".join(drawn.splitlines(keepends=True)[-self.room :]))
        self.redraw()

    def print_finished(self, drawn: str, tail: str = "") -> None:
        """Something that grew is finished: it goes above the prompt, and what grows now is the tail."""
        self._print(drawn, tail)

    def _print(self, drawn: str, tail: str | None = None) -> None:
        """Above the prompt; waits for it, so that what is printed keeps its order (the prompt's own thread cannot)."""
        if self._covered:
            self._later.append(drawn)
            return
        done: Future[None] = Future()
        application = self.application
        loop = application.loop if application is not None else None
        if application is None or loop is None:
            self._write(drawn)
            return

        def write() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    if tail is not None:
                        self.grow(tail)
                    if application.is_running and not application.is_done:
                        self._write_above(application, drawn)
                    else:  # drawn once more, the prompt would set the terminal up again
                        self._write(drawn)
                    done.set_result(None)
                except BaseException as error:
                    done.set_exception(error)

        try:
            loop.call_soon_threadsafe(write)
            if not _runs_here(loop):
                self._wait_for(done)
        except (RuntimeError, KeyboardInterrupt):  # the prompt has ended before it got to it
            if not done.cancel():
                raise
            self._write(drawn)

    def _write(self, drawn: str) -> None:
        self.output.write_raw(drawn.replace("\n", "\r\n"))
        self.output.flush()

    def _write_above(self, application: Application[str], drawn: str) -> None:
        # Not prompt_toolkit's in_terminal: the keyboard would be the terminal's meanwhile, which echoes what is typed and takes a
        # Ctrl-D for the end of the input, and the status line would be gone until the terminal has said where the cursor is.
        renderer = application.renderer
        try:
            above: int | None = renderer.rows_above_layout
        except HeightIsUnknownError:
            above = None
        renderer.erase()
        self._write(drawn)
        size = self.output.get_size()
        if above is not None:
            renderer.report_absolute_cursor_row(min(above + 1 + _rows(drawn, size.columns), size.rows))
        application.render_counter += 1  # or what grew would be drawn once more as it was
        renderer.render(application, application.layout)

    def _in_terminal(self, function: Callable[[], T]) -> T:
        """With the terminal for itself."""

        async def run() -> T:
            async with in_terminal():
                return function()

        return self._awaited(run())

    def _awaited(self, work: Coroutine[Any, Any, T]) -> T:
        return self._wait_for(self._started(work))

    def _started(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        application = self.application
        assert application is not None
        assert application.loop is not None
        return asyncio.run_coroutine_threadsafe(work, application.loop)

    def _wait_for(self, done: Future[T]) -> T:
        """What the prompt's thread does; it does no more when the prompt has ended.

        Raises:
            KeyboardInterrupt: it has ended.
        """
        while True:
            try:
                return done.result(_STILL_THERE)
            except TimeoutError:
                if self.application is None:
                    raise KeyboardInterrupt from None

    @contextlib.contextmanager
    def _works(self, what: str) -> Iterator[None]:
        before, self.busy = self.busy, what
        try:
            yield
        finally:
            self.busy = before
            self.redraw()


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the thread of a loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _rows(drawn: str, columns: int) -> int:
    """Lines of a terminal that a text takes."""
    return sum(max(-(-cell_len(line) // columns), 1) for line in _ESCAPES.sub("", drawn).splitlines())


class _Answer:
    """An answer while it comes."""

    def __init__(self, screen: LiveScreen, writing: Writing) -> None:
        self._screen = screen
        self._writing = writing
        self._thought = ""
        self._thinking_since: float | None = None
        self._pace = Pace()
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
            self._writing.push(harmless(piece))
        with self._pace.drawing() as is_due:
            if is_due:
                self._draw(reasoning=reasoning)

    def _draw(self, *, reasoning: bool) -> None:
        self._screen.speed = self._pieces / max(time.monotonic() - self._begun, 1e-3)
        width = self._screen.width
        if reasoning:
            self._screen.grow(ansi(Text(f"thinking: {self._thought.split(chr(10))[-1]}"[-width * 2 :], "dim italic"), width))
            return
        drawn, tail = self._writing.finished(width), self._writing.growing(width)
        if drawn:
            self._screen.print_finished(drawn, tail)
        else:
            self._screen.grow(tail)

    def end(self) -> None:
        """There is no more."""
        self._fold()
        width = self._screen.width
        self._screen.print_finished(f"{self._writing.finished(width)}{self._writing.growing(width)}\n")

    def _fold(self) -> None:
        if self._thinking_since is not None:
            seconds, words = time.monotonic() - self._thinking_since, len(self._thought.split())
            line = Text(f"[thought {words} words in {seconds:.0f} s; /thinking shows them]", "dim")
            self._screen.print_finished(ansi(line, self._screen.width))
            self._thinking_since = None
