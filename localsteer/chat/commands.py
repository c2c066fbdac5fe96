"""What a line that begins with a slash does. Each command is a function of the session and of what stands behind its name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localsteer.chat import settings
from localsteer.chat.keeping import go_on, transcript_of
from localsteer.chat.markdown import code_blocks
from localsteer.chat.session import Session, parsed_steering, read_context
from localsteer.chat.shell import run_shell
from localsteer.chat.transcript import Transcript, export_markdown, load_transcript, save_transcript
from localsteer.chat.why import why
from localsteer.errors import LocalsteerError
from localsteer.steering.expression import Steering, parse_steering

Action = Callable[[Session, str], None]
# Doses of a sweep, unless it is told how many; more than nine answers side by side are read by nobody.
_SWEPT, _MOST_SWEPT = 5, 9


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: with its slash.
        usage: what may stand behind it.
        help: what it does.
        action: does it.
        takes: what can be completed behind it: "vectors", "files" or "models".
    """

    name: str
    usage: str
    help: str
    action: Action
    takes: str = ""


COMMANDS: dict[str, Command] = {}
# What other chats call them.
_ALIASES = {"/clear": "/reset", "/new": "/reset", "/?": "/help"}


def _command(name: str, usage: str, text: str, *, takes: str = "") -> Callable[[Action], Action]:
    def registered(action: Action) -> Action:
        COMMANDS[f"/{name}"] = Command(f"/{name}", usage, text, action, takes)
        return action

    return registered


def carry_out(session: Session, line: str) -> bool:
    """Carry out a line that begins with a slash or an exclamation mark; False ends the chat.

    Raises:
        LocalsteerError: there is no such command, or it cannot be done; the conversation is as it was.
    """
    if line.startswith("!"):
        _shell(session, line[1:].strip())
        return True
    name, _, argument = line.partition(" ")
    if name in ("/quit", "/exit", "/bye"):
        return False
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "/help lists the commands."
        raise LocalsteerError(f"There is no command {name}.", hint=hint)
    command.action(session, argument.strip())
    return True


# ---- knobs


@_command(
    "steer",
    "EXPR",
    "steer by an expression, such as 0.5 happy - 0.3 formal; +0.1 turns the last knob; off",
    takes="vectors",
)
def _steer(session: Session, argument: str) -> None:
    if argument:
        wish = parsed_steering(session, argument)
        if isinstance(wish, Steering):
            session.steer(wish)
        else:
            session.turn(wish)
    session.screen.say(f"Steering: {session.status()}")


@_command("anchored", "on|off", "the unsteered model has a say in every token; takes stronger doses")
def _anchored(session: Session, argument: str) -> None:
    if argument and argument not in ("on", "off"):
        raise LocalsteerError(f'Anchored answers are "on" or "off", not "{argument}".')
    if argument:
        session.set_mode("anchored" if argument == "on" else "response")
    session.screen.say(f"Anchored answers: {'on' if session.conversation.mode == 'anchored' else 'off'}")
    session.screen.say(f"Steering: {session.status()}")


@_command("vectors", "", "what can be named in an expression, and how strong it may be on this model")
def _vectors(session: Session, _argument: str) -> None:
    from localsteer.chat.tables import vector_table

    session.screen.show(vector_table(session.opened.model, session.screen.width))


@_command("layers", "", "the layers that are steered, and how much at each")
def _layers(session: Session, _argument: str) -> None:
    from localsteer.chat.tables import layer_table

    plan = session.conversation.plan
    if plan is None:
        raise LocalsteerError("Nothing is steered.", hint="Set something first, such as /steer 0.5 happy.")
    session.screen.show(layer_table(plan, session.opened.model))


# ---- side by side


@_command("compare", "[TEXT]", "the last message again: the other way, unsteered, steered; or another message")
def _compare(session: Session, argument: str) -> None:
    plan = session.conversation.plan
    opposite = session.opposite_of(plan) if plan is not None else None
    plans = [*([opposite] if opposite is not None else []), None, *([plan] if plan is not None else [])]
    titles = [str(one.steering) if one is not None else "unsteered" for one in plans]
    session.answer_side_by_side(titles, plans, argument or None)


