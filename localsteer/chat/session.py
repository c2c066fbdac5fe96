"""A chat: a model, a conversation with it, and what a user has set; whatever it is shown on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from localsteer.building.library import loader, telling
from localsteer.chat.conversation import Conversation, Exchange
from localsteer.chat.screen import Screen
from localsteer.chat.trait import Trait, TraitReader
from localsteer.engine.generate import Generator
from localsteer.engine.phases import division_of
from localsteer.engine.request import Answer, Request
from localsteer.errors import LocalsteerError, for_model
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.policy.audit import FIRED
from localsteer.reading.prompt import chat_tokens
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import NOTHING, Steering, Term
from localsteer.steering.plan import Plan, resolve, resolve_opposite
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector

if TYPE_CHECKING:
    from localsteer.policy.arm import ArmedPolicy

# Of a file that is given as context: more than the longest default context holds.
MOST_CONTEXT = 1_000_000
_ENDED = {"length": "cut at the limit", "interrupted": "stopped", "policy": "ended by the policy"}
# One step of /steer +0.1 and of Alt-Up.
STEP = 0.1


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that is ready to talk.

    Attributes:
        model: the model.
        generator: its answers.
        limit: the largest dose; None for any.
        armed: the policy; None for none.
    """

    model: Model
    generator: Generator
    limit: DoseLimit | None = None
    armed: ArmedPolicy | None = None


OpenModel = Callable[[str | None, Mode], AbstractContextManager[Opened]]
"""Opens a model by the name or path that -m takes (None for the one that the chat was started with) in a mode."""


class Keeps(Protocol):
    """Keeps a conversation as it goes (`localsteer.chat.keeping`)."""

    def keep(self, session: Session, question: str | None = None) -> None:
        """The conversation is so now, with a question that is about to be answered."""

    def grow(self, piece: str, reasoning: bool) -> None:
        """A piece of the answer that is being written."""

    def leave(self) -> None:
        """What follows is another conversation."""

    def told(self) -> str | None:
        """What went wrong, once."""


