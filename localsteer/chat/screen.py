"""Where a chat is shown: what the session needs of it, and the plain one, for pipes and for terminals that can do nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import click
from rich.console import Console, RenderableType

from localsteer.building.own_answers import Progress
from localsteer.chat.columns import columns
from localsteer.chat.conversation import Heard
from localsteer.chat.transcript import brief
from localsteer.errors import LocalsteerError

if TYPE_CHECKING:
    from prompt_toolkit.application import Application

ShouldStop = Callable[[], bool]

# What would command a terminal: all control characters but the ends of lines and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """A text of somebody else's with nothing in it that commands a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


class Screen(Protocol):
    """Shows a chat. Texts of models and files are made harmless here."""

    @property
    def width(self) -> int:
        """Characters in a line."""

    def say(self, text: str) -> None:
        """What was asked for, on lines of its own."""

    def show(self, renderable: RenderableType) -> None:
        """Likewise, a table or another thing of rich's."""

    def note(self, text: str) -> None:
        """A remark."""

    def error(self, text: str) -> None:
        """What went wrong."""

    def recall(self, question: str, answer: str) -> None:
        """What was said last, where a conversation goes on."""

    def answer(self) -> AbstractContextManager[Heard]:
        """Shows an answer as it comes: what it yields is told the pieces."""

    def side_by_side(self, titles: Sequence[str]) -> AbstractContextManager[Callable[[int, str], None]]:
        """Shows several answers as they come: what it yields is told the number of the answer and its pieces."""

    def progress(self) -> AbstractContextManager[Progress]:
        """Shows how far a long work is."""

    def stoppable(self) -> AbstractContextManager[ShouldStop]:
        """Within it Ctrl-C asks for an end; what it yields tells whether that was asked for."""

    def edit(self, text: str) -> str | None:
        """A text as the user leaves it in an editor; None where it is left as it was."""

    def copy(self, text: str) -> None:
        """Put a text on the clipboard."""

    def run_full_screen(self, application: Application[None], meanwhile: Callable[[], None], ended: Callable[[], None]) -> None:
        """Something that fills the terminal.

        Args:
            application: what is shown, until it ends.
            meanwhile: done beside it in this thread.
            ended: called when the application has ended, however it did, so that `meanwhile` ends as well.
        """


class PlainScreen:
    """Texts as they come, results on stdout, remarks on stderr.

    Args:
        progress: shows how far a long work is.
        interrupt: within it Ctrl-C asks for an end; what it yields tells whether that was asked for.
        typed: somebody types the lines.
    """

    def __init__(
        self,
        progress: Callable[[], AbstractContextManager[Progress]],
        interrupt: Callable[[], AbstractContextManager[ShouldStop]],
        *,
        typed: bool = False,
    ) -> None:
        self.progress = progress
        self._interrupt = interrupt
        self._typed = typed

    @property
    def width(self) -> int:
        """Characters in a line."""
        return shutil.get_terminal_size().columns

    def say(self, text: str) -> None:
        """On stdout."""
        click.echo(harmless(text))

    def show(self, renderable: RenderableType) -> None:
        """On stdout."""
        Console(highlight=False).print(renderable)

    def note(self, text: str) -> None:
        """On stderr."""
        click.secho(harmless(text), err=True, dim=True)

    def error(self, text: str) -> None:
        """On stderr."""
        click.secho(harmless(text), err=True, fg="red")

    def recall(self, question: str, answer: str) -> None:
        """On stderr, to who types; a program has had it."""
        if self._typed:
            self.note(f"> {brief(question)}\n{answer}")

    @contextlib.contextmanager
    def answer(self) -> Iterator[Heard]:
        """The answer alone: reasoning is for whoever looks on."""
        yield lambda piece, reasoning: None if reasoning else click.echo(harmless(piece), nl=False)
        click.echo()

    @contextlib.contextmanager
    def side_by_side(self, titles: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        """All of them, when all have ended."""
        texts = [""] * len(titles)

        def tell(number: int, piece: str) -> None:
            texts[number] += piece

        yield tell
        self.show(columns(titles, [harmless(text) for text in texts], self.width))

    def stoppable(self) -> AbstractContextManager[ShouldStop]:
        """As the other commands are interrupted."""
        return self._interrupt()

    def edit(self, text: str) -> str | None:
        """In $EDITOR."""
        return click.edit(text)

    def copy(self, text: str) -> None:
        """A pipe has no clipboard."""
        raise LocalsteerError("Nothing can be copied from here.", hint="/copy works in a terminal.")

    def run_full_screen(self, application: Application[None], meanwhile: Callable[[], None], ended: Callable[[], None]) -> None:
        """There is none."""
        raise LocalsteerError("This fills a terminal, and there is none here.")
