"""`localsteer vectors import`: a vector from elsewhere made ours, or a shared folder taken in."""

from __future__ import annotations

import time
from pathlib import Path

import click

from localsteer.building.dosing import dose as measured_dose
from localsteer.commands.doses import print_dosing, without_a_dose
from localsteer.commands.options import ModelOptions, check_output, json_option, with_model_options
from localsteer.commands.output import note, print_json, progress_bar
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.shared import keep, read_folder
from localsteer.errors import CalibrationError, ModelError
from localsteer.llama.model_file import content_hash
from localsteer.vector.control_vector import ControlVector, format_layers
from localsteer.vector.file import write_vector
from localsteer.vector.importing import import_vector


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The new file. A folder is kept by name without one.")
@click.option(
    "--shift",
    type=click.IntRange(-2, 2),
    help="Add this to the file's layer numbers, such as -1 for one block late. By default it is found out.",
)
@click.option("--name", help="What to call the vector, or the concept of a folder.")
@click.option("--dose/--no-dose", default=True, help="With -m: measure what strength 1 is, or leave it at what the file holds.")
@click.option("--force", is_flag=True, help="Replace a vector that is calibrated, or was made for another model, or a concept.")
@json_option
@with_model_options
def command(
    file: Path,
    output: Path | None,
    shift: int | None,
    name: str | None,
    dose: bool,
    force: bool,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Make a vector of ours from FILE, or take in what somebody shared as a folder.

    FILE is GGUF (repeng, llama-cvector-generator, jukofyork, an adapter of `localsteer export lora`), .npz or .safetensors. A
    folder of `localsteer vectors share` is kept among your own concepts, with its vectors, and works by its name from then on;
    with -o its vector becomes a file.

    Directions that stand one block late are moved to the block where they were read, as far as the file tells. Only with -m a
    model is opened: that which the vector is for, whose shape is compared with the file's, and on which it is dosed.
    """
    if file.is_dir() and output is None:
        if shift is not None or not dose or model_options.model is not None:
            raise click.UsageError("--shift, --no-dose and -m go with -o.")
        _keep_folder(file, name, force, as_json)
        return
    if output is None:
        raise click.UsageError("-o names the new file.")
    check_output(output, force=force)
    seconds: float | None = None
    if file.is_dir():
        file = read_folder(file).only(content_hash(model_options.path()) if model_options.model is not None else None)
    if model_options.model is not None:
        with model_options.open() as opened, progress_bar() as progress:
            imported = import_vector(file, shift=shift, name=name, model=opened.fingerprint)
            vector = imported.vector
            measured = vector.provenance.calibration or vector.provenance.probe or vector.provenance.removal
            if dose and measured is None:
                start = time.perf_counter()
                with without_a_dose(ModelError, CalibrationError):
                    vector = measured_dose(opened, vector, _concept_of(vector), progress=progress)
                seconds = time.perf_counter() - start
    else:
        imported = import_vector(file, shift=shift, name=name)
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
                "dosing": vector.provenance.dosing.document() if vector.provenance.dosing is not None else None,
                "seconds": seconds,
            }
        )
        return
    for finding in imported.findings:
        click.echo(finding)
    click.echo(f"{output}: {vector.provenance.concept}, layers {format_layers(vector.layers)}, n_embd {vector.n_embd}")
    if vector.provenance.calibration is None:
        print_dosing(vector)
        if seconds is not None:
            click.echo(f"dosed in {seconds:.1f} s")
    else:
        click.echo(f"calibrated: `localsteer vectors show {output}` tells its doses")
    if vector.provenance.calibration is None and vector.provenance.dosing is None and vector.provenance.removal is None:
        note(
            f"Neither dosed nor calibrated: strength 1 is what the file says. `localsteer vectors show {output}` tells how large "
            "that is, and with -m MODEL it is measured how much the model bears."
        )


def _keep_folder(folder: Path, name: str | None, force: bool, as_json: bool) -> None:
    kept = keep(read_folder(folder), name=name, force=force)
    for path in kept.left_out:
        note(f"{path.name} was left out: it was not built from this concept, or does not say for which model; -o imports it.")
    if kept.hides_shipped:
        note(f"It comes before the concept {kept.name} that comes with localsteer.")
    if as_json:
        print_json({"name": kept.name, "folder": str(kept.folder), "vectors": list(kept.vectors)})
        return
    ready = f"with its vector for {', '.join(kept.vectors)}" if kept.vectors else "to be built for a model at first use"
    click.echo(f"{kept.name}: kept in {kept.folder}, {ready}")
    click.echo(f'  localsteer chat -s "0.7 {kept.name}"')


def _concept_of(vector: ControlVector) -> Contrast | None:
    """The concept that a vector of ours carries; None for one from elsewhere."""
    source = vector.provenance.source
    return parse_concept(source, f"the concept in {vector.provenance.concept}") if source else None
