"""Re-reading: what the unsteered model finds in an answer, however it came about.

One pass over the answers, as a prefix tree, tells how likely the model finds each of them (its coherence) and what each of them
leaves in the residual stream (what it is about).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.reading.prefix_tree import PrefixTree, context_size, lay_out

# A row of logits for every token of a batch: 128 rows of Gemma's vocabulary are 134 MB.
_N_UBATCH = 128


@dataclass(frozen=True)
class Scored:
    """A prompt and an answer to score, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Reread:
    """What the unsteered model finds in some answers.

    Attributes:
        nll: (n_pairs,) mean negative log likelihood in nats a token; NaN for an empty answer.
        activations: (n_pairs, n_read, n_embd) mean over the answer's tokens of the residual stream, NaN for an empty answer.
        norms: (n_pairs, n_read) mean Euclidean norm of those tokens' rows.
    """

    nll: NDArray[np.float64]
    activations: NDArray[np.float32]
    norms: NDArray[np.float32]


def answer_nll(model: Model, pairs: Sequence[Scored]) -> NDArray[np.float64]:
    """Mean negative log likelihood of each answer under the unsteered model.

    The coherence cost of steering is this for steered answers minus this for unsteered ones.

    Returns:
        (n_pairs,) nats a token; NaN for an empty answer.

    Raises:
        LocalsteerError: a prompt is empty: nothing predicts the first token of its answer.
    """
    return reread(model, pairs).nll


def reread(model: Model, pairs: Sequence[Scored], layers: Sequence[int] = ()) -> Reread:
    """Let the unsteered model read answers after their prompts.

    Args:
        model: the model.
        pairs: prompts and answers.
        layers: the blocks whose outputs are wanted, if any.

    Raises:
        LocalsteerError: a prompt is empty: nothing predicts the first token of its answer.
        ModelError: activations are wanted of an architecture that does not show them.
    """
    layers = tuple(layers)
    totals = np.zeros(len(pairs))
    activations = np.zeros((len(pairs), len(layers), model.n_embd), np.float32)
    norms = np.zeros((len(pairs), len(layers)), np.float32)
    if not all(pair.prompt for pair in pairs):
        raise LocalsteerError("An answer to an empty prompt cannot be scored.", hint="Give each answer its prompt.")
    if pairs:
        trees = lay_out(model, [pair.prompt + pair.answer for pair in pairs])
        n_ctx, n_seq = context_size(trees)
        tap = ResidualTap(model.n_layer, model.n_embd) if layers else None
        if tap is not None:
            tap.watch(layers)
        with Context(model, n_ctx=n_ctx, n_seq=n_seq, n_ubatch=_N_UBATCH, n_outputs=_N_UBATCH, tap=tap) as context:
            for tree in trees:
                context.clear()
                _read_tree(context, tree, pairs, layers, totals, activations, norms)
    lengths = np.array([len(pair.answer) for pair in pairs], np.float64)
    divisor = np.where(lengths > 0, lengths, np.nan)
    return Reread(
        totals / divisor,
        (activations / divisor[:, None, None]).astype(np.float32),
        (norms / divisor[:, None]).astype(np.float32),
    )


def _read_tree(
    context: Context,
    tree: PrefixTree,
    pairs: Sequence[Scored],
    layers: tuple[int, ...],
    totals: NDArray[np.float64],
    activations: NDArray[np.float32],
    norms: NDArray[np.float32],
) -> None:
    """Add what the answer tokens of one tree's prompts give to the sums."""
    predicting, predicted, of_pair, own = [], [], [], []
    for index, path in zip(tree.prompts, tree.paths, strict=True):
        start, answer = len(pairs[index].prompt), pairs[index].answer
        predicting.append(path[start - 1 : -1] if answer else path[:0])
        own.append(path[start:])
        predicted.append(np.array(answer, np.intp))
        of_pair.append(np.full(len(answer), index, np.intp))
    # For every answer token: the node that predicts it, its own node, what it is, and the pair it counts for.
    from_node, node, token, pair = (np.concatenate(parts) for parts in (predicting, own, predicted, of_pair))
    tree.batch.outputs[from_node] = 1
    if context.model.n_layer - 1 in layers:  # there llama.cpp keeps only the rows of tokens that ask for logits
        tree.batch.outputs[node] = 1

    def collect(part: Batch, offset: int) -> None:
        for row in np.flatnonzero(part.outputs):
            here = np.flatnonzero(from_node == offset + row)
            if len(here):
                logits = context.logits(int(row))
                top = logits.max()
                log_sum = float(top) + np.log(np.exp(logits - top).sum(dtype=np.float64))
                np.add.at(totals, pair[here], log_sum - logits[token[here]])
        if context.tap is None:
            return
        inside = (node >= offset) & (node < offset + len(part))
        rows_wanted, of = node[inside] - offset, pair[inside]
        kept = np.flatnonzero(part.outputs)
        for column, layer in enumerate(layers):
            rows = context.tap.rows(layer)
            picked = rows[rows_wanted if len(rows) == len(part) else np.searchsorted(kept, rows_wanted)]
            np.add.at(activations[:, column], of, picked)
            np.add.at(norms[:, column], of, np.linalg.norm(picked, axis=1))

    context.decode_all(tree.batch, after_part=collect)
