"""A prompt and a plan -> tokens, one answer at a time, with the KV cache reused from answer to answer.

Steering applies to the response: every forward pass that predicts a token of the answer, the one over the last prompt token
included. A plan of mode "prompt" applies to the whole prompt too, as in llama.cpp's own programs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from localsteer.engine.answering import Answering, Logits, Run, next_run
from localsteer.engine.checks import check_anchored, check_prompt, default_context, needs_tap
from localsteer.engine.gate import Gate
from localsteer.engine.prefix_cache import KVCache
from localsteer.engine.request import Answer, Request
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap

# The contexts of a generator: with llama.cpp's own control vector, with a tap, and with a tap and an unsteered twin.
_Kind = Literal["native", "tapped", "anchored"]


class Generator:
    """Answers requests one after another. A context manager.

    Args:
        model: the model.
        n_ctx: tokens of context; None means 4096, or less where the model was trained for less.
    """

    def __init__(self, model: Model, *, n_ctx: int | None = None) -> None:
        self.model = model
        self.n_ctx = n_ctx if n_ctx is not None else default_context(model)
        self._caches: dict[_Kind, KVCache] = {}

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the contexts."""
        for cache in self._caches.values():
            cache.context.close()
        self._caches = {}

    def generate(
        self,
        request: Request,
        *,
        gate: Gate | None = None,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one request.

        Args:
            request: what to answer.
            gate: decides how the answer is steered while it is written; without one, the request's plan does.
            on_text: called with each piece of text as soon as it is certain.
            should_stop: asked before every step; True ends the answer as "interrupted".

        Raises:
            LocalsteerError: the prompt does not fit the context, or the model cannot be steered as the plan asks.
        """
        request = request.seeded()
        check_prompt(request.prompt, self.n_ctx)
        should_stop = should_stop if should_stop is not None else _never
        answering = Answering(self.model, request, gate=gate, on_text=on_text, n_ctx=self.n_ctx)
        kind = self._kind(request, answering.gate)
        cache = self._cache(kind)
        prefix = answering.reusable
        steps = answering.steps(cache.keep_common(prefix, [request.prompt_edit] * len(prefix)))
        with contextlib.closing(steps):
            run = None if should_stop() else next_run(steps)
            while run is not None:
                cache = self._cache_for(run, kind, cache)
                logits = _compute(run, cache, should_stop)
                run = None if logits is None or should_stop() else next_run(steps, logits)
        main = self._cache(kind)
        if cache is not main:
            main.match(cache)  # for the next answer
        return answering.end()

    def _cache_for(self, run: Run, kind: _Kind, before: KVCache) -> KVCache:
        """Where a run is computed. What must be read needs a tap, which slows every decode down; the rest does without."""
        cache = self._cache("tapped" if kind == "native" and run.layers else kind)
        if cache is not before:
            before.cut(run.start)
            cache.match(before)
        return cache

    def _kind(self, request: Request, gate: Gate) -> _Kind:
        """llama.cpp's own control vector where it can do the edits (it costs nothing), the tap where not."""
        # All asked, so that a model that allows neither way is refused before the answer begins.
        edits = [request.prompt_edit, *gate.edits]
        steered = [edit for edit in edits if edit is not None]
        if request.anchored and steered:
            check_anchored(self.model, request.sampling)
            needs_tap([None, *steered], self.model)
            return "anchored"
        tapped = any([bool(gate.output_layers), *(needs_tap([edit], self.model) for edit in edits)]) or (
            # A recurrent model's state cannot be copied from one context to another in part.
            bool(gate.prompt_layers) and not self.model.sequences_share_tokens
        )
        return "tapped" if tapped else "native"

    def _cache(self, kind: _Kind) -> KVCache:
        if kind not in self._caches:
            tap = ResidualTap(self.model.n_layer, self.model.n_embd) if kind != "native" else None
            # The unsteered twin of an anchored answer is a third sequence, with cells of its own.
            n_seq = 3 if kind == "anchored" else 2 if self.model.sequences_share_tokens else 1
            n_ctx = self.n_ctx * (2 if kind == "anchored" else 1)
            self._caches[kind] = KVCache(Context(self.model, n_ctx=n_ctx, n_seq=n_seq, tap=tap))
        return self._caches[kind]


def _compute(run: Run, cache: KVCache, should_stop: Callable[[], bool]) -> Logits | None:
    """Decode what an answer asks for; None if it was interrupted."""
    if len(cache.tokens) > run.start:
        cache.cut(run.start)
    if cache.context.tap is not None:
        cache.watch(run.layers)
    if run.anchored:
        row, unsteered = cache.run_anchored(run.tokens[0], run.edit)
        run.took(1, cache.rows)
        return Logits(cache.context, row, unsteered)
    row = 0
    while rest := run.rest:
        if run.computed and should_stop():
            return None
        part = rest[: cache.context.n_ubatch]
        row = cache.run(part, run.edit)
        run.took(len(part), cache.rows)
    return Logits(cache.context, row)


def _never() -> bool:
    return False
