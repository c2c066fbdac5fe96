"""How many long answers end in saying the same again and again: unsteered, under the system prompts, and steered.

A dosing samples ten tokens and a calibration 18, so neither has heard where an answer goes later (`calibrate --long` does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.quality.asking import requests
from bench.quality.ways import CALIBRATED, FRESH, PROMPT, UNSTEERED, Ways
from bench.questions import question_sets
from localsteer.engine.generate import generate_many
from localsteer.llama.model import Model
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import POLES

LONG = "long answers"
WAYS = (PROMPT, FRESH, CALIBRATED)
_ANSWERS, _TOKENS = 8, 192


def long_answers(model: Model, name: str, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """By way and pole, as it is measured: how many answers loop, of how many, and their mean length in tokens.

    Args:
        model: the model.
        name: the concept.
        known: what is measured already.

    Raises:
        CalibrationError: no dose can be found.
    """
    if LONG in known:
        return
    questions = question_sets()["everyday"]
    found: dict[str, Any] = {}

    def told(plan: Plan | None = None, systems: Sequence[str] = ()) -> list[float]:
        answers = generate_many(model, requests(model, questions, count=_ANSWERS, max_tokens=_TOKENS, plan=plan, systems=systems))
        mean = sum(len(one.tokens) for one in answers) / len(answers)
        return [sum(one.loops for one in answers), len(answers), round(mean, 1)]

    with Ways.of(model, name) as ways:
        found[UNSTEERED] = told()
        for way in WAYS:
            found[way] = {pole: told(ways.plan(way, pole), ways.systems(way, pole)) for pole in POLES}
    yield LONG, found
