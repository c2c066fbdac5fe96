"""What a search for doses has found, beside what the vector carries of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from localsteer.calibrated import Interval, Point, Pole, Scope, Side
from localsteer.calibration.shapes import Shape


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
        sides: by pole and scope.
        shapes: by pole, the shapes that were compared, in the order of `Search.shapes`.
        samples: by pole, some doses of the chosen shape with three answers at each.
        anchored_samples: likewise, of anchored answers.
    """

    unsteered: Point
    personas: dict[Pole, Point]
    scale: dict[Pole, str]
    sides: dict[tuple[Pole, Scope], Side] = field(default_factory=dict)
    shapes: dict[Pole, list[ShapeResult]] = field(default_factory=dict)
    samples: dict[Pole, list[Quoted]] = field(default_factory=dict)
    anchored_samples: dict[Pole, list[Quoted]] = field(default_factory=dict)
