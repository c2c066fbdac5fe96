"""The files of outcomes: one of a vector's own, one that vectors share. What an interview does with them: test_interview.py."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from localsteer.calibration.outcomes import Outcome, Outcomes, Trial

OUTCOME = Outcome("Yes.", 3, True, 1.0, 2.0, 0.5, 1.5, 1.0, False)
UNSTEERED, STEERED = Trial(0), Trial(0, 0.5)


def opened(folder: Path | None, vector: str = "vector.jsonl", *, fresh: bool = False) -> Outcomes:
    return Outcomes(folder, vector, "shared.jsonl", fresh)


def test_what_is_steered_belongs_to_its_vector_and_the_rest_to_all(tmp_path: Path) -> None:
    opened(tmp_path).add({UNSTEERED: OUTCOME, STEERED: replace(OUTCOME, text="No.")})
    assert dict(opened(tmp_path)) == {UNSTEERED.key: OUTCOME, STEERED.key: replace(OUTCOME, text="No.")}
    assert dict(opened(tmp_path, "other.jsonl")) == {UNSTEERED.key: OUTCOME}


def test_where_nothing_is_shared_one_file_holds_all(tmp_path: Path) -> None:
    Outcomes(tmp_path, "vector.jsonl", "vector.jsonl").add({UNSTEERED: OUTCOME, STEERED: OUTCOME})
    assert [file.name for file in tmp_path.iterdir()] == ["vector.jsonl"]
    assert set(Outcomes(tmp_path, "vector.jsonl", "vector.jsonl")) == {UNSTEERED.key, STEERED.key}


@pytest.mark.parametrize("name", ["vector.jsonl", "shared.jsonl"])
def test_a_line_that_is_cut_off_costs_that_line_alone(tmp_path: Path, name: str) -> None:
    opened(tmp_path).add({UNSTEERED: OUTCOME, STEERED: OUTCOME})
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-10])
    outcomes = opened(tmp_path)
    assert len(outcomes) == 1
    outcomes.add({Trial(1): OUTCOME, Trial(1, 0.5): OUTCOME})
    outcomes.add({Trial(2): OUTCOME, Trial(2, 0.5): OUTCOME})
    assert len(opened(tmp_path)) == 5


def test_a_line_that_another_run_leaves_half_written_costs_that_line_alone(tmp_path: Path) -> None:
    outcomes, other = opened(tmp_path), opened(tmp_path, "other.jsonl")
    other.add({UNSTEERED: OUTCOME, Trial(1): OUTCOME})
    file = tmp_path / "shared.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    outcomes.add({Trial(2): OUTCOME})
    assert set(opened(tmp_path)) == {UNSTEERED.key, Trial(2).key}


def test_fresh_forgets_both_files(tmp_path: Path) -> None:
    opened(tmp_path).add({UNSTEERED: OUTCOME, STEERED: OUTCOME})
    assert len(opened(tmp_path, fresh=True)) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    outcomes = opened(tmp_path / "file" / "folder")
    with caplog.at_level(logging.WARNING):
        outcomes.add({UNSTEERED: OUTCOME, STEERED: OUTCOME})
        outcomes.add({Trial(1): OUTCOME})
    assert [record.message.partition(" in ")[0] for record in caplog.records] == ["measurements cannot be kept"]
    assert outcomes.folder is None
    assert len(outcomes) == 3


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = opened(None)
    outcomes.add({STEERED: OUTCOME})
    assert outcomes[STEERED.key] == OUTCOME
    assert list(tmp_path.iterdir()) == []
