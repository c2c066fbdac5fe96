"""Where a direction is read: what the bench asks, and what the page says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import methods_page, places
from bench.quality.asking import Given
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import shipped_folder
from localsteer.llama.model import Model
from localsteer.steering.plan import Plan


def test_each_place_is_asked_the_held_out_questions_at_both_strengths(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, Plan | None]] = []
    questions = load_concept(shipped_folder() / "happy" / "concept.yaml").held_out

    def ask(model: Model, contrast: Contrast, given: Any, *, plan: Plan | None, systems: Any, count: int, **rest: int) -> Given:
        assert tuple(given) == questions
        asked.append((bool(systems), plan))
        return Given(["A day."] * count, [[1.0] * 4] * 10)

    monkeypatch.setattr(places, "ask", ask)
    known: dict[str, Any] = {"read at response": {}, "read at last": {}}
    found = dict(places.places(tiny, "happy", known))
    assert list(found) == ["read at opening"]
    assert [system for system, _ in asked] == [False, True, True, False, False, False, False]
    doses = [plan.relative_dose or 0.0 for _, plan in asked if plan is not None]
    assert doses[2:] == pytest.approx([1.6 * dose for dose in doses[:2]])


def test_the_page_shows_a_swing_with_its_interval_and_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_page, "_PAGE", tmp_path / "METHODS.md")
    record = {"read at opening": {"1": [1.5, 1.0, 2.0, 0.25], "1.6": [2.0, 1.5, 2.5, 0.5]}}
    methods_page.write({"Tiny": {"happy": record, "sad": {"mean difference": {}}}})
    page = (tmp_path / "METHODS.md").read_text(encoding="utf-8")
    assert "| happy | 1.50 (1.00..2.00) / 0.25, 2.00 (1.50..2.50) / 0.50 |" in page
    assert "| sad |" not in page.partition("read at opening")[2]
