"""A conversation under steering: its turns, and what of them fits the context."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

from localsteer.engine.checks import check_anchored
from localsteer.engine.generate import Generator
from localsteer.engine.phases import division_of
from localsteer.engine.request import Answer, Request
from localsteer.llama.chat_template import Message
from localsteer.llama.sampling import Sampling
from localsteer.policy.controller import Controller
from localsteer.policy.policy import Policy
from localsteer.reading.prompt import changed_span, chat_stop, chat_tokens
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode


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
        opposite_for: the plan of the other way, to compare with; None where there is none.
        turns: user and assistant messages so far, one of each in turn.
        dropped_turns: how many of the oldest are left out, because the context is full.

    Raises:
        LocalsteerError: this model, or what is drawn in this way, cannot be anchored.
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
    opposite_for: Callable[[Plan], Plan | None] | None = None
    turns: list[Message] = field(default_factory=list, init=False)
    dropped_turns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.set_mode(self.mode, self.plan, None)

    def ask(
        self,
        text: str,
        *,
        on_text: Callable[[str], None] | None = None,
        on_reasoning: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer the next user message; both become part of the conversation, unless there is no text in the answer.

        The callbacks are those of `Generator.generate`.

        Raises:
            LocalsteerError: the message alone does not fit the context.
        """
        turns = [*self.turns, Message("user", text)]
        request, dropped = self._request(turns)
        gate = self.controller.answer(text, self.plan) if self.controller is not None else None
        answer = self.generator.generate(request, gate=gate, on_text=on_text, on_reasoning=on_reasoning, should_stop=should_stop)
        # Templates refuse an assistant's turn without text, and two user's turns in a row.
        if reply := answer.text.strip():
            self.turns = [*turns, Message("assistant", reply)]
            self.dropped_turns = dropped
        return answer

    def compare(self, text: str | None = None, *, should_stop: Callable[[], bool] | None = None) -> list[tuple[str, Answer]]:
        """Answer a message (or the last one again) against, without and with the steering, leaving the conversation as it is.

        A policy has no part in it.

        Returns:
            A title and an answer for each way; nothing where there is no message yet.
        """
        turns = self.turns[:-1] if text is None else [*self.turns, Message("user", text)]
        if not turns:
            return []
        request = self._request(turns)[0].seeded()
        opposite = self.opposite_for(self.plan) if self.opposite_for is not None and self.plan is not None else None
        plans = [opposite, None, self.plan] if opposite is not None else [None, self.plan]
        answers: list[tuple[str, Answer]] = []
        for plan in plans if self.plan is not None else [None]:
            if should_stop is not None and should_stop():
                break
            title = str(plan.steering) if plan is not None else "unsteered"
            answers.append((title, self.generator.generate(replace(request, plan=plan), should_stop=should_stop)))
        return answers

    def reset(self) -> None:
        """Forget all turns; the system message, the steering and the policy stay."""
        self.turns = []
        self.dropped_turns = 0
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
        return chat_tokens(self.generator.model, messages, think=self.think)
