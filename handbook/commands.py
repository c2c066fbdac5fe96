"""`docs/commands.md`: what `--help` says of every command, read from the commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields

import click

from handbook.links import ROOT
from localsteer.commands import command
from localsteer.commands.options import ModelOptions

PAGE = ROOT / "docs" / "commands.md"

_INTRODUCTION = """\
# Commands

Written by `make handbook` from the commands themselves; edits are lost. `localsteer COMMAND --help` shows the same in
a terminal. Exit codes: 0 done, 1 an error, which is told in a line or two, 2 wrong usage, 130 interrupted.
"""
_MODEL = {field.name for field in fields(ModelOptions)}


def page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *_all(), *_model_options()]).rstrip() + "\n"


def leaves(group: click.Command = command, name: str = "localsteer") -> Iterator[tuple[str, click.Command]]:
    """Every command that is no group, with its full name."""
    if not isinstance(group, click.Group):
        yield name, group
        return
    context = click.Context(group)
    for part in group.list_commands(context):
        inner = group.get_command(context, part)
        assert inner is not None
        yield from leaves(inner, f"{name} {part}")


def _all() -> Iterator[str]:
    yield from _rows([one for one in command.params if isinstance(one, click.Option)])
    for name, one in leaves():
        yield from (f"## {name}", "", "```", _usage(name, one), "```", "", _told(one), "")
        options = [each for each in one.params if isinstance(each, click.Option)]
        own = [each for each in options if each.name not in _MODEL]
        yield from _rows(own)
        if len(own) < len(options):
            yield from ("And [the options of the model](#options-of-the-model).", "")


def _model_options() -> Iterator[str]:
    shown = next(one for name, one in leaves() if name == "localsteer doctor")
    yield from ("## Options of the model", "", "Of every command that opens one.", "")
    yield from _rows([one for one in shown.params if isinstance(one, click.Option) and one.name in _MODEL])


def _usage(name: str, one: click.Command) -> str:
    arguments = (each for each in one.params if isinstance(each, click.Argument))
    return " ".join([name, "[OPTIONS]", *(_argument(each) for each in arguments)])


def _argument(one: click.Argument) -> str:
    name = one.metavar or (one.name or "").upper()
    name = f"{name}..." if one.nargs < 0 and one.metavar is None else name
    return name if one.required else f"[{name}]"


def _told(one: click.Command) -> str:
    text = _escaped(inspect.cleandoc(one.help or ""))
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def _rows(options: list[click.Option]) -> Iterator[str]:
    if options:
        yield from ("| option | |", "|---|---|", *(f"| {_names(one)} | {_meaning(one)} |" for one in options), "")


def _names(one: click.Option) -> str:
    value = "" if one.is_flag else f" {_value(one)}"
    names = [*one.opts, *one.secondary_opts]
    return ", ".join(f"`{name}`" for name in names[:-1]) + (", " if len(names) > 1 else "") + f"`{names[-1]}{value}`"


def _value(one: click.Option) -> str:
    if one.metavar is not None:
        return one.metavar
    return "FILE" if isinstance(one.type, click.Path) else "TEXT" if one.type is click.STRING else "NUMBER"


def _meaning(one: click.Option) -> str:
    parts = [_escaped(one.help or "")]
    if isinstance(one.type, click.Choice):
        parts.append(f"One of {', '.join(map(str, one.type.choices))}.")
    if one.required:
        parts.append("Required.")
    if one.show_default and not one.is_flag:
        parts.append(f"Default: {one.default}.")
    return " ".join(part for part in parts if part)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")
