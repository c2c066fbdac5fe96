"""What the limits of the dosing were chosen by: when sampled answers have fallen apart, and how likely a refusal begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsteer.building.dose_search import DoseSearch
from localsteer.building.dosing import REFUSED, TOLERANCE
from localsteer.building.own_answers import TOKENS, OwnAnswers
from localsteer.building.refusal import chances_of_refusal
from localsteer.concepts.descriptions import everyday_questions
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import answer_prompt
from localsteer.reading.scoring import Scored, answer_nll
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import POLES, SIGN, Pole
from localsteer.vector.control_vector import ControlVector, Floats

# Times the dose of strength 1.
_FACTORS = (1.0, 1.5)
_ANSWERS = 24
_ASKED = 8
# An opening that is less likely than this is not read on.
_LEAST = (0.0, 0.001, 0.003, 0.01)
# Into how many steps a dose is divided, where a refusal begins too often at it.
_STEPS = (2, 3, 6)


def limits(model: Model, own: OwnAnswers, vector: ControlVector) -> dict[str, Any]:
    """By pole: what sampled answers cost, and where refusals begin.

    Args:
        model: the model.
        own: answers of each persona.
        vector: a dosed vector.
    """
    dosing = vector.provenance.dosing
    assert dosing is not None
    unit = vector.rows(model.n_layer) / np.float32(dosing.unit)
    record: dict[str, Any] = {}
    for pole in POLES:
        side = dosing.sides[pole]
        dose = side.dose["response"]
        # What teacher forcing alone had found.
        found = DoseSearch(TOLERANCE, [], {0.0: 0.0} | {tried.dose: tried.own for tried in side.tried}).dose
        record[pole] = {
            "dose": round(dose, 3),
            "costs": _costs(model, own, pole, Edit(unit, scale=SIGN[pole] * dose)),
            "found": round(found, 3),
            "openings": _cut(model, own, Edit(unit, scale=SIGN[pole] * found)),
            "refused at": _refused_at(own, unit, SIGN[pole] * found),
        }
    return record


def _costs(model: Model, own: OwnAnswers, pole: Pole, edit: Edit) -> dict[str, tuple[float, float, list[str]]]:
    """By how much steered answers are less likely under the persona than its own: mean and deviation, nats a token; and three."""
    start, under = (
        [prompts[number % len(prompts)] for number in range(_ANSWERS)]
        for prompts in (own.voices.start[pole], own.voices.own[pole])
    )

    def nll(prompts: Sequence[tuple[int, ...]], plan: Plan | None) -> tuple[NDArray[np.float64], list[str]]:
        asked = [Request(prompt, plan, Sampling(seed=11_003 + n), TOKENS) for n, prompt in enumerate(prompts)]
        answers = generate_many(model, asked)
        said = [Scored(prompt, answer.tokens) for prompt, answer in zip(under, answers, strict=True)]
        return answer_nll(model, said), [answer.text for answer in answers[:3]]

    before = np.nanmean(nll(under, None)[0])
    found = {}
    for factor in _FACTORS:
        values, texts = nll(start, Plan(Steering(), edit.scaled(factor), 1.0))
        costs = values - before
        found[f"{factor:g}"] = (round(float(np.nanmean(costs)), 2), round(float(np.nanstd(costs)), 2), texts)
    return found


def _cut(model: Model, own: OwnAnswers, edit: Edit) -> dict[str, tuple[float, int]]:
    """How likely a refusal begins under an edit, and how many tokens it takes to tell, by what is not read on."""
    prompts = [answer_prompt(model, [Message("user", question)]) for question in everyday_questions()[:_ASKED]]
    found = {}
    for least in _LEAST:
        with _counted() as count:
            chances = chances_of_refusal(model, own.refusals.openings, prompts, [edit], own.kept, least)
        found[f"{least:g}"] = (round(float(chances[0]), 4), count[0])
    return found


def _refused_at(own: OwnAnswers, unit: Floats, dose: float) -> dict[str, float] | None:
    """The share of a dose at which a refusal becomes too likely, by how many steps were measured; None where it does not."""
    edits = [Edit(unit, scale=dose * step / max(_STEPS)) for step in range(1, max(_STEPS) + 1)]
    chances = np.array([own.refusals.unsteered, *own.refusals.under(edits)])
    allowed = own.refusals.unsteered + REFUSED
    if chances[-1] <= allowed:
        return None
    found = {}
    for steps in _STEPS:
        curve = np.maximum.accumulate(chances[:: max(_STEPS) // steps])
        found[str(steps)] = round(float(np.interp(allowed, curve, np.linspace(0, 1, steps + 1))), 3)
    return found


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Counts the tokens that are decoded meanwhile."""
    count, decode = [0], Context.decode

    def counting(self: Context, batch: Batch) -> None:
        count[0] += len(batch)
        decode(self, batch)

    Context.decode = counting  # type: ignore[method-assign]
    try:
        yield count
    finally:
        Context.decode = decode  # type: ignore[method-assign]
