"""`localsteer vectors import`: a control vector that another program made becomes ours."""

from __future__ import annotations

from pathlib import Path

import click

from localsteer.commands.options import (
    ModelOptions,
    check_output,
    force_option,
    json_option,
    output_option,
    with_model_options,
)
from localsteer.commands.output import note, print_json
from localsteer.vector.control_vector import format_layers
from localsteer.vector.file import write_vector
from localsteer.vector.importing import import_vector as imported_from


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@output_option
@click.option(
    "--shift",
    type=click.IntRange(-2, 2),
    help="Add this to the file's layer numbers, such as -1 for one block late. By default it is found out.",
)
@click.option("--name", help="What to call the vector.")
@force_option
@json_option
@with_model_options
def import_vector(
    file: Path, output: Path, shift: int | None, name: str | None, force: bool, as_json: bool, model_options: ModelOptions
) -> None:
    """Make a vector of ours from FILE: GGUF (repeng, llama-cvector-generator, jukofyork), .npz or .safetensors.

    Directions that stand one block late are moved to the block where they were read, as far as the file tells. Only with -m a
    model is opened: that which the vector is for, whose shape is compared with the file's.
    """
    check_output(output, force=force)
    fingerprint = None
    if model_options.model is not None:
        with model_options.open() as opened:
            fingerprint = opened.fingerprint
    imported = imported_from(file, shift=shift, name=name, model=fingerprint)
    vector = imported.vector
    write_vector(vector, output)
    if as_json:
        print_json(
            {
                "vector": str(output),
                "name": vector.provenance.concept,
                "made_by": imported.kind,
                "shift": imported.shift,
                "layers": list(vector.layers),
                "n_embd": vector.n_embd,
                "findings": list(imported.findings),
            }
        )
        return
    for finding in imported.findings:
        click.echo(finding)
    click.echo(f"{output}: {vector.provenance.concept}, layers {format_layers(vector.layers)}, n_embd {vector.n_embd}")
    if vector.provenance.calibration is None:
        note(f"Not calibrated: strength 1 is what the file says. `localsteer vectors show {output}` tells how large that is.")
