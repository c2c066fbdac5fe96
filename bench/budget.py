"""Any directions at the strongest dose inside the coherence budget, as our own calibration finds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from localsteer.calibration.calibrate import CalibrationSettings
from localsteer.calibration.effort import THOROUGH
from localsteer.calibration.laboratory import Laboratory
from localsteer.calibration.search import Search
from localsteer.calibration.shapes import Directions, Shape
from localsteer.llama.residual import Edit
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import POLES, SIGN, Pole
from localsteer.vector.control_vector import Floats

# As many answers as a calibration takes for a shape: here there is one, and nothing to choose.
EFFORT = replace(THOROUGH, shapes=0, refine=0, prompt=0, anchored=0)


def directions_of(rows: Floats, hidden: Floats) -> Directions:
    """A peer's vector, (n_layer, n_embd), beside our mean hidden norms: it may steer layers at which we never read them."""
    return Directions.of(rows, np.where(np.isnan(hidden), np.nanmax(hidden), hidden).astype(np.float32))


def search(laboratory: Laboratory, directions: Directions, shape: Shape, settings: CalibrationSettings) -> Search:
    """A search that has run.

    Args:
        laboratory: of any vector of the concept; the instrument and the unsteered answers are shared.
        directions: what is steered along.
        shape: where, and in what proportions.
        settings: the budget and the seed.
    """
    made = Search(laboratory.for_directions(directions), [shape], budget=settings.budget, effort=EFFORT, seed=settings.seed)
    made.run()
    return made


def doses(laboratory: Laboratory, directions: Directions, shape: Shape, settings: CalibrationSettings) -> dict[Pole, float]:
    """Toward each pole the relative dose that `search` is sure of, 0 where none meets the budget."""
    found = search(laboratory, directions, shape, settings)
    return {pole: found.sure_dose(pole, "response", shape) for pole in POLES}


def plan(directions: Directions, shape: Shape, pole: Pole, dose: float) -> Plan:
    """The answer steered at a relative dose."""
    return Plan(Steering(), Edit(directions.added(shape, SIGN[pole] * dose)), dose, "response")
