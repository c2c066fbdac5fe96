"""Where a direction is read: what the bench asks, and what the page says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import methods_page, places
from bench.quality.asking import Given
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import shipped_folder
from localsteer.llama.model import Model
from localsteer.steering.plan import Plan
from localsteer.vector.control_vector import ControlVector


def test_each_place_is_asked_the_held_out_questions_at_both_strengths(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is the happier the stronger it is steered, toward either pole, and answers at a cost of a tenth of a nat."""
    questions = load_concept(shipped_folder() / "happy" / "concept.yaml").held_out
    steered: list[float] = []
    read: list[str | None] = []

    def ask(model: Model, contrast: Contrast, given: Any, *, plan: Plan | None, systems: Any, count: int, **rest: int) -> Given:
        assert tuple(given) == questions
        if plan is None:
            return Given(["A day."] * count, [[1.0] * 4] * 10)
        assert not systems
        steered.append(plan.relative_dose or 0.0)
        # Both poles are asked of each strength, the positive one first.
        good = len(steered) % 2 == 1
        return Given(["A wonderful day!" if good else "An awful day."] * count, [[1.1] * 4] * 10)

    def reading(model: Model, contrast: Contrast, settings: ExtractionSettings) -> ControlVector:
        read.append(settings.position)
        return extract(model, contrast, settings)

    monkeypatch.setattr(places, "ask", ask)
    monkeypatch.setattr(places, "extract", reading)
    known: dict[str, Any] = {"read at response": {}}
    found = dict(places.places(tiny, "happy", known))
    assert list(found) == ["read at opening", "read at last"]
    assert read == ["opening", "last"]
    for at in range(0, 8, 4):
        assert steered[at + 2 : at + 4] == pytest.approx([1.6 * dose for dose in steered[at : at + 2]])
    for record in found.values():
        for mean, low, high, cost in record.values():
            assert mean > 0.5
            assert low <= mean <= high
            assert cost == pytest.approx(0.1)


def test_the_poles_are_steered_opposite_ways(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def ask(*_: Any, plan: Plan | None, count: int, **_rest: Any) -> Given:
        plans.extend([plan] if plan is not None else [])
        return Given(["A day."] * count, [[1.0] * 4] * 10)

    monkeypatch.setattr(places, "ask", ask)
    assert list(places.places(tiny, "happy", {"read at response": {}, "read at last": {}}))
    for positive, negative in zip(plans[::2], plans[1::2], strict=True):
        assert positive.edit is not None
        assert negative.edit is not None
        assert np.vdot(positive.edit.rows * positive.edit.scale, negative.edit.rows * negative.edit.scale) < 0


def test_the_page_shows_a_swing_with_its_interval_and_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods_page, "_PAGE", tmp_path / "METHODS.md")
    record = {"read at opening": {"1": [1.5, 1.0, 2.0, 0.25], "1.6": [2.0, 1.5, 2.5, 0.5]}}
    methods_page.write({"Tiny": {"happy": record, "sad": {"mean difference": {}}}})
    page = (tmp_path / "METHODS.md").read_text(encoding="utf-8")
    assert "| happy | 1.50 (1.00..2.00) / 0.25, 2.00 (1.50..2.50) / 0.50 |" in page
    assert "| sad |" not in page.partition("read at opening")[2]
