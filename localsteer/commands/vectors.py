"""`localsteer vectors`: look at control vectors, build them ahead, take in those from elsewhere, and mix them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from localsteer.building.library import find_vector, load_for_showing, load_vector
from localsteer.calibration.report import CURVE_HEADERS, curve_rows
from localsteer.commands.calibrate import print_doses
from localsteer.commands.doses import print_dosing
from localsteer.commands.options import (
    ModelOptions,
    check_output,
    expression_argument,
    force_option,
    json_option,
    output_option,
    with_model_options,
)
from localsteer.commands.output import note, print_facts, print_folded_table, print_json, print_table, progress_bar
from localsteer.commands.vectors_build import command as build
from localsteer.commands.vectors_import import command as import_file
from localsteer.commands.vectors_share import command as share
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import CONCEPT_FILE, LibraryConcept, concepts, is_path, user_folder
from localsteer.errors import ContrastError, LocalsteerError
from localsteer.llama.model_file import content_hash
from localsteer.steering.combination import combine as combined
from localsteer.steering.combination import refuse_removal
from localsteer.steering.dose import relative_dose
from localsteer.steering.expression import Steering
from localsteer.steering.worth import worth
from localsteer.vector.calibration import MODE_NAMES, SIGN
from localsteer.vector.control_vector import ControlVector, format_layers
from localsteer.vector.file import write_vector


@click.group()
def command() -> None:
    """Show, build, combine, import and share control vectors."""


command.add_command(build, "build")
command.add_command(import_file, "import")
command.add_command(share, "share")


@command.command("list")
@json_option
@with_model_options
def list_vectors(as_json: bool, model_options: ModelOptions) -> None:
    """The concepts that can be named in an expression, and whether their vectors for the model are there."""
    hand = _model_at_hand(model_options)
    documents = []
    for concept in concepts().values():
        try:
            documents.append(_list_document(concept, hand))
        except ContrastError as error:
            note(str(error))
    if as_json:
        print_json(documents)
        return
    headers = ("name", "+", "-", "from", *(["vector"] if hand is not None else []), "description")
    print_folded_table(headers, list(map(_list_row, documents)))
    if hand is not None:
        note(f"The column vector is about {hand[0].name}.")
    note(f"Concepts of your own: {user_folder() / 'NAME' / CONCEPT_FILE}.")


def _model_at_hand(model_options: ModelOptions) -> tuple[Path, str] | None:
    """The file of the model, and its content hash; None where none is named and there is no default."""
    try:
        path = model_options.path()
        return path, content_hash(path)
    except LocalsteerError as error:
        if model_options.model is not None:
            raise
        note(f"Which vectors are there depends on the model: {error.message}")
        return None


def _list_document(concept: LibraryConcept, hand: tuple[Path, str] | None) -> dict[str, Any]:
    contrast = load_concept(concept.file)
    vector = None
    if hand is not None:
        path, content = hand
        found = find_vector(concept, contrast.source, content)
        vector = {
            "model": str(path),
            "state": "not built yet" if found is None else "shipped" if found.shipped else "built",
            "calibrated": found is not None and found.calibrated,
            "path": str(found.path) if found is not None else None,
        }
    return {
        "name": concept.name,
        "positive": contrast.positive,
        "negative": contrast.negative,
        "description": contrast.description,
        "source": "shipped" if concept.shipped else "yours",
        "hides_shipped": concept.hides_shipped,
        "file": str(concept.file),
        "vector": vector,
    }


def _list_row(document: dict[str, Any]) -> tuple[str, ...]:
    hides = ", hides the shipped one" if document["hides_shipped"] else ""
    vector = document["vector"]
    state = [f"{vector['state']}{', calibrated' if vector['calibrated'] else ''}"] if vector is not None else []
    return (
        document["name"],
        document["positive"],
        document["negative"],
        f"{document['source']}{hides}",
        *state,
        document["description"],
    )


@command.command("show")
@click.argument("vector")
@json_option
@with_model_options
def show(vector: str, as_json: bool, model_options: ModelOptions) -> None:
    """Where VECTOR (a name or a file) comes from, and its directions layer by layer."""
    loaded = _to_show(vector, model_options)
    provenance = loaded.provenance
    built_on = provenance.model
    facts: dict[str, Any] = {
        "concept": provenance.concept,
        "description": provenance.description,
        "positive": provenance.positive,
        "negative": provenance.negative,
        "model": built_on.name if built_on is not None else provenance.model_hint,
        "n_layer": built_on.n_layer if built_on is not None else None,
        "n_embd": loaded.n_embd,
        "layers": format_layers(loaded.layers),
        "method": provenance.method,
        "position": provenance.position,
        "pairs": provenance.n_pairs or None,
        "relative_dose": _dose(loaded),
        "origin": provenance.origin or None,
        "removal": f"{provenance.removal:g} times: !{vector}" if provenance.removal is not None else None,
    }
    rows = _layer_rows(loaded)
    calibration = provenance.calibration
    if as_json:
        print_json(
            {
                **facts,
                "directions": rows,
                "dosing": provenance.dosing.document() if provenance.dosing is not None else None,
                "calibration": calibration.document() if calibration is not None else None,
            }
        )
        return
    print_facts(
        [
            (key.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
            for key, value in facts.items()
            if value not in ("", None)
        ],
    )
    _print_measured(vector, loaded)
    print_table(
        ("layer", "‖added‖", "of hidden norm", "reliability"),
        [
            (
                str(row["layer"]),
                f"{row['norm']:.3g}",
                "" if row["relative"] is None else f"{row['relative']:.3f}",
                "" if row["reliability"] is None else f"{row['reliability']:.2f}",
            )
            for row in rows
        ],
    )


def _print_measured(name: str, vector: ControlVector) -> None:
    """What was measured of a vector, and what else might be; `name` as it was given."""
    provenance = vector.provenance
    calibration = provenance.calibration
    concept = "" if provenance.source else " --concept FILE"
    measures = f"`localsteer calibrate {shlex.quote(name)}{concept}` measures more of it."
    if calibration is None and provenance.dosing is not None:
        click.echo(f"dosed on {provenance.dosing.model}")
        print_dosing(vector)
        note(f"Not calibrated. {measures}")
        return
    if calibration is None and provenance.origin:
        note(f"Strength 1 is what the file holds ({provenance.origin}).")
        return
    if calibration is None:
        note(f"Neither dosed nor calibrated: strength 1 is what the file holds. {measures}")
        return
    held = ", held to long answers" if calibration.long_answers else ""
    click.echo(
        f"calibrated on {calibration.model}: budget {calibration.budget:g} nats a token, {calibration.questions} questions, "
        f"{calibration.generated_tokens:,} tokens, seed {calibration.seed}{held}"
    )
    for pole, said in worth(vector):
        click.echo(f"{SIGN[pole]:+.0f} {said}")
    print_doses(vector)
    for mode in calibration.modes:
        click.echo(MODE_NAMES[mode])
        print_table(CURVE_HEADERS, list(curve_rows(calibration, mode)))


def _to_show(vector: str, model_options: ModelOptions) -> ControlVector:
    """That for the model at hand; with a note that for another one, where there is none for the model that is the default.

    Raises:
        LocalsteerError: no such vector, or none for the model that was asked for.
    """
    if is_path(vector):
        if model_options.model is not None:
            raise LocalsteerError("A vector's file is shown as it is, whatever the model.", hint="Leave out -m.")
        return load_for_showing(vector)
    hand = _model_at_hand(model_options)
    if hand is None:
        return load_for_showing(vector)
    path, content = hand
    loaded = load_for_showing(vector, content)
    built_on = loaded.provenance.model
    if built_on is None or built_on.content != content:
        message = f'The concept "{vector}" is not built for {path.name} yet'
        if model_options.model is not None:
            raise LocalsteerError(f"{message}.", hint=f"`localsteer vectors build {vector}` builds it.")
        note(f"{message}: this is its vector for {built_on.name if built_on is not None else 'a model that it does not name'}.")
    return loaded


@command.command("combine")
@expression_argument
@output_option
@force_option
@json_option
@with_model_options
def combine(steering: Steering, output: Path, force: bool, as_json: bool, model_options: ModelOptions) -> None:
    """Write the vector that EXPRESSION, such as "0.5 happy + 0.3 formal.gguf@10-20", stands for.

    Names stand for concepts of the library, as they are for the model; with files alone no model is opened. Strength 1 of the new
    vector is the whole expression, as it steers the response. One that begins with a minus goes after --, last of all.
    """
    refuse_removal(steering)
    check_output(output, force=force)
    vectors = _load([term.vector for term in steering.terms], model_options)
    total = combined(steering, vectors.__getitem__)
    write_vector(total, output)
    if as_json:
        print_json({"vector": str(output), "expression": str(steering), "layers": list(total.layers)})
    else:
        click.echo(f"{output}: {steering}, layers {format_layers(total.layers)}")


def _load(names: Sequence[str], model_options: ModelOptions) -> dict[str, ControlVector]:
    """Vectors by name or path; the model is opened only where there is a name."""
    loaded = {name: load_for_showing(name) for name in names if is_path(name)}
    if len(loaded) < len(set(names)):
        with model_options.open() as model, progress_bar() as progress:
            loaded |= {name: load_vector(name, model, progress) for name in dict.fromkeys(names) if name not in loaded}
    return loaded


def _dose(vector: ControlVector) -> float | None:
    norms = vector.provenance.hidden_norm
    return None if norms is None else relative_dose(vector.rows(len(norms)), norms)


def _layer_rows(vector: ControlVector) -> list[dict[str, Any]]:
    def at(values: NDArray[np.float32] | None, layer: int) -> float | None:
        if values is None or layer >= len(values) or not np.isfinite(values[layer]):
            return None
        return float(values[layer])

    rows = []
    for layer, direction in vector.directions.items():
        norm = float(np.linalg.norm(direction))
        hidden = at(vector.provenance.hidden_norm, layer)
        rows.append(
            {
                "layer": layer,
                "norm": norm,
                "relative": norm / hidden if hidden else None,
                "reliability": at(vector.provenance.reliability, layer),
            }
        )
    return rows
