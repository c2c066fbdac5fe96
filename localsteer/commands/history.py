"""`localsteer history`: the conversations that chats keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click

from localsteer.chat.history import Entry, History, history_path, lines_path
from localsteer.chat.transcript import Transcript, export_markdown, one_line, save_transcript, to_markdown
from localsteer.commands.options import json_option
from localsteer.commands.output import note, print_folded_table, print_json
from localsteer.errors import LocalsteerError

_HEADERS = ("id", "when", "model", "steering", "messages", "title")
# With it the table of most conversations fits 80 characters, but for the title, which goes below.
_LONGEST_NAME = 20
_EXPORTS: dict[str, Callable[[Transcript, Path], None]] = {".md": export_markdown, ".json": save_transcript}

_id = click.IntRange(1)
_limit = click.IntRange(1, 1_000_000)
limit_option = click.option("--limit", type=_limit, default=50, show_default=True, help="List so many at most.")


class _ListByDefault(click.Group):
    """A group that lists where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListByDefault)
def command() -> None:
    """Conversations of the chat: list, search, show, export and delete them.

    Chats keep them as they go. Without a command they are listed.
    """


@command.command("list")
@limit_option
@json_option
def list_conversations(limit: int, as_json: bool) -> None:
    """The conversations, newest first."""
    _print_entries("", limit, as_json)


@command.command("search")
@click.argument("words", nargs=-1, required=True)
@limit_option
@json_option
def search(words: Sequence[str], limit: int, as_json: bool) -> None:
    """Conversations in which all WORDS occur, newest first."""
    _print_entries(" ".join(words), limit, as_json)


@command.command("show")
@click.argument("id", type=_id)
@json_option
def show(id: int, as_json: bool) -> None:
    """Conversation ID, as Markdown; --json as `/save` of a chat writes it."""
    transcript = _read(id)
    if as_json:
        print_json(transcript.document())
    else:
        click.echo(to_markdown(transcript), nl=False)


@command.command("export")
@click.argument("id", type=_id)
@click.argument("file", type=click.Path(path_type=Path))
def export(id: int, file: Path) -> None:
    """Write conversation ID to FILE: as Markdown (.md), or as JSON (.json) that `/load` of a chat reads."""
    write = _EXPORTS.get(file.suffix.lower())
    if write is None:
        raise LocalsteerError(f"{file} ends neither in .md nor in .json.", hint="Markdown is for people, JSON for chats.")
    write(_read(id), file)
    click.echo(f"{file}: conversation {id}")


@command.command("delete")
@click.argument("ids", metavar="[ID]...", nargs=-1, type=_id)
@click.option("--all", "everything", is_flag=True, help="Delete all of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(ids: Sequence[int], everything: bool, yes: bool) -> None:
    """Delete conversations, and their text from the disk; with --all also the typed lines that the prompt offers again."""
    if everything == bool(ids):
        raise click.UsageError("Give the ids of conversations, or --all.")
    ids = tuple(dict.fromkeys(ids))
    what = "all conversations" if everything else f"conversation{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"
    with _opened() as history:
        if not yes and not _confirmed(what):
            note("Nothing was deleted.")
            return
        if everything:
            history.delete_all()
            lines_path().unlink(missing_ok=True)
        else:
            history.delete(ids)
    click.echo(f"Deleted: {what}.")


@command.command("path")
def path() -> None:
    """The file that conversations are kept in."""
    click.echo(history_path())


def _opened() -> History:
    """The conversations, where there are some: nothing is made by looking.

    Raises:
        LocalsteerError: there are none, or they cannot be opened.
    """
    if not history_path().exists():
        raise LocalsteerError("No conversations are kept yet.", hint="`localsteer chat` keeps them as they go.")
    return History()


def _read(id: int) -> Transcript:
    with _opened() as history:
        return history.read(id)


def _print_entries(words: str, limit: int, as_json: bool) -> None:
    entries: list[Entry] = []
    if history_path().exists():
        with _opened() as history:
            entries = history.entries(words, limit + 1)
    if len(entries) > limit:
        note(f"There are more than these {limit}: --limit lists more.")
    entries = entries[:limit]
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        note("No conversation holds that." if words else "No conversations are kept yet.")
        return
    if sys.stdout.isatty():
        print_folded_table(_HEADERS, [_cells(entry) for entry in entries])
    else:
        for entry in entries:
            click.echo("\t".join([*_row(entry), *([entry.excerpt] if words else [])]))


def _row(entry: Entry) -> tuple[str, ...]:
    texts = map(one_line, (entry.model, entry.steering, str(entry.messages), entry.title))
    return str(entry.id), _when(entry.updated), *texts


def _cells(entry: Entry) -> tuple[str, ...]:
    """The same for a table: a long name of a model is cut, and what was found stands below the title."""
    id, when, model, steering, messages, title = _row(entry)
    name = model if len(model) <= _LONGEST_NAME else f"{model[: _LONGEST_NAME - 1]}…"
    return id, when, name, steering, messages, f"{title}\n{entry.excerpt}" if entry.excerpt else title


def _when(time: str) -> str:
    """A time as the user's clock shows it."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a time that no calendar has
        return one_line(time)


def _confirmed(what: str) -> bool:
    """Whether the user wants it, who is asked.

    Raises:
        click.UsageError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(f"To delete {what} without a terminal, give --yes.")
    return click.confirm(f"Delete {what}?", err=True)
