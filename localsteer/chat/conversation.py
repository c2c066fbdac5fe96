"""A conversation under steering: its turns, and what of them fits the context."""

from __future__ import annotations

import bisect
import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from localsteer.engine.checks import check_anchored
from localsteer.engine.generate import Generator
from localsteer.engine.phases import division_of
from localsteer.engine.reply import parts_of
from localsteer.engine.request import Answer, Request
from localsteer.errors import LocalsteerError
from localsteer.llama.chat_template import Message
from localsteer.llama.sampling import Sampling
from localsteer.policy.audit import Decision
from localsteer.policy.controller import Controller
from localsteer.policy.policy import Policy
from localsteer.reading.prompt import changed_span, chat_stop, chat_tokens
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode

if TYPE_CHECKING:
    from localsteer.policy.arm import ArmedPolicy


Heard = Callable[[str, bool], None]
"""Called with a piece of what the model says, and whether that is reasoning."""


@dataclass(frozen=True)
class Reply(Message):
    """An assistant's turn of this conversation.

    Attributes:
        cut: whether it ended before its time.
        steering: the expression that it was written under; None where that is not known.
        remembered: what the policy remembered before its question (`localsteer.policy.controller.Controller.memory`).
    """

    cut: bool = False
    steering: str | None = None
    remembered: Mapping[str, bool] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, eq=False)
class Exchange:
    """The latest answer, and what led to it.

    Attributes:
        question: what was asked.
        request: how it was asked.
        answer: what came out, marks of reasoning and all.
        text: what was said.
        reasoning: what was thought before.
        decisions: the policy's.
        kept: whether it is part of the conversation: an answer without text is not.
        dropped: whether the oldest turns were left out for it, for the first time.
    """

    question: str
    request: Request
    answer: Answer
    text: str
    reasoning: str
    decisions: tuple[Decision, ...]
    kept: bool
    dropped: bool


