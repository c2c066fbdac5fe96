"""Many answers in one running batch: each joins when it is asked for, leaves when it ends, and is steered in its own way.

Where a prompt begins as another one did, under the same steering, that beginning is not computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from localsteer.engine.answering import Answering, Logits, Run, next_run
from localsteer.engine.checks import check_anchored_batch, check_prompt, default_context, needs_tap
from localsteer.engine.gate import Gate
from localsteer.engine.request import Answer, Request
from localsteer.engine.slots import Slot, Slots, common_length
from localsteer.errors import ModelError
from localsteer.llama.context import Batch, Context, undivided
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap, Rows
from localsteer.llama.steerability import steerability

# While others are being written, a prompt is read in parts of this many tokens, so that nobody waits long for the next word: a
# laptop that reads 200 tokens a second holds the others up for 0.6 s a part, where whole parts of 512 would take 2.6 s.
_SMOOTH_PART = 128

# A prompt waits until one that is being read is done where that saves at least this many tokens; less is as soon computed.
_WORTH_WAITING = 32


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
    def sequence(self) -> int:
        """Its sequence in the context; there is one once it has begun."""
        assert self.slot is not None
        return self.slot.sequence

    def end(self) -> Answer:
        """Its answer, as far as it came.

        Raises:
            Exception: what ended it.
        """
        if self.error is not None:
            raise self.error
        return self.answering.end()


@dataclass(frozen=True)
class _Part:
    """What one lane has in a batch, in its own sequence or in its twin's."""

    lane: Lane
    run: Run
    tokens: tuple[int, ...]
    of_twin: bool = False

    @property
    def slot(self) -> Slot:
        slot = self.lane.twin if self.of_twin else self.lane.slot
        assert slot is not None
        return slot

    @property
    def edit(self) -> Edit | None:
        return None if self.of_twin else self.run.edit


