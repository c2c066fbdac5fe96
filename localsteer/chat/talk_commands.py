"""The commands of the chat that are about what is said: what goes with the next message, and what becomes of the last ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import click

from localsteer.chat import settings
from localsteer.chat.command import command
from localsteer.chat.keeping import go_on, transcript_of
from localsteer.chat.markdown import code_blocks
from localsteer.chat.session import MOST_CONTEXT, Session
from localsteer.chat.shell import run_shell
from localsteer.chat.transcript import Transcript, brief, export_markdown, load_transcript, save_transcript
from localsteer.errors import LocalsteerError
from localsteer.files.home import expanded

# What a shell says of a command that there is not.
_NO_COMMAND = 127
# As Ollama's chat has them.
_SET = {"think": "think on", "nothink": "think off"}


@command("undo", "", "forget the last question and its answer")
def _undo(session: Session, _argument: str) -> None:
    if (question := session.conversation.take_back()) is None:
        raise LocalsteerError("There is nothing to undo.")
    session.keep()
    session.screen.say(f"Forgotten: {brief(question)}")


@command("retry", "[SEED]", "answer the last question once more")
def _retry(session: Session, argument: str) -> None:
    if argument and not argument.isdecimal():
        raise LocalsteerError(f'"{argument}" is no seed.', hint="A seed is a whole number, such as /retry 7.")
    _again(session, lambda question: question, int(argument) if argument else None)


@command("edit", "[TEXT]", "write the next message in $EDITOR; with nothing typed, the last question once more")
def _edit(session: Session, argument: str) -> None:
    last = session.conversation.turns[-2].content if session.conversation.turns else ""
    try:
        written = session.screen.edit(argument or last)
    except click.ClickException as error:  # there is no such editor, or it gave up
        raise LocalsteerError(error.message) from None
    if written is None or not written.strip():
        raise LocalsteerError("Nothing was written.")
    if argument or not last:
        session.ask(written.strip())
    else:
        _again(session, lambda _question: written.strip(), None)


def _again(session: Session, changed: Callable[[str], str], seed: int | None) -> None:
    """Ask the last question anew, changed; where that fails the conversation is as it was."""
    with session.conversation.last_taken_back() as question:
        if question is None:
            raise LocalsteerError("There is no question yet.", hint="Say something first.")
        session.ask(changed(question), seed=seed, again=True)


@command("system", "TEXT|off", "set the system message, or remove it")
def _system(session: Session, argument: str) -> None:
    if argument:
        session.conversation.system = None if argument == "off" else argument
    session.screen.say(f"System message: {session.conversation.system or 'none'}")


@command("model", "NAME", "talk to another model; what was said stays", takes="models")
def _model(session: Session, argument: str) -> None:
    if argument:
        session.change_model(argument)
    session.screen.say(f"Model: {session.opened.model.name}, {session.n_ctx} tokens of context; {session.status()}")


@command("file", "PATH", "give a text file as context with the next message; off takes back what was given", takes="files")
def _file(session: Session, argument: str) -> None:
    if argument == "off":
        session.context = []
    elif argument:
        session.attach(argument, _read_context(argument))
    if argument in ("", "off"):
        session.screen.say(f"With the next message: {', '.join(name for name, _ in session.context) or 'nothing'}")


def shell(session: Session, line: str) -> None:
    """What a line behind an exclamation mark does.

    Raises:
        LocalsteerError: there is nothing behind it, or it does not end.
    """
    if not line:
        raise LocalsteerError("! runs a command and gives its output as context.", hint="Such as !git diff.")
    with session.screen.stoppable() as should_stop:
        status, output = run_shell(line, should_stop)
    if status == _NO_COMMAND:
        raise LocalsteerError(f"{output.strip() or line}.", hint="! runs a command of the system; /help lists those of the chat.")
    if output.strip():
        session.attach(f"$ {line}", output)
        session.screen.say(output.rstrip())
    else:
        session.screen.note(f"[{line} ended with {status} and said nothing]")


@command("save", "FILE", "write the conversation and its settings as JSON", takes="files")
def _save(session: Session, argument: str) -> None:
    path = _file_for("/save", argument or _new_name(session, ".json"))
    save_transcript(_said(session), path)
    session.screen.say(f"Saved: {path}")


@command("load", "FILE", "go on with a conversation that was saved", takes="files")
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
    session.show_last()
    session.screen.say(f"Steering: {session.status()}")


@command("export", "FILE.md", "write the conversation as Markdown, for people", takes="files")
def _export(session: Session, argument: str) -> None:
    path = _file_for("/export", argument or _new_name(session, ".md"))
    export_markdown(_said(session), path)
    session.screen.say(f"Written: {path}")


def _said(session: Session) -> Transcript:
    transcript = transcript_of(session)
    if not transcript.messages:
        raise LocalsteerError("Nothing was said yet.")
    return transcript


def _file_for(name: str, argument: str) -> Path:
    path = expanded(argument)
    if path.is_dir():
        raise LocalsteerError(f"{argument} is a folder.", hint=f"Give a file, such as {name} {argument.rstrip('/')}/talk.json.")
    return path


def _new_name(session: Session, ending: str) -> str:
    """A name of the first words that no file has."""
    words = re.findall(r"[a-z0-9]+", transcript_of(session).title.lower())
    name = "-".join(words[:5]) or "conversation"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(f"{one}{ending}" for one in names if not Path(f"{one}{ending}").exists())


@command("copy", "[NUMBER]", "copy the last answer's code (or the whole answer) to the clipboard")
def _copy(session: Session, argument: str) -> None:
    answer = session.conversation.last_answer
    if answer is None:
        raise LocalsteerError("There is no answer to copy yet.")
    blocks = code_blocks(answer.content)
    if argument and not (argument.isdecimal() and 1 <= int(argument) <= len(blocks)):
        raise LocalsteerError(f"The last answer has {len(blocks)} blocks of code, and no block {argument}.")
    text = blocks[int(argument) - 1] if argument else "\n\n".join(blocks) or answer.content
    session.screen.copy(text)
    session.screen.note(f"[copied: {'code' if blocks else 'the answer'}, {len(text)} characters]")


@command("set", "[NAME VALUE]", "set temperature, top_p, seed, max_tokens, think and the like; alone it shows them")
def _set(session: Session, argument: str) -> None:
    argument = _SET.get(argument, argument.removeprefix("parameter "))
    name, _, value = argument.partition(" ")
    if argument and not value:
        raise LocalsteerError(f"/set {name} needs a value.")
    if name == "system":
        _system(session, value.strip())
        return
    if argument:
        settings.change(session.conversation, name, value.strip())
    for line in settings.told(session.conversation):
        if not argument or line.startswith(f"{name.replace('-', '_')} "):
            session.screen.say(line)


@command("reset", "", "forget the conversation; steering, policy and system message stay")
def _reset(session: Session, _argument: str) -> None:
    session.begin_anew()
    session.screen.say("The conversation begins anew.")


def _read_context(path: str) -> str:
    """A text file's text.

    Raises:
        LocalsteerError: it cannot be read, is no text, or is too long.
    """
    file = expanded(path)
    if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe or a terminal, which may never end
        raise LocalsteerError(f"{path} is no file.")
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_CONTEXT * 4 + 1)
    except OSError as error:
        raise LocalsteerError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LocalsteerError(f"{path} is no text in UTF-8.") from None
