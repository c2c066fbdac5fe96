"""Re-reading: what the unsteered model finds in an answer, however it came about.

One pass over the answers tells how likely the model finds each of them (its coherence) and what each of them leaves in the
residual stream (what it is about).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.kept import KeptPrompts
from localsteer.reading.rows import Means, read_means
from localsteer.reading.span import Span


@dataclass(frozen=True)
class Scored:
    """A prompt and an answer to score, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def answer_nll(model: Model, pairs: Sequence[Scored], kept: KeptPrompts | None = None) -> NDArray[np.float64]:
    """Mean negative log likelihood of each answer under the unsteered model.

    The coherence cost of steering is this for steered answers minus this for unsteered ones.

    Args:
        model: the model.
        pairs: prompts and answers.
        kept: prompts that this and other passes begin with.

    Returns:
        (n_pairs,) nats a token; NaN for an empty answer.

    Raises:
        LocalsteerError: a prompt is empty: nothing predicts the first token of its answer.
    """
    return reread(model, pairs, kept=kept).nll


def reread(model: Model, pairs: Sequence[Scored], layers: Sequence[int] = (), kept: KeptPrompts | None = None) -> Means:
    """Let the unsteered model read answers after their prompts.

    Args:
        model: the model.
        pairs: prompts and answers.
        layers: the blocks whose outputs are wanted, if any.
        kept: prompts that this and other passes begin with.

    Raises:
        LocalsteerError: a prompt is empty: nothing predicts the first token of its answer.
        ModelError: activations are wanted of an architecture that does not show them.
    """
    if not all(pair.prompt for pair in pairs):
        raise LocalsteerError("An answer to an empty prompt cannot be scored.", hint="Give each answer its prompt.")
    spans = [Span(pair.prompt + pair.answer, start=len(pair.prompt)) for pair in pairs]
    return read_means(model, spans, layers, want_nll=True, kept=kept)
