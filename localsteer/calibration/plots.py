"""Plots of a calibration, with matplotlib (the extra `plots`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from localsteer.calibration.calibrate import Calibrated
from localsteer.errors import CalibrationError
from localsteer.vector.calibration import MODE_NAMES, POLES, SIGN, Mode, Pole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS: dict[Pole, str] = {"positive": "tab:orange", "negative": "tab:blue"}
_LINES: dict[Mode, str] = {"response": "-", "prompt": ":", "anchored": "-."}


def draw_curves(result: Calibrated, path: Path, kind: str) -> None:
    """Effect and coherence cost against strength, with the budget and the prompt baseline.

    Args:
        result: the calibration.
        path: the file to write.
        kind: "png" or "svg".
    """
    figure = _figure(8, 6.5)
    top, bottom = figure.subplots(2, 1, sharex=True)
    calibration = result.calibration
    for pole in POLES:
        for mode in calibration.modes:
            side = calibration.sides[pole, mode]
            if side.dose is None or not side.curve:
                continue
            strengths = [0.0] + [SIGN[pole] * point.dose / side.dose for point in side.curve]
            style = {"color": _COLOURS[pole], "linestyle": _LINES[mode], "marker": "o", "markersize": 3}
            label = f"{pole}, {MODE_NAMES[mode]}"
            top.plot(strengths, [0.0] + [SIGN[pole] * point.effect.mean for point in side.curve], label=label, **style)
            bottom.plot(strengths, [0.0] + [point.cost.mean for point in side.curve], label=label, **style)
            if mode == "response":
                ends = [sorted((SIGN[pole] * p.effect.low, SIGN[pole] * p.effect.high)) for p in side.curve]
                top.fill_between(strengths[1:], *zip(*ends, strict=True), color=_COLOURS[pole], alpha=0.15, linewidth=0)
                lows, highs = [p.cost.low for p in side.curve], [p.cost.high for p in side.curve]
                bottom.fill_between(strengths[1:], lows, highs, color=_COLOURS[pole], alpha=0.15, linewidth=0)
        if pole in calibration.personas:
            persona = calibration.personas[pole]
            name = f"{pole} system prompt"
            top.axhline(SIGN[pole] * persona.effect.mean, color=_COLOURS[pole], linestyle="--", linewidth=1, label=name)
            bottom.axhline(persona.cost.mean, color=_COLOURS[pole], linestyle="--", linewidth=1)
    bottom.axhline(calibration.budget, color="black", linewidth=1, label=f"budget, {calibration.budget:g} nats")
    top.set_ylabel("effect")
    bottom.set_ylabel("coherence cost, nats a token")
    bottom.set_xlabel("strength")
    top.set_title(f"{result.vector.provenance.concept} on {calibration.model}")
    top.legend(fontsize="small")
    bottom.legend(fontsize="small")
    _write(figure, path, kind)


def check_available() -> None:
    """Find out before minutes of measuring whether plots can be drawn.

    Raises:
        CalibrationError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CalibrationError(
            "The report's plots need matplotlib.",
            hint="Install it with `pip install 'localsteer[plots]'`, or leave out --report.",
        )


def _write(figure: Figure, path: Path, kind: str) -> None:
    """The same plot is the same file: without the date, and with names in it that no chance gives."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "localsteer"}):
        figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _figure(width: float, height: float) -> Figure:
    # Without pyplot, which would look for a screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)
