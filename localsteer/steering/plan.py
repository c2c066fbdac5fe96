"""Steering -> what is done to the residual stream of a model at each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.llama.residual import Edit
from localsteer.steering.expression import Steering, Term
from localsteer.steering.notes import DOSE_TOLERANCE, measured_notes, past_calibration
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector, merge_norms

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Plan:
    """Steering resolved for one model.

    Attributes:
        steering: where it comes from.
        edit: what is done at each layer.
        relative_dose: sum over layers of ‖added‖ / mean ‖hidden state‖; None where a vector does not say the norms, and where
            something is removed and nothing added.
        mode: whether the response only is steered, the prompt as well, or the response of an anchored answer; calibrated vectors
            have a dose for each.
        notes: what the user should know, such as a vector read from another quantisation, or a dose past the calibrated range.
        opposite: the plan with all signs turned; None where something is removed, or the layers asked for have none.
    """

    steering: Steering
    edit: Edit
    relative_dose: float | None
    mode: Mode = "response"
    notes: tuple[str, ...] = ()
    opposite: Plan | None = None

    @property
    def effect(self) -> Edit | None:
        """The edit, always the same object; None where it does nothing."""
        return self.edit if self.edit.added.any() or self.edit.removed else None

    def refuse_above(self, max_dose: float) -> None:
        """Make sure that steering stays within a relative dose.

        Raises:
            LocalsteerError: it does not, or a vector without hidden norms leaves it unknown.
        """
        if self.relative_dose is None and self.edit.added.any():
            raise LocalsteerError(
                f"The relative dose of {self.steering} is unknown, so it cannot be held below {max_dose:g}: "
                "its vectors do not say how large the hidden states are.",
                hint="Calibrate them with `localsteer calibrate`, or leave out --max-dose.",
            )
        if self.relative_dose is not None and self.relative_dose > max_dose * DOSE_TOLERANCE:
            raise LocalsteerError(
                f"{self.steering} has a relative dose of {self.relative_dose:.2f}, and --max-dose allows {max_dose:g}.",
                hint=f"A strength of {_round_down(max_dose / self.relative_dose)} times that stays within it.",
            )


def resolve(steering: Steering, model: Fingerprint, load: Callable[[str], ControlVector], mode: Mode = "response") -> Plan:
    """What an expression does to a model.

    Args:
        steering: the expression.
        model: the model to steer.
        load: finds a vector by name or path.
        mode: what is steered; calibrated vectors have a dose for each.

    Raises:
        VectorError: a vector does not fit the model, or has no direction at the layers asked for.
    """
    vectors = {name: load(name) for name in dict.fromkeys(term.vector for term in steering.terms)}
    plan = _resolve(steering, model, vectors, mode)
    opposite = steering.opposite
    if opposite is None:
        return plan
    try:
        return replace(plan, opposite=_resolve(opposite, model, vectors, mode))
    except VectorError:  # a calibrated vector may have other layers toward its other pole, and none of those asked for
        return plan


def _resolve(steering: Steering, model: Fingerprint, vectors: Mapping[str, ControlVector], mode: Mode) -> Plan:
    added = np.zeros((model.n_layer, model.n_embd), np.float32)
    removed: dict[int, list[Floats]] = {}
    notes: dict[str, None] = {}
    hidden_norm: Floats | None = None
    for term in steering.terms:
        vector = vectors[term.vector]
        fit, norms = vector.check_fits(model, name=term.vector), vector.provenance.hidden_norm
        notes |= dict.fromkeys([*([fit] if fit is not None else []), *measured_notes(term, vector, model, mode)])
        if norms is not None and len(norms) == model.n_layer:
            hidden_norm = merge_norms(hidden_norm, norms)
        if term.ablate:
            for layer, direction in _trim(vector, term, model).directions.items():
                removed.setdefault(layer, []).append(direction)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                try:
                    scaled = vector.at(term.strength, mode)
                except VectorError:  # what is finite at strength 1 is not at this one
                    raise VectorError(f"The strength of {term} is too large.") from None
                added += _trim(scaled, term, model).rows(model.n_layer)
    if not np.isfinite(added).all():
        raise VectorError(f'The strengths of "{steering}" are too large.')
    bases = {layer: basis for layer, directions in removed.items() if len(basis := _orthonormal(directions))}
    dose: float | None = None
    only_removes = bool(bases) and not added.any()
    if hidden_norm is not None and not only_removes and not added[np.isnan(hidden_norm)].any():
        dose = relative_dose(added, hidden_norm)
    if dose is not None and (past := past_calibration(steering, dose, vectors, mode)) is not None:
        notes[past] = None
    return Plan(steering, Edit(added, bases), dose, mode, tuple(notes))


def relative_dose(added: Floats, hidden_norm: Floats) -> float:
    """Sum over layers of ‖added‖ / mean ‖hidden state‖: a strength that can be compared between models.

    Args:
        added: (n_layer, n_embd), residual-stream units.
        hidden_norm: (n_layer,), NaN where not measured; those layers are left out.
    """
    ratios = np.linalg.norm(added, axis=1) / hidden_norm
    return float(np.nansum(ratios))


def _trim(vector: ControlVector, term: Term, model: Fingerprint) -> ControlVector:
    if term.layers is None:
        return vector
    first, last = term.layers
    if last >= model.n_layer:
        raise VectorError(
            f"{term} names layer {last}, and {model.name} has layers 1 to {model.n_layer - 1} to steer.",
        )
    try:
        return vector.only(range(first, last + 1))
    except VectorError as error:
        raise VectorError(f"{term.vector}: {error.message}", hint=error.hint) from None


def join_removals(removals: Sequence[Mapping[int, Floats]]) -> dict[int, Floats]:
    """Bases (r, n_embd) by layer of everything that several edits remove."""
    layers = {layer for removed in removals for layer in removed}
    return {layer: _orthonormal([row for removed in removals for row in removed.get(layer, ())]) for layer in sorted(layers)}


def _orthonormal(directions: Sequence[Floats]) -> Floats:
    """A basis (r, n_embd) of what the directions span, so that removing them does not depend on their order."""
    basis: NDArray[np.float64]
    stacked = np.stack(directions).astype(np.float64)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    # Their lengths do not matter for what is removed: a short one counts as much as a long one.
    _, sizes, basis = np.linalg.svd(stacked / np.where(norms > 0, norms, 1), full_matrices=False)
    # Directions that are multiples of one another up to float32 rounding span one dimension, not two.
    kept = sizes > max(1e-6 * float(sizes[0]), float(np.finfo(np.float32).tiny))
    return basis[kept].astype(np.float32)


def _round_down(number: float) -> str:
    """Two significant digits of a positive number, never more than it."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.floor(number / unit * DOSE_TOLERANCE) * unit:.2g}"
