"""Every `localsteer` command that a page shows is one that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt

from handbook.links import ROOT, reached
from localsteer.commands import command
from localsteer.errors import PolicyError

# Not what is written by programs.
_WRITTEN = {"bench", "vectors", "commands.md"}
PAGES = [file for file in reached() if file.suffix == ".md" and not _WRITTEN & set(file.parts)]
# What a page may put in the place of a number.
_NUMBERS = {"N": "8", "D": "1", "T": "1", "NATS": "1", "A-B": "1-2"}


def shown(page: Path) -> Iterator[tuple[int, list[str]]]:
    """The line and the words of each command in the blocks of a page."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info in ("", "sh") and token.map is not None:
            text = token.content.replace("\\\n", "  ")
            for number, line in enumerate(text.splitlines()):
                for words in _commands(line):
                    yield token.map[0] + 2 + number, words


def _commands(line: str) -> Iterator[list[str]]:
    """The words behind each `localsteer` of a line, up to what ends a command in a shell."""
    if "localsteer " not in line or line.startswith("#"):
        return
    # Square brackets hold what may be left out.
    lexer = shlex.shlex(re.sub(r"[\[\]](?![^\"]*\"[^\"]*$)", " ", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word == "localsteer" and not words:
            words = [word]
        elif words and set(word) <= set("|&;<>"):
            yield words[1:]
            words = []
        elif words:
            words.append(word)


def refused(words: list[str]) -> str | None:
    """Why the program would not take these words; None where it does."""
    context = click.Context(command, info_name="localsteer")
    one: click.Command = command
    rest = [_NUMBERS.get(word, word) for word in words]
    try:
        while isinstance(one, click.Group) and rest:
            name, found, rest = one.resolve_command(context, rest)
            assert found is not None
            one, context = found, click.Context(found, info_name=name, parent=context)
        one.make_context(context.info_name, rest, parent=context.parent)
    except (
        click.exceptions.NoArgsIsHelpError,
        PolicyError,
    ):  # a policy's file is read at once, and that of an example is not there
        return None
    except click.ClickException as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_taken(page: Path) -> None:
    wrong = [f"line {line}: {' '.join(words)}: {why}" for line, words in shown(page) if (why := refused(words)) is not None]
    assert not wrong


def test_a_command_that_is_none_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```\nlocalsteer genrate x\nlocalsteer chat --policies x | cat\nlocalsteer doctor  # fine\n```\n", encoding="utf-8"
    )
    said = [(line, refused(words)) for line, words in shown(page)]
    assert [line for line, _ in said] == [2, 3, 4]
    assert [why is None for _, why in said] == [False, False, True]
