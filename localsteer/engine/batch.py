"""The one engine: a batch of answers, each of which joins when it is asked for, leaves when it ends, and has its own steering.

`step` runs what the answers need next (prefill and decode) as one batch, most often; `generate` and the server are loops over it.
Where a prompt begins as another one did, under the same steering, that beginning is not computed again.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from localsteer.engine.answering import Answering, Logits, Run, next_run
from localsteer.engine.checks import (
    check_anchored_batch,
    check_memory,
    check_prompt,
    check_steering,
    default_context,
    needs_tap,
)
from localsteer.engine.gate import Gate
from localsteer.engine.lane import Lane, Part, again, batch_of, planned
from localsteer.engine.prefix_cache import DEFAULT_CACHE_RAM, WORTH_KEEPING, PrefixCache
from localsteer.engine.request import Request
from localsteer.engine.slots import Slots
from localsteer.llama.closing import Closing
from localsteer.llama.context import N_UBATCH, Context, undivided
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap, Rows
from localsteer.llama.steerability import steerability

logger = logging.getLogger("localsteer")

# While others are being written, a prompt is read in parts of this many tokens, so that nobody waits long for the next word: a
# laptop that reads 200 tokens a second holds the others up for 0.6 s a part, where whole parts of 512 would take 2.6 s.
SMOOTH_PART = 128
_MIB = 2**20


class RunningBatch(Closing):
    """Up to `parallel` answers at once, half as many where they are anchored. A context manager; all calls from one thread.

    An answer equals the one that its request gets alone, also after others; beside others it does so up to the noise floor of
    quantised inference, which depends on how a batch is composed: a sampled text may part from it after some tokens.

    Its context begins without a tap, which slows every decode down, and is made anew with one, whatever it holds, when something
    first needs it.

    Args:
        model: the model.
        parallel: most answers at once; an anchored one takes two places, the other for the unsteered model.
        n_ctx: tokens of context that each of them has; None means what the model and the memory allow.
        n_cells: tokens that all of them hold together; None means `parallel` times as many.
        cache_ram: MiB of main memory for sequences that lost their place; without any, what others left in the KV cache may move
            an answer by rounding.
        tapped: whether its context has a tap from the beginning; sequences that move into another context share nothing there.
        smooth: whether somebody watches the answers come, and long prompts are read in parts meanwhile.

    Attributes:
        failures: answers that failed in a decode since the last decode that went well.

    Raises:
        ModelError: there is not enough memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        parallel: int = 4,
        n_ctx: int | None = None,
        n_cells: int | None = None,
        cache_ram: int = DEFAULT_CACHE_RAM,
        tapped: bool = False,
        smooth: bool = True,
    ) -> None:
        self.model = model
        self.parallel = parallel
        self.n_ctx = n_ctx if n_ctx is not None else default_context(model, parallel)
        self._n_cells = n_cells
        self._smooth_part = SMOOTH_PART if smooth else N_UBATCH
        self._common: Edit | None = None
        self._context = self._make_context(parallel, tapped=tapped)
        self._slots = Slots(self._context, PrefixCache(cache_ram * _MIB))
        self._lanes: list[Lane] = []
        self.failures = 0

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

    def check(self, request: Request, gate: Gate | None = None) -> None:
        """Make sure that a request can be answered.

        Raises:
            LocalsteerError: as `check_request`.
        """
        check_request(self.model, request, gate, n_ctx=self.n_ctx, parallel=self.parallel)

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
        places = places_for(request, gate)
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

    def widen(self, parallel: int, n_cells: int | None = None) -> None:
        """Have at least so many places from now on.

        Args:
            parallel: how many.
            n_cells: tokens that all of them hold together; None means as many for each as before.

        Raises:
            ModelError: there is not enough memory.
        """
        if parallel > self.parallel:
            self._n_cells = n_cells
            self._remake(parallel, tapped=self._context.tap is not None)

    def narrow(self) -> None:
        """Have one place again, and no tap before something needs one: both slow down whoever goes on alone."""
        if self.parallel > 1:
            self._n_cells = None
            self._remake(1, tapped=False)

    def step(self) -> list[Lane]:
        """Run the next tokens of all answers together; returns those that came to their end, which have left."""
        for lane in self._lanes:
            if lane.steps is None and not self._should_wait(lane):
                self._begin(lane)
        for parts in self._batches():
            self._run(parts)
        ended = [lane for lane in self._lanes if lane.error is not None or (lane.steps is not None and not lane.runs)]
        for lane in ended:
            self.leave(lane)
        return ended

    # ---- joining

    def _should_wait(self, lane: Lane) -> bool:
        """Whether another answer is about to compute much of what this one's prompt begins with."""
        if not self.model.sequences_share_tokens or len(self._lanes) == 1:
            return False
        prefix, edit = lane.answering.reusable, lane.answering.request.prompt_edit
        there = self._slots.common(prefix, edit)
        return any(planned(other, prefix, edit) >= there + WORTH_KEEPING for other in self._lanes if other is not lane)

    def _begin(self, lane: Lane) -> None:
        prefix, edit = lane.answering.reusable, lane.answering.request.prompt_edit
        try:
            lane.slot, reused = self._slots.take(prefix, edit)
        except Exception as error:
            lane.error = error
            return
        lane.steps = lane.answering.steps(reused)
        self._go_on(lane, None)

    # ---- running

    def _batches(self) -> Iterator[list[Part]]:
        """What is run next, most often as one batch: a token of every answer that is being written, and a part of the prompts."""
        waiting = [(lane, lane.runs[0]) for lane in self._lanes if lane.runs]
        single = [one for one in waiting if len(one[1].rest) == 1]
        longer = [one for one in waiting if len(one[1].rest) > 1]
        single.sort(key=lambda one: one[0].begun.sequence)
        parts: list[Part] = []
        for lane, run in single:
            parts.append(Part(lane, run, run.rest, lane.begun, run.edit))
            if run.anchored:
                assert lane.twin is not None
                parts.append(Part(lane, run, run.rest, lane.twin, None))
        room = min(self._smooth_part, self._context.n_ubatch - len(parts)) if parts else self._context.n_ubatch
        if not self.model.sequences_share_tokens:
            # llama.cpp splits a batch of recurrent sequences of different lengths anew, and a tap would not know its rows.
            longer = longer[:1]
        prompts: list[Part] = []
        for lane, run in longer:
            if room > 0:
                tokens = run.rest[:room]
                prompts.append(Part(lane, run, tokens, lane.begun, run.edit))
                room -= len(tokens)
        return (batch for batch in self._divided(parts, prompts) if batch)

    def _divided(self, parts: list[Part], prompts: list[Part]) -> Iterable[list[Part]]:
        """In batches that this model allows, most often one."""
        everything = [*parts, *prompts]
        if self.model.sequences_share_tokens:
            same = all(part.edit == everything[0].edit for part in everything)
            if same or steerability(self.model).readable:
                return [everything]
            # Only llama.cpp's own control vector can steer it, which is the same for all tokens of a decode.
            return [list(group) for _, group in itertools.groupby(everything, key=lambda part: part.edit)]
        if steerability(self.model).readable:
            return [*(parts[group] for group in undivided(self.model, [part.slot.sequence for part in parts])), prompts]
        # plamo2's graph ends the process where several sequences run together that are not the context's first ones.
        return [[part] for part in everything]

    def _run(self, parts: Sequence[Part]) -> None:
        """Decode a batch. Where that fails, its answers are tried one by one: what fails alone ends alone."""
        try:
            ends = self._decode(parts)
        except Exception as error:
            lanes = list(dict.fromkeys(part.lane for part in parts))
            if len(lanes) == 1:
                self._fail(lanes[0], error)
                return
            logger.warning("a decode of %d answers failed (%s); they are tried one by one", len(lanes), error)
        else:
            self._hand_out(parts, ends)
            return
        for lane in lanes:
            own = [part for part in parts if part.lane is lane]
            if all(self._context.forget(part.slot.sequence, part.run.position) for part in own):
                self._run(own)
            else:  # a recurrent state cannot be taken back
                lane.runs[:0] = again(lane.begun.written)
                self._slots.drop(lane.begun)
                while lane.error is None and lane.runs[0] is not own[0].run:
                    run = lane.runs[0]
                    self._run([Part(lane, run, run.rest[: self._context.n_ubatch], lane.begun, run.edit)])
                if lane.error is None:
                    self._run(own)

    def _fail(self, lane: Lane, error: Exception) -> None:
        lane.error = error
        self.failures += 1
        for slot in (lane.slot, lane.twin):
            if slot is not None:
                self._slots.drop(slot)

    def _decode(self, parts: Sequence[Part]) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
        ends = np.cumsum([len(part.tokens) for part in parts])
        self._prepare(parts)
        self._context.decode(batch_of(parts, ends))
        self.failures = 0
        for part in parts:
            part.slot.written.add(part.tokens, part.edit)
        return ends

    def _hand_out(self, parts: Sequence[Part], ends: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> None:
        n_tokens = int(ends[-1])
        for number, (part, end) in enumerate(zip(parts, ends.tolist(), strict=True)):
            if part.slot is part.lane.twin:
                continue
            count = len(part.tokens)
            part.run.took(count, self._rows_of(number, end - count, end, n_tokens))
            if not part.run.rest:
                # The twin's row is the next one.
                self._go_on(part.lane, Logits(self._context, end - 1, end if part.run.anchored else None))

    def _prepare(self, parts: Sequence[Part]) -> None:
        """Set what the next decode adds, removes and reads."""
        edits = [part.edit for part in parts]
        layers = {layer for part in parts for layer in part.run.layers}
        # What is read is the output of a block before it is steered, which only the tap can tell.
        tapped = bool(layers) or needs_tap(self.model, edits)
        if tapped and self._context.tap is None:
            self._remake(self.parallel, tapped=True)
        # One steering for all: llama.cpp's own control vector, which costs next to nothing (bench/RESULTS.md).
        common = None if tapped else edits[0]
        if common is not self._common:
            self._context.set_control_vector(common.added if common is not None else None)
            self._common = common
        if self._context.tap is not None:
            steered = tapped and any(edit is not None for edit in edits)
            self._context.tap.edit([part.edit for part in parts for _ in part.tokens] if steered else [])
            self._context.tap.watch(layers)

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
        if lane.runs:
            lane.runs.pop(0)
        if lane.runs:
            return
        try:
            run = next_run(lane.steps, logits)
            if run is not None:
                self._make_ready(lane, run)
        except Exception as error:
            lane.error = error

    def _make_ready(self, lane: Lane, run: Run) -> None:
        slot = lane.begun
        if run.start < len(slot.written):
            before = slot.written.copy()
            if not self._slots.forget(slot, run.start):
                before.cut(run.start)
                lane.runs = list(again(before))
        if run.anchored:
            self._bring_up_twin(lane)
        lane.runs.append(run)

    def _bring_up_twin(self, lane: Lane) -> None:
        """Let the twin hold the tokens that the lane's own slot holds."""
        held = lane.begun.written.tokens
        if lane.twin is None:
            lane.twin, shared = self._slots.take(held, None)
            assert shared == len(held)  # the first run that is steered is anchored: nothing before it was
        self._slots.forget(lane.twin, len(held))

    # ---- the context

    def _make_context(self, parallel: int, *, tapped: bool) -> Context:
        tap = ResidualTap(self.model.n_layer, self.model.n_embd) if tapped else None
        n_cells = self._n_cells if self._n_cells is not None else self.n_ctx * parallel
        check_memory(self.model, n_cells)
        return Context(self.model, n_ctx=n_cells, n_seq=parallel, tap=tap)

    def _remake(self, parallel: int, *, tapped: bool) -> None:
        """Another context, which holds the same."""
        self._context = self._slots.move(self._make_context(parallel, tapped=tapped))
        self.parallel, self._common = parallel, None


def places_for(request: Request, gate: Gate | None = None) -> int:
    """How many places an answer takes: two where it is anchored and may be steered."""
    return 2 if request.anchored and any(edit is not None for edit in _edits(request, gate)) else 1


def check_request(model: Model, request: Request, gate: Gate | None, *, n_ctx: int, parallel: int) -> None:
    """Make sure that a request can be answered in a batch of so many places, each with so many tokens of context.

    Raises:
        LocalsteerError: its prompt does not fit the context, the model cannot be steered as it asks, or it takes more places than
            there are.
    """
    check_prompt(request.prompt, n_ctx)
    anchored = places_for(request, gate) > 1
    if anchored:
        check_anchored_batch(model, request.sampling, parallel)
    reads = gate is not None and bool(gate.prompt_layers or gate.output_layers)
    check_steering(model, [request.prompt_edit, *_edits(request, gate)], tapped=reads or anchored)


def _edits(request: Request, gate: Gate | None) -> Sequence[Edit | None]:
    """All that may be done to the tokens of an answer."""
    return request.gate(gate).edits
