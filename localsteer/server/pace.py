"""How fast answers come, and so when a place will be free for another one."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from localsteer.engine.request import Answer, Request

# Share of the newest answer in the running means: the last ten or so count; and that of a step, of which there are hundreds.
_ANSWERS, _STEPS = 0.1, 0.02
# Before a step was made, or a prompt was read: seconds of a step, and of a token of a prompt, of a small model on two cores.
_FIRST_STEP, _FIRST_READ = 0.05, 0.005
# Before an answer has ended by itself: tokens of one. Taken to be as long as its context, it would be said to take half an hour.
_FIRST_LENGTH = 300


@dataclass(frozen=True)
class Work:
    """An answer that is written, or waits.

    Attributes:
        prompt: tokens that are still to be read.
        allowed: the most tokens that it may have.
        drawn: tokens that it has.
        places: of the batch that it takes.
    """

    prompt: int
    allowed: int
    drawn: int = 0
    places: int = 1

    @classmethod
    def of(cls, request: Request, places: int, n_ctx: int) -> Work:
        """One that waits."""
        prompt = len(request.prompt)
        return cls(prompt, max(min(request.max_tokens, n_ctx - prompt), 0), places=places)


class Pace:
    """Running means of what was measured. Written by the engine's thread, read by others."""

    def __init__(self) -> None:
        self._step: float | None = None
        self._read: float | None = None
        self._length: float | None = None  # of answers that end of their own accord

    def stepped(self, seconds: float) -> None:
        """A step of the batch was made: every answer has one token more, or more of its prompt was read."""
        self._step = _mean(self._step, seconds, _STEPS)

    def ended(self, answer: Answer) -> None:
        """An answer came to its end."""
        timing = answer.timing
        if timing.prompt_tokens:
            self._read = _mean(self._read, timing.prompt_seconds / timing.prompt_tokens, _ANSWERS)
        length = len(answer.tokens)
        # One that was cut off says only that answers are no shorter.
        if answer.finish_reason == "stop" or (self._length is not None and length > self._length):
            self._length = _mean(self._length, length, _ANSWERS)

    def seconds(self, work: Work) -> float:
        """What an answer still takes."""
        expected = min(_FIRST_LENGTH if self._length is None else self._length, work.allowed)
        if work.drawn >= expected:  # longer than most: as if it began anew
            expected = min(work.drawn + expected, work.allowed)
        step = _FIRST_STEP if self._step is None else self._step
        read = _FIRST_READ if self._read is None else self._read
        return work.prompt * read + max(expected - work.drawn, 1) * step

    def until_free(self, running: Iterable[Work], waiting: Sequence[Work], parallel: int, wanted: int) -> float:
        """Seconds until so many of those that wait have a place, or the last of them has.

        Args:
            running: the answers in the batch.
            waiting: those that wait, in their order.
            parallel: places of the batch.
            wanted: how many.
        """
        ends = [(self.seconds(work), work.places) for work in running]
        heapq.heapify(ends)
        free, now = parallel - sum(places for _, places in ends), 0.0
        for work in waiting[:wanted]:
            while free < work.places and ends:
                now, places = heapq.heappop(ends)
                free += places
            free -= work.places
            heapq.heappush(ends, (now + self.seconds(work), work.places))
        # Where nobody waits, whoever comes waits for those that are written.
        return now if waiting else min((seconds for seconds, _ in ends), default=0.0)


def _mean(before: float | None, newest: float, share: float) -> float:
    return newest if before is None else before + share * (newest - before)
