"""Coherence: how likely the unsteered model finds an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.prefix_tree import context_size, lay_out

# A row of logits for every token of a batch: 128 rows of Gemma's vocabulary are 134 MB.
_N_UBATCH = 128


@dataclass(frozen=True)
class Scored:
    """A prompt and an answer to score, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def answer_nll(model: Model, pairs: Sequence[Scored]) -> NDArray[np.float64]:
    """Mean negative log likelihood of each answer under the unsteered model.

    The coherence cost of steering is this for steered answers minus this for unsteered ones.

    Returns:
        (n_pairs,) nats a token; NaN for an empty answer.

    Raises:
        LocalsteerError: a prompt is empty: nothing predicts the first token of its answer.
    """
    if not pairs:
        return np.empty(0)
    if not all(pair.prompt for pair in pairs):
        raise LocalsteerError("An answer to an empty prompt cannot be scored.", hint="Give each answer its prompt.")
    trees = lay_out(model, [pair.prompt + pair.answer for pair in pairs])
    n_ctx, n_seq = context_size(trees)
    totals = np.zeros(len(pairs))
    with Context(model, n_ctx=n_ctx, n_seq=n_seq, n_ubatch=_N_UBATCH, n_outputs=_N_UBATCH) as context:
        for tree in trees:
            context.clear()
            # For every answer token: the node that predicts it, the token, and the pair it counts for.
            targets: dict[int, list[tuple[int, int]]] = {}
            for index, path in zip(tree.prompts, tree.paths, strict=True):
                pair = pairs[index]
                for place, token in enumerate(pair.answer, len(pair.prompt)):
                    targets.setdefault(int(path[place - 1]), []).append((token, index))
            tree.batch.outputs[list(targets)] = 1

            def add(
                part: Batch,
                offset: int,
                targets: dict[int, list[tuple[int, int]]] = targets,
            ) -> None:
                for row in np.flatnonzero(part.outputs):
                    logits = context.logits(int(row)).astype(np.float64)
                    top = logits.max()
                    log_sum = top + np.log(np.exp(logits - top).sum())
                    for token, index in targets[offset + int(row)]:
                        totals[index] += log_sum - logits[token]

            context.decode_all(tree.batch, after_part=add)
    lengths = np.array([len(pair.answer) for pair in pairs], np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(lengths > 0, totals / np.maximum(lengths, 1), np.nan)
