"""Requests -> answers, one at a time or many side by side: loops over the steps of a batch.

Steering applies to the response: every forward pass that predicts a token of the answer, the one over the last prompt token
included. In the mode "prompt" it applies to the whole prompt too, as in llama.cpp's own programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from localsteer.engine.batch import RunningBatch, check_request, places_for
from localsteer.engine.checks import check_memory, default_context
from localsteer.engine.gate import Gate
from localsteer.engine.prefix_cache import WORTH_KEEPING
from localsteer.engine.reply import apart
from localsteer.engine.request import Answer, Request
from localsteer.llama.closing import Closing
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.steerability import steerability
from localsteer.reading.prefix_tree import lay_out

# Attention of every token runs over the cells of all sequences, so ever larger batches stop paying.
MAX_PARALLEL = 32
# MiB for what a generator has read: a conversation of 4,000 tokens on an 8B model.
_CACHE_RAM = 512


class Generator(Closing):
    """Answers requests one after another; what they begin alike with is read once. A context manager.

    Args:
        model: the model.
        n_ctx: tokens of context; None means what the model and the memory allow.
        cache_ram: MiB of main memory for prompts and answers that others have taken the place of.

    Raises:
        ModelError: there is not enough memory for such a context.
    """

    def __init__(self, model: Model, *, n_ctx: int | None = None, cache_ram: int = _CACHE_RAM) -> None:
        self.model = model
        self.n_ctx = n_ctx if n_ctx is not None else default_context(model)
        check_memory(model, self.n_ctx)  # the context itself is made when it is needed
        self._cache_ram = cache_ram
        self._batch: RunningBatch | None = None

    def close(self) -> None:
        """Free the context."""
        if self._batch is not None:
            self._batch.close()
            self._batch = None

    def generate(
        self,
        request: Request,
        *,
        gate: Gate | None = None,
        on_text: Callable[[str], None] | None = None,
        on_reasoning: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one request.

        Args:
            request: what to answer.
            gate: decides how the answer is steered while it is written; without one, the request's plan does.
            on_text: called with each piece of text as soon as it is certain.
            on_reasoning: likewise, with what the model thinks; `on_text` then gets what it answers, both without marks.
            should_stop: asked before every step; True ends the answer as "interrupted".

        Raises:
            LocalsteerError: the prompt does not fit the context, or the model cannot be steered as the plan asks.
        """
        # Before there is a context: what a model allows is tried in one of its own, and both together would need more memory.
        check_request(self.model, request, gate, n_ctx=self.n_ctx, parallel=2)
        batch = self._running()
        batch.widen(places_for(request, gate))
        finish = None
        if on_text is not None and on_reasoning is not None:
            on_text, finish = apart(request.division, on_text, on_reasoning)
        lane = batch.join(request, gate=gate, on_text=on_text)
        try:
            while should_stop is None or not should_stop():
                if batch.step():
                    break
            else:
                batch.leave(lane)
        except BaseException:  # Ctrl-C in the middle of a step: what the cache holds is unknown
            self.close()
            raise
        answer = lane.end()
        if finish is not None:
            finish()
        return answer

    def side_by_side(
        self,
        requests: Sequence[Request],
        *,
        on_text: Callable[[int, str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """Answer several requests at once, in one batch: what their prompts begin alike with is read once.

        Args:
            requests: what to answer.
            on_text: called with the number of the request and each piece of what is answered as soon as it is certain; what the
                model thinks before that is left out.
            should_stop: asked before every step; True ends all answers as "interrupted".

        Raises:
            LocalsteerError: as `generate`, or there is not enough memory for all of them.
        """
        places = sum(places_for(request) for request in requests)
        for request in requests:
            check_request(self.model, request, None, n_ctx=self.n_ctx, parallel=places)
        batch = self._running()
        try:
            batch.widen(places, self.n_ctx + _cells(self.model, requests, self.n_ctx))
            tellers = [self._teller(request, number, on_text) for number, request in enumerate(requests)]
            lanes = [batch.join(request, on_text=tell) for request, (tell, _) in zip(requests, tellers, strict=True)]
            running = list(lanes)
            while running and not (should_stop is not None and should_stop()):
                for lane in batch.step():
                    running.remove(lane)
                    if lane.error is not None:
                        raise lane.error
            for lane in running:
                batch.leave(lane)
            batch.narrow()
        except BaseException:
            self.close()
            raise
        answers = [lane.end() for lane in lanes]
        for _, finish in tellers:
            finish()
        return answers

    @staticmethod
    def _teller(
        request: Request, number: int, on_text: Callable[[int, str], None] | None
    ) -> tuple[Callable[[str], None], Callable[[], None]]:
        """What is told the pieces of an answer, and what is called at its end."""
        tell = functools.partial(on_text, number) if on_text is not None else lambda _piece: None
        return apart(request.division, tell, lambda _thought: None)

    def _running(self) -> RunningBatch:
        if self._batch is None:
            self._batch = RunningBatch(self.model, parallel=1, n_ctx=self.n_ctx, cache_ram=self._cache_ram)
        return self._batch


def generate_many(
    model: Model,
    requests: Sequence[Request],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Answer many requests, up to 32 at once in one batch. What their prompts have in common is computed once.

    An answer equals the one that the request gets alone up to the noise floor of quantised inference, which depends on how a
    batch is composed: a sampled text may part from it after some tokens.

    Args:
        model: the model.
        requests: what to answer.
        on_progress: told how many answers are finished, and of how many.

    Returns:
        The answers in the order of the requests.

    Raises:
        LocalsteerError: the model cannot be steered as a plan asks, or memory does not suffice.
    """
    answers: list[Answer] = []
    for start in range(0, len(requests), MAX_PARALLEL):
        group = requests[start : start + MAX_PARALLEL]
        places = sum(places_for(request) for request in group)
        n_ctx = max(len(request.prompt) + max(request.max_tokens, 0) for request in group) + 1
        # Some are read while others are written: with any steering, there are two in a decode.
        tapped = any(request.response_edit is not None for request in group) and steerability(model).readable
        cells = _cells(model, group, n_ctx)
        with RunningBatch(model, parallel=places, n_ctx=n_ctx, n_cells=cells, cache_ram=0, tapped=tapped, smooth=False) as batch:
            lanes = [batch.join(request) for request in group]
            running = len(lanes)
            while running:
                if ended := batch.step():
                    running -= len(ended)
                    for lane in ended:
                        if lane.error is not None:
                            raise lane.error
                    if on_progress is not None:
                        on_progress(start + len(lanes) - running, len(requests))
            answers += [lane.end() for lane in lanes]
    return answers


def _cells(model: Model, requests: Sequence[Request], n_ctx: int) -> int:
    """Tokens that these requests hold together: what their prompts share, once, and as much of an answer as each may have."""
    room = [min(max(request.max_tokens, 0), n_ctx - len(request.prompt)) + 1 for request in requests]
    answers = sum(length * places_for(request) for length, request in zip(room, requests, strict=True))
    if not model.sequences_share_tokens:
        return sum(len(request.prompt) for request in requests) + answers
    by_edit: dict[Edit | None, list[tuple[int, ...]]] = {}
    for request in requests:
        if request.prompt:
            by_edit.setdefault(request.prompt_edit, []).append(request.prompt)
    nodes = sum(len(tree.batch) for prompts in by_edit.values() for tree in lay_out(model, prompts))
    # A prompt does not wait for another one to save fewer tokens than these.
    return nodes + WORTH_KEEPING * len(requests) + answers
