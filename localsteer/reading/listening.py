"""Listening: how likely answers are in one context and another, whoever gave them.

What an answer is like is told by who would have given it: after its own question or another one, under one persona or the other.
Every figure is a cross-entropy: at each token, how likely the listener finds what the speaker would have drawn there. Taking all
that may be drawn instead of what was drawn leaves less to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.reading.forced import Said
from localsteer.reading.rows import read
from localsteer.reading.span import Span


@dataclass(frozen=True, eq=False)
class Heard:
    """An answer in a context.

    Attributes:
        prompt: what the listener reads before it.
        said: the answer.
        edit: what is done to the listener from the last token of the prompt on; None for nothing.
    """

    prompt: tuple[int, ...]
    said: Said
    edit: Edit | None = None


def cross_entropies(model: Model, heard: Sequence[Heard]) -> NDArray[np.float64]:
    """How unlikely the listener finds what is said: (n,) nats a token; NaN for an empty answer.

    Raises:
        ModelError: an edit, and llama.cpp does not show the residual stream of this architecture.
    """
    found = np.zeros(len(heard))

    def take(readers: Sequence[int], position: int, logprobs: Rows) -> None:
        for reader in readers:
            one = heard[reader]
            found[reader] -= one.said.found_by(position - len(one.prompt), logprobs) / len(one.said.tokens)

    spans = [Span(one.prompt + one.said.tokens, len(one.prompt), None, one.edit) for one in heard]
    for _ in read(model, spans, (), want_nll=True, on_prediction=take):
        pass
    found[[not one.said.tokens for one in heard]] = np.nan
    return found
