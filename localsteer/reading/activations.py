"""From prompts to activations: the residual stream at the wanted tokens of every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ContrastError
from localsteer.llama.model import Model
from localsteer.reading.rows import Progress, Span, read_means


@dataclass(frozen=True, eq=False)
class Activations:
    """Mean activations of some prompts.

    Attributes:
        values: (n_prompts, n_read, n_embd) float32, residual-stream units.
        norms: (n_prompts, n_read) mean Euclidean norm of the rows that were averaged.
        layers: the n_read block indices.
    """

    values: NDArray[np.float32]
    norms: NDArray[np.float32]
    layers: tuple[int, ...]


def read_activations(model: Model, spans: Sequence[Span], layers: Sequence[int], progress: Progress | None = None) -> Activations:
    """Read the residual stream, mean over the span of each prompt.

    Args:
        model: the model to read.
        spans: prompts with the tokens to read.
        layers: block indices to read.
        progress: told after every batch.

    Raises:
        ContrastError: a prompt is empty, or longer than the model's context.
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """
    if not spans:
        raise ContrastError("There are no prompts to read.")
    for number, span in enumerate(spans, 1):
        if not span.tokens:
            raise ContrastError(f"Prompt {number} is empty.", hint="Give each prompt some text.")
        if len(span.tokens) > model.n_ctx_train:
            raise ContrastError(
                f"Prompt {number} has {len(span.tokens)} tokens, and the model's context holds {model.n_ctx_train}.",
                hint="Shorten the prompt.",
            )
    means = read_means(model, spans, layers, progress=progress)
    return Activations(means.values, means.norms, tuple(layers))
