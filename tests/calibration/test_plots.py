from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from localsteer.calibration.calibrate import Calibrated
from localsteer.calibration.plots import check_available, draw_curves
from localsteer.errors import CalibrationError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.calibration import MODE_NAMES, Calibration
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
    for pole in ("positive", "negative"):
        for name in MODE_NAMES.values():
            assert drawn.count(f"<!-- {pole}, {name} -->") == 2, name  # of the effect and of the cost


def test_a_calibration_without_anchored_doses_has_no_curves_of_them(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    sides = {key: side for key, side in MADE.calibration.sides.items() if key[1] != "anchored"}
    draw_curves(carrying(replace(MADE.calibration, sides=sides)), path, "svg")
    drawn = texts(path)
    assert "anchored" not in drawn
    assert "positive, prompt as well" in drawn


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


def test_pictures_are_of_the_kind_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "any name"
    draw_curves(MADE, path, "png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_looked_for_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CalibrationError, match="matplotlib") as caught:
        check_available()
    assert "--report" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_plot_is_the_same_file(tmp_path: Path, kind: str) -> None:
    for name in ("one", "other"):
        draw_curves(MADE, tmp_path / name, kind)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
