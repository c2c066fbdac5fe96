"""The KV cache of one conversation, which remembers under which steering each of its tokens was computed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from localsteer.llama.context import Batch, Context
from localsteer.llama.residual import Edit, Rows

# The sequence of the unsteered twin; 1 is used to copy cells from one context to another.
_TWIN = 2


class KVCache:
    """One sequence in a context.

    Args:
        context: a context of two sequences: the second is used to copy cells from one context to another. `run_anchored` needs
            a third one, and twice the cells.

    Attributes:
        tokens: what the cache holds.
        edits: for each of them the steering that it was computed under; None for none.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tokens: list[int] = []
        self.edits: list[Edit | None] = []
        self._twin: list[int] = []  # what the unsteered twin holds

    def keep_common(self, tokens: Sequence[int], edits: Sequence[Edit | None]) -> int:
        """Drop all but the longest prefix that these tokens share, computed under the same steering; returns its length."""
        kept = _common(self.tokens, self.edits, tokens, edits)
        unsteered = [None] * len(self._twin)
        if _common(self._twin, unsteered, tokens, edits) > kept:
            # The answer of before, as the next prompt has it: the twin has read it along.
            self.context.forget(0)
            self.context.copy_sequence(_TWIN, 0)
            self.tokens, self.edits = list(self._twin), list(unsteered)
            kept = _common(self.tokens, self.edits, tokens, edits)
        if kept < len(self.tokens) and not self.context.forget(0, kept):
            kept = 0
            self.context.clear()
            self._twin = []
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
        with self._all_or_nothing():
            self.context.decode(Batch.of_one_sequence(tokens, start=len(self.tokens)))
        self.tokens.extend(tokens)
        self.edits.extend([edit] * len(tokens))
        return len(tokens) - 1

    def run_anchored(self, token: int, edit: Edit | None) -> tuple[int, int]:
        """Decode a token after what is there, and after the same tokens unsteered; returns both rows of logits."""
        with self._all_or_nothing():
            self._bring_up_twin()
            assert self.context.tap is not None
            self.context.tap.edit([edit, None] if edit is not None else [])
            self.context.decode(Batch.of_next_tokens([token] * 2, [len(self.tokens)] * 2, [0, _TWIN]))
        self.tokens.append(token)
        self.edits.append(edit)
        self._twin.append(token)
        return 0, 1

    def _bring_up_twin(self) -> None:
        """Let the twin hold the tokens that the cache holds.

        Once something is steered every run is anchored, so what the twin lacks was never steered, and is shared.
        """
        context = self.context
        kept = _common(self._twin, [None] * len(self._twin), self.tokens, [None] * len(self.tokens))
        if kept < len(self.tokens):
            if any(edit is not None for edit in self.edits):
                raise ValueError("steered tokens that the unsteered model has not read")
            context.forget(_TWIN)
            context.copy_sequence(0, _TWIN)
        else:
            context.forget(_TWIN, kept)
        self._twin = list(self.tokens)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """What a cache holds after a failure is unknown."""
        try:
            yield
        except BaseException:
            self.context.clear()
            self.tokens, self.edits, self._twin = [], [], []
            raise

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
        with self._all_or_nothing():
            self.context.put_cells(other.context.cells(start, stop), start, stop)
        self.tokens.extend(other.tokens[start:])
        self.edits.extend(other.edits[start:])

    def _steer(self, edit: Edit | None, n_tokens: int) -> None:
        if self.context.tap is not None:
            self.context.tap.edit([] if edit is None else [edit] * n_tokens)
        else:
            self.context.set_control_vector(None if edit is None else edit.added)


def _common(
    tokens: Sequence[int], edits: Sequence[Edit | None], others: Sequence[int], other_edits: Sequence[Edit | None]
) -> int:
    """How many tokens two sequences begin with alike, under the same steering."""
    count = 0
    for token, edit, other, other_edit in zip(tokens, edits, others, other_edits, strict=False):
        if token != other or edit is not other_edit:
            break
        count += 1
    return count
