"""Prompts that stay in the KV cache from one reading pass to the next.

A search reads the answers to the same prompts under one edit after another, a pass for each step, and the template of many a
model puts a system prompt of its own before each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from localsteer.llama.closing import Closing
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.reading.prefix_tree import MAX_SEQUENCES, common_beginning, grow_trees

# Most tokens of one decode that ask for logits: 128 rows of Gemma's vocabulary are 134 MB, and llama.cpp's compute buffer as much
# again. A context reserves a row for each of its sequences anyway: as many for a tree at most, and those of kept prompts.
MAX_OUTPUTS = 128
# Cells beside kept prompts that there are from the first pass on: the largest pass of a dosing takes some 700. One that must grow
# reads the prompts again.
_ROOM = 1024


class KeptPrompts(Closing):
    """Some prompts as the unsteered model reads them, and the context that holds them. A context manager.

    They lie in the first cells, before all that a pass reads and drops again. So no cell of theirs is ever taken for another
    token, as llama.cpp may do with one that lies outside its sequence's sliding window.

    Args:
        model: the model. Where sequences cannot share tokens, nothing is kept.
        prompts: what the texts to be read begin with, as tokens; of very many, as many as fit one tree.
    """

    def __init__(self, model: Model, prompts: Iterable[Sequence[int]] = ()) -> None:
        self._model = model
        own = sorted({tuple(prompt) for prompt in prompts if prompt}) if model.sequences_share_tokens else []
        self._tree = next(grow_trees(own), None)
        self._sequences: dict[tuple[int, ...], int] = {}
        if self._tree is not None:
            of_node = np.cumsum(self._tree.batch.sequence_counts) - 1
            for path, number in zip(self._tree.paths, self._tree.prompts, strict=True):
                self._sequences[own[number]] = int(self._tree.batch.sequence_ids[of_node[path[-1]]])
        self._size = [0, 0, 0]
        self._context: Context | None = None
        self._is_read = False

    @property
    def n_sequences(self) -> int:
        """How many sequences of the context the prompts take: the first ones."""
        return self._tree.n_sequences if self._tree is not None else 0

    def close(self) -> None:
        """Free the context. A later pass makes it anew."""
        if self._context is not None:
            self._context.close()
            self._context = None
            self._is_read = False

    def beginning(self, tokens: Sequence[int]) -> tuple[int, int]:
        """How many tokens of a text's beginning are kept, and in which sequence."""
        return max(((common_beginning(prompt, tokens), sequence) for prompt, sequence in self._sequences.items()), default=(0, 0))

    def context(self, n_ctx: int, n_seq: int, n_outputs: int, *, steered: bool) -> Context:
        """A context with room for so many cells, sequences and rows of logits beside the prompts.

        Args:
            n_ctx: cells.
            n_seq: sequences.
            n_outputs: most tokens of one decode that ask for logits.
            steered: whether the residual stream is read or edited.

        Raises:
            ModelError: there is not enough memory.
        """
        wanted = [n_ctx, n_seq, n_outputs]
        if self._tree is not None:
            steered = True  # by this pass or a later one
            wanted = [len(self._tree.batch) + max(n_ctx, _ROOM), self.n_sequences + MAX_SEQUENCES, MAX_OUTPUTS]
        context = self._context
        if context is not None and (context.tap is not None or not steered) and all(map(int.__ge__, self._size, wanted)):
            return context
        self.close()
        cells, sequences, outputs = size = [max(pair) for pair in zip(self._size, wanted, strict=True)]
        tap = ResidualTap(self._model.n_layer, self._model.n_embd) if steered else None
        self._context = Context(self._model, n_ctx=cells, n_seq=sequences, n_outputs=outputs, tap=tap)
        self._size = size
        return self._context

    def empty(self, context: Context) -> None:
        """Drop all but the prompts, which are read if they were not yet.

        Raises:
            ModelError: the computation failed.
        """
        if self._tree is None or not self._is_read:
            context.clear()
        if self._tree is None:
            return
        if not self._is_read:
            for part in self._tree.batch.split(context.n_ubatch):
                context.decode(part)
            self._is_read = True
        for sequence in range(self.n_sequences, context.n_seq):
            context.forget(sequence)
