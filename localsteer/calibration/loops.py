"""What begins well may end in saying the same again and again: doses are held to what long answers bear."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from localsteer.calibration.interview import Interview
from localsteer.calibration.outcomes import Trial
from localsteer.vector.calibration import POLES, SIGN, Mode, Pole, Side

logger = logging.getLogger("localsteer")

# At each dose. Of eight of 192 tokens, steered as strongly as 18 tokens bear, 5 (a pirate) and 3 (sad) end in a loop on
# SmolLM2-135M and 4 (a pirate) on Qwen2.5-Coder 1.5B, unsteered and happy none on either (`python -m bench.methods --what long`).
ANSWERS = 6
# The share that may, beyond that of unsteered ones: of six, one. Where more do, the dose is weakened, so far and so often at
# most.
_MARGIN = 0.25
_WEAKER, _WEAKENED = 0.8, 5
MOST = ANSWERS * (1 + len(POLES) * (1 + _WEAKENED))
"""So many long answers are asked for at most: unsteered, and toward each pole at each dose."""


def without_loops(interview: Interview, sides: Mapping[tuple[Pole, Mode], Side]) -> dict[tuple[Pole, Mode], Side]:
    """The same sides, those of a pole at a weaker dose whose long answers end in loops.

    It is the response that is listened to; with the prompt steered as well and anchored, the dose is weakened by as much.

    Args:
        interview: asks.
        sides: what a calibration has found.
    """
    held = dict(sides)
    trying: list[Pole] = [pole for pole in POLES if sides[pole, "response"].dose is not None]
    for weakened in range(1 + _WEAKENED):
        doses = [SIGN[pole] * (held[pole, "response"].dose or 0) for pole in trying]
        loops = dict(zip(trying, _loops(interview, doses), strict=True))
        if not any(share > _MARGIN for share in loops.values()):
            break
        allowed = _MARGIN + _loops(interview, [0])[0]
        trying = [pole for pole, share in loops.items() if share > allowed]
        if weakened == _WEAKENED:
            left = f"{_WEAKER**weakened:.0%}"
            for pole in trying:
                logger.warning("long answers at strength %+.0f end in loops at %s of the dose, too", SIGN[pole], left)
            break
        held |= {key: _weaker(side) for key, side in held.items() if key[0] in trying and side.dose is not None}
    return held


def _loops(interview: Interview, doses: Sequence[float]) -> list[float]:
    """For each signed dose the share of long answers that end in a loop."""
    outcomes = interview.measure([Trial(number, dose, long=True) for dose in doses for number in range(ANSWERS)])
    shares: list[float] = np.array([one.loops for one in outcomes]).reshape(len(doses), ANSWERS).mean(axis=1).tolist()
    return shares


def _weaker(side: Side) -> Side:
    assert side.dose is not None
    dose = _WEAKER * side.dose
    effect, cost = side.effect_at(dose), side.cost_at(dose)
    between = side.between
    if between is not None and side.effect:
        between = (between[0] * effect / side.effect, between[1] * effect / side.effect)
    norms = tuple(_WEAKER * norm for norm in side.norms)
    return replace(side, dose=dose, norms=norms, effect=effect, cost=cost, between=between, limit="repetition")
