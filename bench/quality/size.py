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
    """

    answers: int
    heard: int
    instructions: int


FULL = Size(answers=40, heard=20, instructions=40)
# Half of the answers, which take two thirds of the time: calibrations are the rest.
QUICK = Size(answers=20, heard=6, instructions=10)
