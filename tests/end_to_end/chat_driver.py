"""Drives a program in a terminal: types, reads the screen, and waits for what should be seen there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pexpect
import pyte
from pyte.screens import Char, StaticDefaultDict

from localsteer.chat.reflow import VARIABLES

ROOT = Path(__file__).parents[2]
ENTER, ALT_ENTER, TAB, CTRL_C, CTRL_D = "\r", "\x1b\r", "\t", "\x03", "\x04"
ALT_UP, ALT_DOWN = "\x1b\x1b[A", "\x1b\x1b[B"
# Longest wait for anything new. A busy machine is slow; what fails waits this long once.
PATIENCE = 30.0
_CURSOR_ASKED = b"\x1b[6n"
_GLANCE = 0.05
# What is said of the terminal that the tests run in.
_OF_A_TERMINAL = ("NO_COLOR", "COLUMNS", "LINES", "TERM_PROGRAM", "STY", "XTERM_VERSION", "INSIDE_EMACS", *VARIABLES)


def _text(screen: pyte.HistoryScreen) -> str:
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def _everything(screen: pyte.HistoryScreen) -> str:
    above = ["".join(line[column].data for column in range(screen.columns)).rstrip() for line in screen.history.top]
    return "\n".join([*above, _text(screen)])


def pasted(text: str) -> str:
    """What a terminal sends for a text that is pasted."""
    return f"\x1b[200~{text}\x1b[201~"


class Terminal:
    """A program in a terminal of its own. Used as a context manager, it ends the program.

    Args:
        command: the program and its arguments.
        columns: characters in a line.
        lines: lines on the screen.
        environment: what differs from ours.

    Attributes:
        screen: what is seen now.
        states: all different screens that were seen, in their order.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        columns: int = 100,
        lines: int = 30,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=5000)
        self.states: list[str] = []
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        own = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **(environment or {})}
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_TERMINAL}
        first, *rest = map(str, command)
        self.process = pexpect.spawn(first, rest, dimensions=(lines, columns), env={**inherited, **own}, timeout=None)
        self.process.delaybeforesend = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.isalive():
            self.process.kill(signal.SIGKILL)
            self.process.wait()
        self.process.close()

    # ---- seeing

    @property
    def text(self) -> str:
        """The screen."""
        return _text(self.screen)

    @property
    def everything(self) -> str:
        """The screen, and what has left it at the top."""
        return _everything(self.screen)

    @property
    def toolbar(self) -> str:
        """The last line."""
        return self.text.rpartition("\n")[2]

    def look(self, seconds: float = _GLANCE) -> bool:
        """Take in what comes, waiting for it so long at most; False when the program has ended."""
        try:
            data = self.process.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.take(data)
        return True

    def take(self, data: bytes) -> None:
        """Show what has come, and answer what is asked in it."""
        self.raw += data
        for part in re.split(rb"(?<=\x1b\[6n)", data):
            self._stream.feed(part)
            if part.endswith(_CURSOR_ASKED):
                self.process.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
        if not self.states or self.states[-1] != self.text:
            self.states.append(self.text)

    def unseen(self, until: Callable[[], bool]) -> None:
        """Until something holds, or the program has ended; what comes meanwhile is shown afterwards.

        An emulated terminal would take the processor from what is timed.
        """
        taken = b""
        while not until():
            try:
                taken += self.process.read_nonblocking(65536, timeout=_GLANCE)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
        self.take(taken)

    def wait(self, until: Callable[[], bool], what: str = "") -> None:
        """Until something holds.

        Raises:
            AssertionError: nothing more came, or the program has ended.
        """
        end, known = time.monotonic() + PATIENCE, len(self.raw)
        while not until():
            lives = self.look()
            if len(self.raw) > known:
                end, known = time.monotonic() + PATIENCE, len(self.raw)
            if not until() and (not lives or time.monotonic() > end):
                raise AssertionError(f"not seen{' before the end' if not lives else ''}: {what}\n{self.everything}")

    @property
    def drawn(self) -> Iterator[str]:
        """What was on the screen and above it whenever it was drawn, up to now."""
        again = pyte.HistoryScreen(self.screen.columns, self.screen.lines, history=5000)
        stream = pyte.ByteStream(again)
        for part in re.split(rb"(?<=\x1b\[\?25h)", self.raw):  # the cursor is hidden meanwhile
            stream.feed(part)
            yield _everything(again)

    def see(self, *texts: str) -> None:
        """Wait until all of these texts are there, on the screen or above it."""
        for text in texts:
            self.wait(lambda text=text: text in self.everything, text)  # type: ignore[misc]

    def see_again(self, text: str, times: int) -> None:
        """Wait until a text is there so many times."""
        self.wait(lambda: self.everything.count(text) >= times, f"{text} x {times}")

    def end(self) -> int:
        """Wait for the program's end; its exit status, or minus the signal that ended it."""
        end = time.monotonic() + 2 * PATIENCE
        while self.look() and time.monotonic() < end:
            pass
        assert time.monotonic() < end, f"it has not ended\n{self.everything}"
        self.process.wait()
        status: int | None = self.process.exitstatus
        return status if status is not None else -int(self.process.signalstatus)

    # ---- doing

    def type(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys)

    def line(self, text: str) -> None:
        """Type a line and send it."""
        self.type(text + ENTER)

    def resize(self, columns: int) -> None:
        """Another width of the window. What stood further right stays where it was, as in xterm."""
        self.process.setwinsize(self.screen.lines, columns)

    def reflow(self, columns: int) -> None:
        """A narrower window that breaks its lines anew, as most terminals have it."""
        screen = self.screen
        rows: list[dict[int, Char]] = []
        for y in range(screen.lines):
            if y == screen.cursor.y:
                place = len(rows) + screen.cursor.x // columns
            filled = [x for x, char in screen.buffer[y].items() if char.data != " "]
            for start in range(0, max(filled, default=0) + 1, columns):
                line = range(start, min(start + columns, screen.columns))
                rows.append({x - start: screen.buffer[y][x] for x in line})
        used = max(place, *(number for number, row in enumerate(rows) if any(char.data != " " for char in row.values())))
        gone = max(used + 1 - screen.lines, 0)
        x = screen.cursor.x % columns
        screen.resize(columns=columns)
        for y, row in enumerate(rows[: gone + screen.lines]):
            line = StaticDefaultDict(screen.default_char)
            line.update(row)
            if y < gone:
                screen.history.top.append(line)
            else:
                screen.buffer[y - gone] = line
        screen.cursor.x, screen.cursor.y = x, place - gone
        self.process.setwinsize(screen.lines, columns)


