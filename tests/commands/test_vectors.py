from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer import discovery
from localsteer.building import library
from localsteer.concepts import names
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from tests.building.test_library import add_concept, vector_of
from tests.calibration.made import CONCEPT, DOSES, calibrated
from tests.commands.runner import assert_one_clear_line, run
from tests.conftest import TinyModel, TinyPath
from tests.vector.made_dosing import dosing

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
    monkeypatch.setattr(names, "shipped_folder", lambda: tmp_path / "shipped")
    library.save_vector("loud", calibrated(tiny.fingerprint), tiny)


# list


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of two concepts, for no model yet."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(names, "shipped_folder", lambda: folder)
    add_concept(folder, "happy")
    add_concept(folder, "formal")
    return folder


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any."""
    monkeypatch.setattr(discovery, "DEMO_PACKAGE", "no_such_package")


@pytest.fixture
def _weights_stay_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "__init__", lambda *_, **__: pytest.fail("the model was opened"))


@pytest.mark.usefixtures("_weights_stay_on_disk")
def test_the_list_says_what_is_there_for_the_model(
    shipped: Path, tiny: Model, tiny_path: TinyPath, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write_vector(vector_of(tiny), shipped / "happy" / "tiny.gguf")
    add_concept(names.user_folder(), "formal")
    add_concept(names.user_folder(), "pirate")
    library.save_vector("pirate", calibrated(tiny.fingerprint), tiny)
    result = run(capfd, "vectors", "list", "-m", tiny_path("llama"))
    assert result.code == 0
    lines = [line.strip() for line in result.out.splitlines()]
    assert [line.split()[0] for line in lines if "up" in line.split()] == ["formal", "happy", "pirate"]
    (happy,) = (line for line in lines if line.startswith("happy"))
    assert happy.split() == ["happy", "up", "down", "shipped", "shipped"]
    (pirate,) = (line for line in lines if line.startswith("pirate"))
    assert pirate.split() == ["pirate", "up", "down", "yours", "built,", "calibrated"]
    (formal,) = (line for line in lines if line.startswith("formal"))
    assert "yours, hides the shipped one" in formal
    assert formal.endswith("not built yet")
    assert "llama.gguf" in result.err
    assert str(names.user_folder()) in result.err


@pytest.mark.usefixtures("_weights_stay_on_disk")
def test_the_list_as_json_has_all_of_it(shipped: Path, tiny: Model, tiny_path: TinyPath, capfd: Capture) -> None:
    path = library.save_vector("happy", calibrated(tiny.fingerprint), tiny)
    file = add_concept(names.user_folder(), "formal")
    document = run(capfd, "vectors", "list", "-m", tiny_path("llama"), "--json").document
    formal, happy = sorted(document, key=lambda one: str(one["name"]))
    assert happy["vector"] == {
        "model": str(tiny_path("llama")),
        "state": "built",
        "calibrated": True,
        "path": str(path),
    }
    assert formal["vector"]["state"] == "not built yet"
    assert formal["vector"]["path"] is None
    assert formal == {
        "name": "formal",
        "positive": "up",
        "negative": "down",
        "description": "",
        "source": "yours",
        "hides_shipped": True,
        "file": str(file),
        "vector": formal["vector"],
    }


@pytest.mark.usefixtures("shipped", "_no_model")
def test_without_a_model_the_concepts_are_listed_all_the_same(capfd: Capture) -> None:
    result = run(capfd, "vectors", "list")
    assert result.code == 0
    assert "happy" in result.out
    assert "built" not in result.out
    assert "no model was named" in result.err
    assert [one["vector"] for one in run(capfd, "vectors", "list", "--json").document] == [None, None]


@pytest.mark.usefixtures("shipped")
def test_a_default_model_that_is_gone_does_not_hide_the_concepts(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALSTEER_MODEL", "/none.gguf")
    result = run(capfd, "vectors", "list")
    assert result.code == 0
    assert "happy" in result.out
    assert "/none.gguf" in result.err


@pytest.mark.usefixtures("shipped")
def test_a_model_that_was_named_must_be_one(tmp_path: Path, capfd: Capture) -> None:
    assert_one_clear_line(run(capfd, "vectors", "list", "-m", "/none.gguf"), "/none.gguf")
    (tmp_path / "notes.gguf").write_text("notes")
    assert_one_clear_line(run(capfd, "vectors", "list", "-m", tmp_path / "notes.gguf"), "notes.gguf")


def test_a_broken_concept_does_not_hide_the_others(shipped: Path, tiny_path: TinyPath, capfd: Capture) -> None:
    (shipped / "formal" / "concept.yaml").write_text("name: formal\npoles: {positive: up}\n")
    result = run(capfd, "vectors", "list", "-m", tiny_path("llama"))
    assert result.code == 0
    assert "happy" in result.out
    assert "formal" not in result.out
    (said,) = (line for line in result.err.splitlines() if "formal" in line)
    assert f"{shipped / 'formal' / 'concept.yaml'}, line 2" in said


# show


def test_a_calibrated_vector_shows_its_doses_and_what_they_cost(loud: Path, capfd: Capture) -> None:
    result = run(capfd, "vectors", "show", loud)
    assert result.code == 0
    lines = result.out.splitlines()
    assert "calibrated on tiny: budget 0.25 nats a token, 4 questions, 1,234 tokens, seed 7" in lines
    effect = "effect 0.90 (0.70 to 1.10), cost 0.25 nats a token; more would cost more coherence than the 0.25 that are allowed"
    assert f"+1 loud, response only: relative dose 0.30, layers 1-2, {effect}" in lines
    assert f"-1 quiet, response only: relative dose 0.40, layers 2-3, {effect}" in lines
    assert f"+1 loud, prompt as well: relative dose 0.12, layers 1-2, {effect}" in lines
    assert "+1 loud: about as far as a system prompt that asks for it (0.9 times), for 0.25 nats a token of coherence." in lines
    assert "-1 quiet, prompt as well: no dose: none within 0.25 nats a token does anything beyond doubt" in lines
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
    assert "Neither dosed nor calibrated: strength 1 is what the file holds" in (shown := run(capfd, "vectors", "show", path)).err
    assert "localsteer calibrate" in shown.err
    assert run(capfd, "vectors", "show", path, "--json").document["calibration"] is None


def test_what_was_measured_of_a_fresh_vectors_dose_is_shown(tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "push.gguf"
    provenance = Provenance(positive="loud", negative="quiet", dosing=dosing(0.5, 0.25))
    write_vector(ControlVector({1: np.ones(8, np.float32)}, provenance), path)
    shown = run(capfd, "vectors", "show", path)
    assert shown.out.index("dosed on Model") < shown.out.index("‖added‖")
    assert "+1 loud: relative dose 0.50 (0.25 with the prompt steered as well)" in shown.out
    assert "-1 quiet: relative dose 0.25" in shown.out
    assert "chance" not in shown.err
    document = run(capfd, "vectors", "show", path, "--json").document
    assert document["dosing"]["sides"]["negative"]["dose"] == {"response": 0.25, "prompt": 0.125}
    unseen = replace(provenance, dosing=dosing(shown=False))
    write_vector(ControlVector({1: np.ones(8, np.float32)}, unseen), path)
    told = run(capfd, "vectors", "show", path).err
    assert "loud: nothing beyond chance was seen" in told
    assert "quiet: nothing beyond chance was seen" in told


@pytest.mark.usefixtures("named")
def test_a_vector_calibrated_by_its_name_can_be_shown_by_it(capfd: Capture) -> None:
    result = run(capfd, "vectors", "show", "loud")
    assert result.code == 0, result.err
    assert "calibrated on tiny" in result.out


@pytest.mark.usefixtures("named")
def test_of_vectors_for_several_models_that_of_the_model_at_hand_is_shown(
    tiny: Model, tiny_model: TinyModel, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    other = tiny_model("qwen2")
    library.save_vector("loud", vector_of(other), other)
    for model, calibrated_for in ((tiny.path, True), (other.path, False)):
        result = run(capfd, "vectors", "show", "loud", "-m", model)
        assert result.code == 0, result.err
        assert ("calibrated on" in result.out) is calibrated_for
    monkeypatch.setenv("LOCALSTEER_MODEL", str(other.path))
    assert "calibrated on" not in run(capfd, "vectors", "show", "loud").out


@pytest.mark.usefixtures("named")
def test_what_is_not_built_for_the_model_at_hand_is_said_so(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    path = tiny_path("qwen2")
    assert_one_clear_line(run(capfd, "vectors", "show", "loud", "-m", path), path.name, f"vectors build loud -m {path}")
    monkeypatch.setenv("LOCALSTEER_MODEL", str(path))
    result = run(capfd, "vectors", "show", "loud")
    assert "calibrated on tiny" in result.out
    assert f'"loud" is not built for {path.name} yet: this is its vector for tiny.' in result.err


def test_a_file_is_for_no_model_in_particular(loud: Path, tiny: Model, capfd: Capture) -> None:
    assert_one_clear_line(run(capfd, "vectors", "show", loud, "-m", tiny.path))


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
