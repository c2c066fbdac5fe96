"""From prompts to activations: the residual stream at the wanted tokens of every prompt."""

from __future__ import annotations

from collections.abc import Sequence

from localsteer.errors import ContrastError
from localsteer.llama.model import Model
from localsteer.reading.rows import Means, Progress, read_means
from localsteer.reading.span import Span


def read_activations(model: Model, spans: Sequence[Span], layers: Sequence[int], progress: Progress | None = None) -> Means:
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
    return read_means(model, spans, layers, progress=progress)
