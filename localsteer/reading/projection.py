"""How far each token of a text lies along a vector: what a trait looks like inside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.vector.control_vector import ControlVector

# One graph at most: longer texts are read in parts.
_N_UBATCH = 512


@dataclass(frozen=True, eq=False)
class Projected:
    """A text, token by token.

    Attributes:
        tokens: (n_tokens,) the tokens.
        along: by vector (n_tokens,): the mean over its layers of the hidden state's component along the direction, in shares of
            the layer's mean hidden norm over the text, less its mean over the text; 0 for a token that nothing stands before.
    """

    tokens: tuple[int, ...]
    along: Mapping[str, NDArray[np.float32]]


def project(model: Model, texts: Sequence[str], vectors: Mapping[str, ControlVector], *, n_ctx: int) -> list[Projected]:
    """Read texts as they stand, unsteered, and project every token on the vectors.

    The first token takes no part: models attend to it when they have nothing to attend to, and its hidden state is many times
    larger than all others, whatever it says. Where it is the beginning-of-sequence token, it is left out.

    Args:
        model: the model.
        texts: the texts.
        vectors: the vectors by name; they must fit the model.
        n_ctx: most tokens of a text.

    Raises:
        LocalsteerError: a text is longer.
        ModelError: the model's residual stream cannot be read.
    """
    found = []
    layers = sorted({layer for vector in vectors.values() for layer in vector.layers})
    tap = ResidualTap(model.n_layer, model.n_embd)
    tap.watch(layers)
    with Context(model, n_ctx=n_ctx, n_ubatch=_N_UBATCH, n_outputs=_N_UBATCH, tap=tap) as context:
        for text in texts:
            tokens = model.tokenize(text)
            skipped = len(tokens) - len(model.tokenize(text, add_special=False))
            if len(tokens) > n_ctx:
                raise LocalsteerError(f"A text has {len(tokens)} tokens, and {n_ctx} can be read.", hint="Shorten it.")
            rows = _read(context, tap, tokens, layers) if len(tokens) > 1 else {}
            after_first = {name: _along(vector, rows, len(tokens)) for name, vector in vectors.items()}
            along = {name: np.pad(values, (1, 0))[skipped:][: len(tokens) - skipped] for name, values in after_first.items()}
            found.append(Projected(tuple(tokens[skipped:]), along))
    return found


def _read(context: Context, tap: ResidualTap, tokens: Sequence[int], layers: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """(n_tokens, n_embd) by layer."""
    context.clear()
    parts: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    whole = Batch.of_one_sequence(tokens, start=0)
    # In the last block only the rows of tokens that ask for logits are computed.
    whole.outputs[:] = 1

    def take(_part: Batch, _offset: int) -> None:
        for layer in layers:
            parts[layer].append(tap.rows(layer))

    context.decode_all(whole, after_part=take)
    return {layer: np.concatenate(rows) for layer, rows in parts.items()}


def _along(vector: ControlVector, rows: Mapping[int, NDArray[np.float32]], n_tokens: int) -> NDArray[np.float32]:
    """(n_tokens - 1,) for all tokens but the first."""
    shares = []
    for layer, direction in vector.directions.items():
        length = float(np.linalg.norm(direction))
        if layer in rows and length > 0:
            later = rows[layer][1:]
            norm = float(np.linalg.norm(later, axis=1).mean())
            shares.append(later @ (direction / np.float32(length)) / np.float32(max(norm, 1e-12)))
    if not shares:
        return np.zeros(max(n_tokens - 1, 0), np.float32)
    mean = np.mean(shares, axis=0)
    return np.asarray(mean - mean.mean(), np.float32)
