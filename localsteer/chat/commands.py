"""What a line that begins with a slash does: the commands about steering and seeing, and all of them by their names."""

from __future__ import annotations

import difflib
import re
from typing import NoReturn

import numpy as np

from localsteer.chat.command import COMMANDS, command
from localsteer.chat.session import Session
from localsteer.chat.talk_commands import shell
from localsteer.chat.why import why
from localsteer.errors import LocalsteerError
from localsteer.steering.expression import NOTHING, Steering, parse_steering

__all__ = ["COMMANDS", "carry_out"]

# What other chats call them.
_ALIASES = {"/clear": "/reset", "/new": "/reset", "/?": "/help"}
# How alike a slip and a command are: /plicy and /policy are 0.92, and /nope and /compare 0.62.
_NEAR = 0.7
_SHOWN = {"/show": "/model, /system, /set and /steer alone show what is set."}
# Doses of a sweep, unless it is told how many; more than nine answers side by side are read by nobody.
_SWEPT, _MOST_SWEPT = 5, 9
_CHANGE = re.compile(r"[+-](?:\d+\.?\d*|\.\d+)")


def carry_out(session: Session, line: str) -> bool:
    """Carry out a line that begins with a slash or an exclamation mark; False ends the chat.

    Raises:
        LocalsteerError: there is no such command, or it cannot be done; the conversation is as it was.
    """
    if line.startswith("!"):
        shell(session, line[1:].strip())
        return True
    name, _, argument = line.partition(" ")
    if name in ("/quit", "/exit", "/bye"):
        return False
    found = COMMANDS.get(_ALIASES.get(name, name)) or _unknown(name)
    if argument.strip() and not found.usage:
        raise LocalsteerError(f"{found.name} takes nothing behind it, and there is: {argument.strip()}")
    found.action(session, argument.strip())
    return True


def _unknown(name: str) -> NoReturn:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=_NEAR)
    hint = _SHOWN.get(name) or (f"Did you mean {near[0]}?" if near else "/help lists the commands.")
    raise LocalsteerError(f"There is no command {name}.", hint=hint)


# ---- knobs


@command(
    "steer",
    "EXPR",
    "steer by an expression, such as 0.5 happy - 0.3 formal; +0.1 turns the last knob; off",
    takes="vectors",
)
def _steer(session: Session, argument: str) -> None:
    if argument:
        wish = _wish(argument)
        if isinstance(wish, Steering):
            session.steer(wish)
        else:
            session.turn(wish)
    session.screen.say(f"Steering: {session.status()}")


def _wish(argument: str) -> Steering | float:
    """An expression, or by how much the last knob is to be turned."""
    if _CHANGE.fullmatch(argument):
        return float(argument)
    return NOTHING if argument == "off" else parse_steering(argument)


@command("anchored", "on|off", "the unsteered model has a say in every token; takes stronger doses")
def _anchored(session: Session, argument: str) -> None:
    if argument and argument not in ("on", "off"):
        raise LocalsteerError(f'Anchored answers are "on" or "off", not "{argument}".')
    if argument:
        session.set_mode("anchored" if argument == "on" else "response")
    session.screen.say(f"Anchored answers: {'on' if session.conversation.mode == 'anchored' else 'off'}")
    session.screen.say(f"Steering: {session.status()}")


@command("vectors", "", "what can be named in an expression, and how strong it may be on this model")
def _vectors(session: Session, _argument: str) -> None:
    from localsteer.chat.tables import vector_table

    session.screen.show(vector_table(session.opened.model, session.screen.width))


@command("knobs", "", "turn the vectors with the arrow keys, and see at once how the last question is answered")
def _knobs(session: Session, _argument: str) -> None:
    from localsteer.chat.knob_screen import turn_knobs

    turn_knobs(session)
    session.screen.say(f"Steering: {session.status()}")


@command("layers", "", "the layers that are steered, and how much at each")
def _layers(session: Session, _argument: str) -> None:
    from localsteer.chat.tables import layer_table

    plan = session.conversation.plan
    if plan is None:
        raise LocalsteerError("Nothing is steered.", hint="Set something first, such as /steer 0.5 happy.")
    session.screen.show(layer_table(plan, session.opened.model))


# ---- side by side


@command("compare", "[TEXT]", "the last message again: the other way, unsteered, steered; or another message")
def _compare(session: Session, argument: str) -> None:
    if not argument:
        _check_asked(session)
    plan = session.conversation.plan
    if plan is None:
        raise LocalsteerError("Nothing is steered.", hint="Set something first, such as /steer 0.5 happy; or try /sweep happy.")
    opposite = session.opposite_of(plan)
    plans = [*([opposite] if opposite is not None else []), None, plan]
    titles = [str(one.steering) if one is not None else "unsteered" for one in plans]
    session.answer_side_by_side(titles, plans, argument or None)


