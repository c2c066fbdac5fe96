"""How far each token of a text lies along a vector: what a trait looks like inside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.rows import Part, Span, read_tokens
from localsteer.vector.control_vector import ControlVector

Floats = NDArray[np.float32]


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
    units = _Units.of(vectors)
    skipped, spans = [], []
    for text in texts:
        tokens = tuple(model.tokenize(text))
        if len(tokens) > n_ctx:
            raise LocalsteerError(f"A text has {len(tokens)} tokens, and {n_ctx} can be read.", hint="Shorten it.")
        skipped.append(len(tokens) - len(model.tokenize(text, add_special=False)))
        spans.append(Span(tokens, start=1))
    along = [np.zeros((len(span.tokens), len(vectors)), np.float32) for span in spans]
    for number, kept in read_tokens(model, spans, units.layers, units.project):
        along[number][1:] = units.shares(kept)
    return [
        Projected(span.tokens[first:], dict(zip(vectors, own[first:].T, strict=True)))
        for span, own, first in zip(spans, along, skipped, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Units:
    """The directions of some vectors, each 1 long.

    Attributes:
        layers: the n_read layers of any of them.
        directions: (n_read, n_embd, n_vectors); zero where a vector has none.
        n_layers: (n_vectors,) how many layers each has; 1 for one that is zero everywhere.
    """

    layers: tuple[int, ...]
    directions: Floats
    n_layers: NDArray[np.intp]

    @staticmethod
    def of(vectors: Mapping[str, ControlVector]) -> _Units:
        units = [
            {layer: row / norm for layer, row in vector.directions.items() if (norm := np.linalg.norm(row)) > 0}
            for vector in vectors.values()
        ]
        layers = tuple(sorted({layer for own in units for layer in own}))
        n_embd = max((vector.n_embd for vector in vectors.values()), default=0)
        directions = np.zeros((len(layers), n_embd, len(units)), np.float32)
        for number, own in enumerate(units):
            for layer, unit in own.items():
                directions[layers.index(layer), :, number] = unit
        return _Units(layers, directions, np.array([max(len(own), 1) for own in units], np.intp))

    def project(self, part: Part) -> Floats:
        """(n_tokens, n_read, n_vectors + 1): how far each row reaches along the vectors, and how long it is."""
        kept = []
        for layer, directions in zip(self.layers, self.directions, strict=True):
            rows = part.rows(layer)
            kept.append(np.column_stack([rows @ directions, np.linalg.norm(rows, axis=1)]))
        return np.stack(kept, axis=1)

    def shares(self, kept: Floats) -> Floats:
        """(n_tokens, n_vectors) of a text, from what `project` gives for its tokens."""
        norms = np.maximum(kept[:, :, -1:].mean(axis=0), np.float32(1e-12))
        mean = (kept[:, :, :-1] / norms).sum(axis=1) / self.n_layers.astype(np.float32)
        return np.asarray(mean - mean.mean(axis=0), np.float32)
