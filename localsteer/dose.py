"""The safe default dose: which layers, and how strong, before anything is calibrated."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ContrastError

Floats = NDArray[np.float32]

# Split-half cosine below which a layer's direction is mostly noise.
MIN_RELIABILITY = 0.5

# Sum over layers of ‖added‖ / mean ‖hidden state‖ at strength 1.
DEFAULT_DOSE = 0.2


def readable_layers(n_layer: int) -> tuple[int, ...]:
    """The layers that extraction reads unless told otherwise: 1 up to three quarters of the depth.

    The layers above are steered by no default, and not computing them saves the time.
    """
    return tuple(range(1, _middle(n_layer).stop))


def _middle(n_layer: int) -> range:
    """The middle half of the depth, without block 0: 8-23 of 30 layers, 5-14 of 18."""
    return range(max(1, math.ceil(n_layer / 4)), min(math.ceil(3 * n_layer / 4), n_layer - 1) + 1)


def default_layers(reliability: Floats) -> tuple[int, ...]:
    """The layers that a fresh vector steers: the middle half of the depth, but for those whose direction is unreliable.

    Args:
        reliability: (n_layer,) split-half cosine, NaN where not read or not measurable.

    Raises:
        ContrastError: no layer of them is reliable.
    """
    middle = _middle(len(reliability))
    kept = tuple(layer for layer in middle if not reliability[layer] < MIN_RELIABILITY)
    if not kept:
        best = float(np.nanmax(reliability[middle.start : middle.stop]))
        raise ContrastError(
            f"The two sides do not differ in any consistent way: two halves of the pairs agree to a cosine of {best:.2f} at "
            f"best in layers {middle.start}-{middle.stop - 1}.",
            hint="Use personas that are further apart, or more pairs.",
        )
    return kept


def scale_to_dose(direction: Floats, hidden_norm: Floats, layers: tuple[int, ...], dose: float) -> dict[int, Floats]:
    """Equal relative dose: at each layer the unit direction times the layer's mean hidden norm times an equal share of the dose.

    Args:
        direction: (n_layer, n_embd), any length.
        hidden_norm: (n_layer,), residual-stream units.
        layers: the layers to steer.
        dose: sum of the layers' relative doses.

    Returns:
        For each layer (n_embd,), residual-stream units.
    """
    share = dose / len(layers)
    directions = {}
    for layer in layers:
        norm = float(np.linalg.norm(direction[layer]))
        if norm == 0:
            raise ContrastError(f"The two sides are identical at layer {layer}.", hint="The pairs must differ.")
        directions[layer] = (direction[layer] * (share * hidden_norm[layer] / norm)).astype(np.float32)
    return directions
