"""Pictures of the chat for README.md and docs/chat.md: a real session on a real model, driven in a terminal of its own.

Run as `LOCALSTEER_REAL_MODEL=FILE python -m bench.pictures`; without that variable it takes the demo model. It writes
`docs/chat.svg`, `docs/chat-compare.svg` and `docs/chat-heat.svg`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pyte
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.text import Text

from bench.models import demo_model, real_model

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS, LINES = 100, 34
# A minute for an answer on two cores, and some for a vector that is not built yet.
_PATIENCE = 600.0
# What the terminal calls the colours that pyte names otherwise.
_NAMES = {"brown": "yellow", "default": None}


class Terminal:
    """A program in a terminal, and what stands on its screen."""

    def __init__(self, command: list[str]) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._process = pexpect.spawn(
            command[0], command[1:], dimensions=(LINES, COLUMNS), env={**os.environ, "TERM": "xterm-256color"}
        )

    def type(self, text: str) -> None:
        """Keys."""
        self._process.send(text)

    def wait(self, *, quiet: float = 3.0) -> None:
        """Until nothing is worked on any more: the status line says so, and the screen stands still."""
        end, still = time.monotonic() + _PATIENCE, time.monotonic()
        while time.monotonic() < end:
            try:
                said = self._process.read_nonblocking(65536, timeout=0.2)
            except pexpect.TIMEOUT:
                said = b""
            if b"\x1b[6n" in said:  # where the cursor is
                self._process.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")
            if said:
                self._stream.feed(said)
                still = time.monotonic()
            if time.monotonic() - still > quiet and "context" in self.screen.display[-1] and not self._works:
                return
        raise TimeoutError("the chat does not come to an end")

    @property
    def _works(self) -> bool:
        """Whether the status line says so."""
        return str(self.screen.display[-1]).rstrip().rpartition("| ")[2].startswith(("answering", "working", "reading"))

    def close(self) -> None:
        """Leave."""
        self._process.sendeof()
        self._process.wait()

    def lines(self) -> Iterator[Text]:
        """What stands on the screen, colours and all; empty lines that only fill it are left out."""
        for row in range(LINES):
            cells = [self.screen.buffer[row][column] for column in range(COLUMNS)]
            yield Text.assemble(*((cell.data, _style(cell)) for cell in cells))


def _style(cell: Char) -> Style:
    return Style(color=_colour(cell.fg), bgcolor=_colour(cell.bg), bold=cell.bold, italic=cell.italics, underline=cell.underscore)


def _colour(name: str) -> str | None:
    name = _NAMES.get(name, name) or "default"
    if len(name) == 6 and all(letter in "0123456789abcdef" for letter in name.lower()):
        return f"#{name}"
    return name.replace("bright", "bright_") if name != "default" else None


def picture(terminal: Terminal, path: Path, title: str) -> None:
    """What stands on the screen, as a picture."""
    lines = list(terminal.lines())
    while len(lines) > 2 and not lines[-2].plain.strip():  # between the prompt and the status line
        del lines[-2]
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for line in lines:
        line.rstrip()
        console.print(line, no_wrap=True, overflow="crop")
    console.save_svg(str(path), title=title)
    print(f"written: {path}", flush=True)


def main() -> int:
    model = real_model() or demo_model()
    command = [sys.executable, "-c", "from localsteer.commands import main; main()", "chat", "-m", str(model)]
    terminal = Terminal([*command, "-s", "happy", "--seed", "3", "-n", "220", "--no-log"])
    terminal.wait()
    for line in ("What can I do with a rainy Sunday? Answer with a short list.", "And a line of Python that picks one of them?"):
        terminal.type(f"{line}\r")
        terminal.wait()
    picture(terminal, DOCS / "chat.svg", "localsteer chat -s happy")
    for line in ("/reset", "/set max_tokens 60", "Tell me about a walk in the rain.", "/compare"):
        terminal.type(f"{line}\r")
        terminal.wait()
    picture(terminal, DOCS / "chat-compare.svg", "/compare")
    for line in ("/watch happy", "/heat happy"):
        terminal.type(f"{line}\r")
        terminal.wait()
    picture(terminal, DOCS / "chat-heat.svg", "/watch and /heat")
    terminal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
