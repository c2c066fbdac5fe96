"""The KV cache of one conversation, which remembers under which steering each of its tokens was computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from localsteer.llama.context import Batch, Context
from localsteer.llama.residual import Edit, Rows


class KVCache:
    """One sequence in a context.

    Args:
        context: a context of two sequences: the second is used to copy cells from one context to another.

    Attributes:
        tokens: what the cache holds.
        edits: for each of them the steering that it was computed under; None for none.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tokens: list[int] = []
        self.edits: list[Edit | None] = []

    def keep_common(self, tokens: Sequence[int], edits: Sequence[Edit | None]) -> int:
        """Drop all but the longest prefix that these tokens share, computed under the same steering; returns its length."""
        kept = 0
        for old, old_edit, new, edit in zip(self.tokens, self.edits, tokens, edits, strict=False):
            if old != new or old_edit is not edit:
                break
            kept += 1
        if kept < len(self.tokens) and not self.context.forget(0, kept):
            kept = 0
            self.context.clear()
        del self.tokens[kept:], self.edits[kept:]
        return kept

    def cut(self, length: int) -> None:
        """Drop the tokens from position `length` on. A recurrent model, which cannot, computes the ones before anew."""
        tokens, edits = self.tokens[:length], self.edits[:length]
        start = self.keep_common(tokens, edits)
        while start < length:
            stop = start + 1
            while stop < length and stop - start < self.context.n_ubatch and edits[stop] is edits[start]:
                stop += 1
            self.run(tokens[start:stop], edits[start])
            start = stop

    def run(self, tokens: Sequence[int], edit: Edit | None) -> int:
        """Decode up to n_ubatch tokens after what is there; returns the row of the last one's logits."""
        self._steer(edit, len(tokens))
        try:
            self.context.decode(Batch.of_one_sequence(tokens, start=len(self.tokens)))
        except BaseException:
            # What the cache holds now is unknown.
            self.context.clear()
            self.tokens, self.edits = [], []
            raise
        self.tokens.extend(tokens)
        self.edits.extend([edit] * len(tokens))
        return len(tokens) - 1

    def watch(self, layers: Collection[int]) -> None:
        """Read these layers in the runs that follow; the context must have a tap."""
        assert self.context.tap is not None
        self.context.tap.watch(layers)

    def rows(self, layer: int) -> Rows:
        """The output (n_tokens, n_embd) of a watched block at the tokens of the last run; of the last block at the last only."""
        assert self.context.tap is not None
        return self.context.tap.rows(layer)

    def last_rows(self, layers: Collection[int]) -> Mapping[int, Rows]:
        """For each watched layer the output (n_embd,) of the block at the last token that was run."""
        return {layer: self.rows(layer)[-1] for layer in layers}

    def match(self, other: KVCache) -> None:
        """Hold what another cache of the same model holds: what is missing is copied from its cells, nothing is computed."""
        start = self.keep_common(other.tokens, other.edits)
        stop = len(other.tokens)
        if start == stop:
            return
        try:
            self.context.put_cells(other.context.cells(start, stop), start, stop)
        except BaseException:
            self.context.clear()
            self.tokens, self.edits = [], []
            raise
        self.tokens.extend(other.tokens[start:])
        self.edits.extend(other.edits[start:])

    def _steer(self, edit: Edit | None, n_tokens: int) -> None:
        if self.context.tap is not None:
            self.context.tap.edit([] if edit is None else [edit] * n_tokens)
        else:
            self.context.set_control_vector(None if edit is None else edit.added)