class RunningBatch:
    """Up to `parallel` answers at once, half as many where they are anchored. A context manager; all calls from one thread.

    An answer equals the one that its request gets alone up to the noise floor of quantised inference, which depends on how a
    batch is composed: a sampled text may part from it after some tokens.

    Args:
        model: the model.
        parallel: most answers at once; an anchored one takes two places, the other for the unsteered model.
        n_ctx: tokens of context that each of them has; None means as many as `Generator` takes. The KV cache holds
            `parallel` times as many.

    Raises:
        ModelError: there is not enough memory.
    """

    def __init__(self, model: Model, *, parallel: int = 4, n_ctx: int | None = None) -> None:
        self.model = model
        self.parallel = parallel
        self.n_ctx = n_ctx if n_ctx is not None else default_context(model)
        possible = steerability(model)
        self._why_not = None if possible.readable else possible.reason
        tap = ResidualTap(model.n_layer, model.n_embd) if possible.readable else None
        self._context = Context(model, n_ctx=self.n_ctx * parallel, n_seq=parallel, tap=tap)
        self._slots = Slots(self._context)
        self._lanes: list[Lane] = []

    def __enter__(self) -> RunningBatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all answers and free the context."""
        for lane in list(self._lanes):
            self.leave(lane)
        self._context.close()

    @property
    def places(self) -> int:
        """How many places are free."""
        return self.parallel - sum(lane.places for lane in self._lanes)

    @property
    def kept_tokens(self) -> int:
        """Tokens in the KV cache, those included that no answer uses at the moment."""
        return self._slots.kept_tokens

    def places_for(self, request: Request, gate: Gate | None = None) -> int:
        """How many places an answer takes: two where it is anchored and may be steered."""
        return 2 if request.anchored and any(edit is not None for edit in _edits(request, gate)) else 1

    def check(self, request: Request, gate: Gate | None = None) -> None:
        """Make sure that a request can be answered.

        Raises:
            LocalsteerError: its prompt does not fit the context, or the model cannot be steered for each answer by itself, or
                the answer cannot be anchored here.
        """
        check_prompt(request.prompt, self.n_ctx)
        edits = [request.prompt_edit, *_edits(request, gate)]
        reads = gate is not None and (gate.prompt_layers or gate.output_layers)
        if self._why_not is not None and (reads or any(edit is not None for edit in edits)):
            raise ModelError(
                f"{self.model.name} (architecture {self.model.architecture}) cannot be steered for each answer by itself: "
                f"{self._why_not}.",
                hint="`localsteer doctor -m MODEL` says which way a model allows.",
            )
        if self.places_for(request, gate) > 1:
            check_anchored_batch(self.model, request.sampling, self.parallel)

    def join(self, request: Request, *, gate: Gate | None = None, on_text: Callable[[str], None] | None = None) -> Lane:
        """Begin an answer with the next step; there must be the places that it takes.

        Args:
            request: what to answer.
            gate: decides how the answer is steered while it is written; without one, the request's plan does.
            on_text: called with each piece of text as soon as it is certain.

        Raises:
            LocalsteerError: as `check`.
        """
        self.check(request, gate)
        places = self.places_for(request, gate)
        if self.places < places:
            raise ValueError("no place is free")
        answering = Answering(self.model, request.seeded(), gate=gate, on_text=on_text, n_ctx=self.n_ctx)
        lane = Lane(answering, places)
        self._lanes.append(lane)
        return lane

    def leave(self, lane: Lane) -> None:
        """End an answer where it stands; its places are free at once."""
        if lane.steps is not None:
            lane.steps.close()
        for slot in (lane.slot, lane.twin):
            if slot is not None:
                slot.free = True
        self._lanes.remove(lane)

    def step(self) -> list[Lane]:
        """Run the next tokens of all answers together; returns those that came to their end, which have left."""
        for lane in self._lanes:
            if lane.steps is None and not self._should_wait(lane):
                self._begin(lane)
        try:
            for parts in self._batches():
                self._decode(parts)
        except Exception as error:
            self._fail_all(error)
        ended = [lane for lane in self._lanes if lane.error is not None or (lane.steps is not None and not lane.runs)]
        for lane in ended:
            self.leave(lane)
        return ended

    # ---- joining

    def _should_wait(self, lane: Lane) -> bool:
        """Whether another answer is about to compute much of what this one's prompt begins with."""
        if not self.model.sequences_share_tokens:
            return False
        prefix, edit = lane.answering.reusable, lane.answering.request.prompt_edit
        there = self._slots.common(prefix, edit)
        return any(_planned(other, prefix, edit) >= there + _WORTH_WAITING for other in self._lanes if other is not lane)

    def _begin(self, lane: Lane) -> None:
        prefix, edit = lane.answering.reusable, lane.answering.request.prompt_edit
        lane.slot, reused = self._slots.take(prefix, edit)
        lane.steps = lane.answering.steps(reused)
        self._go_on(lane, None)

    # ---- running

    def _batches(self) -> list[list[_Part]]:
        """What is run next, most often as one batch: a token of every answer that is being written, and a part of the prompts."""
        waiting = [(lane, lane.runs[0]) for lane in self._lanes if lane.runs]
        single = [(lane, run) for lane, run in waiting if len(run.rest) == 1]
        longer = [(lane, run) for lane, run in waiting if len(run.rest) > 1]
        single.sort(key=lambda one: one[0].sequence)
        parts: list[_Part] = []
        for lane, run in single:
            parts.append(_Part(lane, run, run.rest))
            if run.anchored:
                parts.append(_Part(lane, run, run.rest, of_twin=True))
        room = min(_SMOOTH_PART, self._context.n_ubatch - len(parts)) if parts else self._context.n_ubatch
        if not self.model.sequences_share_tokens:
            # llama.cpp splits a batch of recurrent sequences of different lengths anew, and a tap would not know its rows.
            batches = [parts[group] for group in undivided(self.model, [part.lane.sequence for part in parts])]
            if self._why_not is not None:
                # plamo2's graph ends the process where several sequences run together that are not the context's first ones.
                batches = [[part] for part in parts]
            return batches + [[_Part(lane, run, run.rest[:room])] for lane, run in longer[:1]]
        for lane, run in longer:
            if room <= 0:
                break
            part = run.rest[:room]
            parts.append(_Part(lane, run, part))
            room -= len(part)
        return [parts] if parts else []

    def _decode(self, parts: Sequence[_Part]) -> None:
        ends = np.cumsum([len(part.tokens) for part in parts])
        self._prepare(parts)
        self._context.decode(_batch(parts, ends))
        for part in parts:
            part.slot.add(part.tokens, part.edit)
        for number, (part, end) in enumerate(zip(parts, ends.tolist(), strict=True)):
            if part.of_twin:
                continue
            count = len(part.tokens)
            part.run.took(count, self._rows_of(number, end - count, end, int(ends[-1])))
            if not part.run.rest:
                # The twin's row is the next one.
                self._go_on(part.lane, Logits(self._context, end - 1, end if part.run.anchored else None))

    def _prepare(self, parts: Sequence[_Part]) -> None:
        tap = self._context.tap
        if tap is None:
            return
        edits = [part.edit for part in parts for _ in part.tokens]
        layers = {layer for part in parts for layer in part.run.layers}
        # One steering for all: llama.cpp's own control vector, which costs 0.2 ms a step on the demo model; the tap 2.5 ms.
        # What is read is the output of a block before it is steered, which only the tap can tell.
        tapped = bool(layers) or needs_tap(edits, self.model)
        common = None if tapped else edits[0]
        self._context.set_control_vector(common.added if common is not None else None)
        tap.edit(edits if tapped and any(edit is not None for edit in edits) else [])
        tap.watch(layers)

    def _rows_of(self, number: int, start: int, end: int, n_tokens: int) -> Callable[[int], Rows]:
        """The rows of one part; of the last block llama.cpp may keep only those with logits, the last one of each part."""

        def rows(layer: int) -> Rows:
            assert self._context.tap is not None
            found = self._context.tap.rows(layer)
            return found[start:end] if len(found) == n_tokens else found[number : number + 1]

        return rows

    def _go_on(self, lane: Lane, logits: Logits | None) -> None:
        """Take a lane's next step. What fails in it ends that answer, and no other."""
        assert lane.steps is not None
        assert lane.slot is not None
        if lane.runs:
            lane.runs.pop(0)
        if lane.runs:
            return
        try:
            run = next_run(lane.steps, logits)
        except Exception as error:
            lane.error = error
            return
        if run is None:
            return
        tokens, edits = lane.slot.tokens[: run.start], lane.slot.edits[: run.start]
        if not self._slots.forget(lane.slot, run.start):
            lane.runs = list(_again(tokens, edits))
        if run.anchored:
            self._bring_up_twin(lane)
        lane.runs.append(run)

    def _bring_up_twin(self, lane: Lane) -> None:
        """Let the twin hold the tokens that the lane's own slot holds."""
        assert lane.slot is not None
        held = lane.slot.tokens
        if lane.twin is None:
            lane.twin, shared = self._slots.take(held, None)
            assert shared == len(held)  # the first run that is steered is anchored: nothing before it was
        self._slots.forget(lane.twin, len(held))

    def _fail_all(self, error: Exception) -> None:
        self._slots.clear()
        for lane in self._lanes:
            lane.error = error


