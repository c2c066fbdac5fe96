"""How far each token of a text lies along a vector: what a trait looks like inside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.rows import read_tokens
from localsteer.reading.span import Part, Span
from localsteer.vector.control_vector import ControlVector


@dataclass(frozen=True, eq=False)
class Projected:
    """A text, token by token.

    Attributes:
        tokens: (n_tokens,) the tokens.
        along: by vector (n_tokens,): the mean over its layers of the hidden state's component along the direction, in shares of
            the layer's mean hidden norm over the text, less its mean over the text; 0 for a token that nothing stands before.
        level: by vector that mean.
    """

    tokens: tuple[int, ...]
    along: Mapping[str, NDArray[np.float32]]
    level: Mapping[str, float]


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
    # What is kept of a token: how far it reaches along each of these, and how long it is there.
    units = [
        (name, layer, row / norm)
        for name, vector in vectors.items()
        for layer, row in vector.directions.items()
        if (norm := np.linalg.norm(row)) > 0
    ]
    skipped, spans = [], []
    for text in texts:
        tokens = tuple(model.tokenize(text))
        if len(tokens) > n_ctx:
            raise LocalsteerError(f"A text has {len(tokens)} tokens, and {n_ctx} can be read.", hint="Shorten it.")
        skipped.append(len(tokens) - len(model.tokenize(text, add_special=False)))
        spans.append(Span(tokens, start=1))
    along = [{name: np.zeros(len(span.tokens), np.float32) for name in vectors} for span in spans]
    levels: list[dict[str, float]] = [dict.fromkeys(vectors, 0.0) for _ in spans]

    def keep(part: Part) -> NDArray[np.float32]:
        kept = np.empty((len(part.nll), len(units), 2), np.float32)
        for place, (_, layer, unit) in enumerate(units):
            rows = part.rows(layer)
            kept[:, place, 0], kept[:, place, 1] = rows @ unit, np.linalg.norm(rows, axis=1)
        return kept

    for number, kept in read_tokens(model, spans, sorted({layer for _, layer, _ in units}), keep):
        shares = kept[:, :, 0] / np.maximum(kept[:, :, 1].mean(axis=0), 1e-12)
        for name in {name for name, _, _ in units}:
            mean = shares[:, [own == name for own, _, _ in units]].mean(axis=1)
            levels[number][name] = float(mean.mean()) if len(mean) else 0.0
            along[number][name][1:] = mean - levels[number][name]
    return [
        Projected(span.tokens[first:], {name: values[first:] for name, values in own.items()}, level)
        for span, own, level, first in zip(spans, along, levels, skipped, strict=True)
    ]
