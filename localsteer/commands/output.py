"""What the commands print, and how they are interrupted. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from localsteer.errors import for_model, shown_lines
from localsteer.files.json_values import json_text
from localsteer.vector.calibration import without_nan

if TYPE_CHECKING:
    from rich.console import Console

    from localsteer.building.own_answers import Progress


def note(*texts: str) -> None:
    """Remarks that are no result, one a line."""
    for text in texts:
        click.secho(shown_lines(for_this_model(text)), err=True, dim=True)


class _Told(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def handle(self, record: logging.LogRecord) -> bool:
        """Tell it, without the lock: who tells may wait for the prompt's thread, which may have a warning to tell as well."""
        if passed := self.filter(record):
            self.emit(record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it."""
        try:
            self._tell(self.format(record))
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def warnings_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Within it warnings are told in this way, not on stderr: there is a prompt. The details that -v shows stay there."""

    def is_detail(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    logger, told = logging.getLogger("localsteer"), _Told(tell)
    others = list(logger.handlers)
    for handler in others:
        handler.addFilter(is_detail)
    logger.addHandler(told)
    try:
        yield
    finally:
        logger.removeHandler(told)
        for handler in others:
            handler.removeFilter(is_detail)


def for_this_model(text: str) -> str:
    """A text whose `commands` are for the model that the running one was given by -m: pasted, they would take the default one."""
    context = click.get_current_context(silent=True)
    return for_model(text, context.params.get("model") if context is not None else None)


def print_json(document: Any) -> None:
    """The one JSON document of --json."""
    click.echo(json_text(without_nan(document)))


class Thoughts:
    """Prints what a model thinks, dimmed, before what it answers, as it comes.

    Args:
        shown: print what it thinks; else the answer alone.
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._part: Literal["nothing", "thinking", "answer"] = "nothing"

    def think(self, text: str) -> None:
        """A piece of the reasoning."""
        if self._shown:
            click.secho(text if self._part == "thinking" else f"Thinking...\n{text}", nl=False, dim=True)
        self._part = "thinking"

    def answer(self, text: str) -> None:
        """A piece of the answer."""
        self._end_thinking()
        self._part = "answer"
        click.echo(text, nl=False)

    def end(self) -> None:
        """The reply is at its end."""
        self._end_thinking()
        if self._part == "thinking":
            note("It ended before the answer began: give it more by --max-tokens, or use --no-think.")
        else:
            click.echo()

    def _end_thinking(self) -> None:
        if self._shown and self._part == "thinking":
            click.secho("\n...done thinking.\n", dim=True)


def console() -> Console:
    """Rich's console on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table that can be read and cut in a pipe."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(shown_lines(cell)) for cell in row))
    console().print(table)


def print_folded_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose last column goes below each row where the terminal is too narrow for all of them in one line."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    screen = console()
    rows = [[shown_lines(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    if sum(widths) + 3 * len(widths) <= screen.width:
        print_table(headers, rows)
        return
    gap = 2
    excess = sum(widths[:-1]) + gap * len(widths) - screen.width  # two gaps more: the margins
    for index in reversed(range(len(widths) - 1)):
        longest_word = max(cell_len(word) for cell in columns[index] for word in cell.split() or [""])
        less = max(0, min(excess, widths[index] - longest_word))
        widths[index] -= less
        excess -= less

    def line(cells: Sequence[str]) -> Table:
        grid = Table.grid(padding=(0, gap, 0, 0))
        for width in widths[:-1]:
            grid.add_column(width=width)
        grid.add_row(*(Text(cell) for cell in cells[:-1]))
        return grid

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(line(headers))
    for row in rows:
        table.add_row(Group(line(row), Padding(Text(row[-1]), (0, 0, 0, gap))))
    screen.print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 3, 0, 0))
    for name, value in facts:
        table.add_row(name, Text(shown_lines(value)))
    console().print(table)


def print_side_by_side(answers: Sequence[tuple[str, str, float]]) -> None:
    """Titled texts with the seconds they took, in columns where the terminal is wide enough."""
    from localsteer.chat.columns import columns

    if not answers:
        return  # interrupted before the first was there
    screen = console()
    titles, texts, seconds = zip(*answers, strict=True)
    screen.print(columns(titles, texts, screen.width, subtitles=[f"{one:.1f} s" for one in seconds]))


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr with the time left, only where stderr is a terminal; yields the function to tell it."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)

    with bar:
        yield tell


@contextlib.contextmanager
def interrupt_stops_answer() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only asks for a stop, so that an answer ends between two tokens; a second one insists.

    Yields:
        Tells whether it was asked for.
    """
    requested = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, before)


def format_bytes(count: float) -> str:
    """A size for people, in powers of 1000 as disks and downloads count."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
