"""One answer in the batch, and what it has in a decode."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from localsteer.engine.answering import Answering, Logits, Run
from localsteer.engine.prefix_cache import Written
from localsteer.engine.request import Answer
from localsteer.engine.slots import Slot
from localsteer.llama.context import Batch
from localsteer.llama.residual import Edit
from localsteer.reading.prefix_tree import common_beginning


@dataclass(eq=False)
class Lane:
    """One answer in the batch.

    Attributes:
        answering: how it is written.
        places: how many places it takes.
        error: what ended it, where something failed.
        slot: what it is written in, once it has begun.
        twin: what the unsteered model reads it along in, once an anchored answer is steered.
    """

    answering: Answering
    places: int = 1
    error: Exception | None = None
    slot: Slot | None = None
    twin: Slot | None = None
    steps: Generator[Run, Logits, None] | None = None
    # What is run before the next step can be taken: tokens that had to be forgotten, then what the answer asks for.
    runs: list[Run] = field(default_factory=list)

    @property
    def begun(self) -> Slot:
        """What it is written in; it has begun."""
        assert self.slot is not None
        return self.slot

    def end(self) -> Answer:
        """Its answer, as far as it came.

        Raises:
            Exception: what ended it.
        """
        if self.error is not None:
            raise self.error
        return self.answering.end()


@dataclass(eq=False, slots=True)
class Part:
    """What one lane has in a batch, in its own sequence or in its twin's."""

    lane: Lane
    run: Run
    tokens: tuple[int, ...]
    slot: Slot
    edit: Edit | None


def planned(lane: Lane, prefix: Sequence[int], edit: Edit | None) -> int:
    """How much of a prefix a lane will hold once it has run what it is about to."""
    if not lane.runs or lane.slot is None:
        return 0
    run, written = lane.runs[0], lane.slot.written
    held = written.common(prefix, edit)
    if held < len(written) or (run.edit != edit):
        return held
    return held + common_beginning(run.rest, prefix[held:])


def again(written: Written) -> Iterator[Run]:
    """Runs that compute tokens anew, each under the steering that it had."""
    start = 0
    for end, edit in written.spans():
        yield Run(start, tuple(written.tokens[start:end]), edit)
        start = end


def batch_of(parts: Sequence[Part], ends: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> Batch:
    """All parts one after another, logits for the last token of each."""
    n = int(ends[-1])
    outputs = np.zeros(n, np.int8)
    outputs[ends - 1] = 1
    if n == len(parts):  # the usual case: a token each
        positions = np.array([part.run.position for part in parts], np.int32)
        sequences = np.array([part.slot.sequence for part in parts], np.int32)
    else:
        counts = [len(part.tokens) for part in parts]
        starts = np.array([part.run.position for part in parts], np.int32)
        positions = np.arange(n, dtype=np.int32) + np.repeat(starts - (ends - counts).astype(np.int32), counts)
        sequences = np.repeat(np.array([part.slot.sequence for part in parts], np.int32), counts)
    return Batch(
        tokens=np.fromiter((token for part in parts for token in part.tokens), np.int32, n),
        positions=positions,
        sequence_counts=np.ones(n, np.int32),
        sequence_ids=sequences,
        outputs=outputs,
    )
