"""Several answers side by side, in columns where the terminal is wide enough for them, one above the other where it is not."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

# Three columns fit the usual 80 characters.
_NARROWEST = 26
# What a frame takes of a title's line.
_FRAME = 6
# Lines are broken as it would break them; nothing is written to it.
_LAYING_OUT = Console(file=io.StringIO())


def columns(
    titles: Sequence[str], texts: Sequence[str], width: int, *, subtitles: Sequence[str] = (), lines: int | None = None
) -> Columns:
    """Titled texts in frames.

    Args:
        titles: what stands above each.
        texts: the texts.
        width: characters in a line.
        subtitles: what stands below each.
        lines: show the last so many lines of each only; None shows all.
    """
    share = width // len(titles)
    # Narrower ones, or those whose title (a long path) does not fit, are read better one after the other.
    side_by_side = share >= max([_NARROWEST, *(cell_len(title) + _FRAME for title in titles)])
    count = len(titles) if side_by_side else 1
    own = (width - count + 1) // count
    if lines is not None and not side_by_side:
        lines = max(lines // len(titles) - 2, 1)
    panels = []
    for number, (title, text) in enumerate(zip(titles, texts, strict=True)):
        below = Text(subtitles[number]) if subtitles else None
        panels.append(Panel(_last_lines(text.strip(), own - 4, lines), title=Text(title), subtitle=below, width=own))
    return Columns(panels, padding=(0, 0))


def _last_lines(text: str, width: int, count: int | None) -> Text:
    if count is None:
        return Text(text, overflow="fold")
    # As many characters as could stand there at most: no need to lay out what will not be seen.
    rows = Text(text[-count * width :]).wrap(_LAYING_OUT, width, overflow="fold")
    return Text("\n").join(rows[-count:])
