"""A prompt and a plan -> tokens, one answer at a time, with the KV cache reused from answer to answer.

Steering applies to the response: every forward pass that predicts a token of the answer, the one over the last prompt token
included. A plan of scope "prompt" applies to the whole prompt too, as in llama.cpp's own programs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal

from localsteer.answer import Answer, Request
from localsteer.answering import Answering, Logits, Run, next_run
from localsteer.errors import LocalsteerError, ModelError
from localsteer.gate import Gate
from localsteer.kv_cache import KVCache
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.llama.sampling import Sampling
from localsteer.llama.steerability import steerability

# Room for a long conversation, and 90 MB of KV cache on the demo model where its full 8,192 tokens take 190.
DEFAULT_CONTEXT = 4096


def check_prompt(prompt: Sequence[int], n_ctx: int) -> None:
    """Make sure that a prompt can be answered in a context of this many tokens.

    Raises:
        LocalsteerError: it is empty, or leaves no room.
    """
    if not prompt:
        raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
    if len(prompt) >= n_ctx:
        raise LocalsteerError(
            f"The prompt has {len(prompt)} tokens, and the context holds {n_ctx}.",
            hint="Shorten it, or ask for more with --context.",
        )


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


def check_anchored(model: Model, sampling: Sampling) -> None:
    """Make sure that the unsteered model can read a steered answer along, and has a say in it.

    Raises:
        LocalsteerError: sampling keeps everything, whatever a model finds plausible.
        ModelError: the model keeps a state that two readings of one text cannot share.
    """
    if not sampling.filters:
        raise LocalsteerError(
            "An anchored answer needs top-k, top-p or min-p: they say what the unsteered model finds plausible.",
            hint="By default all three are on.",
        )
    if not model.sequences_share_tokens:
        raise ModelError(
            f"{model.name} (architecture {model.architecture}) is recurrent, and cannot anchor an answer.",
            hint="Steer it without anchoring.",
        )


def default_context(model: Model) -> int:
    """Tokens of context where nobody asks for a number."""
    return min(DEFAULT_CONTEXT, model.n_ctx_train or DEFAULT_CONTEXT)


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


def needs_tap(edits: Sequence[Edit | None], model: Model) -> bool:
    """Whether a batch needs the tap: different edits, removals, or an architecture without a control vector of its own.

    Raises:
        ModelError: the model allows neither way.
    """
    if all(edit is None for edit in edits):
        return False
    same = all(edit is edits[0] for edit in edits)
    removes = any(edit is not None and edit.removed for edit in edits)
    possible = steerability(model)
    if same and not removes and possible.native:
        return False
    if possible.readable:
        return True
    what = "steered" if not possible.native else "steered in this way (removal, or several steerings at once)"
    raise ModelError(
        f"{model.name} (architecture {model.architecture}) cannot be {what}: {possible.reason}.",
        hint="Another architecture can: `localsteer doctor -m MODEL` says which way a model allows.",
    )
