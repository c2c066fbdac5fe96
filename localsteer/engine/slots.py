"""The sequences of a context that many answers share: what each of them holds, and which one an answer is given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from localsteer.llama.context import Context
from localsteer.llama.residual import Edit


@dataclass(eq=False)
class Slot:
    """A sequence of the context; when nobody uses it, what it holds is kept for a prompt that begins alike.

    Attributes:
        sequence: its number.
        tokens: what it holds.
        edits: for each of them the steering that it was computed under.
        used: when it was last given to an answer; larger is later.
        free: whether no answer uses it.
    """

    sequence: int
    tokens: list[int] = field(default_factory=list)
    edits: list[Edit | None] = field(default_factory=list)
    used: int = 0
    free: bool = True

    def common(self, tokens: Sequence[int], edit: Edit | None) -> int:
        """How many of these tokens, all under one steering, it begins with."""
        return common_length(self.tokens, self.edits, tokens, edit)

    def add(self, tokens: Sequence[int], edit: Edit | None) -> None:
        """These were computed after what it holds."""
        self.tokens.extend(tokens)
        self.edits.extend([edit] * len(tokens))

    def drop(self, start: int) -> None:
        """Nothing is held from a position on."""
        del self.tokens[start:], self.edits[start:]


class Slots:
    """All sequences of a context.

    Args:
        context: the context.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._slots = [Slot(number) for number in range(context.n_seq)]
        self._clock = itertools.count(1)

    @property
    def kept_tokens(self) -> int:
        """Tokens that they hold, those included that no answer uses at the moment."""
        return sum(len(slot.tokens) for slot in self._slots)

    def common(self, tokens: Sequence[int], edit: Edit | None) -> int:
        """How many of these tokens, all under one steering, any of them begins with."""
        return max(slot.common(tokens, edit) for slot in self._slots)

    def take(self, prefix: Sequence[int], edit: Edit | None) -> tuple[Slot, int]:
        """A free slot for an answer, and how much of the prefix it holds; one must be free."""
        slot, kept = self._best_for(prefix, edit)
        slot.free, slot.used = False, next(self._clock)
        return slot, kept

    def _best_for(self, prefix: Sequence[int], edit: Edit | None) -> tuple[Slot, int]:
        """What another one holds of the prefix is shared with it."""
        free = [slot for slot in self._slots if slot.free]
        if not self._context.model.sequences_share_tokens:
            # A recurrent state can only be gone on from.
            for slot in free:
                if slot.tokens and slot.common(prefix, edit) == len(slot.tokens):
                    return slot, len(slot.tokens)
            slot = min(free, key=lambda one: one.used)
            self.forget(slot, 0)
            return slot, 0
        best = max(self._slots, key=lambda one: (one.common(prefix, edit), one.free))
        shared = best.common(prefix, edit)
        # The conversation goes on where it was. One that merely begins alike keeps what it has.
        if best.free and 2 * shared >= len(best.tokens):
            self.forget(best, shared)
            return best, shared
        slot = min(free, key=lambda one: (one.used, one is best))
        if slot is not best:
            self.forget(slot, 0)
            if shared:
                self._context.copy_sequence(best.sequence, slot.sequence)
                slot.tokens, slot.edits = list(best.tokens), list(best.edits)
        self.forget(slot, shared)
        return slot, shared

    def forget(self, slot: Slot, start: int) -> bool:
        """Drop what a slot holds from a position on; False where that cannot be done and nothing is left of it."""
        if start >= len(slot.tokens):
            return True
        kept = self._context.forget(slot.sequence, start)
        if not kept:
            self._context.forget(slot.sequence)
        slot.drop(start if kept else 0)
        return kept

    def clear(self) -> None:
        """Drop everything: what the cache holds is unknown."""
        self._context.clear()
        for slot in self._slots:
            slot.drop(0)


def common_length(tokens: Sequence[int], edits: Sequence[Edit | None], others: Sequence[int], edit: Edit | None) -> int:
    """How many of the other tokens, all under one steering, these begin with."""
    count = 0
    for token, own, other in zip(tokens, edits, others, strict=False):
        if token != other or own is not edit:
            break
        count += 1
    return count
