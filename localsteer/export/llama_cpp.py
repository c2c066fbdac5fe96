"""Vectors for llama.cpp's own programs, which steer prompt and answer alike and know one strength: that of the file."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from localsteer.errors import ExportError
from localsteer.export.verify import Fidelity, predictions, reference
from localsteer.files.atomic import atomic_path
from localsteer.llama.model import Model
from localsteer.llama.steerability import steerability
from localsteer.steering.combination import combine
from localsteer.steering.expression import Steering, Term
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.control_vector import ControlVector, Floats
from localsteer.vector.file import fill_file, read_vector

PROGRAMS = ("llama-cli", "llama-server", "llama-completion")


@dataclass(frozen=True)
class Exported:
    """A vector file that was written.

    Attributes:
        vector: what is in it.
        plan: the expression resolved for the model; None where no model was known.
        fidelity: how well llama.cpp steers by it; None where that was not verified.
    """

    vector: ControlVector
    plan: Plan | None
    fidelity: Fidelity | None


def export_vector(
    steering: Steering,
    output: Path,
    load: Callable[[str], ControlVector],
    model: Model | None = None,
    *,
    verify: bool = True,
) -> Exported:
    """Write the control vector file that an expression is for llama.cpp's own programs.

    Args:
        steering: what to steer by; scale 1 of the file is all of it.
        output: the new file.
        load: the vector that a name or path in the expression stands for.
        model: the model to verify with; without one nothing is verified.
        verify: read the file back and compare what llama.cpp does by it with our own steering.

    Raises:
        LocalsteerError: a term removes a component.
        VectorError: a vector is missing or damaged, or does not fit the model.
        ExportError: the file cannot be written, or does not steer as we do. No file is left then.
    """
    loaded = functools.cache(load)
    vector = vector_for_llama_cpp(steering, loaded)
    fingerprint = model.fingerprint if model is not None else vector.provenance.model
    plan = resolve(steering, fingerprint, loaded, "prompt") if fingerprint is not None else None
    fidelity: Fidelity | None = None
    with atomic_path(output, ExportError) as temporary:
        fill_file(vector, temporary)
        if verify and model is not None and plan is not None:
            fidelity = compare(temporary, model, plan.edit.added)
            fidelity.refuse_if_far()
    return Exported(vector, plan, fidelity)


def at_strength(steering: Steering, strength: float) -> Steering:
    """The same expression with all its strengths multiplied; removals stay as they are."""
    return Steering(tuple(term if term.ablate else replace(term, strength=term.strength * strength) for term in steering.terms))


def vector_for_llama_cpp(steering: Steering, load: Callable[[str], ControlVector]) -> ControlVector:
    """One vector whose strength 1 is the expression at the doses that were measured for steering the prompt as well.

    Only the layers that it moves are in it.

    Raises:
        LocalsteerError: a term removes a component.
        VectorError: see `localsteer.steering.combination.combine`.
    """
    vector = combine(steering, load, "prompt")
    alone = load(steering.terms[0].vector) if steering.terms == (Term(steering.terms[0].vector),) else None
    if alone is not None and alone.provenance.calibration is None and alone.provenance.dosing is None:
        return vector  # what it adds is what it was
    origin = f"exported for llama.cpp: {vector.provenance.concept}, prompt and response"
    return ControlVector(vector.directions, replace(vector.provenance, origin=origin))


def command_lines(vector: Path, model: Path) -> list[str]:
    """What to type for each of llama.cpp's programs."""
    return [f"{program} -m {shlex.quote(str(model))} --control-vector {file_argument(vector)}" for program in PROGRAMS]


def file_argument(path: Path, scale: float | None = None) -> str:
    """A vector's or an adapter's file, as it is typed: a row of a CSV file, where a comma outside quotes separates two.

    Args:
        path: the file; with a scale its name must hold no colon.
        scale: what stands behind it, for the options that take one.
    """
    named = f'"{path}"' if "," in str(path) else str(path)
    return shlex.quote(named if scale is None else f"{named}:{scale:g}")


def compare(file: Path, model: Model, added: Floats) -> Fidelity:
    """Read a vector file back, steer by it with llama.cpp's own control vector, and compare that with our own steering.

    Args:
        file: the vector file.
        model: the model to steer.
        added: (n_layer, n_embd), residual-stream units: what the expression adds in our own steering.

    Raises:
        ExportError: llama.cpp has no control vectors for this architecture, or nothing to compare with can be computed.
    """
    if not steerability(model).native:
        raise ExportError(
            f"llama.cpp ignores control vectors for {model.name} (architecture {model.architecture}): the file would do nothing.",
            hint="localsteer itself may steer it: `localsteer doctor -m MODEL`.",
        )
    ours = reference(model, added)
    rows = read_vector(file).rows(model.n_layer)
    return ours.compare(predictions(model, ours.texts, control_vector=rows))
