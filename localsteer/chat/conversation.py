"""A conversation under steering: its turns, and what of them fits the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from localsteer.engine.checks import check_anchored
from localsteer.engine.generate import Generator
from localsteer.engine.request import Answer, Request
from localsteer.llama.chat_template import Message
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import changed_span, chat_stop, chat_tokens
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode

if TYPE_CHECKING:
    from localsteer.policy.controller import Controller
    from localsteer.policy.policy import Policy


class Conversation:
    """Turns with one model. Steering may change between them: what was computed under another is computed anew.

    Args:
        generator: answers; its KV cache carries over from turn to turn.
        system: the system message, if any.
        plan: the steering, if any.
        controller: the policy's, if any: it steers on top of the plan when it sees a need.
        sampling: how tokens are drawn.
        max_tokens: longest answer.
        mode: what is steered; the plan must have the doses for it.
        opposite_for: the plan of the other way, to compare with; None where there is none.

    Raises:
        LocalsteerError: this model, or what is drawn in this way, cannot be anchored.

    Attributes:
        turns: user and assistant messages so far.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        system: str | None = None,
        plan: Plan | None = None,
        controller: Controller | None = None,
        sampling: Sampling | None = None,
        max_tokens: int = 512,
        mode: Mode = "response",
        opposite_for: Callable[[Plan], Plan | None] | None = None,
    ) -> None:
        self.generator = generator
        self.system = system
        self.plan = plan
        self.controller = controller
        self.sampling = sampling or Sampling()
        self.max_tokens = max_tokens
        self.mode = mode
        self.turns: list[Message] = []
        self._opposite_for = opposite_for
        if mode == "anchored":
            check_anchored(generator.model, self.sampling)

    def ask(
        self,
        text: str,
        *,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer the next user message; both become part of the conversation.

        Raises:
            LocalsteerError: the message alone does not fit the context.
        """
        question = Message("user", text)
        request = self._request([*self.turns, question])
        gate = self.controller.answer(text, self.plan) if self.controller is not None else None
        answer = self.generator.generate(request, gate=gate, on_text=on_text, should_stop=should_stop)
        self.turns += [question, Message("assistant", answer.text.strip())]
        return answer

    def compare(self, text: str | None = None, *, should_stop: Callable[[], bool] | None = None) -> list[tuple[str, Answer]]:
        """Answer a message (or the last one again) against, without and with the steering, leaving the conversation as it is.

        A policy has no part in it.

        Returns:
            A title and an answer for each way; nothing where there is no message yet.
        """
        turns = list(self.turns) if text is None else [*self.turns, Message("user", text)]
        while turns and turns[-1].role == "assistant":
            turns.pop()
        if not turns:
            return []
        request = self._request(turns).seeded()
        opposite = self._opposite_for(self.plan) if self._opposite_for is not None and self.plan is not None else None
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

    @property
    def dropped_turns(self) -> int:
        """How many of the oldest turns no longer fit the context together with an answer."""
        return self._fitting(self.turns)[1]

    def _request(self, turns: list[Message]) -> Request:
        prompt, dropped = self._fitting(turns)
        message = None
        if self.controller is not None:
            before, last = turns[dropped:-1], turns[-1]
            message = changed_span(lambda text: self._tokens([*before, replace(last, content=text)]), last.content)
        stop = chat_stop(self.generator.model)
        return Request(prompt, self.plan, self.sampling, self.max_tokens, stop, message, mode=self.mode)

    def _fitting(self, turns: list[Message]) -> tuple[tuple[int, ...], int]:
        """The prompt, without as many of the oldest exchanges as leave room for an answer."""
        # Half the context at most is kept free: a long --max-tokens must not drop all that was said.
        room = self.generator.n_ctx - min(self.max_tokens, self.generator.n_ctx // 2)
        dropped = 0
        while True:
            prompt = self._tokens(turns[dropped:])
            if len(prompt) <= room or len(turns) - dropped <= 2:
                return prompt, dropped
            dropped += 2

    def _tokens(self, turns: list[Message]) -> tuple[int, ...]:
        messages = [Message("system", self.system), *turns] if self.system else turns
        return chat_tokens(self.generator.model, messages) if messages else ()
