"""A prompt and a plan -> tokens, one sequence at a time, with the KV cache reused from answer to answer.

Steering applies to the response: every forward pass that predicts a token of the answer, the one over the last prompt token
included. A plan of scope "prompt" applies to the whole prompt too, as in llama.cpp's own programs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal

import numpy as np

from localsteer.draft import Draft
from localsteer.errors import LocalsteerError, ModelError
from localsteer.gate import Gate, Ungated, Verdict
from localsteer.kv_cache import KVCache
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap, Rows
from localsteer.llama.sampling import MAX_SEED, Sampler, Sampling, fresh_seed
from localsteer.llama.steerability import steerability
from localsteer.steering import Plan

FinishReason = Literal["stop", "length", "interrupted", "policy"]

# Room for a long conversation, and 90 MB of KV cache on the demo model where its full 8,192 tokens take 190.
DEFAULT_CONTEXT = 4096
DEFAULT_MAX_TOKENS = 512
# What stands between the turns of a conversation where a base model reads them as plain text.
PARAGRAPH = "\n\n"
# Any number that does not lead from one user's seed to the next one's (0, 1, 2, ...).
_REWIND_SEED_STEP = 7_368_787


@dataclass(frozen=True)
class Request:
    """What to answer.

    Attributes:
        prompt: tokens.
        plan: the steering; None for none.
        sampling: how tokens are drawn; without a seed, a fresh one is drawn and reported.
        max_tokens: longest answer.
        stop: strings that end the answer.
        message: where the user's latest message stands in the prompt, first token and the one behind the last (see
            `latest_message`): what a gate reads of the prompt is the mean over these. None means the last token.
    """

    prompt: tuple[int, ...]
    plan: Plan | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    message: tuple[int, int] | None = None

    def seeded(self) -> Request:
        """The same request with a seed."""
        if self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=fresh_seed()))

    @functools.cached_property
    def response_edit(self) -> Edit | None:
        """What is done to the tokens of the answer; None for nothing."""
        return self.plan.effect if self.plan is not None else None

    @property
    def read(self) -> tuple[int, int]:
        """What a gate reads of the prompt: the first token, and the one behind the last."""
        return self.message if self.message is not None else (len(self.prompt) - 1, len(self.prompt))

    @property
    def prompt_edit(self) -> Edit | None:
        """What is done to the tokens of the prompt before its last one."""
        return self.response_edit if self.plan is not None and self.plan.scope == "prompt" else None


@dataclass(frozen=True)
class Timing:
    """How long an answer took.

    Attributes:
        prompt_tokens: prompt tokens that were computed.
        reused_tokens: prompt tokens that were in the KV cache already.
        prompt_seconds: from the request to the logits of the first token.
        answer_tokens: tokens that were drawn, those that a policy took back included.
        answer_seconds: from there to the end.
    """

    prompt_tokens: int
    reused_tokens: int
    prompt_seconds: float
    answer_tokens: int
    answer_seconds: float

    @property
    def seconds(self) -> float:
        """From the request to the end."""
        return self.prompt_seconds + self.answer_seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prompt processing."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding."""
        return self.answer_tokens / self.answer_seconds if self.answer_seconds > 0 else 0.0


@dataclass(frozen=True)
class Answer:
    """What came out.

    Attributes:
        text: the answer, without stop strings.
        tokens: the tokens drawn, the end-of-turn token left out.
        finish_reason: "stop" (the model ended, or a stop string), "length" (max_tokens, or the context is full), "interrupted",
            or "policy" (a policy ended it, because one of its classifiers failed).
        seed: the seed it was drawn with.
        timing: how long it took.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    seed: int
    timing: Timing


def prompt_tokens(model: Model, messages: Sequence[Message], *, raw: bool = False) -> tuple[int, ...]:
    """Tokens of a conversation.

    Args:
        model: the model that will read it.
        messages: the turns.
        raw: take the texts as they are, without the chat template. A base model, which has none, always gets them so.

    Raises:
        LocalsteerError: there is no text.
        ModelError: the model's template refuses the conversation.
    """
    if not any(message.content for message in messages):
        raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
    if raw or model.chat_template is None:
        return tuple(model.tokenize(PARAGRAPH.join(message.content for message in messages)))
    return tuple(model.tokenize(model.chat_template.render(messages)))


def latest_message(model: Model, messages: Sequence[Message], *, raw: bool = False) -> tuple[int, int]:
    """Where the last message stands in `prompt_tokens` of a conversation: its first token, and the one behind its last."""

    def tokens_of(content: str) -> tuple[int, ...]:
        return prompt_tokens(model, [*messages[:-1], replace(messages[-1], content=content)], raw=raw)

    return changed_span(tokens_of, messages[-1].content)


def changed_span(tokens_of: Callable[[str], tuple[int, ...]], content: str) -> tuple[int, int]:
    """Which tokens come from a content, whatever stands around it: those that change with it. The last one where none does."""
    tokens = tokens_of(content)
    # No content begins or ends as both of these do.
    others = [tokens_of(other) for other in ("~", "7")]
    start = min(_common(tokens, other) for other in others)
    stop = len(tokens) - min(_common(tokens[::-1], other[::-1]) for other in others)
    return (start, stop) if start < stop else (len(tokens) - 1, len(tokens))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest beginning that both have."""
    return next(
        (place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), min(len(one), len(other))
    )


