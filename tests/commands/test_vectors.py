from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localsteer import library
from localsteer.llama.model import Model
from localsteer.vector import ControlVector
from localsteer.vector_file import read_vector, write_vector
from tests.calibration.made import CONCEPT, DOSES, calibrated
from tests.commands.runner import run
from tests.conftest import TinyPath

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def loud(tiny: Model, tmp_path: Path) -> Path:
    path = tmp_path / "loud.gguf"
    write_vector(calibrated(tiny.fingerprint, without=(("negative", "prompt"),)), path)
    return path


@pytest.fixture
def named(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A concept "loud" in the library, with a calibrated vector in the cache."""
    file = tmp_path / "shipped" / "loud" / "concept.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(CONCEPT)
    monkeypatch.setattr(library, "shipped_folder", lambda: tmp_path / "shipped")
    library.save_vector("loud", calibrated(tiny.fingerprint), tiny)


# show


def test_a_calibrated_vector_shows_its_doses_and_what_they_cost(loud: Path, capfd: Capture) -> None:
    result = run(capfd, "vectors", "show", loud)
    assert result.code == 0
    lines = result.out.splitlines()
    assert "calibrated on tiny: budget 0.25 nats a token, 4 questions, 1,234 tokens, seed 7" in lines
    assert "+1 loud, response only: relative dose 0.30, layers 1-2 (relative), effect 0.90, cost 0.25 nats a token" in lines
    assert "-1 quiet, response only: relative dose 0.40, layers 2-3 (relative), effect 0.90, cost 0.25 nats a token" in lines
    assert "+1 loud, prompt as well: relative dose 0.12, layers 1-2 (relative), effect 0.90, cost 0.25 nats a token" in lines
    assert "-1 quiet, prompt as well: no dose within 0.25 nats a token does anything beyond doubt" in lines
    assert any(line.split()[:2] == ["-2.00", "0.800"] for line in lines)
    assert "toward loud, effect 1 is as far as the system prompt" in result.err
    assert "Not calibrated" not in result.err


def test_a_calibrated_vector_is_one_json_document(loud: Path, capfd: Capture) -> None:
    result = run(capfd, "vectors", "show", loud, "--json")
    assert result.err == ""
    document = result.document
    assert document["relative_dose"] == pytest.approx(DOSES["positive", "response"])
    assert document["calibration"]["sides"]["negative/response"]["dose"] == DOSES["negative", "response"]
    assert document["calibration"]["sides"]["negative/prompt"]["dose"] is None


def test_a_vector_without_a_calibration_says_how_to_get_one(tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "push.gguf"
    write_vector(ControlVector({1: np.ones(8, np.float32)}), path)
    assert "Not calibrated" in (shown := run(capfd, "vectors", "show", path)).err
    assert "localsteer calibrate" in shown.err
    assert run(capfd, "vectors", "show", path, "--json").document["calibration"] is None


@pytest.mark.usefixtures("named")
def test_a_vector_calibrated_by_its_name_can_be_shown_by_it(capfd: Capture) -> None:
    result = run(capfd, "vectors", "show", "loud")
    assert result.code == 0, result.err
    assert "calibrated on tiny" in result.out


# combine


def test_a_combination_adds_up_the_calibrated_doses(loud: Path, tmp_path: Path, capfd: Capture) -> None:
    given, target = read_vector(loud), tmp_path / "out.gguf"
    assert run(capfd, "vectors", "combine", "-o", target, "--", f"-0.5 {loud}").code == 0
    made = read_vector(target)
    assert made.layers == (2, 3)  # those of the negative pole
    assert np.array_equal(made.rows(4), given.at(-0.5).rows(4))
    # What it costs was not measured.
    assert made.provenance.calibration is None


def test_a_combination_keeps_to_the_layers_asked_for(loud: Path, tmp_path: Path, capfd: Capture) -> None:
    given, target = read_vector(loud), tmp_path / "out.gguf"
    assert run(capfd, "vectors", "combine", f"{loud}@2 - {loud}@3", "-o", target).code == 0
    made = read_vector(target)
    assert made.layers == (2, 3)
    assert np.array_equal(made.directions[2], given.at(1).directions[2])
    assert np.array_equal(made.directions[3], given.at(-1).directions[3])


@pytest.mark.usefixtures("named")
def test_a_name_in_a_combination_is_the_vector_of_the_model(
    tiny_path: TinyPath, loud: Path, tmp_path: Path, capfd: Capture
) -> None:
    target = tmp_path / "out.gguf"
    result = run(capfd, "vectors", "combine", f"loud + {loud}", "-o", target, "-m", tiny_path("llama"))
    assert result.code == 0, result.err
    assert np.allclose(read_vector(target).rows(4), 2 * read_vector(loud).at(1).rows(4))
