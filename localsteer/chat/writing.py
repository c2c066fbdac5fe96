"""A text while it is being written: what is finished of it is drawn once and for all, and only what still grows is drawn anew.

A block of Markdown is finished when the next one begins. Of a code block every line is finished when it ends, and of a list every
item when the next one begins: they may be longer than a terminal, and what is above its first line cannot be drawn anew.
"""

from __future__ import annotations

import re
from typing import Protocol

from rich.cells import chop_cells

from localsteer.chat.markdown import Block, ansi, blocks, highlighted, rendered

# Lines of code that are read again so that the next ones are coloured right: within a long string or comment, say. All of them
# would take 0.2 s at 400 lines.
_CONTEXT = 20
_UNSURE = 8
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Writing(Protocol):
    """A text that grows."""

    def push(self, piece: str) -> None:
        """The next piece of it."""

    def finished(self, width: int) -> str:
        """What is finished since the last time, drawn in so many characters a line."""

    def growing(self, width: int) -> str:
        """What stands behind that, as it is now."""


class RawWriting:
    """A text as it stands, line by line."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, piece: str) -> None:
        """The next piece of it."""
        self._text += piece

    def finished(self, width: int) -> str:
        """Lines that have ended. A terminal breaks them where it likes."""
        lines, _, self._text = self._text.rpartition("\n")
        return f"{lines}\n" if _ else ""

    def growing(self, width: int) -> str:
        """The last line."""
        return "".join(f"{row}\n" for row in chop_cells(self._text, width)) if self._text else ""


class MarkdownWriting:
    """Markdown, rendered."""

    def __init__(self) -> None:
        self._text = ""  # from the block on that grows
        self._shown = 0  # lines of that block which are finished, where it is code
        self._gap = ""  # goes in front of what is drawn next

    def push(self, piece: str) -> None:
        """The next piece of it."""
        self._text += piece

    def finished(self, width: int) -> str:
        """Blocks that the next one has ended, and of the last one what cannot change any more."""
        begun = self._text.rpartition("\n")[2]
        # A line so short may still become something else: "2" an item, "-" a rule.
        sure = self._text if len(begun) > _UNSURE else self._text.removesuffix(begun)
        found = blocks(sure)
        if not found:
            return ""
        *ended, last = found
        drawn = ""
        for block in ended:
            drawn += self._drawn(block, width)
            self._gap, self._shown = "\n", 0
        self._text = self._text[last.start :]
        if last.code is not None:
            # The line that is being written may be the one that closes the block.
            lines = len(last.code) if last.closed or sure.endswith("\n") else len(last.code) - 1
            if lines > self._shown:
                drawn += self._drawn(last, width, lines)
                self._gap, self._shown = "", lines
        elif last.last_item > last.start:
            cut = last.last_item - last.start
            drawn += self._gap + _markdown(self._text[:cut], width)
            self._gap, self._text = "", self._text[cut:]
        return drawn

    def growing(self, width: int) -> str:
        """The block that grows, or what of it is not finished."""
        return "".join(self._drawn(block, width) for block in blocks(self._text))

    def _drawn(self, block: Block, width: int, lines: int | None = None) -> str:
        """A block; of code what is not shown yet of its first `lines`."""
        if block.code is None:
            return self._gap + _markdown(block.text, width)
        before = max(self._shown - _CONTEXT, 0)
        drawn = highlighted(block.code[before:lines], block.language)[self._shown - before :]
        return self._gap + "".join(ansi(line, width) for line in drawn) if drawn else ""


def _markdown(text: str, width: int) -> str:
    lines = ansi(rendered(text), width).split("\n")
    # A table has an empty line at either end, which is coloured.
    shown = [number for number, line in enumerate(lines) if _COLOURS.sub("", line).strip()]
    return "".join(f"{line.rstrip(' ')}\n" for line in (lines[shown[0] : shown[-1] + 1] if shown else [""]))
