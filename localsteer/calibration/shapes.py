"""Where a vector is added: which layers, and how the dose is shared out among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from localsteer.building.layers import middle_layers
from localsteer.errors import VectorError
from localsteer.vector.control_vector import Floats, format_layers

Profile = Literal["relative", "difference", "equal"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


def as_profile(text: str) -> Profile:
    """A profile from its name in a file.

    Raises:
        VectorError: there is none of that name.
    """
    if text not in PROFILES:
        raise VectorError(
            f"The calibration names a profile {text}, which this version does not know.", hint="Calibrate it anew: --fresh."
        )
    return text


@dataclass(frozen=True)
class Shape:
    """Layers and profile.

    Attributes:
        layers: the layers to steer, ascending.
        profile: "relative" adds at each layer the same share of its mean hidden norm, "difference" in proportion to the
            difference of means as estimated, "equal" the same length everywhere.
    """

    layers: tuple[int, ...]
    profile: Profile

    def __str__(self) -> str:
        return f"{format_layers(self.layers)} {self.profile}"


@dataclass(frozen=True, eq=False)
class Directions:
    """What a vector offers to choose from.

    Attributes:
        unit: (n_layer, n_embd) directions of length 1, zero where there is none.
        difference: (n_layer,) their lengths as estimated.
        hidden: (n_layer,) mean hidden norm, NaN where not known.
    """

    unit: Floats
    difference: Floats
    hidden: Floats

    @classmethod
    def of(cls, estimate: Floats, hidden: Floats) -> Directions:
        """From directions of any length."""
        lengths = np.linalg.norm(estimate, axis=1)
        unit = estimate / np.where(lengths > 0, lengths, 1)[:, None]
        return cls(unit.astype(np.float32), lengths.astype(np.float32), hidden)

    def norms(self, shape: Shape, dose: float) -> Floats:
        """(n_layer,) length of what is added at each layer for a relative dose: sum of length / hidden norm over the layers."""
        layers = list(shape.layers)
        profile = {"relative": self.hidden, "difference": self.difference, "equal": np.ones_like(self.hidden)}[shape.profile]
        norms = np.zeros(len(self.hidden), np.float32)
        norms[layers] = profile[layers] * (dose / float(np.sum(profile[layers] / self.hidden[layers])))
        return norms

    def added(self, shape: Shape, dose: float) -> Floats:
        """(n_layer, n_embd) what is added; a negative dose moves toward the negative pole."""
        return self.unit * self.norms(shape, dose)[:, None]


def ranges(available: Sequence[int], n_layer: int) -> Iterator[tuple[int, ...]]:
    """The layer ranges to try.

    First all there are, then as shares of the depth: the middle half (that of an extracted vector), the half before it, and the
    centre alone. Layers that the vector has no (reliable) direction for are left out; what then coincides is tried once.
    """
    seen = set()
    for low, high in ((0, 1), (1 / 4, 3 / 4), (1 / 8, 5 / 8), (3 / 8, 5 / 8)):
        layers = tuple(layer for layer in available if layer in middle_layers(n_layer, low, high))
        if layers and layers not in seen:
            seen.add(layers)
            yield layers
