"""Calibrations that nobody measured, and a concept to calibrate on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.calibration import calibrate, fits
from localsteer.calibration.calibrate import Calibrated
from localsteer.calibration.effort import Effort
from localsteer.calibration.findings import Findings, Quoted
from localsteer.calibration.search import Search
from localsteer.llama.fingerprint import Fingerprint
from localsteer.llama.model import Model
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.vector.calibration import Calibration, Interval, Limit, Mode, Point, Pole, Side
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.commands import runner

Floats = NDArray[np.float32]

# That of the commands' tests, with as many held-out questions as a calibration needs.
CONCEPT = runner.CONCEPT.replace('["How are you?"]', '["How are you?", "Who is there?", "Where is it?", "When was it?"]')

BUDGET = 0.25
DOSES: Mapping[tuple[Pole, Mode], float] = {
    ("positive", "response"): 0.3,
    ("negative", "response"): 0.4,
    ("positive", "prompt"): 0.12,
    ("negative", "prompt"): 0.16,
    ("positive", "anchored"): 0.6,
    ("negative", "anchored"): 0.7,
}
# All within a model of four layers. The layers above them are known too, but steered by no side.
LAYERS: Mapping[Pole, tuple[int, ...]] = {"positive": (1, 2), "negative": (2, 3)}


def point(dose: float, *, effect: float = 1.0, cost: float = 0.2) -> Point:
    """Eight answers; intervals reach 0.1 either way."""
    return Point(
        dose,
        8,
        Interval(effect, effect - 0.1, effect + 0.1),
        Interval(cost, cost - 0.1, cost + 0.1),
        0.95,
        0.5,
        voiced=cost,
        plain=cost + 0.1,
        relevance=0.8,
        refused=0.125,
        foreign=0.0,
    )


def hidden_norms(model: Fingerprint) -> Floats:
    """(n_layer,) as if measured: 2, 4, 6 ... from layer 1 on."""
    return np.array([np.nan, *(2.0 * layer for layer in range(1, model.n_layer))], np.float32)


def side(pole: Pole, dose: float, hidden: Floats) -> Side:
    """Measured at half the dose, at it, and at twice it, where the cost is 1."""
    layers = LAYERS[pole]
    norms = tuple(float(hidden[layer]) * dose / len(layers) for layer in layers)
    curve = (point(dose / 2, effect=0.5, cost=0.1), point(dose, effect=0.9, cost=0.25), point(2 * dose, effect=1.2, cost=1.0))
    return Side(layers, norms, dose, 0.9, BUDGET, curve, between=(0.7, 1.1), allowed=BUDGET)


def nothing(found: Side, limit: Limit = "coherence") -> Side:
    """The same side where no dose does anything."""
    return replace(found, norms=(), dose=None, effect=None, cost=None, between=None, limit=limit)


def calibration(model: Fingerprint, *, without: tuple[tuple[Pole, Mode], ...] = (), hidden: Floats | None = None) -> Calibration:
    """A calibration on a model; `without` names the sides for which it found no dose."""
    hidden = hidden_norms(model) if hidden is None else hidden
    # Anchored doses are looked for around those of the response.
    without = (*without, *((pole, "anchored") for pole, mode in without if mode == "response"))
    sides = {key: side(key[0], dose, hidden) for key, dose in DOSES.items()}
    return Calibration(
        model=model.name,
        content=model.content,
        budget=BUDGET,
        seed=7,
        questions=4,
        generated_tokens=1234,
        unsteered=point(0.0, effect=0.0, cost=0.0),
        personas={"positive": point(0.0, effect=1.0, cost=0.05), "negative": point(0.0, effect=0.2, cost=0.06)},
        scale={"positive": "persona", "negative": "other persona"},
        sides={key: nothing(found) if key in without else found for key, found in sides.items()},
    )


def calibrated(
    model: Fingerprint,
    *,
    without: tuple[tuple[Pole, Mode], ...] = (),
    seed: int = 0,
    concept: str = "loud",
    hidden: Floats | None = None,
) -> ControlVector:
    """A vector as a calibration leaves it: its directions are what its first side with a dose adds at strength 1."""
    found = calibration(model, without=without, hidden=hidden)
    estimate = np.random.default_rng(seed).standard_normal((model.n_layer, model.n_embd)).astype(np.float32)
    estimate[0] = 0
    main = next(one for one in found.sides.values() if one.dose is not None)
    directions = {
        layer: (estimate[layer] * (norm / np.linalg.norm(estimate[layer]))).astype(np.float32)
        for layer, norm in zip(main.layers, main.norms, strict=True)
    }
    provenance = Provenance(
        concept=concept,
        positive="loud",
        negative="quiet",
        model=model,
        hidden_norm=hidden_norms(model) if hidden is None else hidden,
        estimate=estimate,
        source=CONCEPT,
        calibration=found,
    )
    return ControlVector(directions, provenance)


def calibrated_on(model: Model) -> ControlVector:
    """The same by the norms that this model has, which --max-dose goes by."""
    return calibrated(model.fingerprint, hidden=read_hidden_norm(model))


def findings(found: Calibration) -> Findings:
    """What a search would have found for it, with answers at a dose of either pole."""
    response = [Quoted(0.3, (("How are you?", "FINE!\n\nAND YOU?"), ("Where is it?", "")))]
    anchored = [Quoted(0.6, (("How are you?", "GREAT!"),))]
    samples: dict[tuple[Pole, Mode], list[Quoted]] = {}
    for pole in LAYERS:
        samples |= {(pole, "response"): response, (pole, "anchored"): anchored}
    allowed = dict.fromkeys(LAYERS, BUDGET)
    return Findings(found.unsteered, dict(found.personas), dict(found.scale), allowed, dict(found.sides), samples)


def result(model: Fingerprint, *, without: tuple[tuple[Pole, Mode], ...] = ()) -> Calibrated:
    """The outcome of a calibration."""
    vector = calibrated(model, without=without)
    assert vector.provenance.calibration is not None
    return Calibrated(vector, findings(vector.provenance.calibration))


def make_small(monkeypatch: pytest.MonkeyPatch) -> Effort:
    """Let a calibration of a tiny model take less than a second; returns what a thorough one takes."""
    effort = Effort(max_tokens=4, unsteered=8, persona=3, curve=2, prompt=1, anchored=1)
    monkeypatch.setattr(calibrate, "THOROUGH", effort)
    monkeypatch.setattr(calibrate, "QUICK", replace(effort, unsteered=6, persona=2, curve=1))
    monkeypatch.setattr(fits, "RESAMPLES", 100)
    return effort


def find_sides(
    monkeypatch: pytest.MonkeyPatch,
    *,
    without: tuple[tuple[Pole, Mode], ...] = (),
    limit: Limit = "coherence",
    measuring: bool = False,
) -> None:
    """Let a search find the sides of `calibration`: a tiny model answers at random. It may measure as ever before that."""
    run = Search.run

    def found(self: Search) -> Findings:
        model = self.interview.model
        made = run(self) if measuring else findings(calibration(model.fingerprint))
        # An extracted vector adds the same relative dose at each of its layers.
        hidden = np.full(model.n_layer, 10, np.float32)
        hidden[list(self.layers)] = np.array(self.norms) * len(self.layers)
        sides = {key: side(key[0], dose, hidden) for key, dose in DOSES.items()}
        made.allowed = dict.fromkeys(LAYERS, self.budget)
        made.sides = sides | {key: replace(nothing(sides[key], limit), allowed=self.budget) for key in without}
        return made

    monkeypatch.setattr(Search, "run", found)
