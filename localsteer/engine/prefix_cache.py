"""Sequences that lost their place in the context, kept in main memory: going back to a conversation costs no reading.

llama-server keeps prompts in the same way (`server_prompt_cache`, `--cache-ram`); here a sequence also knows under which steering
each of its tokens was computed, and is only found again under the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.residual import Edit
from localsteer.reading.prefix_tree import common_beginning

# What llama-server keeps at most unless it is told otherwise, MiB.
DEFAULT_CACHE_RAM = 8192
# Fewer tokens are as soon computed as copied, or waited for.
WORTH_KEEPING = 32


class Written:
    """Tokens of a sequence, and the steering that each of them was computed under.

    Attributes:
        tokens: the tokens.
    """

    def __init__(self, tokens: Sequence[int] = (), spans: Sequence[tuple[int, Edit | None]] = ()) -> None:
        self.tokens = list(tokens)
        self._spans = list(spans)  # where each steering ends, and which it was

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def reusable(self) -> int:
        """How many tokens another prompt may begin with: those under its first steering, as a prompt has one only."""
        return self._spans[0][0] if self._spans else 0

    def holds(self, other: Written, *, whole: bool) -> bool:
        """Whether all that another one can be used for is here as well."""
        length = other.reusable
        same = self.common(other.tokens[:length], other._spans[0][1]) == length
        return same and (not whole or length == self.reusable)

    def copy(self) -> Written:
        """The same, to be changed by itself."""
        return Written(self.tokens, self._spans)

    def add(self, tokens: Sequence[int], edit: Edit | None) -> None:
        """These were computed behind what is there."""
        self.tokens.extend(tokens)
        if self._spans and self._spans[-1][1] == edit:
            self._spans.pop()
        self._spans.append((len(self.tokens), edit))

    def cut(self, start: int) -> None:
        """Nothing is there from a position on."""
        del self.tokens[start:]
        self._spans = [(end, edit) for end, edit in self.spans(start)]

    def spans(self, stop: int | None = None) -> list[tuple[int, Edit | None]]:
        """Up to where each steering goes, up to a position."""
        stop = len(self.tokens) if stop is None else stop
        kept: list[tuple[int, Edit | None]] = []
        for end, edit in self._spans:
            if (kept and kept[-1][0] >= stop) or stop == 0:
                break
            kept.append((min(end, stop), edit))
        return kept

    def common(self, prefix: Sequence[int], edit: Edit | None) -> int:
        """How many tokens of a prefix, all of them under one steering, it begins with."""
        if not self._spans or self._spans[0][1] != edit:
            return 0
        return min(common_beginning(self.tokens, prefix), self._spans[0][0])


@dataclass(frozen=True, eq=False)
class Kept:
    """A sequence in main memory.

    Attributes:
        written: what it holds.
        state: what `Context.sequence_state` gave.
    """

    written: Written
    state: NDArray[np.uint8]


class PrefixCache:
    """Sequences in main memory; those that were not used for longest are forgotten first.

    Args:
        limit: bytes at most; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: list[Kept] = []  # the latest used one last

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return sum(one.state.nbytes for one in self._kept)

    def put(self, written: Written, state: NDArray[np.uint8], *, whole: bool = False) -> None:
        """Keep a sequence, if there is room for it at all."""
        if state.nbytes > self.limit:
            return
        # One that holds nothing else, or the same, is of no further use.
        self._kept = [one for one in self._kept if not written.holds(one.written, whole=whole)]
        self._kept.append(Kept(written, state))
        while self.bytes > self.limit:
            self._kept.pop(0)

    def best(self, prefix: Sequence[int], edit: Edit | None, *, whole: bool) -> tuple[Kept | None, int]:
        """The sequence that begins with the most tokens of a prefix, and how many.

        Args:
            prefix: the tokens.
            edit: the steering of them all.
            whole: only sequences that are nothing but a beginning of it.
        """
        found: Kept | None = None
        longest = 0
        for one in self._kept:
            common = one.written.common(prefix, edit)
            shorter = found is None or len(one.written) < len(found.written)  # less to copy
            if (common > longest or (common == longest > 0 and shorter)) and (not whole or common == len(one.written)):
                found, longest = one, common
        return found, longest

    def take(self, kept: Kept, used: int) -> None:
        """A sequence has got a place again, for its first `used` tokens; where it goes on much further, it stays here, too."""
        self._kept.remove(kept)
        if len(kept.written) - used >= WORTH_KEEPING:
            self._kept.append(kept)
