"""`localsteer extract`: contrastive prompts -> a control vector file."""

from __future__ import annotations

import time
from pathlib import Path

import click

from localsteer.commands.options import ModelOptions, json_option, layers_option, with_model_options
from localsteer.commands.output import note, print_json, progress_bar


@click.command()
@click.argument("concept", type=click.Path(path_type=Path), required=False)
@click.option("--positive", type=click.Path(path_type=Path), help="A file of templated prompts, one a line.")
@click.option("--negative", type=click.Path(path_type=Path), help="As many of the other pole.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The vector file. Default: the concept's name.")
@click.option("--method", type=click.Choice(["mean", "pca"]), default="mean", show_default=True)
@click.option(
    "--position",
    type=click.Choice(["last", "response"]),
    default="last",
    show_default=True,
    help="Read the last prompt token, or the mean over an answer that the model gives first.",
)
@layers_option
@json_option
@with_model_options
def command(
    concept: Path | None,
    positive: Path | None,
    negative: Path | None,
    output: Path | None,
    method: str,
    position: str,
    layers: tuple[int, int] | None,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Build a control vector from CONCEPT (a concept.yaml), or from two prompt files.

    The prompt files are those of llama-cvector-generator. Strength 1 of the vector is a safe default dose.
    """
    from localsteer.atomic import check_writable
    from localsteer.contrast import read_prompt_files
    from localsteer.errors import VectorError
    from localsteer.estimators import MIN_PAIRS
    from localsteer.extraction import ExtractionSettings, extract, layer_summary
    from localsteer.vector_file import write_vector

    if (concept is None) == (positive is None and negative is None):
        raise click.UsageError("Give either CONCEPT, or both --positive and --negative.")
    if concept is not None:
        from localsteer.concept_file import load_concept

        contrast = load_concept(concept)
    elif positive is None or negative is None:
        raise click.UsageError("--positive and --negative go together.")
    else:
        contrast = read_prompt_files(positive, negative, name=output.stem if output is not None else positive.stem)
    output = output or Path(f"{contrast.name}.gguf")
    check_writable(output, VectorError)
    settings = ExtractionSettings(method, "response" if position == "response" else "last", layers)
    opened = time.perf_counter()
    with model_options.open() as opened_model, progress_bar() as progress:
        start = time.perf_counter()
        vector = extract(opened_model, contrast, settings, progress=progress)
        model_name = opened_model.name
    write_vector(vector, output)
    if len(contrast.pairs) < MIN_PAIRS:
        note(f"{len(contrast.pairs)} pairs are too few to tell how reliable each layer is: all of the middle ones are used.")
    end = time.perf_counter()
    provenance = vector.provenance
    agreement = [float(provenance.reliability[layer]) for layer in vector.layers] if provenance.reliability is not None else []
    known = [value for value in agreement if value == value]
    if as_json:
        print_json(
            {
                "vector": str(output),
                "concept": contrast.name,
                "model": model_name,
                "pairs": provenance.n_pairs,
                "layers": list(vector.layers),
                "reliability": known or None,
                "seconds": {"model": start - opened, "extraction": end - start},
            }
        )
        return
    steadiness = f", reliability {min(known):.2f} to {max(known):.2f}" if known else ""
    click.echo(
        f"{output}: {contrast.positive} against {contrast.negative} from {provenance.n_pairs} pairs, "
        f"layers {layer_summary(vector)}{steadiness}"
    )
    click.echo(f"read from {model_name} in {end - start:.1f} s (and {start - opened:.1f} s to open the model)")
