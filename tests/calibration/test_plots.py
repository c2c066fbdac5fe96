from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from localsteer.calibration.calibrate import Calibrated
from localsteer.calibration.findings import ShapeResult
from localsteer.calibration.plots import check_available, draw_curves, draw_shapes
from localsteer.calibration.shapes import Shape
from localsteer.errors import CalibrationError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.calibration import Calibration, Interval
from tests.calibration.made import calibration, result

MODEL = Fingerprint("Tiny", "llama", 6, 4, "vocabulary", "content")
MADE = result(MODEL)


def texts(path: Path) -> str:
    """What is written in an SVG: matplotlib draws letters as shapes, and leaves the words as comments."""
    ElementTree.parse(path)  # sound XML
    return path.read_text(encoding="utf-8")


def test_the_curves_say_what_they_show(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    draw_curves(MADE, path, "svg")
    drawn = texts(path)
    for text in ("loud on Tiny", "effect", "coherence cost, nats a token", "strength", "budget, 0.25 nats", "system prompt"):
        assert f"<!-- {text}" in drawn or text in drawn, text
    assert drawn.count("positive, response") == drawn.count("negative, response") > 0


def carrying(made: Calibration) -> Calibrated:
    """The outcome with another calibration in its vector."""
    return replace(MADE, vector=replace(MADE.vector, provenance=replace(MADE.vector.provenance, calibration=made)))


def test_a_side_without_a_dose_is_left_out_of_the_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    draw_curves(carrying(calibration(MODEL, without=(("negative", "response"), ("negative", "prompt")))), path, "svg")
    drawn = texts(path)
    assert "negative, response" not in drawn
    assert "positive, response" in drawn


def test_a_concept_without_personas_has_no_lines_for_them(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    draw_curves(carrying(replace(MADE.calibration, personas={})), path, "svg")
    assert "system prompt" not in texts(path)


def test_the_shapes_are_named_once_for_both_poles(tmp_path: Path) -> None:
    path = tmp_path / "shapes.svg"
    late = ShapeResult(Shape((3,), "difference"), 0.3, Interval(0.5, 0.6, 0.4))  # chosen for one pole only; bounds by rounding
    shapes = {**MADE.findings.shapes, "negative": [*MADE.findings.shapes["negative"], late]}
    draw_shapes(replace(MADE, findings=replace(MADE.findings, shapes=shapes)), path, "svg")
    drawn = texts(path)
    for text in ("1-2 relative", "2-3 relative", "1-3 equal", "3 difference"):
        assert drawn.count(f"<!-- {text} -->") == 1, text


def test_pictures_are_of_the_kind_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "any name"
    draw_shapes(MADE, path, "png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_looked_for_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CalibrationError, match="matplotlib") as caught:
        check_available()
    assert "--report" in (caught.value.hint or "")
