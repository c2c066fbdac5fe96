"""The safe default dose: which layers, and how strong, before anything is calibrated.

The rule: the reliable layers of the middle half of the depth, equal relative dose at each, 0.2 in sum. What it was chosen by,
measured once by hand (`localsteer calibrate` now measures the like on any model): the coherence cost (nats a token, against the
unsteered answers) at strength +1 and -1, over 24 to 32 sampled answers of 64 tokens to held-out questions:

| concept | SmolLM2-135M-Instruct Q4_1 | Gemma 3 270M base Q4_K_M |
|---|---|---|
| happy - sad | +0.03 / +0.19 | +0.34 / +0.10 |
| angry - calm | +0.19 / +0.00 | |
| formal - casual | +0.26 / +0.19 | |
| uncertain - confident | +0.20 / -0.02 | |

For happy - sad on the first model the sum 0.15 costs +0.08 / +0.10, 0.25 costs +0.09 / +0.36 and 0.35 costs +0.31 / +0.50, while
VADER goes from 0.67 to 0.94 / -0.31 at 0.2, and to 0.87 / -0.36 at 0.25: beyond 0.2 it is mostly the cost that grows. Wide and
shallow beat narrow and deep at equal cost: blocks 8-23 and 4-19 of 30 moved VADER further than 12-19.
"""

from __future__ import annotations

import math

import numpy as np

from localsteer.errors import ContrastError
from localsteer.vector.control_vector import Floats

# Split-half cosine below which a layer's direction is mostly noise: on SmolLM2 it is 0.1 at block 2, where happy and sad differ
# by 0.3 % of the hidden norm (the noise of quantised inference is 2 %), and above 0.75 at blocks 8-23.
MIN_RELIABILITY = 0.5

# Sum over layers of ‖added‖ / mean ‖hidden state‖ at strength 1.
DEFAULT_DOSE = 0.2


def readable_layers(n_layer: int) -> tuple[int, ...]:
    """The layers that extraction reads unless told otherwise: all but block 0 and, where it is not of the middle half, the last.

    A fresh vector steers the middle half alone; calibration may choose from all. Of its last block llama.cpp computes only the
    rows whose logits are wanted, and a row of logits for each token read takes more memory than all that is read.
    """
    return tuple(range(1, max(middle_layers(n_layer).stop, n_layer - 1)))


def middle_layers(n_layer: int, low: float = 1 / 4, high: float = 3 / 4) -> range:
    """A part of the depth, without block 0; the middle half unless told otherwise: 8-23 of 30 layers, 5-14 of 18."""
    return range(max(1, math.ceil(low * n_layer)), min(math.ceil(high * n_layer), n_layer - 1) + 1)


def default_layers(reliability: Floats) -> tuple[int, ...]:
    """The layers that a fresh vector steers: the middle half of the depth, but for those whose direction is unreliable.

    Args:
        reliability: (n_layer,) split-half cosine, NaN where not read or not measurable.

    Raises:
        ContrastError: no layer of them is reliable.
    """
    middle = middle_layers(len(reliability))
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
