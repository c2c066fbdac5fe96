"""`localsteer chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import click
from click.core import ParameterSource

from localsteer.chat.conversation import Conversation
from localsteer.chat.history import lines_path
from localsteer.chat.keeping import Keeper, go_on
from localsteer.chat.screen import PlainScreen, Screen
from localsteer.chat.session import Opened, Session
from localsteer.chat.terminal import can_draw, run_plain
from localsteer.commands.answering import (
    AnswerOptions,
    armed_policy,
    limit_for,
    new_controller,
    open_generator,
    with_answer_options,
)
from localsteer.commands.options import ModelOptions, parse_special_option, with_model_options
from localsteer.commands.output import interrupt_stops_answer, progress_bar, warnings_told
from localsteer.llama.sampling import Sampling
from localsteer.llama.threads import ended_by
from localsteer.vector.calibration import Mode


@click.command()
@with_answer_options
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[ID]",
    help="Go on with the latest conversation, or with one that `localsteer history` lists.",
)
@click.option("--no-log", is_flag=True, help="Keep nothing of this conversation.")
@click.option("--plain", is_flag=True, help="Show answers as they are written, without rendering Markdown.")
@parse_special_option
@with_model_options
def command(
    answering: AnswerOptions, resume: str | None, no_log: bool, plain: bool, parse_special: bool, model_options: ModelOptions
) -> None:
    """Chat in the terminal, steered. /help lists the commands.

    Lines from a pipe are answered one after the other. What is piped in while the output is a terminal is context for the first
    message: git diff | localsteer chat.
    """

    @contextlib.contextmanager
    def open_model(name: str | None, mode: Mode) -> Iterator[Opened]:
        options = model_options if name is None else replace(model_options, model=name)
        # What is told goes where the chat is: /model opens one beneath the prompt.
        tell, progress = screen.note, screen.progress
        with contextlib.ExitStack() as held:
            with ended_by(drawn.stop_requested) if live else contextlib.nullcontext():
                model = held.enter_context(options.open(parse_special=parse_special, tell=tell))
                limit = limit_for(model, answering.max_dose)
                armed = held.enter_context(armed_policy(answering.policy_file, model, limit, mode, tell=tell, progress=progress))
                generator = held.enter_context(open_generator(model, answering.n_ctx, tell=tell))
            yield Opened(model, generator, limit, armed)

    if resume is not None and no_log:
        raise click.UsageError("--resume goes on with a conversation that is kept: leave out --no-log.")
    piped = _context_from_pipe()
    live = can_draw()
    keeper = Keeper() if not no_log and (live or resume is not None) else None
    kept = keeper.resume(_number(resume)) if keeper is not None and resume is not None else None
    if kept is not None and model_options.model is None and Path(kept.model_path).is_file():
        model_options = replace(model_options, model=kept.model_path)
    mode: Mode = "anchored" if answering.anchored else "response"
    screen: Screen
    if live:
        from prompt_toolkit.output import create_output

        from localsteer.chat.live import Chat
        from localsteer.chat.live_screen import LiveScreen

        screen = drawn = LiveScreen(create_output(), progress_bar, plain=plain)
    else:
        screen = PlainScreen(progress_bar, interrupt_stops_answer, typed=sys.stdin.isatty())
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_model(None, mode))
        conversation = Conversation(
            opened.generator,
            system=answering.system,
            think=answering.think,
            controller=new_controller(opened.armed, mode),
            sampling=answering.sampling,
            max_tokens=answering.max_tokens,
            mode=mode,
        )
        session = Session(
            screen, opened, conversation, open_model, stack, model_options.model, policy_file=answering.policy_file, keeper=keeper
        )
        told: list[str] = []
        if kept is not None:
            told = list(go_on(session, kept, steering=not answering.steering))
            _override(session, answering)
        if answering.steering or kept is None:
            session.steer(answering.steering)
        for line in (*session.introduction(), *told):
            screen.note(line)
        if keeper is not None and keeper.is_new and keeper.file is not None:
            screen.note(
                f"Conversations are kept in {keeper.file}; `localsteer history` shows and deletes them, --no-log keeps none."
            )
        session.show_last()
        if piped is not None and not piped.strip():
            screen.note("Nothing was piped in.")
        elif piped is not None:
            session.attach("the piped text", piped)
        try:
            if live:
                with warnings_told(screen.note):
                    Chat(session, drawn, None if no_log else _line_history()).run()
            else:
                typed = sys.stdin.isatty()
                run_plain(session, _typed() if typed else sys.stdin, typed=typed)
        finally:
            if keeper is not None:
                keeper.close()


def _typed() -> Iterator[str]:
    """Lines of a terminal that can show no more than lines, each behind a prompt."""
    while True:
        click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            click.echo(err=True)
            return
        yield line


def _override(session: Session, answering: AnswerOptions) -> None:
    """What the command line says goes before what the kept conversation was had with."""
    context, conversation = click.get_current_context(), session.conversation

    def given(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.COMMANDLINE

    for name in ("system", "think", "max_tokens"):
        if given(name):
            setattr(conversation, name, getattr(answering, name))
    drawn = {one.name: getattr(answering.sampling, one.name) for one in fields(Sampling) if given(one.name)}
    conversation.sampling = replace(conversation.sampling, **drawn)
    if given("anchored"):
        session.set_mode("anchored")


def _number(resume: str) -> int | None:
    if resume == "latest":
        return None
    if not resume.isdecimal() or int(resume) < 1:
        raise click.UsageError(f'--resume takes a number that `localsteer history` lists, not "{resume}".')
    return int(resume)


def _context_from_pipe() -> str | None:
    """What is piped in where there is a terminal to talk on, which takes the pipe's place; None without a pipe or a terminal."""
    if sys.stdin.isatty() or not sys.stdout.isatty():
        return None
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return None
    text = sys.stdin.read()
    os.dup2(terminal, 0)
    os.close(terminal)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    return text


def _line_history() -> Path | None:
    """Where the lines of earlier chats are, for their writer's eyes only; None where that cannot be written."""
    path = lines_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return None
    return path
