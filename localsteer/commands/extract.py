"""`localsteer extract`: contrastive prompts -> a control vector file."""

from __future__ import annotations

import time
from pathlib import Path

import click

from localsteer.building.estimators import MIN_PAIRS
from localsteer.building.extraction import ExtractionSettings, extract, layer_summary
from localsteer.commands.doses import print_dosing, without_a_dose
from localsteer.commands.options import (
    ModelOptions,
    check_output,
    force_option,
    gathered,
    json_option,
    layers_option,
    with_model_options,
)
from localsteer.commands.output import note, print_json, progress_bar
from localsteer.concepts.concept_file import load_concept, parse_concept
from localsteer.concepts.contrast import Contrast, read_prompt_files
from localsteer.concepts.descriptions import AGAINST, check_concept_place, concept_name, describe, write_concept
from localsteer.errors import CalibrationError
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector


@click.command()
@click.argument("concept", type=click.Path(path_type=Path), required=False)
@click.option("--concept-from", metavar="TEXT", help='Make the concept from a description, such as "a weary sea captain".')
@click.option("--against", metavar="TEXT", help='With --concept-from: the other pole. Default: "an ordinary person".')
@click.option("--positive", type=click.Path(path_type=Path), help="A file of templated prompts, one a line.")
@click.option("--negative", type=click.Path(path_type=Path), help="As many of the other pole.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The vector file. Default: the concept's name.")
@click.option("--method", type=click.Choice(["mean", "pca"]), default="mean", show_default=True)
@click.option(
    "--position",
    type=click.Choice(["opening", "last", "response"]),
    help="Read the mean over the answer's first words in each prompt, its last token, or an answer that the model gives. "
    "Default: the first words where the poles have their own, else the last token.",
)
@layers_option
@click.option("--keep-refusal", is_flag=True, help="Leave in the vector what makes the model refuse.")
@click.option("--dose/--no-dose", default=True, help="Measure what strength 1 is, or leave it at a relative dose of 1.")
@force_option
@json_option
@with_model_options
@gathered("settings", ExtractionSettings)
def command(
    concept: Path | None,
    concept_from: str | None,
    against: str | None,
    positive: Path | None,
    negative: Path | None,
    output: Path | None,
    settings: ExtractionSettings,
    force: bool,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Build a control vector from CONCEPT (a concept.yaml), from two descriptions, or from two prompt files.

    --concept-from writes the concept.yaml that it makes beside the vector. The prompt files are those of
    llama-cvector-generator. Strength 1 of the vector is measured on the model: as strong as its text bears.
    """
    if [concept, concept_from, positive or negative].count(None) != 2:
        raise click.UsageError("Give one of CONCEPT, --concept-from, and --positive with --negative.")
    if against is not None and concept_from is None:
        raise click.UsageError("--against goes with --concept-from.")
    made: Path | None = None
    if concept_from is not None:
        contrast, made = _described(concept_from, against, output)
    else:
        contrast = _contrast(concept, positive, negative, output)
    output = output or Path(f"{contrast.name}.gguf")
    check_output(output, force=force, model=model_options)
    opened = time.perf_counter()
    with model_options.open() as opened_model, progress_bar() as progress:
        if opened_model.chat_template is not None and opened_model.chat_template.opens_thinking:
            note("The model thinks before it answers: its thinking block is left empty, and the answer behind it is read.")
        start = time.perf_counter()
        with without_a_dose(CalibrationError):
            vector = extract(opened_model, contrast, settings, progress=progress)
        model_name = opened_model.name
    if made is not None:
        write_concept(contrast.source, made)
    write_vector(vector, output)
    if len(contrast.pairs) < MIN_PAIRS:
        note(f"{len(contrast.pairs)} pairs are too few to tell how reliable each layer is: all of the middle ones are used.")
    seconds = (start - opened, time.perf_counter() - start)
    if not settings.dose:
        note("Not dosed: strength 1 is a relative dose of 1, and most texts fall apart at half of it.")
    _print(vector, output, made, model_name, seconds, as_json)


def _contrast(concept: Path | None, positive: Path | None, negative: Path | None, output: Path | None) -> Contrast:
    if concept is not None:
        return load_concept(concept)
    if positive is None or negative is None:
        raise click.UsageError("--positive and --negative go together.")
    return read_prompt_files(positive, negative, name=output.stem if output is not None else positive.stem)


def _described(description: str, against: str | None, output: Path | None) -> tuple[Contrast, Path]:
    """The concept of two descriptions, and the file that it shall be written to."""
    name = concept_name(description if output is None else output.stem)
    file = Path(f"{name}.yaml") if output is None else output.with_suffix(".yaml")
    if file == output:
        raise click.UsageError(f"-o names the vector, such as {output.with_suffix('.gguf')}; the concept is written beside it.")
    text = describe(name, description, against if against is not None else AGAINST)
    check_concept_place(text, file)
    return parse_concept(text, str(file)), file


def _print(
    vector: ControlVector, output: Path, made: Path | None, model: str, seconds: tuple[float, float], as_json: bool
) -> None:
    """The result; `seconds` to open the model, and to build the vector."""
    provenance = vector.provenance
    agreement = [float(provenance.reliability[layer]) for layer in vector.layers] if provenance.reliability is not None else []
    known = [value for value in agreement if value == value]
    if as_json:
        print_json(
            {
                "vector": str(output),
                **({"concept_file": str(made)} if made is not None else {}),
                "concept": provenance.concept,
                "model": model,
                "pairs": provenance.n_pairs,
                "layers": list(vector.layers),
                "reliability": known or None,
                "dosing": provenance.dosing.document() if provenance.dosing is not None else None,
                "seconds": {"model": seconds[0], "extraction": seconds[1]},
            }
        )
        return
    steadiness = f", reliability {min(known):.2f} to {max(known):.2f}" if known else ""
    if made is not None:
        click.echo(f"{made}: the concept, to look at and to edit")
    click.echo(
        f"{output}: {provenance.positive} against {provenance.negative} from {provenance.n_pairs} pairs, "
        f"layers {layer_summary(vector)}{steadiness}"
    )
    print_dosing(vector)
    click.echo(f"read from {model} in {seconds[1]:.1f} s (and {seconds[0]:.1f} s to open the model)")