@command(
    "sweep",
    "NAME [FROM TO [COUNT]]",
    "the last message at several strengths of one vector, such as happy -1 1 5",
    takes="vectors",
)
def _sweep(session: Session, argument: str) -> None:
    words = argument.split()
    if not words or len(words) in (2,) or len(words) > 4:
        raise LocalsteerError("/sweep takes a vector, two strengths and a count.", hint="Such as /sweep happy -1 1 5.")
    low, high = (_number(word) for word in words[1:3]) if len(words) > 2 else (-1.0, 1.0)
    count = int(_number(words[3])) if len(words) > 3 else _SWEPT
    if not 2 <= count <= _MOST_SWEPT:
        raise LocalsteerError(f"/sweep shows 2 to {_MOST_SWEPT} strengths, not {count}.")
    strengths = [round(float(strength), 3) for strength in np.linspace(low, high, count)]
    name = parse_steering(words[0]).terms[0].vector
    _check_asked(session)  # before a vector is built, which takes minutes on a large model
    plans = session.swept(name, strengths)
    session.answer_side_by_side([f"{strength:g} {name}" for strength in strengths], plans, None)


def _check_asked(session: Session) -> None:
    if not session.conversation.turns:
        raise LocalsteerError("There is nothing to compare yet.", hint="Say something first.")


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise LocalsteerError(f'"{word}" is no number.', hint="Such as /sweep happy -1 1 5.") from None
    if not np.isfinite(number):
        raise LocalsteerError(f'"{word}" is no strength.')
    return number


# ---- seeing


@command("watch", "NAME|off", "after every answer, how far it lies along a vector, token by token", takes="vectors")
def _watch(session: Session, argument: str) -> None:
    if argument == "off":
        session.watched = []
    elif argument:
        names = argument.split()
        session.vectors(names)
        session.watched = list(dict.fromkeys([*session.watched, *names]))
    session.screen.say(f"Watched: {', '.join(session.watched) or 'nothing'}")
    if argument and session.watched and session.conversation.last_answer is not None:
        session.show_course()


@command("heat", "[NAME]", "the last answer, every word coloured by how far it lies along a vector", takes="vectors")
def _heat(session: Session, argument: str) -> None:
    names = argument.split() or session.watched or [term.vector for term in session.steering.terms]
    if not names:
        raise LocalsteerError("/heat needs a vector.", hint="Such as /heat happy.")
    for trait in session.traits(names):
        session.screen.show(trait.heat())
        session.screen.show(trait.legend())


@command("why", "", "what was added to the last answer, where, how much, and who decided that")
def _why(session: Session, _argument: str) -> None:
    latest = session.conversation.latest
    if latest is None:
        raise LocalsteerError("There is no answer yet.", hint="Say something first.")
    for line in why(latest):
        session.screen.say(line)


@command("thinking", "", "what the model thought before its last answer")
def _thinking(session: Session, _argument: str) -> None:
    answer = session.conversation.last_answer
    if answer is None or not answer.reasoning:
        raise LocalsteerError("There was no reasoning before the last answer.")
    session.screen.note(answer.reasoning)


@command("policy", "", "what the policy has armed, what fired in the last answer, and why")
def _policy(session: Session, _argument: str) -> None:
    controller = session.conversation.controller
    if controller is None:
        raise LocalsteerError("There is no policy.", hint="Start the chat with --policy FILE.")
    say = session.screen.say
    for one in controller.policy.classifiers.values():
        say(f"{one.name}: watches the {one.watch}, true from {one.threshold:.2f}, false below {one.release:.2f}")
    for rule in controller.policy.rules:
        say(f"{rule.name}: when {rule.condition.text}, steer {rule.plan.steering}")
    if not controller.decisions:
        say("Nothing was decided yet.")
    for decision in controller.decisions:
        say(f"  {decision}")


@command("help", "[COMMAND]", "this list, or a line of it")
def _help(session: Session, argument: str) -> None:
    from localsteer.chat.tables import help_table

    if argument:
        name = f"/{argument.lstrip('/')}"
        found = COMMANDS.get(_ALIASES.get(name, name)) or _unknown(name)
        session.screen.say(f"{found.name} {found.usage}".rstrip() + f": {found.help}")
        return
    rows = [(f"{one.name} {one.usage}".rstrip(), one.help) for one in COMMANDS.values()]
    session.screen.show(help_table(rows, session.screen.width))
