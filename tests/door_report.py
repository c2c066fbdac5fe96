"""What was tried at each door, as a table in a page: LOCALSTEER_DOORS names the page, `make fuzz` does."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

MARKS = ("<!-- inputs: `make fuzz` -->\n", "<!-- end of inputs -->")
HEAD = "| door | inputs | faults | seen |\n|---|--:|--:|---|\n"
# Of the property of a test's report.
_DOOR = "door"

Door = Callable[[str, int], None]
# Of each door: inputs, and whether something was wrong.
Tried = dict[str, tuple[int, bool]]


@pytest.fixture
def door(record_property: Callable[[str, object], None]) -> Door:
    """Says that a test tries a door with so many inputs; all tests of one door are added up."""
    return lambda name, count: record_property(_DOOR, (name, count))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write what this run has tried."""
    page = os.environ.get("LOCALSTEER_DOORS")
    of_outcomes = {outcome: terminalreporter.stats.get(outcome, []) for outcome in ("passed", "failed", "error")}
    lost = [one for kind in ("failed", "error") for one in of_outcomes[kind] if _DOOR not in dict(one.user_properties)]
    if page and lost:  # as where a worker died: of which door, nobody says
        terminalreporter.write_line(f"{page} is left as it was: {lost[0].nodeid} failed and names no door.", red=True)
    elif page:
        found = tried((report.user_properties, outcome) for outcome, reports in of_outcomes.items() for report in reports)
        path = Path(page)
        path.write_text(written(path.read_text(encoding="utf-8"), found, date.today().isoformat()), encoding="utf-8")


def tried(tests: Iterable[tuple[Iterable[tuple[str, Any]], str]]) -> Tried:
    """Of tests' properties and outcomes."""
    counts: dict[str, int] = defaultdict(int)
    wrong = set()
    for properties, outcome in tests:
        for name, count in (value for key, value in properties if key == _DOOR):
            counts[name] += count
            if outcome != "passed":
                wrong.add(name)
    return {name: (count, name in wrong) for name, count in counts.items()}


def written(page: str, found: Tried, day: str) -> str:
    """The page, with the rows of these doors anew; others stay as they are. A test ends at the first fault that it meets.

    Raises:
        ValueError: the page has no place for the table.
    """
    before, mark, rest = page.partition(MARKS[0])
    table, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        raise ValueError(f"there is no {MARKS[0].strip()} ... {MARKS[1]}")
    rows = dict(_rows(table))
    for name, (count, is_wrong) in found.items():
        rows[name] = f"| {name} | {count:,} | {'**1 or more**' if is_wrong else 0} | {day} |\n"
    return f"{before}{mark}{HEAD}{''.join(row for _, row in sorted(rows.items()))}{end}{after}"


def _rows(table: str) -> Iterator[tuple[str, str]]:
    for row in table.splitlines(keepends=True)[2:]:
        yield row.split("|")[1].strip(), row
