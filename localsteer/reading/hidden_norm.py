"""How large a model's hidden states are, measured on the model itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ModelError
from localsteer.llama.model import Model
from localsteer.reading.activations import read_activations
from localsteer.reading.span import Span

# Any plain text does: on the demo model the norms of this one are within 10 % of those of a vector's prompts at most layers.
_TEXT = (
    "Flour, water, salt and a little yeast are mixed into a dough. It rests until it has risen, is shaped into a loaf, and goes "
    "into a hot oven for about forty minutes."
)


def read_hidden_norm(model: Model) -> NDArray[np.float32]:
    """The mean Euclidean norm of the residual stream over a short text that has nothing to do with any concept.

    Returns:
        (n_layer,) residual-stream units; NaN for block 0, which cannot be steered.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture, or the model is broken.
    """
    tokens = tuple(model.tokenize(_TEXT)[: model.n_ctx_train])
    layers = range(1, model.n_layer)
    norms = np.full(model.n_layer, np.nan, np.float32)
    # The first token of any text is an outlier: with it the mean would be twice as large on the demo model.
    norms[1:] = read_activations(model, [Span(tokens, start=1)], layers).norms[0]
    if not (np.isfinite(norms[1:]) & (norms[1:] > 0)).all():
        raise ModelError(
            f"The hidden states of {model.name} are not finite numbers, or nothing at all.", hint="Use another model."
        )
    return norms
