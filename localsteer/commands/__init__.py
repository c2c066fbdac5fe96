"""The command line. One file per command, thin: parse, call, print.

Commands are imported when they are called, so that `localsteer --help` stays fast.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TextIO

import click

from localsteer.errors import LocalsteerError, shown, shown_lines

_COMMANDS = {
    "calibrate": "Measure how strong a vector may be, and write that into it.",
    "chat": "Chat in the terminal, steered.",
    "doctor": "What this build of llama.cpp can do, and whether a model can be steered.",
    "export": "Steering for llama.cpp's programs, Ollama, LM Studio and others.",
    "extract": "Build a control vector from contrastive prompts.",
    "generate": "Answer one prompt, steered.",
    "history": "Conversations of the chat: list, search, show, export and delete them.",
    "models": "GGUF models on this machine.",
    "policy": "Steering that switches itself on: check, fit, run.",
    "serve": "An HTTP server: OpenAI's API and Ollama's, steered for each request.",
    "vectors": "Show, build and combine control vectors.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"localsteer.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


class _Plain(logging.Formatter):
    """Without what would command a terminal: what is logged may quote a stranger's file."""

    def format(self, record: logging.LogRecord) -> str:
        return shown_lines(super().format(record))


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="localsteer", message="%(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show llama.cpp's log and other details on stderr.")
@click.pass_context
def command(context: click.Context, verbose: bool) -> None:
    """Volume knobs for the behaviour of a local language model.

    localsteer builds control vectors for GGUF models from contrastive prompts, and adds them, scaled, while the model answers.
    Without a command it chats with a model of this machine.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    logger = logging.getLogger("localsteer")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if not verbose:
        # llama.cpp's warnings are about its own tuning; what matters to a user is said in our errors.
        logging.getLogger("localsteer.llama").setLevel(logging.CRITICAL)
    if context.invoked_subcommand is None:
        from localsteer.commands.first_run import can_ask, offer

        if can_ask():
            offer(context)
        else:
            click.echo(context.get_help())


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Signals that would end Python at once end it as Ctrl-C does: temporary files and other processes go with it.

    Those that are ignored, as behind `nohup`, stay so.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for one in ends:  # a second one would end the first one's clean-up
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ends = [number for number in ends if signal.getsignal(number) == signal.SIG_DFL]
    for number in ends:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs a command and exits with 0 (done), 1 (LocalsteerError), 2 (usage) or 128 and a signal's number."""
    try:
        _open_streams()
        # click itself looks only whether it writes to a terminal.
        plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
        with _ended_in_order():
            code = command.main(arguments, prog_name="localsteer", standalone_mode=False, color=False if plain else None)
        sys.stdout.flush()
    except LocalsteerError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader (`| head`) has gone
        _drop(sys.stdout)
        sys.exit(0)
    except UnicodeDecodeError:
        _say("The input is not UTF-8 text.")
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            _drop(sys.stdout)
        _say(f"{shown(error.filename or 'The output')} cannot be written or read: {error.strerror}.")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _open_streams() -> None:
    """Have stdin, stdout and stderr, whatever is closed (`>&-`): a file would get its number, and what C code prints."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show ‖ or an emoji shows a question mark


def _say(text: str) -> None:
    try:
        click.echo(f"localsteer: {text}", err=True)
    except OSError:  # a full disk, or nobody reads it
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let what is left to be written go nowhere: Python would complain of it at its end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