@dataclass(eq=False)
class Conversation:
    """Turns with one model. Steering may change between them: what was computed under another is computed anew.

    Attributes:
        generator: answers; its KV cache carries over from turn to turn.
        system: the system message, if any.
        think: whether the model thinks before it answers; None leaves that to its template.
        plan: the steering, if any.
        controller: the policy's, if any: it steers on top of the plan when it sees a need.
        sampling: how tokens are drawn.
        max_tokens: longest answer.
        mode: what is steered; the plan must have the doses for it.
        now: the time that the model's template is told: when the conversation began, so that its beginning stays in the cache.
        turns: user and assistant messages so far, one of each in turn.
        dropped_turns: how many of the oldest are left out, because the context is full.
        latest: the latest answer; None before there is one.
        prompt_length: tokens of the latest prompt and its answer.

    Raises:
        LocalsteerError: this model, or what is drawn in this way, cannot be anchored, or it cannot think.
    """

    generator: Generator
    _: KW_ONLY
    system: str | None = None
    think: bool | None = None
    plan: Plan | None = None
    controller: Controller | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 512
    mode: Mode = "response"
    now: datetime = field(default_factory=datetime.now)
    turns: list[Message] = field(default_factory=list, init=False)
    dropped_turns: int = field(default=0, init=False)
    latest: Exchange | None = field(default=None, init=False)
    prompt_length: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.set_mode(self.mode, self.plan, None)
        self.set_think(self.think)

    def ask(
        self,
        text: str,
        *,
        seed: int | None = None,
        on_text: Heard | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Exchange:
        """Answer the next user message; both become part of the conversation, unless there is no text in the answer.

        Args:
            text: the message.
            seed: draw the answer with this one; None for that of the sampling.
            on_text: told what is said as it comes.
            should_stop: asked before every token; True ends the answer.

        Raises:
            LocalsteerError: the message alone does not fit the context.
        """
        turns = [*self.turns, Message("user", text)]
        request, dropped = self._request(turns)
        if seed is not None:
            request = replace(request, sampling=replace(request.sampling, seed=seed))
        remembered = self._remembered
        gate = self.controller.answer(text, self.plan) if self.controller is not None else None
        tell = on_text if on_text is not None else lambda _piece, _reasoning: None
        try:
            answer = self.generator.generate(
                request,
                gate=gate,
                on_text=lambda piece: tell(piece, False),
                on_reasoning=lambda piece: tell(piece, True),
                should_stop=should_stop,
            )
        except BaseException:
            self._recall(remembered)
            raise
        reasoning, reply = parts_of(request.division, answer.text)
        self.prompt_length = len(request.prompt) + len(answer.tokens)
        newly_dropped = False
        # Templates refuse an assistant's turn without text, and two user's turns in a row.
        if reply := reply.strip():
            steering = str(request.plan.steering) if request.plan is not None else ""
            cut = answer.finish_reason != "stop"
            said = Reply("assistant", reply, reasoning or None, cut=cut, steering=steering, remembered=remembered)
            self.turns = [*turns, said]
            newly_dropped, self.dropped_turns = dropped > self.dropped_turns, dropped
        else:
            self._recall(remembered)
        decisions = tuple(gate.decisions) if gate is not None else ()
        self.latest = Exchange(text, request, answer, reply, reasoning, decisions, bool(reply), newly_dropped)
        return self.latest

    def side_by_side(
        self,
        plans: Sequence[Plan | None],
        text: str | None = None,
        *,
        on_text: Callable[[int, str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """Answer a message (or the last one again) once under each of several steerings, in one batch and with one seed.

        The conversation stays as it is; a policy has no part in it.

        Args:
            plans: the steerings, None for none.
            text: the message; None for the last one again.
            on_text: told the number of the plan, and what is said under it as it comes.
            should_stop: asked before every token; True ends all answers.

        Returns:
            An answer for each; nothing where there is no message yet.
        """
        turns = self.turns[:-1] if text is None else [*self.turns, Message("user", text)]
        if not turns:
            return []
        request = self._request(turns)[0].seeded()
        ways = [replace(request, plan=plan, mode=plan.mode if plan is not None else "response") for plan in plans]
        return self.generator.side_by_side(ways, on_text=on_text, should_stop=should_stop)

    def preview(
        self,
        plan: Plan | None,
        text: str,
        *,
        seed: int,
        max_tokens: int,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Begin to answer the last message again, under another steering and without thinking before.

        The conversation stays as it is; a policy has no part in it.

        Args:
            plan: the steering, None for none.
            text: the message where there is none yet.
            seed: draws the answer.
            max_tokens: longest answer.
            on_text: told what is said as it comes.
            should_stop: asked before every token; True ends the answer.

        Raises:
            LocalsteerError: the message alone does not fit the context.
        """
        other = copy.copy(self)
        other.plan, other.mode, other.controller = plan, plan.mode if plan is not None else "response", None
        other.sampling, other.max_tokens = replace(self.sampling, seed=seed), max_tokens
        template = self.generator.model.chat_template
        if template is not None and template.thinking is not None:
            other.think = False
        request, _ = other._request(self.turns[:-1] or [Message("user", text)])
        return self.generator.generate(request, on_text=on_text, should_stop=should_stop)

    @property
    def last_answer(self) -> Message | None:
        """The assistant's last turn; None before there is one."""
        return self.turns[-1] if self.turns else None

    def take_back(self) -> str | None:
        """Forget the last question and its answer; returns the question, None where there is none."""
        if not self.turns:
            return None
        question, answer = self.turns[-2:]
        self.turns, self.latest = self.turns[:-2], None
        self.dropped_turns = min(self.dropped_turns, max(len(self.turns) - 2, 0))
        self._recall(answer.remembered if isinstance(answer, Reply) else {})
        self._measure()
        return question.content

    @contextlib.contextmanager
    def last_taken_back(self) -> Iterator[str | None]:
        """Within it the last question and its answer are taken back; they return unless another answer has taken their place.

        Yields:
            The question; None where there is none.
        """
        before, remembered = (self.turns, self.dropped_turns, self.latest, self.prompt_length), self._remembered
        question = self.take_back()
        left = self.turns
        try:
            yield question
        finally:
            if self.turns is left:
                self.turns, self.dropped_turns, self.latest, self.prompt_length = before
                self._recall(remembered)

    def take_up(self, turns: Sequence[Message]) -> None:
        """Go on with what was said elsewhere or earlier, in place of what was said here."""
        self.reset()
        self.turns = list(turns)
        self._measure()

    def reset(self) -> None:
        """Forget all turns; the system message, the steering and the policy stay."""
        self.turns = []
        self.dropped_turns = self.prompt_length = 0
        self.latest = None
        if self.controller is not None:
            self.controller.reset()

    def set_mode(self, mode: Mode, plan: Plan | None, policy: Policy | None) -> None:
        """Steer in another way from now on.

        Args:
            mode: what is steered.
            plan: the steering with the doses for it, if any.
            policy: the controller's policy, likewise.

        Raises:
            LocalsteerError: this model, or what is drawn in this way, cannot be anchored.
        """
        if mode == "anchored":
            check_anchored(self.generator.model, self.sampling)
        self.mode = mode
        self.plan = plan
        if self.controller is not None and policy is not None:
            self.controller.policy = policy

    def set_think(self, think: bool | None) -> None:
        """Let the model think before it answers, or not, or leave that to its template.

        Raises:
            LocalsteerError: its template has no place for that; it is left to the template then.
        """
        self.think = None
        if think:  # refused now, and not with every message
            chat_tokens(self.generator.model, [Message("user", "Hello")], think=think)
        self.think = think

    def move(self, generator: Generator, plan: Plan | None, armed: ArmedPolicy | None) -> None:
        """Go on with another model.

        Raises:
            LocalsteerError: it cannot be anchored.
        """
        if self.mode == "anchored":
            check_anchored(generator.model, self.sampling)
        self.generator, self.plan = generator, plan
        self.dropped_turns = self.prompt_length = 0
        if self.controller is not None and armed is not None:
            self.controller.policy = armed.for_answers(self.mode)

    @property
    def _remembered(self) -> Mapping[str, bool]:
        return self.controller.memory if self.controller is not None else {}

    def _recall(self, remembered: Mapping[str, bool]) -> None:
        if self.controller is not None:
            self.controller.recall(remembered)

    def _measure(self) -> None:
        """How long a prompt of what was said is, with a message of one token behind it; 0 where the template takes none."""
        self.prompt_length = 0
        if self.turns:
            with contextlib.suppress(LocalsteerError):
                self.prompt_length = len(self._fitting([*self.turns, Message("user", ".")])[0])

    def _request(self, turns: list[Message]) -> tuple[Request, int]:
        """The request to answer the last of these turns, and how many of the first ones are left out."""
        prompt, dropped = self._fitting(turns)
        message = None
        if self.controller is not None:
            message = changed_span(prompt, self._tokens, turns[dropped:], len(turns) - dropped - 1)
        model = self.generator.model
        stop, division = chat_stop(model), division_of(model, prompt)
        request = Request(prompt, self.plan, self.sampling, self.max_tokens, stop, message, mode=self.mode, division=division)
        return request, dropped

    def _fitting(self, turns: list[Message]) -> tuple[tuple[int, ...], int]:
        """The prompt without as many of the oldest turns as leave room for an answer, and how many those are.

        Where the next ones have to go, half of what can go does so at once. The model then reads what is left anew, at most half
        of the context; the turns that follow go on from there, and read what is new. Dropping as few as possible, every turn
        would begin at another place and be read anew as a whole.
        """
        # Half the context at most is kept free: a long --max-tokens must not drop all that was said.
        room = self.generator.n_ctx - min(self.max_tokens, self.generator.n_ctx // 2)
        dropped = self.dropped_turns
        prompt = self._tokens(turns[dropped:])
        questions = range(dropped + 2, len(turns), 2)
        if len(prompt) <= room or not questions:
            return prompt, dropped
        least = len(self._tokens(turns[-1:]))
        enough = least + (room - least) // 2
        # A few tokenisations, at a turn out of many; the last question stays in any case.
        first = bisect.bisect_left(
            questions, True, hi=len(questions) - 1, key=lambda start: len(self._tokens(turns[start:])) <= enough
        )
        return self._tokens(turns[questions[first] :]), questions[first]

    def _tokens(self, turns: Sequence[Message]) -> tuple[int, ...]:
        messages = [Message("system", self.system), *turns] if self.system else turns
        return chat_tokens(self.generator.model, messages, think=self.think, now=self.now)
