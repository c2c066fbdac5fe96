"""What is asked of a model, and what comes out."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from localsteer.engine.gate import Gate, Ungated
from localsteer.engine.phases import Division, Phased
from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling, fresh_seed
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode

FinishReason = Literal["stop", "length", "interrupted", "policy"]

DEFAULT_MAX_TOKENS = 512


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
        grammar: what the answer follows; None for nothing.
        logprobs: keep for each token its log probability and those of this many of the likeliest ones, as the model has them
            before a grammar or anything else of the sampling; None keeps nothing.
        mode: what is steered: the response only, the prompt as well, or the response of an anchored answer: the unsteered model
            reads it along, and only what the sampling's filters keep of its predictions as well is drawn (see `Sampler`), which
            costs a second forward pass for every steered token. None is replaced by the plan's, "response" without a plan.
        division: how the reply is divided into parts of which steering leaves some alone; None where it is all answer.
        steer_forms: steer calls of tools, and answers that follow a grammar, as well.

    Raises:
        LocalsteerError: the plan holds the doses of another mode.
    """

    prompt: tuple[int, ...]
    plan: Plan | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    message: tuple[int, int] | None = None
    grammar: Grammar | None = None
    logprobs: int | None = None
    mode: Mode | None = None
    division: Division | None = None
    steer_forms: bool = False

    def __post_init__(self) -> None:
        if self.mode is None:
            object.__setattr__(self, "mode", self.plan.mode if self.plan is not None else "response")
        if self.plan is not None and self.plan.mode != self.mode:
            raise LocalsteerError(
                f'The plan holds the doses of the mode "{self.plan.mode}", and the request is of the mode "{self.mode}".',
                hint="Resolve the steering for the mode that the answer is to have.",
            )

    @property
    def anchored(self) -> bool:
        """Whether the unsteered model has a say in every token."""
        return self.mode == "anchored"

    def seeded(self) -> Request:
        """The same request with a seed."""
        if self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=fresh_seed()))

    @functools.cached_property
    def response_edit(self) -> Edit | None:
        """What is done to the tokens of the answer; None for nothing."""
        return self.plan.effect if self.plan is not None else None

    def gate(self, gate: Gate | None) -> Gate:
        """What decides about the steering of the reply: a policy's gate, if there is one, in the parts that are for it."""
        inner: Gate = gate if gate is not None else Ungated(self.response_edit)
        if self.division is None:
            return inner
        thinking = self.plan.effects["thinking"] if self.plan is not None else None
        return Phased(inner, self.division, thinking, steer_forms=self.steer_forms)

    @property
    def unheard(self) -> tuple[str, ...]:
        """What of the steering does nothing, a sentence each."""
        if self.plan is None:
            return ()
        said = []
        if self.plan.effects["thinking"] is not None and (self.division is None or self.division.thinking is None):
            said.append("The model does not think before it answers here: what is for @thinking steers nothing.")
        if self.plan.effect is not None and self.division is not None and self.division.formed and not self.steer_forms:
            said.append('An answer in a form is not steered, so that it means what it says; "steer_tools": true steers it.')
        return tuple(said)

    @property
    def read(self) -> tuple[int, int]:
        """What a gate reads of the prompt: the first token, and the one behind the last."""
        return self.message if self.message is not None else (len(self.prompt) - 1, len(self.prompt))

    @property
    def prompt_edit(self) -> Edit | None:
        """What is done to the tokens of the prompt before its last one."""
        unsteered = self.division is not None and self.division.formed and not self.steer_forms
        return self.response_edit if self.mode == "prompt" and not unsteered else None


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
class PromptProgress:
    """How far a prompt is read.

    Attributes:
        total: its tokens.
        reused: those that were in the KV cache already.
        read: those that are in there by now.
        seconds: since the request.
    """

    total: int
    reused: int
    read: int
    seconds: float


def answering_seconds(timings: Sequence[Timing]) -> float:
    """From the first token to the last end of answers that were asked for together."""
    return max(timing.seconds for timing in timings) - min(timing.prompt_seconds for timing in timings)


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token of the answer was, before sampling changed anything.

    Attributes:
        token: the token.
        logprob: its log probability (nats) under the steered model.
        likeliest: the likeliest tokens with theirs, the first one first.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


# Of the last so many tokens, the share of distinct 3-grams below which an answer has got into a loop.
_LOOP, _LOOPING = 64, 0.5


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
        logprobs: one for each token, where the request asked for them.
        met: the stop string that ended it; None where none did.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    seed: int
    timing: Timing
    logprobs: tuple[TokenLogprob, ...] = ()
    met: str | None = None

    @property
    def loops(self) -> bool:
        """Whether it ended in saying the same again and again."""
        last = self.tokens[-_LOOP:]
        grams = set(zip(last, last[1:], last[2:], strict=False))
        return len(last) == _LOOP and len(grams) < _LOOPING * _LOOP
