"""What a calibration found, as a vector carries it: the dose toward each pole, and the measurements behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from localsteer.errors import VectorError

Pole = Literal["positive", "negative"]
Scope = Literal["response", "prompt"]
"""What is steered: the response only, or the prompt as well (`--steer-prompt`, and llama.cpp's own programs)."""

POLES: tuple[Pole, ...] = ("positive", "negative")
SCOPES: tuple[Scope, ...] = ("response", "prompt")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval over questions."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """What answers at one dose were like.

    Attributes:
        dose: relative dose (see `steering.relative_dose`).
        answers: how many were measured.
        effect: how far they express the pole: 0 as unsteered, 1 as under the pole's persona as a system prompt.
        cost: coherence cost, nats a token.
        distinct: share of distinct 3-grams of tokens, 1 where nothing repeats.
        ended: share of answers that ended by themselves.
    """

    dose: float
    answers: int
    effect: Interval
    cost: Interval
    distinct: float
    ended: float


@dataclass(frozen=True)
class Side:
    """What was found for one pole and one scope.

    Attributes:
        layers: the layers to steer.
        profile: how the dose is shared out among them (see `calibration.shapes`).
        norms: for each layer the length of what is added at strength 1; empty where no dose was found.
        dose: relative dose of strength 1; None where nothing inside the budget does anything.
        effect: expected at strength 1, from the curve fitted to all measurements.
        cost: likewise.
        curve: the measurements, by ascending dose.
    """

    layers: tuple[int, ...]
    profile: str
    norms: tuple[float, ...]
    dose: float | None
    effect: float | None
    cost: float | None
    curve: tuple[Point, ...]

    def cost_at(self, dose: float) -> float:
        """Coherence cost at a dose, linear between what was measured (0 at 0); beyond the last point, that of the last point."""
        doses = [0.0, *(point.dose for point in self.curve)]
        costs = [0.0, *(point.cost.mean for point in self.curve)]
        return float(np.interp(dose, doses, costs))


@dataclass(frozen=True)
class Calibration:
    """A calibration's result.

    Attributes:
        model: name of the model it was made on.
        content: hash of that very file (Fingerprint.content).
        budget: most coherence cost allowed, nats a token.
        seed: of the sampled answers.
        questions: number of held-out questions.
        generated_tokens: how many tokens the answers took.
        unsteered: the unsteered answers.
        personas: the answers under each pole's persona as a system prompt: the prompt baseline.
        scale: what an effect of 1 is, for each pole: the shift under its "persona"; where the model does not measurably follow
            that one, under the "other persona" (the other way); else a standard "deviation" of the unsteered answers.
        sides: by pole and scope.
    """

    model: str
    content: str
    budget: float
    seed: int
    questions: int
    generated_tokens: int
    unsteered: Point
    personas: Mapping[Pole, Point]
    scale: Mapping[Pole, str]
    sides: Mapping[tuple[Pole, Scope], Side]

    def side(self, strength: float, scope: Scope) -> Side:
        """The side that a strength of this sign moves toward."""
        return self.sides["positive" if strength >= 0 else "negative", scope]

    def to_json(self) -> str:
        """As text, for a vector's metadata."""
        document = asdict(self)
        document["sides"] = {f"{pole}/{scope}": asdict(side) for (pole, scope), side in self.sides.items()}
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """From text.

        Raises:
            VectorError: it is damaged.
        """
        try:
            document = json.loads(text)
            document["unsteered"] = _point(document["unsteered"])
            document["personas"] = {pole: _point(point) for pole, point in document["personas"].items()}
            document["sides"] = {(pole, scope): _side(document["sides"][f"{pole}/{scope}"]) for pole in POLES for scope in SCOPES}
            return cls(**document)
        except (ValueError, TypeError, KeyError) as error:
            raise VectorError(f"the calibration is damaged: {error}.", hint="Calibrate the vector again.") from error


def _point(document: Mapping[str, Any]) -> Point:
    values = dict(document)
    return Point(**{**values, "effect": Interval(**values["effect"]), "cost": Interval(**values["cost"])})


def _side(document: Mapping[str, Any]) -> Side:
    values = dict(document)
    values |= {"layers": tuple(values["layers"]), "norms": tuple(values["norms"])}
    values["curve"] = tuple(_point(point) for point in values["curve"])
    return Side(**values)
