"""What is read of a text, and what one decode shows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.residual import Edit, Rows

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Span:
    """A text, and which of its tokens are read.

    Attributes:
        tokens: the whole text.
        start: the first token that is read; by default only the last one is.
        stop: the one behind the last that is read; None reads up to the end.
        edit: what is done to the residual stream of its tokens; None for nothing.
        edited_from: the first token of which that is done. None is the one before `start`, which predicts the first that is
            read: as an answer is steered whose prompt is not.
    """

    tokens: tuple[int, ...]
    start: int = -1
    stop: int | None = None
    edit: Edit | None = None
    edited_from: int | None = None

    @property
    def places(self) -> range:
        """The positions that are read."""
        return range(len(self.tokens))[self.start : self.stop]

    @property
    def edited(self) -> range:
        """The positions at which the edit is done."""
        if self.edit is None:
            return range(0)
        first = max(0, self.places.start - 1) if self.edited_from is None else self.edited_from
        return range(len(self.tokens))[first : self.places.stop]


@dataclass(frozen=True, eq=False)
class Part:
    """What one decode shows: the tokens of it that are read, each once, and who reads them.

    Attributes:
        rows: gives the rows (n_tokens, n_embd) of a layer, residual-stream units; only until the next part is asked for.
        nll: (n_tokens,) negative log likelihood of each token after those before it, in nats; NaN where likelihoods are not
            wanted, and for the first token of a text, which nothing predicts.
        spans: (n_reads,) indices of spans, each as often as it reads a token.
        tokens: (n_reads,) which of the tokens above that is, in ascending order.
    """

    rows: Callable[[int], Rows]
    nll: Floats
    spans: Indices
    tokens: Indices
