"""Figures that were measured, read from the pages that the measurements wrote."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_MEASURED = re.compile(rf"({_NUMBER})(?: \(({_NUMBER})\.\.({_NUMBER})\))?")


@dataclass(frozen=True)
class Figure:
    """A number, and its 95 % interval where it has one."""

    value: float
    low: float
    high: float


def table(page: Path, heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading of any level, by the names of the columns; empty where there is none."""
    found: list[list[str]] = []
    for line in _below(page, heading):
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif found:
            break
    if not found:
        return []
    head, _, *rows = found
    return [dict(zip(head, row, strict=False)) for row in rows]


def _below(page: Path, heading: str) -> Iterator[str]:
    below = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            below = line.lstrip("# ") == heading
        elif below:
            yield line


def figure(cell: str) -> Figure | None:
    """What a cell says, such as `**+1.29 (1.14..1.44)**`; None where it says nothing."""
    found = _MEASURED.fullmatch(cell.strip("*"))
    if found is None:
        return None
    value = float(found.group(1))
    low, high = (value if end is None else float(end) for end in found.groups()[1:])
    return Figure(value, low, high)


def pair(cell: str) -> tuple[float, float]:
    """What a cell says of both poles, such as `0.22 / 0.34`; NaN where it says nothing."""
    parts = [figure(part.strip()) for part in cell.split("/")]
    positive, negative = (math.nan if one is None else one.value for one in (*parts, None, None)[:2])
    return positive, negative
