"""Damaged and hostile models: none ends this process, keeps it busy, or is refused without a reason.

`make test` tries 60 of them, `make fuzz` 1,500: each in a process that may die, and is counted if it does so anywhere but in the
trial that finds out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.llama.mutant_doors import fates, report
from tests.llama.mutants import MUTATIONS

COUNT = int(os.environ.get("LOCALSTEER_MODEL_MUTATIONS", "60"))


@pytest.mark.skipif(sys.platform == "win32", reason="a process's time cannot be limited")
def test_no_mutated_model_ends_or_freezes_the_program(tmp_path: Path) -> None:
    found = list(fates(range(COUNT), tmp_path))
    assert [fate.number for fate in found if fate.fault] == [], report(found)
    assert len({fate.number for fate in found}) == COUNT
    assert {fate.kind for fate in found} == set(MUTATIONS)
    assert {fate.stage for fate in found} == {"header", "trial", "use"}  # all of them see something
