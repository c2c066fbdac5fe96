"""How much is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Numbers of answers.

    Attributes:
        answers: of each way toward each pole.
        heard: of them, how many are read again under the personas.
        instructions: how many are given to each steered or prompted side.
        quick: whether the strengths of the peers are searched for with fewer answers.
    """

    answers: int
    heard: int
    instructions: int
    quick: bool


FULL = Size(answers=40, heard=20, instructions=40, quick=False)
# A night's work for 8 concepts of a 1.5B model on two cores becomes four hours.
QUICK = Size(answers=20, heard=8, instructions=10, quick=True)
