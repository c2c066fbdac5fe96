"""What an expression removes as a GLP file, for the runtimes that project a direction out; see `localsteer.vector.glp`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from localsteer.errors import ExportError
from localsteer.llama.model import Model
from localsteer.steering.combination import describe
from localsteer.steering.expression import Steering
from localsteer.steering.plan import resolve
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector


def export_removal(steering: Steering, output: Path, load: Callable[[str], ControlVector], model: Model) -> ControlVector:
    """Write the direction of each layer that an expression removes.

    Args:
        steering: one removal, or several at different layers.
        output: the new file.
        load: the vector that a name or path in the expression stands for.
        model: the model that it is for.

    Returns:
        What was written: directions of length 1.

    Raises:
        ExportError: something is added, or several directions are removed at one layer.
        VectorError: a vector is missing or damaged, or does not fit the model, or the file cannot be written.
    """
    for term in steering.terms:
        if not term.ablate or term.phase != "answer":
            raise ExportError(
                f"A GLP file takes something away, in all of a reply, and {term} does not.",
                hint="Write !NAME; what adds is exported by `localsteer export llama-cpp`.",
            )
    removed = resolve(steering, model.fingerprint, load).edit.removed
    if not removed:
        raise ExportError("The expression removes nothing.", hint="Write !NAME.")
    if several := [layer for layer, basis in removed.items() if len(basis) > 1]:
        raise ExportError(f"At layer {several[0]} several directions are removed, and a GLP file has one for each layer.")
    lengths = {layer: float(np.linalg.norm(basis[0])) for layer, basis in removed.items()}
    alphas = {round(length**2, 4) for length in lengths.values()}
    if len(alphas) > 1:
        raise ExportError("Some directions are removed more often than others, and a GLP file says one number for all.")
    label = describe(steering, load)
    vector = ControlVector(
        {layer: basis[0] / np.float32(lengths[layer]) for layer, basis in removed.items()},
        Provenance(
            concept=str(label),
            description=f"what {label} removes",
            method="removal",
            model=model.fingerprint,
            removal=alphas.pop(),
        ),
    )
    write_vector(vector, output)
    return vector
