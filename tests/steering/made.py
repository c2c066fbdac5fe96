"""Vectors that nobody built, and plans of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.fingerprint import Fingerprint
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import Mode, Pole
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import calibrated

Floats = NDArray[np.float32]

MODEL = Fingerprint("Tiny", "llama", 6, 4, "vocabulary", "content")
NORMS = np.array([np.nan, 1, 2, 4, 8, 16], np.float32)


def vector(*layers: int, seed: int = 0, model: Fingerprint | None = MODEL, norms: Floats | None = NORMS) -> ControlVector:
    random = np.random.default_rng(seed)
    directions = {layer: random.standard_normal(MODEL.n_embd).astype(np.float32) for layer in layers}
    return ControlVector(directions, Provenance(model=model, hidden_norm=norms))


HAPPY, SAD = vector(1, 2, 3), vector(2, 3, 4, seed=1)


def plan(expression: str, **vectors: ControlVector) -> Plan:
    known = {"happy": HAPPY, "sad": SAD, **vectors}
    return resolve(parse_steering(expression), MODEL, known.__getitem__)


def rows(vector: ControlVector) -> Floats:
    return vector.rows(MODEL.n_layer)


def unit(*layers: int) -> ControlVector:
    """A vector whose added norm at every layer is 4."""
    return ControlVector({layer: np.full(4, 2, np.float32) for layer in layers}, Provenance(model=MODEL, hidden_norm=NORMS))


# Layers 1-2 toward loud and 2-3 toward quiet; doses of 0.3 and 0.4, or 0.12 and 0.16 with the prompt steered as well.
LOUD = calibrated(MODEL)
NOT_QUIET: tuple[tuple[Pole, Mode], ...] = (("negative", "response"), ("negative", "prompt"))


def calibrated_plan(
    expression: str,
    mode: Mode = "response",
    *,
    model: Fingerprint = MODEL,
    vectors: Mapping[str, ControlVector] | None = None,
    limit: DoseLimit | None = None,
) -> Plan:
    known = {"loud": LOUD, "happy": HAPPY, **(vectors or {})}
    return resolve(parse_steering(expression), model, known.__getitem__, mode, limit)
