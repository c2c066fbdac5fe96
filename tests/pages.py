"""Pages in docs/ on which commands write what they found, between two marks."""

from __future__ import annotations

from pathlib import Path

RELIABILITY = Path(__file__).parents[1] / "docs" / "reliability.md"


def keep(told: str, page: Path, markers: tuple[str, str]) -> None:
    """Put it on a page, in the place of what was told there before."""
    before, rest = page.read_text(encoding="utf-8").split(markers[0])
    _, after = rest.split(markers[1])
    page.write_text(f"{before}{markers[0]}\n{told}\n{markers[1]}{after}", encoding="utf-8")
