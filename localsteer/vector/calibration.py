"""What a calibration found, as a vector carries it: the dose toward each pole, and the measurements behind it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from localsteer.errors import VectorError, shown
from localsteer.files.json_values import build, read_json

Pole = Literal["positive", "negative"]
Mode = Literal["response", "prompt", "anchored"]
"""What is steered: the response only, the prompt as well (`--steer-prompt`, and llama.cpp's own programs), or the response while
the unsteered model has a say in every token (`--anchored`), which takes stronger doses."""

POLES: tuple[Pole, ...] = ("positive", "negative")
MODES: tuple[Mode, ...] = ("response", "prompt", "anchored")
MODE_NAMES: dict[Mode, str] = {"response": "response only", "prompt": "prompt as well", "anchored": "response, anchored"}
SIGN: dict[Pole, float] = {"positive": 1.0, "negative": -1.0}
OTHER: dict[Pole, Pole] = {"positive": "negative", "negative": "positive"}
Limit = Literal["coherence", "repetition", "relevance", "refusals", "script", "measured"]
"""What keeps a dose from being stronger; "measured": nothing did up to the strongest that was tried."""
# Most coherence cost unless told otherwise, nats a token (`calibration.search` adds to it where a persona says other things). Ten
# answers a dose, read by a person: on SmolLM2-135M happy and sad read well at 0.2 to 0.4, formal at 0.5, and repeat themselves at
# 0.6 and more; on Qwen2.5-Coder 1.5B happy, sad and French read well up to 0.4 beyond what their personas add.
DEFAULT_BUDGET = 0.4


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
        dose: relative dose (see `localsteer.steering.plan.relative_dose`).
        answers: how many were measured.
        effect: how far they express the pole: 0 as unsteered, 1 as under the pole's persona as a system prompt.
        cost: coherence cost, nats a token: by how much answers are less likely than such answers are, read either under the
            pole's persona, beside its own answers, or without, beside unsteered ones, whichever is less.
        distinct: share of distinct 3-grams of tokens, 1 where nothing repeats.
        ended: share of answers that ended by themselves.
        voiced: the cost under the persona alone; NaN where there is none.
        plain: the cost without persona alone.
        relevance: how much likelier answers are after their own question than after another one, nats a token.
        refused: share of answers that say that they will not answer.
        foreign: share of letters that are of another script.

    Raises:
        VectorError: the dose is negative, or no finite number.
    """

    dose: float
    answers: int
    effect: Interval
    cost: Interval
    distinct: float
    ended: float
    voiced: float = math.nan
    plain: float = math.nan
    relevance: float = math.nan
    refused: float = math.nan
    foreign: float = math.nan

    def __post_init__(self) -> None:
        if not 0 <= self.dose < math.inf:
            raise VectorError(f"a dose that was measured is {self.dose}")


@dataclass(frozen=True)
class Side:
    """What was found for one pole and one mode.

    Attributes:
        layers: the layers to steer.
        norms: for each layer the length of what is added at strength 1; empty where no dose was found.
        dose: relative dose of strength 1; None where nothing inside the budget does anything.
        effect: expected at strength 1, from the curve fitted to all measurements.
        cost: likewise.
        curve: the measurements, by ascending dose.
        shown: whether answers at the dose do anything beyond doubt; otherwise it was chosen by its cost alone.
        limit: what keeps the dose from being stronger.
        between: the 95 % interval of the effect at strength 1; None where it was not kept.
        allowed: the most coherence cost that a dose could have, nats a token; None where it was the budget alone.

    Raises:
        VectorError: a layer that cannot be steered or stands there twice, a dose without measurements, a dose or length that is
            no finite number or negative, another number of lengths than of layers, or a curve out of order.
    """

    layers: tuple[int, ...]
    norms: tuple[float, ...]
    dose: float | None
    effect: float | None
    cost: float | None
    curve: tuple[Point, ...]
    shown: bool = True
    limit: Limit = "coherence"
    between: tuple[float, float] | None = None
    allowed: float | None = None

    def __post_init__(self) -> None:
        if any(layer < 1 for layer in self.layers) or len(set(self.layers)) < len(self.layers):
            raise VectorError(f"layers {', '.join(map(str, self.layers))} cannot be steered")
        if self.dose is not None:
            if not (0 < self.dose < math.inf and len(self.norms) == len(self.layers) > 0):
                raise VectorError(f"a dose of {self.dose} with {len(self.norms)} lengths for {len(self.layers)} layers is none")
            if self.effect is None or self.cost is None or not self.curve:
                raise VectorError(f"a dose of {self.dose} has no measurements")
            if not all(0 <= norm < math.inf for norm in self.norms):
                raise VectorError("a length of what is added is negative, or no finite number")
        if any(later.dose < earlier.dose for earlier, later in itertools.pairwise(self.curve)):
            raise VectorError("the measurements of a curve are not in the order of their doses")

    def effect_at(self, dose: float) -> float:
        """Effect at a dose: that expected at strength 1, and from there along what was measured; 0 at 0."""
        measured = [(point.dose, point.effect.mean) for point in self.curve if math.isfinite(point.effect.mean)]
        doses, effects = zip((0.0, 0.0), *measured, strict=True)
        at, one = (float(np.interp(place, doses, effects)) for place in (dose, self.dose or dose))
        return at * self.effect / one if self.effect and one > 0 else at

    def cost_at(self, dose: float) -> float:
        """Coherence cost at a dose, linear between what was measured (0 at 0); beyond the last point, that of the last point.

        Past strength 1 it is at least the cost of strength 1, however a single point came out.
        """
        measured = [(point.dose, point.cost.mean) for point in self.curve if math.isfinite(point.cost.mean)]
        doses, costs = zip((0.0, 0.0), *measured, strict=True)
        cost = float(np.interp(dose, doses, costs))
        return cost if self.dose is None or self.cost is None or dose <= self.dose else max(cost, self.cost)


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
        sides: by pole and mode; "anchored" only where it was asked for.
        long_answers: how many long answers the doses of the response were held to, and the others weakened along; 0 where none
            were asked for.

    Raises:
        VectorError: a side is missing, or there is one too many.
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
    sides: Mapping[tuple[Pole, Mode], Side]
    long_answers: int = 0

    def __post_init__(self) -> None:
        modes = [mode for mode in MODES if mode != "anchored" or any((pole, mode) in self.sides for pole in POLES)]
        if set(self.sides) != {(pole, mode) for pole in POLES for mode in modes}:
            found = ", ".join(sorted(f"{pole}/{mode}" for pole, mode in self.sides))
            raise VectorError(f"it has sides for {found or 'nothing'}, and needs one for each pole and mode")

    def side(self, strength: float, mode: Mode) -> Side:
        """The side that a strength of this sign moves toward; that of the response, where there is no anchored dose."""
        pole = pole_of(strength)
        return self.sides[pole, mode if self.has_own(strength, mode) else "response"]

    def has_own(self, strength: float, mode: Mode) -> bool:
        """Whether a mode has a side of its own: an anchored answer without a dose takes that of the response, which is safe."""
        own = self.sides.get((pole_of(strength), mode))
        return own is not None and (mode != "anchored" or own.dose is not None)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those that were measured."""
        return tuple(mode for mode in MODES if all((pole, mode) in self.sides for pole in POLES))

    @property
    def main_pole(self) -> Pole:
        """The pole whose response dose the vector's tensors hold."""
        return "positive" if self.sides["positive", "response"].dose is not None else "negative"

    @property
    def main_dose(self) -> float:
        """The relative dose that the vector's tensors hold."""
        dose = self.sides[self.main_pole, "response"].dose
        assert dose is not None  # a vector with a calibration has a dose toward one pole at least
        return dose

    def document(self) -> dict[str, Any]:
        """As a JSON document; what is not a number (no answer had a value) is null."""
        document = asdict(self)
        # Always in this order: a file that is read and written again stays the same to the last byte.
        found = [(pole, mode) for pole in POLES for mode in MODES if (pole, mode) in self.sides]
        document["sides"] = {f"{pole}/{mode}": asdict(self.sides[pole, mode]) for pole, mode in found}
        if not self.long_answers:
            del document["long_answers"]  # as in files from before there were any
        plain: dict[str, Any] = without_nan(document)
        return plain

    def to_json(self) -> str:
        """As text, for a vector's metadata."""
        return json.dumps(self.document(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """From text.

        Raises:
            VectorError: it is damaged.
        """
        try:
            document = read_json(text)
            # Older ones also name how a dose is shared out among the layers, which the lengths tell as well.
            for side in document["sides"].values():
                side.pop("profile", None)
            read = build(cls, document)
            return replace(read, model=shown(read.model))
        except (AttributeError, KeyError, TypeError, ValueError, VectorError) as error:
            raise VectorError(f"the calibration is damaged: {shown(error)}.", hint="Calibrate the vector again.") from error


def pole_of(strength: float) -> Pole:
    """The pole that a strength of this sign moves toward."""
    return "positive" if strength >= 0 else "negative"


def without_nan(value: Any) -> Any:
    """The same document with null for what is not a number, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