class ChatTerminal(Terminal):
    """The chat in a terminal.

    Args:
        options: of `localsteer chat`.
        program: what starts that; by default this checkout's.
        shell: a line of the shell around it, such as "echo hello | {}; stty -a"; "{}" is the chat.
    """

    def __init__(
        self,
        *options: str | Path,
        program: Sequence[str | Path] = (),
        shell: str = "",
        columns: int = 100,
        lines: int = 30,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command: list[str | Path] = [*(program or (sys.executable, ROOT / "cli.py", "chat")), *options]
        if "--threads" not in options:
            command += ["--threads", "1"]
        if shell:
            command = ["/bin/sh", "-c", shell.replace("{}", subprocess.list2cmdline(map(str, command)))]
        super().__init__(command, columns=columns, lines=lines, environment=environment)

    def __enter__(self) -> ChatTerminal:
        return self

    @property
    def prompt(self) -> str:
        """The line with the cursor."""
        return str(self.screen.display[self.screen.cursor.y]).rstrip()

    @property
    def ready(self) -> bool:
        """Whether the prompt waits with nothing typed, and nothing goes on."""
        return self.prompt == ">" and re.search(r"context \d+/\d+$", self.toolbar) is not None

    @property
    def answering(self) -> bool:
        """Whether it answers, as the status line says."""
        return self.toolbar.endswith("| answering")

    def wait_ready(self) -> None:
        """Until the prompt waits."""
        self.wait(lambda: self.ready, "the prompt")

    def ask(self, text: str) -> None:
        """Send a message or command and wait until the prompt is back."""
        shown = f"> {text[:40]}"
        before = self.everything.count(shown)
        self.line(text)
        self.wait(lambda: self.everything.count(shown) > before and self.ready, f"{shown}, and the prompt")
