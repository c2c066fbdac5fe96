"""What a calibration measures and finds, on the way to the numbers that a vector carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from localsteer.calibration.fits import Values, mean_interval, rising
from localsteer.errors import CalibrationError
from localsteer.steering.worth import pole_name, why_no_dose
from localsteer.vector.calibration import POLES, Calibration, Interval, Mode, Point, Pole, Side
from localsteer.vector.control_vector import ControlVector


@dataclass(frozen=True, eq=False)
class Sample:
    """Answers under one pole and mode: (n,) each.

    Attributes:
        doses: relative doses, positive.
        questions: the question of each answer.
        effects: how far they express the pole, on its scale.
        costs: coherence cost, nats a token: above the pole's own answers in its own voice, or above the unsteered ones without
            it, whichever is less.
        voiced: the former alone; NaN without personas.
        plain: the latter alone.
        relevance: how much likelier after its own question, nats a token.
        distinct: share of distinct 3-grams.
        ended: 1 where the answer ended by itself.
        refused: 1 where it says that it will not answer.
        foreign: share of letters of another script.
    """

    doses: Values
    questions: NDArray[np.intp]
    effects: Values
    costs: Values
    voiced: Values
    plain: Values
    relevance: Values
    distinct: Values
    ended: Values
    refused: Values
    foreign: Values

    def at(self, dose: float) -> Sample:
        """The answers at one dose."""
        return self._where(self.doses == dose)

    def up_to(self, dose: float) -> Sample:
        """The answers at doses up to this one."""
        return self._where(self.doses <= dose)

    def point(self, dose: float, seed: int) -> Point:
        """All answers in one point."""

        def interval(values: Values) -> Interval:
            return mean_interval(values, self.questions, seed)

        return Point(
            dose=dose,
            answers=len(self.doses),
            effect=interval(self.effects),
            cost=interval(self.costs),
            distinct=float(self.distinct.mean()),
            ended=float(self.ended.mean()),
            voiced=mean(self.voiced),
            plain=mean(self.plain),
            relevance=mean(self.relevance),
            refused=float(self.refused.mean()),
            foreign=float(self.foreign.mean()),
        )

    def curve(self, seed: int) -> tuple[Point, ...]:
        """A point for each dose, ascending."""
        return tuple(self.at(dose).point(float(dose), seed) for dose in np.unique(self.doses))

    def reaches(self, name: str, limit: float, *, before: float, falls: bool = False) -> float:
        """The dose at which a measure reaches a limit; infinite where it never does.

        A single dose has a handful of answers, one of which may loop by chance: what is followed is the best curve through all
        doses that only rises, linear between them.

        Args:
            name: of the measure.
            limit: the least value that it may not have any more, or, where it falls, the greatest; worse than `before`.
            before: its value without steering.
            falls: whether the measure gets worse by falling.
        """
        sign = -1.0 if falls else 1.0
        doses = np.unique(self.doses)
        found = [(float(dose), sign * getattr(self.at(dose), name)) for dose in doses]
        known = [(dose, values[np.isfinite(values)]) for dose, values in found]
        known = [(dose, values) for dose, values in known if len(values)]
        if not known:
            return float("inf")
        places = [dose for dose, _ in known]
        curve = rising(np.array([values.mean() for _, values in known]), np.array([len(values) for _, values in known]))
        places, values = [0.0, *places], [min(sign * before, float(curve[0])), *curve.tolist()]
        above = next((place for place, value in enumerate(values) if value >= sign * limit), None)
        if above is None:
            return float("inf")
        share: float = (sign * limit - values[above - 1]) / (values[above] - values[above - 1])
        return places[above - 1] + share * (places[above] - places[above - 1])

    def _where(self, picked: NDArray[np.bool_]) -> Sample:
        return Sample(*(getattr(self, field.name)[picked] for field in fields(self)))


def mean(values: Values) -> float:
    """Of those that are known; NaN without any."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class Quoted:
    """Answers for a person to judge: a relative dose, and (question, answer) pairs."""

    dose: float
    answers: tuple[tuple[str, str], ...]


@dataclass
class Findings:
    """What the search found.

    Attributes:
        unsteered: the unsteered answers.
        personas: the answers under each persona, on the pole's own scale; empty for a concept without personas.
        scale: what an effect of 1 is, for each pole (see `Calibration`).
        allowed: by pole, the most coherence cost of a dose.
        sides: by pole and mode.
        samples: by pole and mode, some doses with three answers at each.
    """

    unsteered: Point
    personas: Mapping[Pole, Point]
    scale: Mapping[Pole, str]
    allowed: Mapping[Pole, float]
    sides: dict[tuple[Pole, Mode], Side] = field(default_factory=dict)
    samples: dict[tuple[Pole, Mode], list[Quoted]] = field(default_factory=dict)


def nothing_found(vector: ControlVector, calibration: Calibration, allowed: Mapping[Pole, float]) -> CalibrationError:
    """Why there is no dose: all cost too much, those that are cheap enough do nothing, or the text does not hold.

    Args:
        vector: the vector, which names its poles.
        calibration: one whose responses have no dose.
        allowed: by pole, the most coherence cost of a dose.
    """
    budget, sides = calibration.budget, {pole: calibration.sides[pole, "response"] for pole in POLES}
    inside = [point for pole, side in sides.items() for point in side.curve if point.cost.mean <= allowed[pole]]
    if all(side.limit == "measured" for side in sides.values()):
        best = max(inside, key=lambda point: point.effect.mean, default=calibration.unsteered).effect
        return CalibrationError(
            f"The vector does nothing inside the budget of {budget:g} nats a token on {calibration.model}: no dose moves the "
            f"answers beyond doubt (at best an effect of {best.mean:.2f}, which may be chance).",
            hint="Allow more with --budget, use personas that are further apart, or choose the dose by its cost: --by-cost.",
        )
    why = "; ".join(f"toward {pole_name(vector, pole)}, {why_no_dose(side, budget)}" for pole, side in sides.items())
    dear = any(side.limit == "coherence" for side in sides.values())
    return CalibrationError(
        f"No dose of the vector holds within the budget of {budget:g} nats a token on {calibration.model}: {why}.",
        hint=f"{'Allow more with --budget, or ask' if dear else 'Ask'} for it in a system prompt instead.",
    )
