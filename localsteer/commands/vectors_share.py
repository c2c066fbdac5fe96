"""`localsteer vectors share`: a vector as a folder with a card, to be uploaded as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click

from localsteer.building.library import loader
from localsteer.commands.options import ModelOptions, json_option, with_model_options
from localsteer.commands.output import note, print_json, progress_bar
from localsteer.export.share import share

Check = Callable[[click.Context, click.Parameter, str | None], str | None]
# As the hubs write them: cc0-1.0, and owner/name.
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_BASE_MODEL = re.compile(r"[\w.-]+/[\w.-]+")


def _as_hubs_write(pattern: re.Pattern[str], example: str) -> Check:
    def check(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
        if given is not None and not pattern.fullmatch(given):
            raise click.BadParameter(f'"{given}" is not written as {example}.')
        return given

    return check


@click.command()
@click.argument("vector")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder.")
@click.option(
    "--license",
    metavar="ID",
    callback=_as_hubs_write(_LICENSE, "cc0-1.0 or apache-2.0"),
    help="What others may do with it, such as cc0-1.0 or apache-2.0; for the card.",
)
@click.option(
    "--base-model",
    metavar="OWNER/NAME",
    callback=_as_hubs_write(_BASE_MODEL, "Qwen/Qwen3-8B"),
    help="What the model is called on the hub; for the card.",
)
@click.option("--force", is_flag=True, help="Replace the files of an earlier one.")
@json_option
@with_model_options
def command(
    vector: str,
    output: Path,
    license: str | None,
    base_model: str | None,
    force: bool,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Write VECTOR (a name or a file) as a folder that can be uploaded as it is.

    It holds the vector, a LoRA adapter of it for other programs, its concept file, and a card (README.md): for which model it
    is, how it was measured, what answers are like without and with it, how it is used. `localsteer vectors import FOLDER` takes
    it in.
    """
    with progress_bar() as progress, model_options.open() as model:
        shared = share(
            vector, output, loader(model, progress), model, license=license, base_model=base_model, force=force, progress=progress
        )
    note(*shared.notes)
    if shared.without_adapter:
        note(f"Without an adapter: {shared.without_adapter}")
    if license is None:
        note("The card names no license: --license says what others may do with it.")
    if base_model is None:
        note("The card names no base model, by which a hub shows it beside the model: --base-model.")
    if as_json:
        print_json({"folder": str(output), "name": shared.name, "files": [file.name for file in shared.files]})
        return
    click.echo(f"{output}: {', '.join(file.name for file in shared.files)}")
    note(f"Read {shared.files[-1]} before you upload it.")
