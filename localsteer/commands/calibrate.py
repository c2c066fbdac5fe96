"""`localsteer calibrate`: measure how strong a vector may be, and write that into it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import click

from localsteer.building.library import load_vector, place_for
from localsteer.calibration.calibrate import Calibrated, CalibrationSettings, Calibrator, measurements_folder
from localsteer.calibration.interview import Speed
from localsteer.calibration.report import (
    CURVE_HEADERS,
    curve_rows,
    document,
    pole_names,
    prepare,
    scale_line,
    side_line,
    terminal_plot,
    write_report,
)
from localsteer.commands.options import (
    ModelOptions,
    Number,
    check_output,
    force_option,
    gathered,
    json_option,
    layers_option,
    with_model_options,
)
from localsteer.commands.output import console, note, print_json, print_table, progress_bar
from localsteer.concepts.concept_file import load_concept, parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import is_path
from localsteer.files.home import expanded
from localsteer.vector.calibration import DEFAULT_BUDGET, MODE_NAMES, POLES, SIGN
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector

MEASURING = "measuring answers"


def price(calibrators: Sequence[Calibrator], speed: Speed) -> str:
    """What calibrations of one model will cost at most, in words, told before the first one starts."""
    measured = sum(one.measured for one in calibrators)
    left = f", {measured} of them measured already" if measured else ""
    lengths = " or ".join(map(str, sorted({length for one in calibrators for length in one.lengths})))
    return (
        f"{calibrators[0].model.name}: up to {sum(one.answers for one in calibrators)} answers of "
        f"{lengths} tokens ({sum(one.tokens for one in calibrators):,} tokens){left}; "
        f"about {duration(sum(one.seconds(speed) for one in calibrators))} "
        f"at {speed.answering:.0f} tokens/s answering and {speed.reading:.0f} tokens/s re-reading."
    )


def duration(seconds: float) -> str:
    """A time for people, in one unit."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


@click.command()
@click.argument("vector")
@click.option("--budget", type=Number(0, min_open=True), default=DEFAULT_BUDGET, show_default=True, metavar="NATS")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The calibrated file. Default: VECTOR itself.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a page with plots and sample answers to this folder.")
@click.option("--concept", type=click.Path(path_type=Path), help="The concept.yaml of a vector that does not carry its own.")
@click.option("--quick", is_flag=True, help="Half of the answers, and wider intervals.")
@click.option("--by-cost", is_flag=True, help="Choose a dose by its cost also where no effect can be shown.")
@click.option("--anchored", is_flag=True, help="Measure the doses of anchored answers, too; only those if the others are known.")
@click.option("--long", is_flag=True, help="Hold the doses to what long answers bear; only that, if the others are known.")
@click.option("--seed", type=click.IntRange(0, 20_000), default=0, show_default=True, help="Of the sampled answers.")
@click.option("--fresh", is_flag=True, help="Measure again what an earlier run has measured.")
@layers_option
@force_option
@json_option
@with_model_options
@gathered("settings", CalibrationSettings)
def command(
    vector: str,
    output: Path | None,
    report: Path | None,
    concept: Path | None,
    fresh: bool,
    settings: CalibrationSettings,
    force: bool,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Measure the doses of VECTOR (a file or a name) on this model.

    Afterwards strength 1.0 is the strongest dose whose answers cost at most NATS nats a token of coherence (more where the
    persona itself says quite other things), stay on their questions and are hardly refused more often, and -1.0 the strongest
    one toward the other pole. Ctrl-C keeps what was measured;
    running it again goes on from there.
    """
    if report is not None:
        prepare(report)
    target = output if output is not None or not is_path(vector) else expanded(vector)
    if target is not None:
        check_output(target, force=force, model=model_options, calibrates=True)
    with model_options.open() as opened, progress_bar() as progress:
        target = target or place_for(vector, opened)
        loaded = load_vector(vector, opened, progress)
        contrast = _concept_of(loaded, vector, concept)
        fit = loaded.check_fits(opened.fingerprint, name=vector)
        if fit is not None:
            note(fit)
        told, folder = functools.partial(progress, MEASURING), measurements_folder()
        calibrator = Calibrator(
            opened, loaded, contrast, settings, folder=folder, fresh=fresh, on_progress=told, on_dosing=progress
        )
        earlier = loaded.provenance.calibration
        if earlier is not None and "anchored" in earlier.modes and not settings.anchored and not calibrator.adds:
            note("The doses of anchored answers that the vector has will be dropped; --anchored measures them.")
        if calibrator.is_held and settings.long:
            note("It is held to long answers already.")
        elif calibrator.adds and settings.long:
            note("Its doses are known, and held to what long answers bear (--fresh measures all).")
        if calibrator.adds and settings.anchored:
            note("Its other doses are known; those of anchored answers are measured (--fresh measures all).")
        if earlier is not None and earlier.long_answers and not calibrator.adds and not settings.long:
            note("It was held to long answers, and will not be any more; --long does that again.")
        note(price([calibrator], calibrator.probe_speed()))
        try:
            result = calibrator.run()
        except KeyboardInterrupt:
            if calibrator.keeps:
                again = "the same command without --fresh" if fresh else "the same command"
                note(f"{calibrator.measured} answers are measured and kept; {again} goes on from there.")
            raise
        write_vector(result.vector, target)
    pages = write_report(result, report) if report is not None else []
    if as_json:
        print_json({"vector": str(target), "report": [str(page) for page in pages], **document(result)})
        return
    print_calibration(result)
    click.echo(f"{target}: calibrated" + (f"; the report is in {report}" if pages else ""))


def print_calibration(result: Calibrated) -> None:
    """The table, the plot and the doses."""
    print_table(CURVE_HEADERS, list(curve_rows(result.calibration)))
    click.echo(terminal_plot(result.calibration, console().width))
    if "anchored" in result.calibration.modes:
        click.echo(MODE_NAMES["anchored"])
        print_table(CURVE_HEADERS, list(curve_rows(result.calibration, "anchored")))
    print_doses(result.vector)
    sides = [result.calibration.sides[pole, "response"] for pole in POLES]
    if any(side.dose is None and side.limit == "measured" for side in sides):
        note(
            "Beyond doubt is 99 %, by the slope through all answers at up to twice the dose that the text bears; --by-cost takes "
            "that dose all the same."
        )


def print_doses(vector: ControlVector) -> None:
    """What strength 1 and -1 mean in every mode that was measured."""
    calibration = vector.provenance.calibration
    assert calibration is not None
    names = pole_names(vector)
    for mode in calibration.modes:
        for pole in POLES:
            line = side_line(calibration.sides[pole, mode], calibration.budget)
            click.echo(f"{SIGN[pole]:+.0f} {names[pole]}, {MODE_NAMES[mode]}: {line}")
    for text in scale_line(calibration, names):
        note(f"{text}.")


def _concept_of(vector: ControlVector, name: str, file: Path | None) -> Contrast | None:
    if file is not None:
        return load_concept(file)
    source = vector.provenance.source
    if not source:
        note(
            f"{name} does not carry what it was made from. It is measured with everyday questions, and its effect by what the "
            "model itself finds likelier when it is steered; --concept FILE measures it with the personas of a concept."
        )
    return parse_concept(source, f"the concept in {name}") if source else None
