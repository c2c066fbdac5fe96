"""What was tried at each door, as a table in a page: LOCALSTEER_DOORS names the page, `make fuzz` does."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from handbook.pages import keep, told_between

MARKS = ("<!-- inputs: `make fuzz` -->", "<!-- end of inputs -->")
HEAD = ("| door | inputs | faults | seen |", "|---|--:|--:|---|")
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
    lost = [
        one for kind in ("failed", "error") for one in of_outcomes[kind] if _DOOR not in dict(getattr(one, "user_properties", ()))
    ]
    if page and lost:  # as where a worker died: of which door, nobody says
        terminalreporter.write_line(f"{page} is left as it was: {lost[0].nodeid} failed and names no door.", red=True)
    elif page:
        found = tried((report.user_properties, outcome) for outcome, reports in of_outcomes.items() for report in reports)
        path = Path(page)
        _, table, _ = told_between(path.read_text(encoding="utf-8"), MARKS)
        keep(with_rows(table, found, date.today().isoformat()), path, MARKS)


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


def with_rows(table: str, found: Tried, day: str) -> str:
    """The table with the rows of these doors anew; others stay as they are. A test ends at the first fault that it meets."""
    rows = dict(_rows(table))
    for name, (count, is_wrong) in found.items():
        rows[name] = f"| {name} | {count:,} | {'**1 or more**' if is_wrong else 0} | {day} |"
    return "\n".join([*HEAD, *(row for _, row in sorted(rows.items()))])


def _rows(table: str) -> Iterator[tuple[str, str]]:
    for row in table.strip().splitlines()[len(HEAD) :]:
        yield row.split("|")[1].strip(), row
