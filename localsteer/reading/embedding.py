"""Texts -> embeddings: the mean hidden state of a language model over each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.rows import read_means
from localsteer.reading.span import Span

# Of the way from the first block to the last. By the mean over all tokens a question found itself again in other words, among
# thirty, for 80 per cent (SmolLM2-135M), 88 (Gemma 3 270M) and 93 (Qwen2.5-Coder 1.5B), and behind the last block for 62, 85 and
# 85; by the last token, as llama-server pools by default, for 53, 77 and 75. `python -m bench.embeddings` shows every block.
_DEPTH = 0.93


def embedding_layer(model: Model) -> int:
    """The block whose output embeddings are read at, where nobody names one."""
    return round(_DEPTH * (model.n_layer - 1))


def check_embedded(model: Model, texts: Sequence[Sequence[int]], layer: int, n_ctx: int) -> None:
    """Make sure that texts can be embedded.

    Args:
        model: the model.
        texts: tokens of each text.
        layer: the block whose output is to be read.
        n_ctx: most tokens of a text.

    Raises:
        LocalsteerError: a text is empty or longer, or there is no such block.
    """
    if not 0 <= layer < model.n_layer:
        raise LocalsteerError(f"There is no layer {layer}: the model has layers 0 to {model.n_layer - 1}.")
    for tokens in texts:
        if not tokens:
            raise LocalsteerError("A text is empty: there is nothing to embed.", hint="Give it some text.")
        if len(tokens) > n_ctx:
            raise LocalsteerError(
                f"A text has {len(tokens)} tokens, which is too large: {n_ctx} can be read.", hint="Embed it in parts."
            )


def embed(model: Model, texts: Sequence[Sequence[int]], layer: int) -> NDArray[np.float32]:
    """Mean hidden states.

    Args:
        model: the model, which reads unsteered.
        texts: tokens of each text, at least one.
        layer: the block whose output is read, from 0.

    Returns:
        (n_texts, n_embd), residual-stream units. The first token takes no part unless it is the only one: whatever it says, its
        hidden state is many times longer than all others (`reading.projection`).

    Raises:
        ModelError: the model's residual stream cannot be read.
    """
    spans = [Span(tuple(tokens), start=min(1, len(tokens) - 1)) for tokens in texts]
    values: NDArray[np.float32] = read_means(model, spans, [layer]).values[:, 0]
    return values
