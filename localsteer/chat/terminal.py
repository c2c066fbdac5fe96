"""The chat in a terminal: reading lines, slash commands, streaming answers."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import click

from localsteer.chat.conversation import Conversation
from localsteer.engine.request import Answer
from localsteer.errors import LocalsteerError
from localsteer.policy.audit import FIRED
from localsteer.policy.policy import Policy
from localsteer.steering.expression import NOTHING, Steering, parse_steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode

ShouldStop = Callable[[], bool]

COMMANDS = ("/steer", "/anchored", "/compare", "/policy", "/system", "/reset", "/help", "/quit")
HELP = """\
/steer EXPR    steer by an expression, such as  0.5 happy - 0.3 formal@10-20
/steer off     no steering;  /steer alone shows what is on
/anchored on   the unsteered model has a say in every token from now on;  /anchored off
/compare       the last message again: the other way, unsteered, steered;  /compare TEXT for another one
/policy        what the policy has armed, what fired in the last answer, and why
/system TEXT   set the system message;  /system off removes it
/reset         forget the conversation
/help          this list
/quit          leave (Ctrl-D as well). Ctrl-C stops an answer."""


@dataclass
class Terminal:
    """A chat session.

    Attributes:
        conversation: the conversation.
        make_plan: turns a steering into a plan for the model, with the doses of a mode.
        stoppable: a context manager under which Ctrl-C only stops the answer; yields what asks for it.
        show_compared: prints titled answers side by side.
        policy_for: the policy of the conversation with the doses of a mode; None where it has none.
    """

    conversation: Conversation
    make_plan: Callable[[Steering, Mode], Plan | None]
    stoppable: Callable[[], AbstractContextManager[ShouldStop]]
    show_compared: Callable[[list[tuple[str, Answer]]], None]
    policy_for: Callable[[Mode], Policy] | None = None

    def run(self) -> None:
        """Read lines until the end of input or /quit."""
        for line in _lines(self._toolbar):
            text = line.strip()
            if not text:
                continue
            try:
                if text.startswith("/"):
                    if not self._command(text):
                        return
                else:
                    self._answer(text)
            except LocalsteerError as error:
                click.secho(str(error), err=True, fg="red")
            except KeyboardInterrupt:  # an impatient second one, or one while a vector is built
                click.secho("[stopped]", err=True, dim=True)

    def _status(self) -> str:
        plan, conversation = self.conversation.plan, self.conversation
        if plan is None:
            anchors = conversation.mode == "anchored" and conversation.controller is not None
            return "unsteered, anchored" if anchors else "unsteered"
        dose = "" if plan.relative_dose is None else f", relative dose {plan.relative_dose:.2f}"
        return f"{plan.steering}{dose}{', anchored' if conversation.mode == 'anchored' else ''}"

    def _toolbar(self) -> str:
        """The steering, and what the policy did in the last answer."""
        controller = self.conversation.controller
        if controller is None:
            return self._status()
        fired = list(dict.fromkeys(one.rule for one in controller.decisions if one.action in FIRED and one.rule))
        return f"{self._status()} | policy: {', '.join(fired) or 'armed'}"

    def _answer(self, text: str) -> None:
        dropped_before = self.conversation.dropped_turns
        with self.stoppable() as should_stop:
            answer = self.conversation.ask(text, on_text=lambda piece: click.echo(piece, nl=False), should_stop=should_stop)
        click.echo()
        ended = {"length": "cut at the limit", "interrupted": "stopped", "policy": "ended by the policy"}
        remarks = [ended[answer.finish_reason]] if answer.finish_reason in ended else []
        if self.conversation.controller is not None:
            told = (one for one in self.conversation.controller.decisions if one.action != "pass")
            remarks += [str(decision) for decision in told]
        if not answer.text.strip():
            remarks.append("without text: your message is not kept either")
        dropped = self.conversation.dropped_turns
        if dropped > dropped_before:
            remarks.append(f"the context is full: the oldest {dropped} messages are left out from now on")
        if remarks:
            click.secho(f"[{'; '.join(remarks)}]", err=True, dim=True)

    def _command(self, text: str) -> bool:
        """Carry out a slash command; False ends the chat."""
        name, _, argument = text.partition(" ")
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else "/help lists the commands."
            raise LocalsteerError(f"There is no command {name}.", hint=hint)
        if name != "/quit":  # each other one has a method of its name
            getattr(self, f"_{name[1:]}")(argument.strip())
        return name != "/quit"

    def _help(self, _argument: str) -> None:
        click.echo(HELP)

    def _reset(self, _argument: str) -> None:
        self.conversation.reset()
        click.echo("The conversation begins anew.")

    def _policy(self, _argument: str) -> None:
        controller = self.conversation.controller
        if controller is None:
            raise LocalsteerError("There is no policy.", hint="Start the chat with --policy FILE.")
        for one in controller.policy.classifiers.values():
            click.echo(f"{one.name}: watches the {one.watch}, true from {one.threshold:.2f}, false below {one.release:.2f}")
        for rule in controller.policy.rules:
            click.echo(f"{rule.name}: when {rule.condition.text}, steer {rule.plan.steering}")
        if not controller.decisions:
            click.echo("Nothing was decided yet.")
        for decision in controller.decisions:
            click.echo(f"  {decision}")

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.system = None if argument == "off" else argument
        click.echo(f"System message: {self.conversation.system or 'none'}")

    def _steer(self, argument: str) -> None:
        if argument:
            steering = NOTHING if argument == "off" else parse_steering(argument)
            self.conversation.plan = self.make_plan(steering, self.conversation.mode)
        click.echo(f"Steering: {self._status()}")

    def _anchored(self, argument: str) -> None:
        conversation = self.conversation
        if argument and argument not in ("on", "off"):
            raise LocalsteerError(f'Anchored answers are "on" or "off", not "{argument}".')
        if argument:
            mode: Mode = "anchored" if argument == "on" else "response"
            # Both have doses of their own for anchored answers; where one is refused, nothing changes.
            plan = self.make_plan(conversation.plan.steering, mode) if conversation.plan is not None else None
            policy = self.policy_for(mode) if self.policy_for is not None else None
            conversation.set_mode(mode, plan, policy)
        click.echo(f"Anchored answers: {'on' if conversation.mode == 'anchored' else 'off'}")
        self._steer("")

    def _compare(self, argument: str) -> None:
        with self.stoppable() as should_stop:
            answers = self.conversation.compare(argument or None, should_stop=should_stop)
        if not answers:
            raise LocalsteerError("There is nothing to compare yet.", hint="Say something first, or give /compare a text.")
        self.show_compared(answers)


def _lines(status: Callable[[], str]) -> Iterator[str]:
    """Lines of input: with history, editing and a status line in a terminal, plain from a pipe."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import InMemoryHistory

    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        bottom_toolbar=lambda: f" {status()} ",
    )
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue  # drops the line, as shells do
        except EOFError:
            return
