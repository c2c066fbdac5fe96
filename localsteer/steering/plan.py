"""Steering -> what is done to the residual stream of a model at each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.llama.residual import Edit
from localsteer.steering.expression import Steering, Term
from localsteer.steering.notes import DOSE_TOLERANCE, notes
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
        mode: what the doses are for (see `localsteer.vector.calibration.Mode`).
        notes: what the user should know, such as a vector read from another quantisation, or a dose past the calibrated range.
        hidden_norm: (n_layer,) mean Euclidean norm of the residual stream as the vectors tell it, NaN where none does; None where
            no vector says anything.
    """

    steering: Steering
    edit: Edit
    relative_dose: float | None
    mode: Mode = "response"
    notes: tuple[str, ...] = ()
    hidden_norm: Floats | None = None

    @property
    def effect(self) -> Edit | None:
        """The edit; None where it does nothing."""
        return self.edit if self.edit.added.any() or self.edit.removed else None

    def refuse_above(self, max_dose: float) -> None:
        """Make sure that steering stays within a relative dose.

        Raises:
            LocalsteerError: it does not, or that cannot be told: a vector without hidden norms, or a removal, which takes as much
                as there is.
        """
        if self.edit.removed:
            raise LocalsteerError(
                f"{self.steering} removes a component, however large it is, so it cannot be held below {max_dose:g}.",
                hint="Leave out the removal, or --max-dose.",
            )
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
    added = np.zeros((model.n_layer, model.n_embd), np.float32)
    removed: dict[int, list[Floats]] = {}
    hidden_norm: Floats | None = None
    fits: list[str] = []
    for term in steering.terms:
        vector = vectors[term.vector]
        fit, norms = vector.check_fits(model, name=term.vector), vector.provenance.hidden_norm
        fits += [fit] if fit is not None else []
        hidden_norm = merge_norms(hidden_norm, norms)
        if term.layers is not None and term.layers[1] >= model.n_layer:
            raise VectorError(
                f"{term} names layer {term.layers[1]}, and {model.name} has layers 1 to {model.n_layer - 1} to steer.",
            )
        part = part_of(term, vector, mode)
        if term.ablate:
            for layer, direction in part.directions.items():
                removed.setdefault(layer, []).append(direction)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                added += part.rows(model.n_layer)
    if not np.isfinite(added).all():
        raise VectorError(f'The strengths of "{steering}" are too large.')
    bases = {layer: basis for layer, directions in removed.items() if len(basis := _orthonormal(directions))}
    dose: float | None = None
    only_removes = bool(bases) and not added.any()
    if hidden_norm is not None and not only_removes and not added[np.isnan(hidden_norm)].any():
        dose = relative_dose(added, hidden_norm)
    told = dict.fromkeys([*fits, *notes(steering, vectors, model, mode, dose)])
    return Plan(steering, Edit(added, bases), dose, mode, tuple(told), hidden_norm)


def resolve_opposite(
    steering: Steering, model: Fingerprint, load: Callable[[str], ControlVector], mode: Mode = "response"
) -> Plan | None:
    """What the expression with all signs turned does to a model, for those who compare; see `resolve`.

    Returns:
        None where something is removed, which has no opposite, and where a calibrated vector has other layers toward its other
        pole and none of those asked for.
    """
    opposite = steering.opposite
    if opposite is None:
        return None
    try:
        return resolve(opposite, model, load, mode)
    except VectorError:
        return None


def part_of(term: Term, vector: ControlVector, mode: Mode) -> ControlVector:
    """What one term adds, or the component that it removes: the vector at its strength and layers.

    Raises:
        VectorError: the strength is too large, or the vector has no direction at the layers asked for.
    """
    if term.ablate:
        scaled = vector
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                scaled = vector.at(term.strength, mode)
            except VectorError:  # what is finite at strength 1 is not at this one
                raise VectorError(f"The strength of {term} is too large.") from None
    if term.layers is None:
        return scaled
    try:
        return scaled.only(range(term.layers[0], term.layers[1] + 1))
    except VectorError as error:
        raise VectorError(f"{term.vector}: {error.message}", hint=error.hint) from None


def relative_dose(added: Floats, hidden_norm: Floats) -> float:
    """Sum over layers of ‖added‖ / mean ‖hidden state‖: a strength that can be compared between models.

    Args:
        added: (n_layer, n_embd), residual-stream units.
        hidden_norm: (n_layer,), NaN where not measured; those layers are left out.
    """
    # In float64 the squares of the largest and the smallest float32 are numbers, too.
    ratios = np.linalg.norm(added.astype(np.float64), axis=1) / hidden_norm
    return float(np.nansum(ratios))


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
