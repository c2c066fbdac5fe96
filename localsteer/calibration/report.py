"""A calibration for people and for machines: rows of a table, JSON, and a folder with a page and its plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from localsteer.calibration.calibrate import Calibrated
from localsteer.calibration.plots import check_available, draw_curves
from localsteer.errors import CalibrationError
from localsteer.files.atomic import atomic_path, check_writable
from localsteer.steering.worth import pole_name, why_no_dose
from localsteer.vector.calibration import (
    MODE_NAMES,
    OTHER,
    POLES,
    SIGN,
    Calibration,
    Interval,
    Limit,
    Mode,
    Point,
    Pole,
    Side,
    without_nan,
)
from localsteer.vector.control_vector import ControlVector, format_layers


def pole_names(vector: ControlVector) -> dict[Pole, str]:
    """The poles as the concept calls them."""
    return {pole: pole_name(vector, pole) for pole in POLES}


def side_line(side: Side, budget: float) -> str:
    """One side in words."""
    if side.dose is None:
        return f"no dose: {why_no_dose(side, budget)}"
    allowed = budget if side.allowed is None else side.allowed
    return (
        f"relative dose {side.dose:.2f}, layers {format_layers(side.layers)}, "
        f"effect {side.effect:.2f}{_between(side)}{'' if side.shown else ' (not shown beyond doubt)'}, "
        f"cost {side.cost:.2f} nats a token; {LIMITS[side.limit].format(allowed=allowed)}"
    )


def _between(side: Side) -> str:
    return "" if side.between is None else f" ({side.between[0]:.2f} to {side.between[1]:.2f})"


LIMITS: dict[Limit, str] = {
    "coherence": "more would cost more coherence than the {allowed:.2f} that are allowed",
    "repetition": "answers repeat themselves at more",
    "relevance": "answers leave their questions at more",
    "refusals": "answers are refused at more",
    "script": "answers slip into another script at more",
    "measured": "nothing was seen to speak against more, but no more was tried",
}


def scale_line(calibration: Calibration, names: dict[Pole, str]) -> Iterator[str]:
    """What an effect of 1 is, for each pole."""
    for pole in POLES:
        kind = calibration.scale.get(pole, "deviation")
        persona = calibration.personas.get(pole)
        if kind == "persona":
            yield f"toward {names[pole]}, effect 1 is as far as the system prompt that asks for it goes"
        elif kind == "other persona":
            yield (
                f"toward {names[pole]}, effect 1 is as far as the system prompt for {names[OTHER[pole]]} goes the other way: "
                f"the one for {names[pole]} does not move this model beyond doubt ({persona.effect.mean if persona else 0:.2f})"
            )
        else:
            why = "system prompts move nothing beyond doubt" if calibration.personas else "the concept has no personas"
            yield f"toward {names[pole]}, effect 1 is a standard deviation of the unsteered answers: {why}"


def curve_rows(calibration: Calibration, mode: Mode = "response") -> Iterator[tuple[str, ...]]:
    """Rows of a table: see `CURVE_HEADERS`."""
    yield ("0", "", "0", "0", *_rest(calibration.unsteered))
    for pole in POLES:
        side = calibration.sides[pole, mode]
        for point in side.curve:
            strength = "" if side.dose is None else f"{SIGN[pole] * point.dose / side.dose:+.2f}"
            yield (strength, f"{point.dose:.3f}", _signed(point.effect, SIGN[pole]), _signed(point.cost), *_rest(point))
    for pole, point in calibration.personas.items():
        name = "persona +" if pole == "positive" else "persona -"
        yield (name, "", _signed(point.effect, SIGN[pole]), _signed(point.cost), *_rest(point))


# They fit into 80 characters; what else there is, such as the share of distinct 3-grams, is in the JSON document.
CURVE_HEADERS = ("strength", "dose", "effect (95 %)", "cost (95 %)", "topic", "refused", "n")


def _rest(point: Point) -> tuple[str, str, str]:
    return _known(point.relevance, ".2f"), _known(point.refused, ".0%"), str(point.answers)


def _known(value: float, form: str) -> str:
    """A number, or nothing where an older calibration did not measure it."""
    return "" if math.isnan(value) else format(value, form)


def _signed(interval: Interval, sign: float = 1.0) -> str:
    # Adding 0 turns -0.0, as rounding may leave it, into 0. The ends are kept short, so that the table fits 80 characters.
    low, high = sorted(round(sign * end, 2) + 0.0 for end in (interval.low, interval.high))
    return f"{round(sign * interval.mean, 2) + 0.0:+.2f} ({low:.2f}..{high:.2f})"


def terminal_plot(calibration: Calibration, width: int) -> str:
    """Effect and cost against strength, drawn with characters."""
    import plotext

    strengths, effects, costs = [0.0], [0.0], [0.0]
    for pole in POLES:
        side = calibration.sides[pole, "response"]
        if side.dose is not None:
            strengths += [SIGN[pole] * point.dose / side.dose for point in side.curve]
            effects += [SIGN[pole] * point.effect.mean for point in side.curve]
            costs += [point.cost.mean for point in side.curve]
    order = sorted(range(len(strengths)), key=strengths.__getitem__)
    plotext.clear_figure()
    plotext.theme("clear")
    for values, label, marker in ((effects, "effect", "braille"), (costs, "cost, nats a token", "dot")):
        plotext.plot([strengths[i] for i in order], [values[i] for i in order], label=label, marker=marker)
    plotext.hline(calibration.budget)
    plotext.plot_size(min(width, 90), 18)
    plotext.xlabel(f"strength (the line is the budget, {calibration.budget:g} nats a token)")
    text: str = plotext.uncolorize(plotext.build())
    return "\n".join(line.rstrip() for line in text.splitlines())


def document(result: Calibrated) -> dict[str, Any]:
    """Everything measured, for machines."""
    found = result.calibration.document()
    samples = {f"{pole}/{mode}": [vars(sample) for sample in found] for (pole, mode), found in result.findings.samples.items()}
    names = pole_names(result.vector)
    shown = {"concept": result.vector.provenance.concept, "poles": names, **found, "samples": samples}
    plain: dict[str, Any] = without_nan(shown)
    return plain


def prepare(folder: Path) -> None:
    """Find out before minutes or hours of measuring whether a report can be written.

    Raises:
        CalibrationError: matplotlib is not installed, or the folder cannot be made or written.
    """
    check_available()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrationError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    check_writable(folder / "report.md", CalibrationError)


def write_report(result: Calibrated, folder: Path) -> list[Path]:
    """A Markdown page, JSON, and the plots as PNG and SVG.

    Raises:
        CalibrationError: as `prepare`, or the disk is full.
    """
    prepare(folder)
    written = []
    for suffix in (".png", ".svg"):
        path = folder / f"dose-response{suffix}"
        with atomic_path(path, CalibrationError) as temporary:
            draw_curves(result, temporary, suffix[1:])
        written.append(path)
    for name, text in (("report.md", _page(result)), ("report.json", json.dumps(document(result), indent=2, ensure_ascii=False))):
        path = folder / name
        with atomic_path(path, CalibrationError) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        written.append(path)
    return written


def _page(result: Calibrated) -> str:
    calibration, names = result.calibration, pole_names(result.vector)
    lines = [
        f"# {result.vector.provenance.concept}: calibrated on {calibration.model}",
        "",
        f"Budget {calibration.budget:g} nats a token, {calibration.questions} held-out questions, "
        f"{calibration.generated_tokens:,} sampled tokens, seed {calibration.seed}.",
        "",
        "| strength | prompt | result |",
        "|---|---|---|",
    ]
    for mode in calibration.modes:
        for pole in POLES:
            found = side_line(calibration.sides[pole, mode], calibration.budget)
            lines.append(f"| {SIGN[pole]:+.0f} ({names[pole]}) | {MODE_NAMES[mode]} | {found} |")
    lines += ["", *(f"- {text}." for text in scale_line(calibration, names)), ""]
    lines += ["![Effect and coherence cost against strength](dose-response.svg)", ""]
    for mode in calibration.modes:
        lines += [
            f"## Measurements, {MODE_NAMES[mode]}",
            "",
            *_markdown_table(CURVE_HEADERS, curve_rows(calibration, mode)),
            "",
        ]
    for mode in calibration.modes:
        lines += _quoted(mode, result)
    return "\n".join(lines).rstrip()


def _quoted(mode: Mode, result: Calibrated) -> Iterator[str]:
    names = pole_names(result.vector)
    found = {pole: samples for pole in POLES if (samples := result.findings.samples.get((pole, mode)))}
    if found:
        yield from (f"## Sample answers, {MODE_NAMES[mode]}", "")
    for pole, samples in found.items():
        side = result.calibration.sides[pole, mode]
        for sample in samples:
            strength = "" if side.dose is None else f", strength {SIGN[pole] * sample.dose / side.dose:+.2f}"
            yield from (f"### Toward {names[pole]}, relative dose {sample.dose:.2f}{strength}", "")
            for question, answer in sample.answers:
                yield from (f"**{question}**", "", f"> {' '.join(answer.split()) or '(nothing)'}", "")


def _markdown_table(headers: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(headers) + " |",
        "|" + "---|" * len(headers),
        *("| " + " | ".join(cells) + " |" for cells in rows),
    ]
