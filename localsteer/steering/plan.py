"""Steering -> what is done to the residual stream of a model at each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.llama.residual import Edit
from localsteer.steering.dose import DoseLimit, relative_dose
from localsteer.steering.expression import Phase, Steering, Term
from localsteer.steering.notes import notes
from localsteer.steering.worth import worth_of
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector, Floats, merge_norms


@dataclass(frozen=True)
class Part:
    """What one term of a plan does.

    Attributes:
        term: the term.
        layers: where it adds or removes something, ascending.
        relative_dose: of what it adds by itself; None as in `Plan`.
        worth: what is known of how far it goes, in a sentence; None where nothing is.
    """

    term: Term
    layers: tuple[int, ...]
    relative_dose: float | None
    worth: str | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Steering resolved for one model.

    Attributes:
        steering: where it comes from.
        edit: what is done at each layer, while the model answers.
        thinking: what is done while it thinks before that.
        relative_dose: sum over layers of ‖added‖ / mean ‖hidden state‖, in the phase where that is more; None where a vector does
            not say the norms, and where something is removed and nothing added.
        mode: what the doses are for (see `localsteer.vector.calibration.Mode`).
        notes: what the user should know, such as a vector read from another quantisation, or a dose past the calibrated range.
        parts: what each term does.
    """

    steering: Steering
    edit: Edit
    relative_dose: float | None
    mode: Mode = "response"
    notes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    thinking: Edit | None = None

    @property
    def worth(self) -> tuple[str, ...]:
        """What is known of how far its terms go, a sentence each."""
        return tuple(part.worth for part in self.parts if part.worth is not None)

    @property
    def effect(self) -> Edit | None:
        """The edit; None where it does nothing."""
        return _effect(self.edit)

    @property
    def effects(self) -> dict[Phase, Edit | None]:
        """By the phase of the reply what is done, None where that is nothing."""
        return {"answer": self.effect, "thinking": _effect(self.thinking) if self.thinking is not None else None}


def _effect(edit: Edit) -> Edit | None:
    return edit if edit.added.any() or edit.removed else None


def resolve(
    steering: Steering,
    model: Fingerprint,
    load: Callable[[str], ControlVector],
    mode: Mode = "response",
    limit: DoseLimit | None = None,
) -> Plan:
    """What an expression does to a model.

    Args:
        steering: the expression.
        model: the model to steer.
        load: finds a vector by name or path.
        mode: what is steered; calibrated vectors have a dose for each.
        limit: the largest dose; None for any.

    Raises:
        VectorError: a vector does not fit the model, or has no direction at the layers asked for.
        LocalsteerError: the limit does not allow it.
    """
    vectors = {name: load(name) for name in dict.fromkeys(term.vector for term in steering.terms)}
    sums: dict[Phase, _Sum] = {}
    hidden_norm: Floats | None = None
    fits: list[str] = []
    parts: list[Part] = []
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
        total = sums.setdefault(term.phase, _Sum(model))
        own: float | None = None
        if term.ablate:
            total.removed.append(_bases(part))
        else:
            rows = part.rows(model.n_layer)
            own = _dose(Edit(rows), norms)
            with np.errstate(over="ignore", invalid="ignore"):
                total.added += rows
        known = None if term.ablate or term.layers else worth_of(vector, term.strength, mode)
        parts.append(Part(term, part.layers, own, known))
    if not all(np.isfinite(total.added).all() for total in sums.values()):
        raise VectorError(f'The strengths of "{steering}" are too large.')
    edits = {phase: total.edit for phase, total in sums.items()}
    doses = {phase: _dose(edit, hidden_norm) for phase, edit in edits.items()}
    known_doses = [dose for dose in doses.values() if dose is not None]
    dose = max(known_doses) if known_doses else None
    offs = [limit.check(steering, edit, doses[phase]) for phase, edit in edits.items()] if limit is not None else []
    told = dict.fromkeys([*fits, *(off for off in offs if off is not None), *notes(steering, vectors, model, mode, dose)])
    return Plan(steering, edits.get("answer", _Sum(model).edit), dose, mode, tuple(told), tuple(parts), edits.get("thinking"))


class _Sum:
    """What the terms of one phase do together."""

    def __init__(self, model: Fingerprint) -> None:
        self.added: Floats = np.zeros((model.n_layer, model.n_embd), np.float32)
        self.removed: list[Mapping[int, Floats]] = []

    @property
    def edit(self) -> Edit:
        return Edit(self.added, {layer: basis for layer, basis in join_removals(self.removed).items() if len(basis)})


def _dose(edit: Edit, hidden_norm: Floats | None) -> float | None:
    only_removes = bool(edit.removed) and not edit.added.any()
    if hidden_norm is None or only_removes or edit.added[np.isnan(hidden_norm)].any():
        return None
    return relative_dose(edit.added, hidden_norm)


def resolve_opposite(
    steering: Steering,
    model: Fingerprint,
    load: Callable[[str], ControlVector],
    mode: Mode = "response",
    limit: DoseLimit | None = None,
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
        return resolve(opposite, model, load, mode, limit)
    except VectorError:
        return None


def part_of(term: Term, vector: ControlVector, mode: Mode) -> ControlVector:
    """What one term adds, or the component that it removes: the vector at its strength and layers.

    Raises:
        VectorError: the strength is too large, the vector has no direction at the layers asked for, or is not to be added.
    """
    if term.ablate:
        scaled = vector
    else:
        vector.check_adds(term.vector)
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


def _bases(vector: ControlVector) -> dict[int, Floats]:
    """By layer the basis (1, n_embd) of what a vector removes, as long as the root of how many times: (h B^T) B is taken away."""
    root = np.float32(np.sqrt(vector.provenance.removal or 1.0))
    return {layer: _orthonormal([direction]) * root for layer, direction in vector.directions.items()}


def join_removals(removals: Sequence[Mapping[int, Floats]]) -> dict[int, Floats]:
    """Bases (r, n_embd) by layer of everything that several edits remove.

    Raises:
        VectorError: one of several at a layer is to be removed more or less than once: what is left would hang on their order.
    """
    joined: dict[int, Floats] = {}
    for layer in sorted({layer for removed in removals for layer in removed}):
        bases = [removed[layer] for removed in removals if layer in removed and len(removed[layer])]
        if not bases:
            continue  # directions of no length
        first, *others = bases
        if others and not all(np.allclose(np.linalg.norm(basis, axis=1), 1, atol=1e-4) for basis in (first, *others)):
            raise VectorError(
                f"At layer {layer} several components are removed, one of them not just once (glp.alpha_default).",
                hint="Remove that one alone.",
            )
        joined[layer] = _orthonormal([*first, *(row for basis in others for row in basis)]) if others else first
    return joined


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
