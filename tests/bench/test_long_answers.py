"""Long answers, of which those that end in a loop are counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench import long_answers, methods_page
from localsteer.engine.request import Answer, Request, Timing
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Pole

LOOPING = {"fresh": {"positive": 3, "negative": 1}, "calibrated": {"positive": 8, "negative": 2}}


class MadeWays:
    """Of which a plan's relative dose says how many answers loop."""

    @classmethod
    def of(cls, *_given: object) -> MadeWays:
        return cls()

    def __enter__(self) -> MadeWays:
        return self

    def __exit__(self, *_given: object) -> None: ...

    def plan(self, way: str, pole: Pole) -> Plan | None:
        return Plan(Steering(), Edit(np.zeros((4, 8), np.float32)), LOOPING[way][pole]) if way in LOOPING else None

    def systems(self, way: str, pole: Pole) -> list[str]:
        return [f"You are {pole}."] if way == "system prompt" else []


def answered(_model: Model, requests: Sequence[Request]) -> list[Answer]:
    def answer(number: int, request: Request) -> Answer:
        loops = request.plan is not None and number < (request.plan.relative_dose or 0)
        tokens = (1, 2) * 50 if loops else tuple(range(100 if request.plan else 60))
        return Answer("", tokens, "stop", number, Timing(1, 0, 0.1, len(tokens), 0.1))

    assert {request.max_tokens for request in requests} == {192}
    return [answer(number, request) for number, request in enumerate(requests)]


def test_loops_are_counted_by_way_and_pole_and_shown(tiny: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(long_answers, "Ways", MadeWays)
    monkeypatch.setattr(long_answers, "generate_many", answered)
    ((way, found),) = long_answers.long_answers(tiny, "happy", {})
    assert found["fresh"] == {"positive": [3, 8, 100], "negative": [1, 8, 100]}
    assert found["unsteered"] == [0, 8, 60]
    assert list(long_answers.long_answers(tiny, "happy", {way: found})) == []
    monkeypatch.setattr(methods_page, "_PAGE", tmp_path / "METHODS.md")
    methods_page.write({"Tiny": {"happy": {way: found}, "sad": {"mean difference": {}}}})
    page = (tmp_path / "METHODS.md").read_text(encoding="utf-8")
    zero = "0 of 8 / 60"
    assert f"\n| happy | {zero} | {zero} | {zero} | 3 of 8 / 100 | 1 of 8 / 100 | 8 of 8 / 100 | 2 of 8 / 100 |\n" in page
    assert "| concept | unsteered | system prompt, + | system prompt, - | fresh, + |" in page
