"""Markdown while it is being written: what is finished is shown once and for all, and only the block that grows is drawn anew."""

from __future__ import annotations

import io
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.syntax import Syntax
from rich.text import Text

# What tells blocks apart; the same rules as rich's own parser.
_PARSER = MarkdownIt("commonmark").enable("table")


class _PlainHeading(Heading):
    """At the left margin, bold: a chat is no title page."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        self.text.stylize("bold")
        yield self.text


class _Code(CodeBlock):
    """On the terminal's own background, so that what is selected with the mouse is the code alone."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True)


class _Answer(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "fence": _Code,
        "code_block": _Code,
    }


def finished(text: str) -> int:
    """Up to where a growing text consists of blocks that nothing can change any more: all but the last one."""
    starts = [token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.map is not None]
    if len(starts) < 2:
        return 0
    return len("".join(text.splitlines(keepends=True)[: starts[-1]]))


def code_blocks(text: str) -> list[str]:
    """The code of all fenced and indented blocks, in their order."""
    return [token.content.rstrip("\n") for token in _PARSER.parse(text) if token.type in ("fence", "code_block")]


def rendered(text: str) -> RenderableType:
    """Markdown for a terminal. Links show where they lead; raw HTML is shown as it stands."""
    return _Answer(text, hyperlinks=False) if text.strip() else Text()


def ansi(renderable: RenderableType, width: int) -> str:
    """What rich draws, as a terminal reads it; without colours where NO_COLOR is set."""
    drawn = io.StringIO()
    Console(file=drawn, force_terminal=True, width=width, highlight=False, color_system="256").print(renderable)
    return drawn.getvalue()
