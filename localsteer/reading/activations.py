"""From prompts to activations: the residual stream at the wanted tokens of every prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ContrastError
from localsteer.llama.context import N_UBATCH, Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.reading.prefix_tree import PrefixTree, context_size, lay_out

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do, in tokens."""


@dataclass(frozen=True)
class Span:
    """A prompt and the tokens of it whose activations are averaged.

    Attributes:
        tokens: the whole prompt.
        start: first token that is read; by default only the last one is.
    """

    tokens: tuple[int, ...]
    start: int = -1

    @property
    def read_from(self) -> int:
        """`start` as an index from the front."""
        return self.start if self.start >= 0 else len(self.tokens) + self.start


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

    The prompts run as a prefix tree in shared batches, and nothing is computed above the highest wanted layer. Only the
    rows in a span are kept.

    Args:
        model: the model to read.
        spans: prompts with the tokens to read.
        layers: block indices to read.
        progress: told after every batch.

    Raises:
        ContrastError: a prompt is empty, or longer than the model's context.
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """
    layers = tuple(layers)
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
    trees = lay_out(model, [span.tokens for span in spans])
    n_ctx, n_seq = context_size(trees)
    total = sum(len(tree.batch) for tree in trees)
    values = np.zeros((len(spans), len(layers), model.n_embd), np.float32)
    norms = np.zeros((len(spans), len(layers)), np.float32)
    tap = ResidualTap(model.n_layer, model.n_embd)
    tap.watch(layers, stop=True)
    done = 0
    # In its last block llama.cpp keeps only the rows of tokens that ask for logits, and room for logits is dear.
    needs_outputs = model.n_layer - 1 in layers
    n_outputs = min(n_ctx, N_UBATCH) if needs_outputs else None
    with Context(model, n_ctx=n_ctx, n_seq=n_seq, n_outputs=n_outputs, tap=tap) as context:
        for tree in trees:
            context.clear()
            _read_tree(context, tap, tree, spans, layers, values, norms, progress, done, total)
            done += len(tree.batch)
    return Activations(values, norms, layers)


def _read_tree(
    context: Context,
    tap: ResidualTap,
    tree: PrefixTree,
    spans: Sequence[Span],
    layers: tuple[int, ...],
    values: NDArray[np.float32],
    norms: NDArray[np.float32],
    progress: Progress | None,
    done: int,
    total: int,
) -> None:
    """Add the means of one tree's prompts to `values` and `norms`."""
    # Weights of a sparse (prompt x node) matrix: 1 / span length where a prompt reads a node.
    reads = [path[spans[prompt].read_from :] for prompt, path in zip(tree.prompts, tree.paths, strict=True)]
    prompt_of = np.repeat(np.array(tree.prompts, np.intp), [len(read) for read in reads])
    weight_of = np.repeat([1 / len(read) for read in reads], [len(read) for read in reads]).astype(np.float32)
    node_of = np.concatenate(reads)
    batch = tree.batch
    if context.model.n_layer - 1 in layers:
        batch.outputs[node_of] = 1

    def collect(part: Batch, offset: int) -> None:
        here = (node_of >= offset) & (node_of < offset + len(part))
        nodes, prompts, weights = node_of[here] - offset, prompt_of[here], weight_of[here]
        kept = np.flatnonzero(part.outputs)
        for column, layer in enumerate(layers):
            rows = tap.rows(layer)
            picked = rows[nodes if len(rows) == len(part) else np.searchsorted(kept, nodes)]
            np.add.at(values[:, column], prompts, picked * weights[:, None])
            np.add.at(norms[:, column], prompts, np.linalg.norm(picked, axis=1) * weights)
        if progress is not None:
            progress(done + offset + len(part), total)

    context.decode_all(batch, after_part=collect)
