"""Markdown for a terminal: its blocks, and how they are drawn."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples, to_formatted_text
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.syntax import Syntax
from rich.text import Text


class _Parser(MarkdownIt):
    """As rich's own, without HTML, which that leaves out: vector<int> would be shown as vector."""

    def normalizeLinkText(self, link: str) -> str:  # noqa: N802
        """As it stands: %1B in the text of a link must not become what commands a terminal."""
        return link


_PARSER = _Parser("commonmark", {"html": False}).enable(["table", "strikethrough"])
_TAB = 4


class _PlainHeading(Heading):
    """At the left margin, bold: a chat is no title page."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        self.text.stylize("bold")
        yield self.text


class _Code(CodeBlock):
    """Without a background, and without spaces up to the margin: what is selected with the mouse is the code alone."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from highlighted(str(self.text).rstrip().split("\n"), self.lexer_name)


class _Answer(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text, hyperlinks=False)
        self.parsed = _PARSER.parse(text)


@dataclass(frozen=True)
class Block:
    """A block of Markdown that stands in no other one.

    Attributes:
        start: where it begins in the text.
        text: its source.
        code: the lines of a fenced block; None for another one.
        language: what the fence names.
        closed: whether the fence is.
        last_item: where the last item of a list begins in the text, if there is something in it; `start` for other blocks.
    """

    start: int
    text: str
    code: tuple[str, ...] | None = None
    language: str = ""
    closed: bool = False
    last_item: int = 0


def blocks(text: str) -> list[Block]:
    """The blocks of a text, in their order."""
    lines = text.splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    found = []
    tokens = _PARSER.parse(text)
    for place, token in enumerate(tokens):
        if token.level or token.map is None:
            continue
        first, end = token.map
        start, source = offsets[first], text[offsets[first] : offsets[end]]
        if token.type == "fence":
            last = lines[end - 1].strip()
            closed = end - first > 1 and last.startswith(token.markup) and not last.strip(token.markup[0])
            language = token.info.split()[0] if token.info.strip() else ""
            code = tuple("".join(lines[first + 1 : end - closed]).splitlines())
            if (indent := len(lines[first]) - len(lines[first].lstrip(" "))) > 0:
                code = tuple(line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in code)
            found.append(Block(start, source, code, language, closed, start))
        else:
            found.append(Block(start, source, last_item=_last_item(tokens, place, offsets)))
    return found


def _last_item(tokens: Sequence[Token], place: int, offsets: Sequence[int]) -> int:
    begun = tokens[place].map
    assert begun is not None
    line = begun[0]
    if tokens[place].type in ("bullet_list_open", "ordered_list_open"):
        for one, following in zip(tokens[place + 1 :], tokens[place + 2 :], strict=False):
            if one.level == 0:
                break
            if one.level == 1 and one.type == "list_item_open" and one.map is not None and following.type != "list_item_close":
                line = one.map[0]
    return offsets[line]


def code_blocks(text: str) -> list[str]:
    """The code of all fenced and indented blocks, in their order."""
    return [token.content.rstrip("\n") for token in _PARSER.parse(text) if token.type in ("fence", "code_block")]


def highlighted(code: Sequence[str], language: str) -> list[Text]:
    """Lines of code in the terminal's own colours."""
    syntax = Syntax("", language or "text", theme="ansi_dark", background_color="default")
    text = syntax.highlight("\n".join(code).expandtabs(_TAB))
    text.no_wrap = False
    return list(text.split("\n", allow_blank=True))[: len(code)]


def rendered(text: str) -> RenderableType:
    """Markdown for a terminal. Links show where they lead; raw HTML is shown as it stands."""
    return _Answer(text) if text.strip() else Text()


def ansi(renderable: RenderableType, width: int) -> str:
    """What rich draws, as a terminal reads it; without colours where NO_COLOR is set."""
    drawn = io.StringIO()
    Console(file=drawn, force_terminal=True, width=width, highlight=False, color_system="256").print(renderable)
    return drawn.getvalue()


def fragments(drawn: str) -> StyleAndTextTuples:
    """What a terminal reads, as prompt_toolkit does.

    It goes through a prompt's fragments a dozen times for one drawing: one for every character (its own reading of escapes)
    costs several times what one for every run of equal style does.
    """
    characters = to_formatted_text(ANSI(drawn))
    return [(style, "".join(part[1] for part in run)) for style, run in itertools.groupby(characters, lambda part: part[0])]
