"""Pages in docs/ on which commands write what they found, between two marks."""

from __future__ import annotations

from pathlib import Path

from handbook.links import ROOT
from localsteer.files.atomic import atomic_path

Marks = tuple[str, str]

RELIABILITY = ROOT / "docs" / "reliability.md"


def told_between(page: str, marks: Marks) -> tuple[str, str, str]:
    """What stands before the marks, between them, and behind them.

    Raises:
        ValueError: the page does not have each of them once, in this order.
    """
    before, *rest = page.split(marks[0])
    between, *after = "".join(rest).split(marks[1])
    if len(rest) != 1 or len(after) != 1:
        raise ValueError(f"there is no one place {marks[0]} ... {marks[1]}")
    return before, between, after[0]


def with_told(page: str, told: str, marks: Marks) -> str:
    """The page with something else between the marks."""
    before, _, after = told_between(page, marks)
    return f"{before}{marks[0]}\n{told.rstrip()}\n{marks[1]}{after}"


def keep(told: str, page: Path, marks: Marks) -> None:
    """Put it on a page, in the place of what was told there before."""
    text = with_told(page.read_text(encoding="utf-8"), told, marks)
    with atomic_path(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
