"""The links of a Markdown page, and what they may point at."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
HOME = ROOT / "README.md"


@dataclass(frozen=True)
class Link:
    """A link or a picture.

    Attributes:
        page: where it stands.
        line: of its paragraph, from 1.
        target: as it is written.
    """

    page: Path
    line: int
    target: str

    @property
    def file(self) -> Path | None:
        """The file that it leads to, whether it is there or not; None for one that leads out of the repository."""
        parts = urlsplit(self.target)
        if parts.scheme or parts.netloc:
            return None
        return (self.page.parent / unquote(parts.path)).resolve() if parts.path else self.page

    @property
    def anchor(self) -> str:
        """The heading that it leads to; empty for the page itself."""
        return urlsplit(self.target).fragment


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def links(page: Path) -> list[Link]:
    """All links of a page, pictures among them."""
    return list(_links(page))


def _links(page: Path) -> Iterator[Link]:
    line = 1
    for token in _tokens(page):
        line = token.map[0] + 1 if token.map else line
        for part in token.children or ():
            target = part.attrs.get("href", part.attrs.get("src"))
            if isinstance(target, str):
                yield Link(page, line, target)


def anchors(page: Path) -> frozenset[str]:
    """What can stand behind the # of a link to a page: its headings, as code hosts write them."""
    found: list[str] = []
    tokens = _tokens(page)
    for token, inside in itertools.pairwise(tokens):
        if token.type == "heading_open":
            name = slug("".join(part.content for part in inside.children or ()))
            again = sum(one == name or re.fullmatch(rf"{re.escape(name)}-\d+", one) is not None for one in found)
            found.append(f"{name}-{again}" if again else name)
    return frozenset(found)


def slug(heading: str) -> str:
    """A heading as an anchor: small letters, digits, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def reached(home: Path = HOME) -> list[Path]:
    """All files that can be come to from a page by links within the repository, itself first; missing ones are left out."""
    found = {home: None}
    for file in (waiting := [home]):
        if file.suffix == ".md":
            for link in links(file):
                if link.file is not None and link.file.is_file() and link.file not in found:
                    found[link.file] = None
                    waiting.append(link.file)
    return list(found)