def _edits(request: Request, gate: Gate | None) -> Sequence[Edit | None]:
    """All that may be done to the tokens of an answer."""
    return gate.edits if gate is not None else [request.response_edit]


def _planned(lane: Lane, prefix: Sequence[int], edit: Edit | None) -> int:
    """How much of a prefix a lane will hold once it has run what it is about to."""
    if not lane.runs or lane.slot is None:
        return 0
    run = lane.runs[0]
    edits = [*lane.slot.edits, *([run.edit] * len(run.rest))]
    return common_length([*lane.slot.tokens, *run.rest], edits, prefix, edit)


def _again(tokens: Sequence[int], edits: Sequence[Edit | None]) -> Iterator[Run]:
    """Runs that compute tokens anew, each under the steering that it had."""
    start = 0
    for _, group in itertools.groupby(edits, key=id):
        length = len(list(group))
        yield Run(start, tuple(tokens[start : start + length]), edits[start])
        start += length


def _batch(parts: Sequence[_Part], ends: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> Batch:
    """All parts one after another, logits for the last token of each."""
    n = int(ends[-1])
    outputs = np.zeros(n, np.int8)
    outputs[ends - 1] = 1
    sequences = [part.slot.sequence for part in parts]
    return Batch(
        tokens=np.array([token for part in parts for token in part.tokens], np.int32),
        positions=np.concatenate([np.arange(p.run.position, p.run.position + len(p.tokens), dtype=np.int32) for p in parts]),
        sequence_counts=np.ones(n, np.int32),
        sequence_ids=np.repeat(np.array(sequences, np.int32), [len(part.tokens) for part in parts]),
        outputs=outputs,
    )
