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

from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.llama.sampling import Sampler, Sampling, fresh_seed
from localsteer.llama.steerability import steerability
from localsteer.steering import Plan
from localsteer.text_stream import TextStream

FinishReason = Literal["stop", "length", "interrupted"]

# Room for a long conversation, and 90 MB of KV cache on the demo model where its full 8,192 tokens take 190.
DEFAULT_CONTEXT = 4096
DEFAULT_MAX_TOKENS = 512
# What stands between the turns of a conversation where a base model reads them as plain text.
PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class Request:
    """What to answer.

    Attributes:
        prompt: tokens.
        plan: the steering; None for none.
        sampling: how tokens are drawn; without a seed, a fresh one is drawn and reported.
        max_tokens: longest answer.
        stop: strings that end the answer.
    """

    prompt: tuple[int, ...]
    plan: Plan | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()

    def seeded(self) -> Request:
        """The same request with a seed."""
        if self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=fresh_seed()))

    @functools.cached_property
    def response_edit(self) -> Edit | None:
        """What is done to the tokens of the answer; None for nothing."""
        if self.plan is None or not (self.plan.edit.added.any() or self.plan.edit.removed):
            return None
        return self.plan.edit

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
        answer_tokens: tokens that were drawn.
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
        finish_reason: "stop" (the model ended, or a stop string), "length" (max_tokens, or the context is full) or "interrupted".
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


class _Cache:
    """A context of one sequence that remembers under which steering each of its tokens was computed."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tokens: list[int] = []
        self.edits: list[Edit | None] = []

    def keep_common(self, tokens: Sequence[int], edit: Edit | None) -> int:
        """Drop all but the longest prefix that these tokens share, computed under the same steering; returns its length."""
        kept = 0
        for old, old_edit, new in zip(self.tokens, self.edits, tokens, strict=False):
            if old != new or old_edit is not edit:
                break
            kept += 1
        if kept < len(self.tokens) and not self.context.forget(0, kept):
            kept = 0
            self.context.clear()
        del self.tokens[kept:], self.edits[kept:]
        return kept

    def run(self, tokens: Sequence[int], edit: Edit | None) -> int:
        """Decode up to n_ubatch tokens after what is there; returns the row of the last one's logits."""
        self._steer(edit, len(tokens))
        try:
            self.context.decode(Batch.of_one_sequence(tokens, start=len(self.tokens)))
        except BaseException:
            # What the cache holds now is unknown.
            self.context.clear()
            self.tokens, self.edits = [], []
            raise
        self.tokens.extend(tokens)
        self.edits.extend([edit] * len(tokens))
        return len(tokens) - 1

    def _steer(self, edit: Edit | None, n_tokens: int) -> None:
        if self.context.tap is not None:
            self.context.tap.edit([] if edit is None else [edit] * n_tokens)
        else:
            self.context.set_control_vector(None if edit is None else edit.added)


class Generator:
    """Answers requests one after another. A context manager.

    Args:
        model: the model.
        n_ctx: tokens of context; None means 4096, or less where the model was trained for less.
    """

    def __init__(self, model: Model, *, n_ctx: int | None = None) -> None:
        self.model = model
        self.n_ctx = n_ctx if n_ctx is not None else min(DEFAULT_CONTEXT, model.n_ctx_train or DEFAULT_CONTEXT)
        self._caches: dict[bool, _Cache] = {}

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
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one request.

        Args:
            request: what to answer.
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
        cache = self._cache_for(request.response_edit)
        stream = TextStream(request.stop)
        start = time.perf_counter()
        reused = cache.keep_common(request.prompt[:-1], request.prompt_edit)
        row = self._read_prompt(cache, request, reused, should_stop)
        middle = time.perf_counter()
        computed = len(cache.tokens) - reused
        tokens, reason = ((), "interrupted") if row is None else self._answer(cache, request, row, stream, on_text, should_stop)
        rest = stream.finish()
        if rest and on_text is not None:
            on_text(rest)
        end = time.perf_counter()
        timing = Timing(computed, reused, middle - start, len(tokens), end - middle)
        assert request.sampling.seed is not None
        return Answer(stream.text, tokens, reason, request.sampling.seed, timing)

    def _read_prompt(self, cache: _Cache, request: Request, reused: int, should_stop: Callable[[], bool] | None) -> int | None:
        """Decode the rest of the prompt; returns the row of its last token's logits, or None if it was interrupted."""
        rest = request.prompt[reused:]
        # The last token always by itself, steered or not: kernels round differently for other batch sizes, and an answer must
        # not depend on how much of its prompt was in the cache already.
        pieces = [(rest[:-1], request.prompt_edit), (rest[-1:], request.response_edit)]
        row = 0
        size = cache.context.n_ubatch
        for tokens, edit in pieces:
            for offset in range(0, len(tokens), size):
                if should_stop is not None and should_stop():
                    return None
                row = cache.run(tokens[offset : offset + size], edit)
        return row

    def _answer(
        self,
        cache: _Cache,
        request: Request,
        row: int,
        stream: TextStream,
        on_text: Callable[[str], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> tuple[tuple[int, ...], FinishReason]:
        """Draw tokens until the end."""
        tokens: list[int] = []
        edit = request.response_edit
        with Sampler(request.sampling, self.model.n_vocab) as sampler:
            while len(tokens) < request.max_tokens:
                if should_stop is not None and should_stop():
                    return tuple(tokens), "interrupted"
                token = sampler.sample(cache.context, row)
                if self.model.is_end(token):
                    return tuple(tokens), "stop"
                tokens.append(token)
                text = stream.push(self.model.token_bytes(token))
                if text and on_text is not None:
                    on_text(text)
                if stream.stopped:
                    return tuple(tokens), "stop"
                if len(cache.tokens) >= self.n_ctx:
                    break
                if len(tokens) < request.max_tokens:
                    row = cache.run([token], edit)
        return tuple(tokens), "length"

    def _cache_for(self, edit: Edit | None) -> _Cache:
        """llama.cpp's own control vector where it can do the edit (it costs nothing), the tap where not."""
        tapped = edit is not None and needs_tap([edit], self.model)
        if tapped not in self._caches:
            tap = ResidualTap(self.model.n_layer, self.model.n_embd) if tapped else None
            self._caches[tapped] = _Cache(Context(self.model, n_ctx=self.n_ctx, tap=tap))
        return self._caches[tapped]


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
