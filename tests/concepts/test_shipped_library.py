"""The shipped concepts, as files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bench.questions import question_sets
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import shipped_folder

FILES = sorted(shipped_folder().glob("*/concept.yaml"))
# The questions that any description gets, see localsteer.concepts.descriptions.
SHARED = shipped_folder() / "described.yaml"


def bare(text: str) -> str:
    """Letters and digits: a question is the same whatever its case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def questions(file: Path) -> tuple[set[str], set[str]]:
    """Those for building, and those held out for calibration."""
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    return set(map(bare, document["questions"])), set(map(bare, document["held_out"]["questions"]))


def test_there_are_at_least_fourteen() -> None:
    assert len(FILES) >= 14


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_a_shipped_concept_is_good(file: Path) -> None:
    contrast = load_concept(file)
    assert contrast.name == file.parent.name
    assert contrast.description
    assert len(contrast.personas) >= 4
    # What half of the pairs make of the direction: tests/end_to_end/test_concept_library.py.
    half = yaml.safe_load(contrast.source).get("crossing") == "half"
    assert len(contrast.pairs) >= 4 * 20 / (2 if half else 1)
    assert len(contrast.held_out) >= 20


def test_no_question_has_two_roles() -> None:
    building: set[str] = set()
    calibration: set[str] = set()
    for file in (*FILES, SHARED):
        fit, held_out = questions(file)
        building |= fit
        calibration |= held_out
    measuring = {bare(question) for asked in question_sets().values() for question in asked}
    assert building
    assert not building & calibration
    assert not building & measuring
    assert not calibration & measuring


def test_no_opening_and_no_persona_holds_a_question() -> None:
    measuring = {bare(question) for asked in question_sets().values() for question in asked}
    for file in FILES:
        contrast = load_concept(file)
        asked = measuring | set(map(bare, contrast.held_out))
        for prompt in contrast.prompts():
            for text in (prompt.opening, *(message.content for message in prompt.messages)):
                assert not any(question in bare(text) for question in asked)
