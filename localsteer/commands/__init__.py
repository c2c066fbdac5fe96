"""The command line. One file per command, thin: parse, call, print.

Commands are imported when they are called, so that `localsteer --help` stays fast.
"""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

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


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: runs a command and exits with 0 (done), 1 (LocalsteerError), 2 (usage) or 130 (interrupted)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show ‖ or an emoji shows a question mark
    try:
        # click itself looks only whether it writes to a terminal.
        plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
        code = command.main(arguments, prog_name="localsteer", standalone_mode=False, color=False if plain else None)
    except LocalsteerError as error:
        click.echo(f"localsteer: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("localsteer: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has gone; keep Python from complaining about it at exit.
        sys.stdout = None
        sys.exit(0)
    except UnicodeDecodeError:
        click.echo("localsteer: The input is not UTF-8 text.", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"localsteer: {shown(error.filename or 'The output')} cannot be written or read: {error.strerror}.", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
