"""Commands that are killed leave old files or new ones, and nothing else behind their next run; `make faults` kills 200."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if os.name == "nt":
    pytest.skip("Windows has no such signals", allow_module_level=True)

from tests.kills.__main__ import MARKERS, kills
from tests.kills.jobs import JOBS, ROOT, prepare

# The fastest ones; the second opens a model.
_NAMES = ("vectors combine", "export glp", "history export")


def test_killed_commands_leave_nothing_torn_and_no_litter_and_are_done_again(tmp_path: Path) -> None:
    jobs = [job for job in JOBS if job.name in _NAMES]
    assert len(jobs) == len(_NAMES)
    found = [killed for _, _, killed in kills(10, jobs, prepare(tmp_path), tmp_path)]
    assert [(one.job, one.signal.name, one.moment, one.faults) for one in found if one.faults] == []
    assert len(found) == 10


def test_the_page_has_a_place_for_what_is_found() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert text.index(MARKERS[0]) < text.index(MARKERS[1])