class Generator:
    """Answers requests one after another. A context manager.

    Args:
        model: the model.
        n_ctx: tokens of context; None means 4096, or less where the model was trained for less.
    """

    def __init__(self, model: Model, *, n_ctx: int | None = None) -> None:
        self.model = model
        self.n_ctx = n_ctx if n_ctx is not None else min(DEFAULT_CONTEXT, model.n_ctx_train or DEFAULT_CONTEXT)
        self._caches: dict[bool, KVCache] = {}

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
        if not request.prompt:
            raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
        if len(request.prompt) >= self.n_ctx:
            raise LocalsteerError(
                f"The prompt has {len(request.prompt)} tokens, and the context holds {self.n_ctx}.",
                hint="Shorten it, or ask for more with --context.",
            )
        gate = gate if gate is not None else Ungated(request.response_edit)
        should_stop = should_stop if should_stop is not None else _never
        cache = self._cache(self._needs_tap(gate))
        draft = Draft(self.model.token_bytes, request.stop, on_text)
        start = time.perf_counter()
        # What a gate reads has to be run.
        prefix = request.prompt[: request.read[0] if gate.prompt_layers else -1]
        reused = cache.keep_common(prefix, [request.prompt_edit] * len(prefix))
        begun = self._read_prompt(cache, request, reused, gate, should_stop)
        middle = time.perf_counter()
        computed = len(cache.tokens) - reused
        reason: FinishReason = "interrupted"
        if begun is not None:
            reason = self._answer(cache, request, begun, gate, draft, should_stop)
        if reason in ("interrupted", "policy") and gate.hold_back:
            draft.rewind(draft.unseen)  # nobody has looked at it for the last time
        draft.finish()
        draft.show()
        end = time.perf_counter()
        timing = Timing(computed, reused, middle - start, draft.drawn, end - middle)
        assert request.sampling.seed is not None
        return Answer(draft.text, tuple(draft.tokens), reason, request.sampling.seed, timing)

    def _read_prompt(
        self, cache: KVCache, request: Request, reused: int, gate: Gate, should_stop: Callable[[], bool]
    ) -> _Begun | None:
        """Decode the rest of the prompt; None if it was interrupted."""
        reader, start, stop = cache, *request.read
        sums: dict[int, Rows] = {}
        if gate.prompt_layers:
            reader = self._cache(tapped=True)
            reader.match(cache)
            reader.watch(gate.prompt_layers)
        rest = request.prompt[reused:-1]
        size = cache.context.n_ubatch
        # The last token always by itself, steered or not: kernels round differently for other batch sizes, and an answer must
        # not depend on how much of its prompt was in the cache already.
        last = request.prompt[-1:]
        row = 0
        reads_last = bool(gate.prompt_layers) and stop == len(request.prompt)
        try:
            for offset in range(0, len(rest), size):
                if should_stop():
                    return None
                place = len(reader.tokens)
                reader.run(rest[offset : offset + size], request.prompt_edit)
                here = slice(max(start - place, 0), max(stop - place, 0))
                sums = {layer: sums.get(layer, 0) + reader.rows(layer)[here].sum(axis=0) for layer in gate.prompt_layers}
            if should_stop():
                return None
            if reads_last:
                row = reader.run(last, request.prompt_edit)
                sums = {layer: sums.get(layer, 0) + reader.rows(layer)[-1] for layer in gate.prompt_layers}
        finally:
            if gate.prompt_layers:
                reader.watch(())
        if gate.prompt_layers:
            cache.match(reader)
        verdict = gate.after_prompt({layer: total / np.float32(stop - start) for layer, total in sums.items()})
        if reads_last and verdict.edit is request.prompt_edit:
            # Nothing is steered: the answer goes on from here. The logits are the reader's.
            return _Begun(reader.context, row, verdict)
        cache.cut(len(request.prompt) - 1)
        return _Begun(cache.context, cache.run(last, verdict.edit), verdict)

    def _answer(
        self,
        cache: KVCache,
        request: Request,
        begun: _Begun,
        gate: Gate,
        draft: Draft,
        should_stop: Callable[[], bool],
    ) -> FinishReason:
        """Draw tokens until the end."""
        context, row, verdict = begun.context, begun.row, begun.verdict
        if gate.output_layers:
            cache.watch(gate.output_layers)
        sampler = Sampler(request.sampling, self.model.n_vocab)
        rewinds = 0
        try:
            while not verdict.stop:
                if request.max_tokens <= 0:
                    return "length"
                if should_stop():
                    return "interrupted"
                reason: FinishReason | None = None
                token = sampler.sample(context, row)
                if self.model.is_end(token):
                    reason = "stop"
                else:
                    draft.push(token)
                    if draft.stopped:
                        reason = "stop"
                    elif len(draft.tokens) >= request.max_tokens or len(cache.tokens) >= self.n_ctx:
                        reason = "length"
                if reason is not None:
                    draft.finish()
                verdict = gate.after_token(draft, final=reason is not None)
                if not (reason or verdict.rewind or verdict.stop):
                    row = cache.run([token], verdict.edit)
                    if gate.output_layers:
                        verdict = gate.after_run(draft, cache.last_rows(gate.output_layers))
                        if verdict.again and not verdict.rewind:
                            row = _run_again(cache, len(cache.tokens) - 1, token, verdict.edit)
                context = cache.context
                if verdict.rewind:
                    draft.rewind(verdict.rewind)
                    kept = len(request.prompt) - 1 + len(draft.tokens)
                    row = _run_again(cache, kept, [*request.prompt, *draft.tokens][kept], verdict.edit)
                    rewinds += 1
                    sampler.close()
                    sampler = self._sampler_after_rewind(request.sampling, draft, rewinds)
                    continue
                draft.show(gate.hold_back)
                if reason is not None:
                    return reason
            return "policy"
        finally:
            sampler.close()
            if gate.output_layers:
                cache.watch(())

    def _sampler_after_rewind(self, sampling: Sampling, draft: Draft, rewinds: int) -> Sampler:
        """Other random numbers than those that led to what was taken back, the same ones each time."""
        assert sampling.seed is not None
        seed = (sampling.seed + rewinds * _REWIND_SEED_STEP) % MAX_SEED
        sampler = Sampler(replace(sampling, seed=seed), self.model.n_vocab)
        for token in draft.tokens:
            sampler.accept(token)
        return sampler

    def _needs_tap(self, gate: Gate) -> bool:
        """llama.cpp's own control vector where it can do the edits (it costs nothing), the tap where not."""
        # All asked, so that a model that allows neither way is refused before the answer begins.
        return any([bool(gate.output_layers), *(needs_tap([edit], self.model) for edit in gate.edits)]) or (
            # A recurrent model's state cannot be copied from one context to another in part.
            bool(gate.prompt_layers) and not self.model.sequences_share_tokens
        )

    def _cache(self, tapped: bool) -> KVCache:
        if tapped not in self._caches:
            tap = ResidualTap(self.model.n_layer, self.model.n_embd) if tapped else None
            n_seq = 2 if self.model.sequences_share_tokens else 1
            self._caches[tapped] = KVCache(Context(self.model, n_ctx=self.n_ctx, n_seq=n_seq, tap=tap))
        return self._caches[tapped]


@dataclass(frozen=True)
class _Begun:
    """An answer whose prompt was read: where the logits of its first token are."""

    context: Context
    row: int
    verdict: Verdict


def _run_again(cache: KVCache, position: int, token: int, edit: Edit | None) -> int:
    """Run the token at a position anew, and forget what came after it."""
    cache.cut(position)
    return cache.run([token], edit)


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