@dataclass(eq=False)
class Session:
    """What the commands of a chat work on.

    Attributes:
        screen: where it is shown.
        opened: the model.
        conversation: what was said.
        context: texts that go in front of the next message, with their names.
        watched: vectors whose course is shown after every answer.
        stack: what is to be closed at the end.
        open_model: opens another one.
        model_name: what the model was asked for as.
        policy_file: the policy's file, if any.
        created: when the conversation was begun, where it was kept before.
        keeper: keeps the conversation as it goes; None keeps nothing.
    """

    screen: Screen
    opened: Opened
    conversation: Conversation
    open_model: OpenModel
    stack: ExitStack
    model_name: str | None = None
    policy_file: str | None = None
    created: str = ""
    keeper: Keeps | None = None
    context: list[tuple[str, str]] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    _readers: dict[int, TraitReader] = field(default_factory=dict, init=False)

    # ---- steering

    def plan_for(self, steering: Steering, mode: Mode | None = None) -> Plan | None:
        """The plan of an expression, its vectors found, or built with a progress bar; None for the empty one.

        Raises:
            LocalsteerError: a vector is not there or does not fit, or the limit does not allow it.
        """
        if not steering:
            return None
        model, built = self.opened.model, list[str]()
        with self.screen.progress() as progress:
            load = loader(model, progress, telling(built, model))
            plan = resolve(steering, model.fingerprint, load, mode or self.conversation.mode, self.opened.limit)
        for line in built:
            self.screen.note(line)
        return plan

    def opposite_of(self, plan: Plan) -> Plan | None:
        """The plan of the other way; None where there is none.

        Raises:
            LocalsteerError: the limit does not allow it.
        """
        model = self.opened.model
        return resolve_opposite(plan.steering, model.fingerprint, loader(model), plan.mode, self.opened.limit)

    def steer(self, steering: Steering, *, quiet: bool = False) -> None:
        """Steer so from the next answer on; nothing changes where that cannot be.

        Args:
            steering: the expression.
            quiet: leave out what is to be known of it.

        Raises:
            LocalsteerError: as `plan_for`.
        """
        plan = self.plan_for(steering)
        self.conversation.plan = plan
        for said in (*plan.notes, *self._unheard(plan)) if plan is not None and not quiet else ():
            self.screen.note(for_model(said, self.model_name))

    def _unheard(self, plan: Plan) -> tuple[str, ...]:
        """What of a steering does nothing in this chat: whether the model thinks first is the same for any message."""
        model = self.opened.model
        hello = chat_tokens(model, [Message("user", "Hello")], think=self.conversation.think)
        return Request(hello, plan, division=division_of(model, hello)).unheard

    def turn(self, change: float, *, quiet: bool = False) -> None:
        """Turn the last knob of the expression; see `steer`.

        Raises:
            LocalsteerError: there is none, or it has no strength.
        """
        terms = self.steering.terms
        if not terms:
            raise LocalsteerError("There is no knob to turn.", hint="Set one first, such as /steer 0.5 happy.")
        if terms[-1].ablate:
            raise LocalsteerError(f"{terms[-1]} removes something, which has no strength.", hint="Give a whole expression.")
        strength = round(terms[-1].strength + change, 6)
        self.steer(Steering((*terms[:-1], replace(terms[-1], strength=strength))), quiet=quiet)

    @property
    def steering(self) -> Steering:
        """The expression."""
        plan = self.conversation.plan
        return plan.steering if plan is not None else NOTHING

    def set_mode(self, mode: Mode) -> None:
        """Steer in another way; both the expression and the policy have doses of their own for it.

        Raises:
            LocalsteerError: one of them is refused; nothing has changed then.
        """
        plan = self.plan_for(self.steering, mode)
        policy = self.opened.armed.for_answers(mode) if self.opened.armed is not None else None
        self.conversation.set_mode(mode, plan, policy)

    def swept(self, name: str, strengths: Sequence[float]) -> list[Plan | None]:
        """The steering with one vector at several strengths, and whatever else is on.

        Raises:
            LocalsteerError: as `plan_for`.
        """
        terms = list(self.steering.terms)
        place = next((number for number, term in enumerate(terms) if term.vector == name and not term.ablate), len(terms))
        term = terms[place] if place < len(terms) else Term(name)
        plans = []
        for strength in strengths:
            others = [*terms[:place], replace(term, strength=strength), *terms[place + 1 :]]
            plans.append(self.plan_for(Steering(tuple(one for one in others if one.strength))))
        return plans

    def introduction(self) -> Iterator[str]:
        """What a chat begins with: the model, its context, the steering, and what that is worth; a line each."""
        model, conversation = self.opened.model, self.conversation
        parts = [f"{model.name}, {self.n_ctx} tokens of context", self.status()]
        if (state := self.policy_state) is not None:
            parts.append(state)
        yield f"{'; '.join(parts)}. /help lists the commands."
        for said in conversation.plan.worth if conversation.plan is not None else ():
            yield for_model(said, self.model_name)
        if model.chat_template is None:
            yield "A base model without a chat template: the conversation is given to it as plain text."

    def show_last(self) -> None:
        """What was said last, for who goes on with a conversation."""
        if self.conversation.turns:
            question, answer = self.conversation.turns[-2:]
            self.screen.recall(question.content, answer.content)

    # ---- talking

    def ask(self, text: str, *, seed: int | None = None, again: bool = False) -> None:
        """Answer a message; what is to be known of the answer is remarked.

        Args:
            text: the message.
            seed: draw the answer with this one.
            again: it was answered before: that answer stays kept until the new one is there, and what goes with the next message
                does not go with it.

        Raises:
            LocalsteerError: it does not fit the context.
        """
        given, before = [] if again else self.context, list(self.conversation.turns)
        message = "\n\n".join([*(f"{name}:\n\n{content}" for name, content in given), text])
        keeper = self.keeper if not again else None
        if keeper is not None:
            keeper.keep(self, message)
        try:
            with self.screen.stoppable() as should_stop, self.screen.answer() as show:

                def hear(piece: str, reasoning: bool) -> None:
                    show(piece, reasoning)
                    if keeper is not None:
                        keeper.grow(piece, reasoning)

                exchange = self.conversation.ask(message, seed=seed, on_text=hear, should_stop=should_stop)
        except LocalsteerError:
            if not again:
                self.keep()
            raise
        # Whatever else ends an answer (the terminal is gone, a kill) leaves what was kept of it so far.
        if exchange.kept or not again:
            self.keep()
        if self.conversation.turns != before and not again:
            self.context = []
        if remarks := _remarks(exchange, self.conversation.dropped_turns):
            self.screen.note(f"[{'; '.join(remarks)}]")
        if exchange.text and self.watched:
            self.show_course()

    def keep(self) -> None:
        """Write the conversation as it is now where conversations are kept."""
        if self.keeper is not None:
            self.keeper.keep(self)
            if (failure := self.keeper.told()) is not None:
                self.screen.note(failure)

    def begin_anew(self) -> None:
        """Forget what was said; what was kept of it stays kept."""
        self.conversation.reset()
        self.created = ""
        if self.keeper is not None:
            self.keeper.leave()

    def answer_side_by_side(self, titles: Sequence[str], plans: Sequence[Plan | None], text: str | None) -> list[Answer]:
        """Answer a message (or the last one again) under several steerings, in one batch.

        Raises:
            LocalsteerError: it does not fit the context.
        """
        with self.screen.stoppable() as should_stop, self.screen.side_by_side(titles) as tell:
            return self.conversation.side_by_side(plans, text, on_text=tell, should_stop=should_stop)

    def attach(self, name: str, text: str) -> None:
        """Give a text as context with the next message.

        Raises:
            LocalsteerError: there is nothing in it, or too much.
        """
        if not text.strip():
            raise LocalsteerError(f"{name} is empty.")
        if len(text) > MOST_CONTEXT:
            raise LocalsteerError(f"{name} has {len(text):,} characters, and at most {MOST_CONTEXT:,} can be given.")
        self.context.append((name, text.rstrip()))
        tokens = len(self.opened.model.tokenize(text, add_special=False))
        self.screen.note(f"{name} goes with your next message ({tokens} tokens of the {self.opened.generator.n_ctx}).")

    def change_model(self, name: str) -> None:
        """Talk to another model from now on; what was said stays, and so does the steering where it has vectors for it.

        Raises:
            LocalsteerError: there is none of that name, or it cannot be opened; the one before goes on then.
        """
        with contextlib.ExitStack() as stack:
            try:
                opened = stack.enter_context(self.open_model(name, self.conversation.mode))
            except LocalsteerError as error:
                error.args = (for_model(str(error), name),)
                raise
            before, self.opened = self.opened, opened
            try:
                plan = self.plan_for(self.steering)
                self.conversation.move(opened.generator, plan, opened.armed)
            except BaseException:
                self.opened = before
                raise
            self.stack.close()
            self.stack.push(stack.pop_all())
        self.model_name = name
        try:
            self.conversation.set_think(self.conversation.think)
        except LocalsteerError as error:
            self.screen.note(str(error))

    # ---- looking

    @property
    def n_ctx(self) -> int:
        """Tokens of context."""
        return self.opened.generator.n_ctx

    @property
    def policy_state(self) -> str | None:
        """What the policy does; None without one."""
        controller = self.conversation.controller
        if controller is None:
            return None
        fired = list(dict.fromkeys(one.rule for one in controller.decisions if one.action in FIRED and one.rule))
        return f"policy: {', '.join(fired) or 'armed'}"

    def status(self) -> str:
        """The steering in words."""
        plan, conversation = self.conversation.plan, self.conversation
        if plan is None:
            anchors = conversation.mode == "anchored" and conversation.controller is not None
            return "unsteered, anchored" if anchors else "unsteered"
        dose = "" if plan.relative_dose is None else f", relative dose {plan.relative_dose:.2f}"
        return f"{plan.steering}{dose}{', anchored' if conversation.mode == 'anchored' else ''}"

    def vectors(self, names: Sequence[str]) -> dict[str, ControlVector]:
        """Vectors by name or path.

        Raises:
            LocalsteerError: one is not there, or does not fit the model.
        """
        found = {}
        for name in names:
            with self.screen.progress() as progress:
                found[name] = loader(self.opened.model, progress)(name)
            found[name].check_fits(self.opened.model.fingerprint, name=name)
        return found

    def traits(self, names: Sequence[str]) -> list[Trait]:
        """The latest answer along vectors.

        Raises:
            LocalsteerError: there is none yet, or as `vectors`.
        """
        if (answer := self.conversation.last_answer) is None:
            raise LocalsteerError("There is no answer to look at yet.", hint="Say something first.")
        model = self.opened.model
        reader = self._readers.setdefault(id(model), TraitReader(model, self.n_ctx))
        return reader.read(answer.content, self.vectors(names))

    def show_course(self) -> None:
        """A line for every watched vector: the course of the trait over the latest answer."""
        for trait in self.traits(self.watched):
            room = max(self.screen.width - len(trait.name) - 12, 8)
            self.screen.note(f"{trait.name} {trait.mean:+.2f} {trait.line(min(room, 60))}")


def _remarks(exchange: Exchange, dropped: int) -> Iterator[str] | list[str]:
    answer = exchange.answer
    remarks = [_ENDED[answer.finish_reason]] if answer.finish_reason in _ENDED else []
    remarks += ["it repeats itself: /set repeat_penalty 1.1, or less strength"] if answer.loops else []
    remarks += [str(decision) for decision in exchange.decisions if decision.action != "pass"]
    if not exchange.kept:
        remarks.append("without text: your message is not kept either")
    if exchange.dropped:
        remarks.append(f"the context is full: the oldest {dropped} messages are left out from now on")
    return remarks