@_command(
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
    plans = session.swept(name, strengths)
    session.answer_side_by_side([f"{strength:g} {name}" for strength in strengths], plans, None)


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise LocalsteerError(f'"{word}" is no number.', hint="Such as /sweep happy -1 1 5.") from None
    if not np.isfinite(number):
        raise LocalsteerError(f'"{word}" is no strength.')
    return number


# ---- seeing


@_command("watch", "NAME|off", "after every answer, how far it lies along a vector, token by token", takes="vectors")
def _watch(session: Session, argument: str) -> None:
    if argument == "off":
        session.watched = []
    elif argument:
        names = argument.split()
        session.vectors(names)
        session.watched = list(dict.fromkeys([*session.watched, *names]))
    session.screen.say(f"Watched: {', '.join(session.watched) or 'nothing'}")
    if argument and session.watched and session.conversation.latest is not None:
        session.show_course()


@_command("heat", "[NAME]", "the last answer, every word coloured by how far it lies along a vector", takes="vectors")
def _heat(session: Session, argument: str) -> None:
    names = argument.split() or session.watched or [term.vector for term in session.steering.terms]
    if not names:
        raise LocalsteerError("/heat needs a vector.", hint="Such as /heat happy.")
    for trait in session.traits(names):
        session.screen.show(trait.heat())
        session.screen.show(trait.legend())


@_command("why", "", "what was added to the last answer, where, how much, and who decided that")
def _why(session: Session, _argument: str) -> None:
    latest = session.conversation.latest
    if latest is None:
        raise LocalsteerError("There is no answer yet.", hint="Say something first.")
    for line in why(latest, lambda steering: session.plan_for(steering, latest.request.mode)):
        session.screen.say(line)


@_command("thinking", "", "what the model thought before its last answer")
def _thinking(session: Session, _argument: str) -> None:
    latest = session.conversation.latest
    if latest is None or not latest.reasoning:
        raise LocalsteerError("There was no reasoning before the last answer.")
    session.screen.note(latest.reasoning)


@_command("policy", "", "what the policy has armed, what fired in the last answer, and why")
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


# ---- the conversation


@_command("undo", "", "forget the last question and its answer")
def _undo(session: Session, _argument: str) -> None:
    if (question := session.conversation.take_back()) is None:
        raise LocalsteerError("There is nothing to undo.")
    session.keep()
    session.screen.say(f"Forgotten: {question}")


@_command("retry", "[SEED]", "answer the last question once more")
def _retry(session: Session, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise LocalsteerError(f'"{argument}" is no seed.', hint="A seed is a whole number, such as /retry 7.")
    _again(session, lambda question: question, int(argument) if argument else None)


@_command("edit", "", "write the next message in $EDITOR; with nothing typed, the last question once more")
def _edit(session: Session, argument: str) -> None:
    last = session.conversation.turns[-2].content if session.conversation.turns else ""
    written = session.screen.edit(argument or last)
    if written is None or not written.strip():
        raise LocalsteerError("Nothing was written.")
    if argument or not last:
        session.ask(written.strip())
    else:
        _again(session, lambda _question: written.strip(), None)


def _again(session: Session, changed: Callable[[str], str], seed: int | None) -> None:
    """Ask the last question anew, changed; where that fails the conversation is as it was."""
    conversation = session.conversation
    before = conversation.turns, conversation.dropped_turns
    if (question := conversation.take_back()) is None:
        raise LocalsteerError("There is no question yet.", hint="Say something first.")
    try:
        session.ask(changed(question), seed=seed)
    finally:
        if not conversation.turns or conversation.turns[:-2] != before[0][:-2] or len(conversation.turns) < len(before[0]):
            conversation.turns, conversation.dropped_turns = before
            session.keep()


@_command("system", "TEXT|off", "set the system message, or remove it")
def _system(session: Session, argument: str) -> None:
    if argument:
        session.conversation.system = None if argument == "off" else argument
    session.screen.say(f"System message: {session.conversation.system or 'none'}")


@_command("model", "NAME", "talk to another model; what was said stays", takes="models")
def _model(session: Session, argument: str) -> None:
    if argument:
        session.change_model(argument)
    session.screen.say(f"Model: {session.opened.model.name}, {session.n_ctx} tokens of context; {session.status()}")


@_command("file", "PATH", "give a text file as context with the next message; off takes back what was given", takes="files")
def _file(session: Session, argument: str) -> None:
    if argument == "off":
        session.context = []
    elif argument:
        session.attach(argument, read_context(argument))
    if argument in ("", "off"):
        session.screen.say(f"With the next message: {', '.join(name for name, _ in session.context) or 'nothing'}")


def _shell(session: Session, command: str) -> None:
    if not command:
        raise LocalsteerError("! runs a command and gives its output as context.", hint="Such as !git diff.")
    with session.screen.stoppable() as should_stop:
        status, output = run_shell(command, should_stop)
    if output.strip():
        session.screen.say(output.rstrip())
        session.attach(f"$ {command}", output)
    else:
        session.screen.note(f"[{command} ended with {status} and said nothing]")


@_command("save", "FILE", "write the conversation and its settings as JSON", takes="files")
def _save(session: Session, argument: str) -> None:
    path = _file_for("/save", argument or f"{_slug(session)}.json")
    save_transcript(_said(session), path)
    session.screen.say(f"Saved: {path}")


@_command("load", "FILE", "go on with a conversation that was saved", takes="files")
def _load(session: Session, argument: str) -> None:
    if not argument:
        raise LocalsteerError("/load needs a file.", hint="One that /save wrote.")
    transcript = load_transcript(_file_for("/load", argument))
    before = session.conversation.plan
    try:
        told = list(go_on(session, transcript))
    except LocalsteerError:
        session.conversation.plan = before
        raise
    if session.keeper is not None:
        session.keeper.leave()
    session.keep()
    for line in told:
        session.screen.note(line)
    session.screen.say(f"Steering: {session.status()}")


@_command("export", "FILE.md", "write the conversation as Markdown, for people", takes="files")
def _export(session: Session, argument: str) -> None:
    path = _file_for("/export", argument or f"{_slug(session)}.md")
    export_markdown(_said(session), path)
    session.screen.say(f"Written: {path}")


def _said(session: Session) -> Transcript:
    transcript = transcript_of(session)
    if not transcript.messages:
        raise LocalsteerError("Nothing was said yet.")
    return transcript


def _file_for(name: str, argument: str) -> Path:
    path = Path(argument).expanduser()
    if path.is_dir():
        raise LocalsteerError(f"{argument} is a folder.", hint=f"Give a file, such as {name} {argument.rstrip('/')}/talk.json.")
    return path


def _slug(session: Session) -> str:
    """A file's name from the first words."""
    words = re.findall(r"[a-z0-9]+", transcript_of(session).title.lower())
    return "-".join(words[:5]) or "conversation"


@_command("copy", "[NUMBER]", "copy the last answer's code (or the whole answer) to the clipboard")
def _copy(session: Session, argument: str) -> None:
    latest = session.conversation.latest
    if latest is None or not latest.text:
        raise LocalsteerError("There is no answer to copy yet.")
    blocks = code_blocks(latest.text)
    if argument and not (argument.isdecimal() and 1 <= int(argument) <= len(blocks)):
        raise LocalsteerError(f"The last answer has {len(blocks)} blocks of code, and no block {argument}.")
    text = blocks[int(argument) - 1] if argument else "\n\n".join(blocks) or latest.text
    session.screen.copy(text)
    session.screen.note(f"[copied: {'code' if blocks else 'the answer'}, {len(text)} characters]")


@_command("set", "[NAME VALUE]", "set temperature, top_p, seed, max_tokens, think and the like; alone it shows them")
def _set(session: Session, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if argument and not value:
        raise LocalsteerError(f"/set {name} needs a value.", hint=f"Such as /set {name} on." if name == "think" else None)
    if argument:
        settings.change(session.conversation, name, value.strip())
    for line in settings.told(session.conversation):
        if not argument or line.startswith(f"{name.replace('-', '_')} "):
            session.screen.say(line)


@_command("reset", "", "forget the conversation; steering, policy and system message stay")
def _reset(session: Session, _argument: str) -> None:
    session.begin_anew()
    session.screen.say("The conversation begins anew.")


@_command("help", "", "this list")
def _help(session: Session, _argument: str) -> None:
    from localsteer.chat.tables import help_table

    rows = [(f"{command.name} {command.usage}".rstrip(), command.help) for command in COMMANDS.values()]
    session.screen.show(help_table(rows, session.screen.width))
