"""What a search for doses has found, beside what the vector carries of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from localsteer.calibration.fits import Values, mean_interval
from localsteer.calibration.shapes import Shape
from localsteer.vector.calibration import Interval, Mode, Point, Pole, Side


@dataclass(frozen=True, eq=False)
class Sample:
    """Answers under one shape, pole and mode: (n,) each.

    Attributes:
        doses: relative doses, positive.
        questions: the question of each answer.
        costs: nats a token above the unsteered answers to the same question.
        effects: on the pole's scale, likewise.
        distinct: share of distinct 3-grams.
        ended: 1 where the answer ended by itself.
    """

    doses: Values
    questions: NDArray[np.intp]
    costs: Values
    effects: Values
    distinct: Values
    ended: Values

    def at(self, dose: float) -> Sample:
        """The answers at one dose."""
        return self._where(self.doses == dose)

    def up_to(self, dose: float) -> Sample:
        """The answers at doses up to this one."""
        return self._where(self.doses <= dose)

    def point(self, dose: float, seed: int) -> Point:
        """All answers in one point."""
        return Point(
            dose=dose,
            answers=len(self.doses),
            effect=mean_interval(self.effects, self.questions, seed),
            cost=mean_interval(self.costs, self.questions, seed),
            distinct=float(self.distinct.mean()),
            ended=float(self.ended.mean()),
        )

    def curve(self, seed: int) -> tuple[Point, ...]:
        """A point for each dose, ascending."""
        return tuple(self.at(dose).point(float(dose), seed) for dose in np.unique(self.doses))

    def strongest_with(self, distinct: float) -> float:
        """The strongest measured dose up to which the share of distinct 3-grams stays at least this; 0 where it never does.

        A single dose has a handful of answers, one of which may loop by chance: what is followed is the best non-increasing curve
        through all doses (isotonic regression, pool adjacent violators).
        """
        doses = np.unique(self.doses)
        pools: list[tuple[float, int, int]] = []  # mean, answers, doses
        for dose in doses:
            shares = self.at(dose).distinct
            pools.append((float(shares.mean()), len(shares), 1))
            while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
                (one, n_one, doses_one), (other, n_other, doses_other) = pools.pop(), pools.pop()
                total = n_one + n_other
                pools.append(((one * n_one + other * n_other) / total, total, doses_one + doses_other))
        good = sum(count for mean, _, count in pools if mean >= distinct)
        return float(doses[good - 1]) if good else 0.0

    def _where(self, picked: NDArray[np.bool_]) -> Sample:
        return Sample(*(getattr(self, field.name)[picked] for field in fields(self)))


@dataclass(frozen=True)
class ShapeResult:
    """How a shape does toward a pole.

    Attributes:
        shape: the shape.
        dose: relative dose at which its cost reaches the budget, or the strongest one tried where it does not.
        effect: effect there.
    """

    shape: Shape
    dose: float
    effect: Interval


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
        sides: by pole and mode.
        shapes: by pole, the shapes that were compared, in the order of `Search.shapes`.
        samples: by pole, some doses of the chosen shape with three answers at each.
        anchored_samples: likewise, of anchored answers.
    """

    unsteered: Point
    personas: dict[Pole, Point]
    scale: dict[Pole, str]
    sides: dict[tuple[Pole, Mode], Side] = field(default_factory=dict)
    shapes: dict[Pole, list[ShapeResult]] = field(default_factory=dict)
    samples: dict[Pole, list[Quoted]] = field(default_factory=dict)
    anchored_samples: dict[Pole, list[Quoted]] = field(default_factory=dict)
