"""ControlVector: a direction for each layer, and where it comes from. Mixing behaviours reads as arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.calibration import POLES, Calibration, Mode
from localsteer.vector.dosing import Dosing
from localsteer.vector.probe import Probe

Floats = NDArray[np.float32]

# They are counted in 32 bits in a vector's file.
_MAX_PAIRS = (1 << 32) - 1
_ANEW = "Build or download the vector again."


@dataclass(frozen=True, eq=False)
class Provenance:
    """Where a vector comes from. A vector from elsewhere has the defaults.

    Attributes:
        concept: short name, such as "happy".
        description: one sentence.
        positive: the pole that a positive strength moves toward.
        negative: the other pole.
        method: the estimator's name.
        position: which tokens were read: "opening", "last" or "response".
        model: the model that it was read from.
        model_hint: the architecture that a file from elsewhere names.
        dataset_sha256: hash of the rendered prompts.
        n_pairs: number of contrastive pairs.
        reliability: (n_layer,) split-half cosine of each layer's direction, NaN where not read.
        hidden_norm: (n_layer,) mean Euclidean norm of the residual stream, NaN where not read.
        estimate: (n_layer, n_embd) the directions of all layers that were read, as estimated, before layers were chosen and
            scaled to a dose; zero where not read.
        source: the concept as YAML text, so that the vector can be built again for another model.
        origin: how the file came about where it was not built here: what it was imported or exported from.
        dosing: what strength 1 of a fresh vector was measured by.
        calibration: what a calibration found, if there was one; it goes before the dosing.
        probe: how the direction tells texts apart, where the vector was fitted for that.
        removal: how many times the component along it is to be taken away; None for a vector that is to be added.

    Raises:
        VectorError: a number of pairs that is none, values for another number of layers than the model has, a hidden norm that is
            not positive, or an infinite value.
    """

    concept: str = ""
    description: str = ""
    positive: str = ""
    negative: str = ""
    method: str = ""
    position: str = ""
    model: Fingerprint | None = None
    model_hint: str = ""
    dataset_sha256: str = ""
    n_pairs: int = 0
    reliability: Floats | None = None
    hidden_norm: Floats | None = None
    estimate: Floats | None = None
    source: str = ""
    origin: str = ""
    dosing: Dosing | None = None
    calibration: Calibration | None = None
    probe: Probe | None = None
    removal: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.n_pairs <= _MAX_PAIRS:
            raise VectorError(f"The number of pairs (localsteer.n_pairs) is {self.n_pairs}.", hint=_ANEW)
        for name, values, n_dimensions in (
            ("reliability", self.reliability, 1),
            ("hidden_norm", self.hidden_norm, 1),
            ("estimate", self.estimate, 2),
        ):
            if values is None:
                continue
            if values.ndim != n_dimensions or len(values) != self.n_layer:
                raise VectorError(
                    f"The {name} (localsteer.{name}) is of shape {values.shape}, for {self.n_layer} layers.", hint=_ANEW
                )
            if np.isinf(values).any() or (name == "hidden_norm" and (values <= 0).any()):
                raise VectorError(f"The {name} (localsteer.{name}) holds a value that it cannot have.", hint=_ANEW)

    @property
    def n_layer(self) -> int | None:
        """Number of blocks of the model that it comes from; None where nothing tells."""
        if self.model is not None:
            return self.model.n_layer
        return next((len(rows) for rows in (self.estimate, self.hidden_norm, self.reliability) if rows is not None), None)


@dataclass(frozen=True, eq=False)
class ControlVector:
    """What is added to the residual stream at strength 1.

    Supports `+`, `-`, unary `-`, and `*` and `/` by a number: plain arithmetic of what is added, which ends a dosing, a
    calibration and a probe.

    Attributes:
        directions: for each steered block (never 0) a float32 array (n_embd,), in residual-stream units.
        provenance: where it comes from.

    Raises:
        VectorError: no layers, a direction for block 0 or one that the model does not have, widths that differ, a value that is
            not finite, or an estimate, calibration or probe that does not go with the rest.
    """

    directions: Mapping[int, Floats]
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if not self.directions:
            raise VectorError("A control vector needs at least one layer.")
        widths = {direction.shape for direction in self.directions.values()}
        if len(widths) > 1 or len(next(iter(widths))) != 1:
            raise VectorError(f"The directions of a control vector differ in shape: {sorted(widths)}.")
        for layer, direction in self.directions.items():
            if layer < 1:
                raise VectorError(
                    f"The vector has a direction for block {layer}, and llama.cpp cannot steer block 0.",
                    hint="Leave it out.",
                )
            if not np.isfinite(direction).all():
                raise VectorError(f"direction.{layer} holds a value that is not a finite number.")
        model, n_layer = self.provenance.model, self.provenance.n_layer
        if (n_layer is not None and max(self.directions) >= n_layer) or (model is not None and (model.n_embd,) not in widths):
            raise VectorError(
                f"The vector has directions up to layer {max(self.directions)}, {next(iter(widths))[0]} wide, and is said to "
                f"be of a model with {n_layer} layers{f' and n_embd {model.n_embd}' if model is not None else ''}."
            )
        estimate, calibration = self.provenance.estimate, self.provenance.calibration
        if estimate is not None and ((estimate.shape[1],) not in widths or np.isnan(estimate).any()):
            raise VectorError(
                "The estimate (localsteer.estimate) is damaged, or of another width than the directions.", hint=_ANEW
            )
        if calibration is not None:
            if all(calibration.sides[pole, "response"].dose is None for pole in POLES):
                raise VectorError("The calibration has no dose for a response toward either pole.", hint="Calibrate it again.")
            steered = {layer for side in calibration.sides.values() if side.dose is not None for layer in side.layers}
            known = set() if estimate is None else {int(layer) for layer in np.flatnonzero(estimate.any(axis=1))}
            if missing := sorted(steered - known):
                raise VectorError(f"The calibration names layers {format_layers(missing)}, for which there is no estimate.")
        probe = self.provenance.probe
        if probe is not None and (probe.layer not in self.directions or not self.directions[probe.layer].any()):
            raise VectorError(f"The probe reads layer {probe.layer}, for which there is no direction.")
        ordered = {layer: self.directions[layer] for layer in sorted(self.directions)}
        object.__setattr__(self, "directions", MappingProxyType(ordered))

    @property
    def layers(self) -> tuple[int, ...]:
        """The steered blocks, ascending."""
        return tuple(self.directions)

    @property
    def n_embd(self) -> int:
        """Width of the residual stream that it fits."""
        return len(next(iter(self.directions.values())))

    def __add__(self, other: ControlVector) -> ControlVector:
        return self._combine(other, np.add, "+")

    def __sub__(self, other: ControlVector) -> ControlVector:
        return self._combine(other, np.subtract, "-")

    def __neg__(self) -> ControlVector:
        return self * -1.0

    def __mul__(self, factor: float) -> ControlVector:
        directions = {layer: (direction * np.float32(factor)) for layer, direction in self.directions.items()}
        provenance = replace(self.provenance, estimate=None, dosing=None, calibration=None, probe=None)
        if factor < 0:
            # The concept's text has its poles the other way round.
            provenance = replace(provenance, positive=provenance.negative, negative=provenance.positive, source="")
        return ControlVector(directions, provenance)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> ControlVector:
        return self * (1.0 / divisor)

    def at(self, strength: float, mode: Mode = "response") -> ControlVector:
        """What is added at a strength, as a vector without measurements.

        A calibrated vector has a dose (and layers) of its own toward each pole and for each mode: 1.0 is the strongest one
        inside the coherence budget, -1.0 the strongest toward the other pole. One that was dosed has a dose of its own for each,
        too, by which goes what a calibration found no dose for. Others are simply multiplied.

        Args:
            strength: the number in front of the vector.
            mode: what is steered.
        """
        calibration, estimate, dosing = self.provenance.calibration, self.provenance.estimate, self.provenance.dosing
        side = calibration.side(strength, mode) if calibration is not None else None
        if calibration is None or side is None or side.dose is None or estimate is None:
            if dosing is None:
                return self * strength
            return self * (strength * dosing.dose(strength, mode) / (calibration.main_dose if calibration else dosing.unit))
        # In float64, in which the squares of the largest and the smallest float32 are numbers, too.
        rows = {layer: estimate[layer].astype(np.float64) for layer in side.layers}
        directions = {
            layer: (row * (strength * norm / np.linalg.norm(row))).astype(np.float32)
            for (layer, row), norm in zip(rows.items(), side.norms, strict=True)
        }
        return ControlVector(directions, (self * strength).provenance)

    def dose(self, strength: float, mode: Mode = "response") -> float | None:
        """The relative dose of strength 1 (or -1) toward the pole that a strength moves toward; None where none was measured.

        Where a calibration found none, it is what was measured when the vector was built.
        """
        calibration, dosing = self.provenance.calibration, self.provenance.dosing
        if calibration is not None:
            if (own := calibration.side(strength, mode).dose) is not None:
                return own
            return calibration.main_dose if dosing is None else dosing.dose(strength, mode)
        return None if dosing is None else dosing.dose(strength, mode)

    def only(self, layers: Iterable[int]) -> ControlVector:
        """The same vector at some of its layers, without measurements.

        Raises:
            VectorError: it has none of them.
        """
        wanted = set(layers)
        kept = {layer: direction for layer, direction in self.directions.items() if layer in wanted}
        if not kept:
            raise VectorError(
                f"The vector has directions at layers {format_layers(self.layers)}, and none at {format_layers(sorted(wanted))}."
            )
        return ControlVector(kept, replace(self.provenance, dosing=None, calibration=None, probe=None))

    def named(self, concept: str) -> ControlVector:
        """The same vector under another name."""
        return replace(self, provenance=replace(self.provenance, concept=concept))

    def rows(self, n_layer: int) -> Floats:
        """The vector as (n_layer, n_embd), zero at the blocks it does not steer."""
        dense = np.zeros((n_layer, self.n_embd), np.float32)
        for layer, direction in self.directions.items():
            dense[layer] = direction
        return dense

    def check_adds(self, name: str) -> None:
        """Make sure that the vector is one to add.

        Raises:
            VectorError: its file says that it is to be taken away.
        """
        if self.provenance.removal is not None:
            raise VectorError(
                f"{name} is to be taken away, not added: its file says glp.mode = project.", hint=f"Steer by !{name}."
            )

    def check_fits(self, model: Fingerprint, *, name: str = "The vector") -> str | None:
        """Whether it can steer a model.

        Args:
            model: the model in question.
            name: what to call the vector in messages.

        Returns:
            None where it was read from this very file, else a note for the user.

        Raises:
            VectorError: its width or its number of layers is another.
        """
        own, n_layer = self.provenance.model, self.provenance.n_layer
        if self.n_embd != model.n_embd or self.layers[-1] >= model.n_layer or n_layer not in (None, model.n_layer):
            blocks = f"{n_layer} layers" if n_layer is not None else f"directions up to layer {self.layers[-1]}"
            raise VectorError(
                f"{name} does not fit this model: it has {blocks} and n_embd {self.n_embd}, "
                f"{model.name} has {model.n_layer} layers and n_embd {model.n_embd}.",
                hint="Build it for this model with `localsteer extract`.",
            )
        if own is None:
            return f"{name} does not say which model it was read from; its shape fits {model.name}."
        if own.content == model.content:
            return None
        if own.same_model(model):
            return f"{name} was read from another file of the same model (another quantisation, or tuned further)."
        return f"{name} was read from {own.name}, which only has the same shape as {model.name}: expect a weaker effect."

    def _combine(self, other: ControlVector, operation: Callable[[Floats, Floats], Floats], sign: str) -> ControlVector:
        if self.n_embd != other.n_embd:
            raise VectorError(f"Vectors of different widths cannot be combined: n_embd {self.n_embd} and {other.n_embd}.")
        first, second = self.provenance, other.provenance
        if None not in (first.n_layer, second.n_layer) and first.n_layer != second.n_layer:
            names = [one.model.name if one.model is not None else "the other" for one in (first, second)]
            raise VectorError(
                f"Vectors of different models cannot be combined: {names[0]} has {first.n_layer} layers, "
                f"{names[1]} has {second.n_layer}."
            )
        zero = np.zeros(self.n_embd, np.float32)
        directions = {
            layer: operation(self.directions.get(layer, zero), other.directions.get(layer, zero))
            for layer in {*self.directions, *other.directions}
        }
        provenance = Provenance(
            concept=f"{first.concept} {sign} {second.concept}",
            description="A combination.",
            method=first.method if first.method == second.method else "mixed",
            position=first.position if first.position == second.position else "mixed",
            model=first.model if first.model is not None else second.model,
            hidden_norm=merge_norms(first.hidden_norm, second.hidden_norm),
        )
        return ControlVector(directions, provenance)


def merge_norms(one: Floats | None, other: Floats | None) -> Floats | None:
    """Hidden norms of two readings of one model, (n_layer,), which may cover different layers; None for none."""
    if one is None or other is None:
        return one if one is not None else other
    merged: Floats = np.where(np.isnan(one), other, one)
    return merged


def format_layers(layers: Iterable[int]) -> str:
    """Layers as ranges, both ends inclusive: `4-6,9`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
