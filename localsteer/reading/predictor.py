"""What a model predicts after a text that grows or changes at its end: what is read already is not read again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.reading.prefix_tree import common_beginning


class Predictor:
    """Reads one text after the other, unsteered.

    Args:
        model: the model.
        n_ctx: most tokens of a text.

    Raises:
        ModelError: there is not enough memory.
    """

    def __init__(self, model: Model, n_ctx: int) -> None:
        self._context = Context(model, n_ctx=n_ctx)
        self._tokens: list[int] = []  # what the KV cache holds

    @property
    def n_ctx(self) -> int:
        """Most tokens of a text."""
        return self._context.n_ctx

    def close(self) -> None:
        """Free the context."""
        self._context.close()

    def after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits (n_vocab,) of what follows these tokens; the next call overwrites them.

        Raises:
            ModelError: they are too many, or the computation failed.
        """
        held, self._tokens = self._tokens, []  # what a failure leaves is unknown
        kept = common_beginning(held, tokens[:-1])
        if kept == 0 or (kept < len(held) and not self._context.forget(0, kept)):
            self._context.clear()
            kept = 0
        row = 0
        for start in range(kept, len(tokens), self._context.n_ubatch):
            part = tokens[start : start + self._context.n_ubatch]
            self._context.decode(Batch.of_one_sequence(part, start=start))
            row = len(part) - 1
        self._tokens = list(tokens)
        return self._context.logits(row)
