"""The sequences of a context that many answers share: what each of them holds, and which one an answer is given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from localsteer.engine.prefix_cache import WORTH_KEEPING, PrefixCache, Written
from localsteer.errors import ModelError
from localsteer.llama.context import Context
from localsteer.llama.residual import Edit


class Slot:
    """A sequence of the context; when nobody uses it, what it holds is kept for a prompt that begins alike.

    Attributes:
        sequence: its number.
        written: what it holds.
        used: when it was last given to an answer; larger is later.
        free: whether no answer uses it.
    """

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.written = Written()
        self.used = 0
        self.free = True


class Slots:
    """All sequences of a context.

    Args:
        context: the context.
        cache: where sequences go that lose their place.
    """

    def __init__(self, context: Context, cache: PrefixCache) -> None:
        self._context = context
        self._cache = cache
        self._slots = [Slot(number) for number in range(context.n_seq)]
        self._clock = itertools.count(1)
        self._in_order = True  # whether the cells were given to one sequence after the other's tokens

    @property
    def kept_tokens(self) -> int:
        """Tokens that they hold, those included that no answer uses at the moment."""
        return sum(len(slot.written) for slot in self._slots)

    def common(self, prefix: Sequence[int], edit: Edit | None) -> int:
        """How many of these tokens, all under one steering, any of them begins with."""
        return max(self._usable(slot, prefix, edit) for slot in self._slots)

    def _usable(self, slot: Slot, prefix: Sequence[int], edit: Edit | None) -> int:
        common = slot.written.common(prefix, edit)
        return common if common == len(slot.written) or self._context.can_go_back(slot.sequence, common) else 0

    def take(self, prefix: Sequence[int], edit: Edit | None) -> tuple[Slot, int]:
        """A free slot for an answer, and how much of the prefix it holds; one must be free.

        A conversation goes on where it was; what another sequence holds of the prefix is shared with it, and what main memory
        holds is copied back.
        """
        alone = all(slot.free for slot in self._slots) and self._put_in_order(prefix, edit)
        self._in_order = alone
        best, shared = self._best(prefix, edit)
        kept, found = self._cache.best(prefix, edit, whole=self._whole)
        if kept is not None and found >= shared + WORTH_KEEPING:
            self._cache.take(kept, found)  # before the next line, which may drive it out
            slot, shared = self._emptied(), 0
            if self._context.restore_sequence(slot.sequence, kept.state):  # else the others leave no room
                slot.written, shared = kept.written.copy(), found
        elif best is not None and (alone or self._goes_on(best, shared)):
            slot = best
            self._keep(slot, shared)
        else:
            slot = self._emptied(spared=best)
            if best is not None and slot is not best:
                self._context.copy_sequence(best.sequence, slot.sequence)
                slot.written = best.written.copy()
        if not self.forget(slot, shared):
            shared = 0
        slot.free, slot.used = False, next(self._clock)
        return slot, shared

    def forget(self, slot: Slot, start: int) -> bool:
        """Drop what a slot holds from a position on; False where that cannot be done and nothing is left of it."""
        if start >= len(slot.written):
            return True
        kept = self._context.forget(slot.sequence, start)
        if not kept:
            self._context.forget(slot.sequence)
        slot.written.cut(start if kept else 0)
        return kept

    def drop(self, slot: Slot) -> None:
        """What a slot holds is unknown: nothing of it is used again."""
        self._context.forget(slot.sequence)
        slot.written = Written()

    def move(self, context: Context) -> Context:
        """Hold the same in another context of the same model; the one before is closed.

        Where that has fewer sequences, those that are in use and those that hold most go along.

        Raises:
            ModelError: there is no room for what is in use.
        """
        if len(self._slots) > context.n_seq:
            self._slots = sorted(self._slots, key=lambda slot: (slot.free, -len(slot.written)))[: context.n_seq]
        self._slots += [Slot(number) for number in range(len(self._slots), context.n_seq)]
        for number, slot in enumerate(self._slots):
            if len(slot.written) and not context.restore_sequence(number, self._context.sequence_state(slot.sequence)):
                if not slot.free:
                    raise ModelError(f"llama.cpp cannot copy the KV cache of {context.model.path}.")
                slot.written = Written()
            slot.sequence = number
        self._in_order = self._in_order or len(self._slots) == 1
        self._context.close()
        self._context = context
        return context

    @property
    def _whole(self) -> bool:
        """Whether a sequence can only be gone on from where it is, as a recurrent state can."""
        return not self._context.model.sequences_share_tokens

    def _best(self, prefix: Sequence[int], edit: Edit | None) -> tuple[Slot | None, int]:
        """The slot that holds most of a prefix, a free one if there is one; and how much."""
        slots = self._slots
        if self._whole:
            slots = [slot for slot in slots if slot.free and slot.written.common(prefix, edit) == len(slot.written)]
        best = max(slots, key=lambda one: (self._usable(one, prefix, edit), one.free), default=None)
        shared = self._usable(best, prefix, edit) if best is not None else 0
        return (best, shared) if shared else (None, 0)

    def _goes_on(self, slot: Slot, shared: int) -> bool:
        """Whether a slot's own conversation goes on. One that merely begins alike keeps what it has."""
        return slot.free and 2 * shared >= len(slot.written)

    def _emptied(self, spared: Slot | None = None) -> Slot:
        """The free slot that was not used for longest, its sequence kept; the spared one only where no other is free."""
        slot = min((one for one in self._slots if one.free), key=lambda one: (one is spared, one.used))
        self._keep(slot, 0)
        if slot is not spared:
            self.forget(slot, 0)
        return slot

    def _keep(self, slot: Slot, start: int) -> None:
        """Before what a slot holds from a position on is dropped: copy the sequence into main memory, if that is worth it."""
        if not self._whole:
            self.forget(slot, slot.written.reusable)  # what no prompt can begin with; the caller cuts further
        elif slot.written.reusable < len(slot.written):
            return
        lost = len(slot.written) - start
        if lost >= WORTH_KEEPING and self._context.sequence_bytes(slot.sequence) <= self._cache.limit:
            self._cache.put(slot.written.copy(), self._context.sequence_state(slot.sequence), whole=self._whole)

    def _put_in_order(self, prefix: Sequence[int], edit: Edit | None) -> bool:
        """Where nobody writes: let an answer find the cells as it would find them alone; False where that would cost too much.

        A sequence whose cells lie behind or between those of others is summed up in another order, which moved log probabilities
        by up to 0.26 nats on the demo model: the same seed would give another answer after other requests.
        """
        holding = [slot for slot in self._slots if len(slot.written)]
        best, shared = self._best(prefix, edit)
        alone = self._in_order and holding == [best]
        if not holding or (alone and best is not None and self._goes_on(best, shared)):
            return True
        if sum(self._context.sequence_bytes(slot.sequence) for slot in holding) > self._cache.limit:
            return False  # what is read already is worth more
        if alone:
            return True  # it is kept before its place is taken
        for slot in holding:
            self._keep(slot, 0)
            self.forget(slot, 0)
        return True
