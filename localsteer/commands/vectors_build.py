"""`localsteer vectors build`: the vectors of a model, before they are needed."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import click

from localsteer.building.ahead import Place, Shelf
from localsteer.calibration.calibrate import Calibrator, measurements_folder
from localsteer.commands.calibrate import MEASURING, duration, price
from localsteer.commands.options import ModelOptions, json_option, with_model_options
from localsteer.commands.output import note, print_json, progress_bar
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import concepts as all_concepts
from localsteer.concepts.names import find_concept
from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector


@click.command()
@click.argument("concepts", nargs=-1, metavar="[CONCEPT]...")
@click.option("--calibrate", is_flag=True, help="Calibrate those that are not calibrated for the model yet.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the vectors as DIR/CONCEPT/MODEL.gguf instead of in the cache; only what is in DIR counts as there.",
)
@json_option
@with_model_options
def command(concepts: tuple[str, ...], calibrate: bool, output: Path | None, as_json: bool, model_options: ModelOptions) -> None:
    """Build the vectors of these concepts (by default all) for the model, so that their first use need not wait.

    What is there already is skipped, and each vector is kept as soon as it is done: after Ctrl-C the same command goes on. MODEL
    in a file's name is the model file's name in lower case, without its quantisation.
    """
    wanted = [find_concept(name) for name in dict.fromkeys(concepts or all_concepts())]
    model_file = model_options.path()
    shelf = Shelf.for_model(model_file, output)
    places = [shelf.look(concept) for concept in wanted]
    if not as_json:
        _print_those_there(places)
    if any(place.to_build or (calibrate and place.to_calibrate) for place in places):
        shelf.check_writable()
        with model_options.open() as model:
            try:
                _build(shelf, places, model, quiet=as_json)
                if calibrate:
                    _calibrate(shelf, places, model, quiet=as_json)
            except KeyboardInterrupt:
                done = sum(place.calibrated if calibrate else place.found is not None for place in places)
                note(f"{done} of {len(places)} are done and kept; the same command goes on from there.")
                raise
    if as_json:
        print_json({"model": str(model_file), "vectors": [_document(place) for place in places]})
    _raise_errors(places)


def _build(shelf: Shelf, places: list[Place], model: Model, *, quiet: bool) -> None:
    """Build what is not there, one after the other; `places` holds what came of each."""
    for number, place in enumerate(places):
        if not place.to_build:
            continue
        note(f"{number + 1} of {len(places)}: {place.concept.name}")
        with progress_bar() as progress:
            places[number] = shelf.build(place, model, progress)
        _tell(places, number, "built", places[number].seconds, quiet)


def _calibrate(shelf: Shelf, places: list[Place], model: Model, *, quiet: bool) -> None:
    """Tell what it will cost, and calibrate what is not calibrated, likewise."""
    waiting = [number for number, place in enumerate(places) if place.to_calibrate]
    _note_price([places[number] for number in waiting], model)
    for number in waiting:
        before = places[number].seconds
        note(f"{number + 1} of {len(places)}: calibrating {places[number].concept.name}")
        with progress_bar() as progress:

            def measured(vector: ControlVector, contrast: Contrast) -> ControlVector:
                told = functools.partial(progress, MEASURING)
                folder = measurements_folder()
                return Calibrator(model, vector, contrast, folder=folder, on_progress=told, on_dosing=progress).run().vector

            places[number] = shelf.calibrate(places[number], measured)
        _tell(places, number, "calibrated", places[number].seconds - before, quiet)


def _note_price(places: list[Place], model: Model) -> None:
    prepared = []
    for place in places:
        if place.found is not None and place.contrast is not None:
            with contextlib.suppress(LocalsteerError):  # told when its turn comes
                prepared.append(Calibrator(model, place.found.vector, place.contrast, folder=measurements_folder()))
    with contextlib.suppress(LocalsteerError):
        if prepared:
            note(f"{len(prepared)} to calibrate on {price(prepared, prepared[0].probe_speed())}")


def _tell(places: list[Place], number: int, done: str, seconds: float, quiet: bool) -> None:
    """What came of a step. Of one concept alone the error is the command's own."""
    place = places[number]
    if place.error is None and not quiet:
        click.echo(f"{place.concept.name}: {done} in {duration(seconds)}")
    elif place.error is not None and len(places) > 1:
        note(f"{place.concept.name}: {place.error}")


def _print_those_there(places: list[Place]) -> None:
    for place in places:
        if place.found is not None:
            calibrated = ", calibrated" if place.calibrated else ""
            click.echo(f"{place.concept.name}: there already ({'shipped' if place.found.shipped else 'built'}{calibrated})")


def _document(place: Place) -> dict[str, Any]:
    return {
        "name": place.concept.name,
        "path": str(place.found.path) if place.found is not None else None,
        "state": place.state,
        "seconds": round(place.seconds, 3),
        "calibrated": place.calibrated,
        "error": str(place.error) if place.error is not None else None,
    }


def _raise_errors(places: list[Place]) -> None:
    failed = [place for place in places if place.error is not None]
    if len(places) == 1 and places[0].error is not None:
        raise places[0].error
    note(*(str(place.error) for place in failed if place.contrast is None))  # the others were told when they failed
    if failed:
        names = ", ".join(place.concept.name for place in failed)
        raise LocalsteerError(f"{len(failed)} of {len(places)} concepts could not be built or calibrated: {names}.")
