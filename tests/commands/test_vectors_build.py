from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localsteer.building import library
from localsteer.building.cache import cache_folder
from localsteer.calibration.findings import Findings
from localsteer.calibration.search import Search
from localsteer.concepts import names
from localsteer.llama.model import Model
from localsteer.vector.file import read_vector, write_vector
from tests.building.test_library import vector_of
from tests.calibration.made import CONCEPT, DOSES, calibrated, find_sides, make_small, nothing
from tests.commands.runner import Result, assert_one_clear_line, run
from tests.conftest import TinyPath

Capture = pytest.CaptureFixture[str]
Build = Callable[..., Result]

# Three pairs are too few to measure a reliability, which a model with random weights would not have.
SMALL = (
    CONCEPT.replace("[very loud, a shouting man]", "[HIP HIP HURRAY]")
    .replace("[very quiet, a whispering man]", "[alas]")
    .replace('[I, "Well,", Today, "In the house", "My", "All of"]', "[a, b, c]")
)
NAMES = ["calm", "formal", "happy"]


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of three concepts."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(names, "shipped_folder", lambda: folder)
    for name in NAMES:
        file = folder / name / "concept.yaml"
        file.parent.mkdir(parents=True)
        # Prompts of its own: two concepts with the same ones would share their measurements.
        file.write_text(SMALL.replace("name: loud", f"name: {name}").replace("HURRAY", name))
    make_small(monkeypatch)
    return folder


@pytest.fixture
def build(capfd: Capture, tiny_path: TinyPath) -> Build:
    """Run `localsteer vectors build ARGUMENTS` on the tiny model."""
    return lambda *arguments: run(capfd, "vectors", "build", *arguments, "-m", tiny_path("llama"))


@pytest.fixture
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "__init__", lambda *_, **__: pytest.fail("the model was opened"))


def interrupt_at(monkeypatch: pytest.MonkeyPatch, concept: int, steps: int = 1) -> None:
    """Press Ctrl-C at a step of the work for a concept, both counted from 1."""
    begun = [0]

    @contextlib.contextmanager
    def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
        begun[0] += 1
        told = [0]

        def tell(*_: object) -> None:
            told[0] += 1
            if begun[0] == concept and told[0] == steps:
                raise KeyboardInterrupt

        yield tell

    monkeypatch.setattr("localsteer.commands.vectors_build.progress_bar", progress_bar)


def kept() -> list[str]:
    return sorted(file.name.split("-")[0] for file in cache_folder().glob("*"))


# Building


def test_all_concepts_are_built_when_none_is_named(build: Build) -> None:
    result = build()
    assert result.code == 0, result.err
    assert [line.split(" in ")[0] for line in result.out.splitlines()] == [f"{name}: built" for name in NAMES]
    assert [line for line in result.err.splitlines() if " of 3: " in line] == ["1 of 3: calm", "2 of 3: formal", "3 of 3: happy"]
    assert kept() == NAMES


def test_only_the_concepts_that_are_named_are_built(build: Build) -> None:
    result = build("happy", "calm", "happy")
    assert [line.split(":")[0] for line in result.out.splitlines()] == ["happy", "calm"]
    assert kept() == ["calm", "happy"]


def test_what_is_there_is_skipped_and_said_so(build: Build, tiny: Model, shipped: Path) -> None:
    write_vector(vector_of(tiny), shipped / "happy" / "tiny.gguf")
    library.save_vector("calm", calibrated(tiny.fingerprint), tiny)
    result = build()
    assert result.code == 0
    *there, built = result.out.splitlines()
    assert there == ["calm: there already (built, calibrated)", "happy: there already (shipped)"]
    assert built.startswith("formal: built in ")
    assert "2 of 3: formal" in result.err


def test_nothing_to_do_does_not_even_open_the_model(
    build: Build, capfd: Capture, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("happy")
    monkeypatch.setattr(Model, "__init__", lambda *_, **__: pytest.fail("the model was opened"))
    result = build("happy")
    assert (result.code, result.out) == (0, "happy: there already (built)\n")


def test_after_ctrl_c_the_same_command_goes_on(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, concept=2)
        result = build()
    assert result.code == 130
    assert "1 of 3 are done and kept; the same command goes on from there." in result.err
    assert "Traceback" not in result.err
    assert kept() == ["calm"]
    result = build()
    assert result.code == 0
    assert result.out.startswith("calm: there already (built)\nformal: built in ")
    assert kept() == NAMES


def test_json_is_one_document_on_stdout(build: Build, tiny: Model, tiny_path: TinyPath, shipped: Path) -> None:
    write_vector(vector_of(tiny), shipped / "happy" / "tiny.gguf")
    library.save_vector("calm", calibrated(tiny.fingerprint), tiny)
    document = build("--json").document
    assert document["model"] == str(tiny_path("llama"))
    calm, formal, happy = document["vectors"]
    assert (calm["name"], calm["state"], calm["calibrated"], calm["seconds"]) == ("calm", "there", True, 0)
    assert (formal["name"], formal["state"], formal["calibrated"], formal["error"]) == ("formal", "built", False, None)
    assert formal["seconds"] > 0
    assert Path(formal["path"]).parent == cache_folder()
    assert (happy["state"], happy["path"]) == ("shipped", str(shipped / "happy" / "tiny.gguf"))


def test_a_broken_concept_does_not_stop_the_others(build: Build, shipped: Path) -> None:
    (shipped / "calm" / "concept.yaml").write_text("name: [")
    result = build()
    assert result.code == 1
    assert kept() == ["formal", "happy"]
    *_, why, last = result.err.splitlines()
    assert f"{shipped / 'calm' / 'concept.yaml'}, line 1" in why
    assert last == "localsteer: 1 of 3 concepts could not be built or calibrated: calm."
    result = build("--json")
    assert result.code == 1
    calm, formal, _ = result.document["vectors"]
    assert (calm["state"], calm["path"]) == ("failed", None)
    assert "line 1" in calm["error"]
    assert formal["state"] == "there"


def test_prompts_without_a_difference_do_not_stop_the_others(build: Build, shipped: Path) -> None:
    file = shipped / "calm" / "concept.yaml"
    file.write_text(file.read_text().replace("[alas]", "[HIP HIP calm]"))
    result = build()
    assert result.code == 1
    assert kept() == ["formal", "happy"]
    assert any(line.startswith("calm: ") for line in result.err.splitlines())
    assert_one_clear_line_at_end(result, "calm")


def assert_one_clear_line_at_end(result: Result, *parts: str) -> None:
    last = result.err.splitlines()[-1]
    assert last.startswith("localsteer: ")
    assert "Traceback" not in result.err
    for part in parts:
        assert part in last


@pytest.mark.usefixtures("_no_work")
def test_what_cannot_be_done_is_told_before_the_model_is_opened(build: Build, shipped: Path, tmp_path: Path) -> None:
    assert_one_clear_line(build("happy", "hapy"), "hapy", "happy")
    (tmp_path / "file").touch()
    assert_one_clear_line(build("-o", tmp_path / "file"), str(tmp_path / "file"))
    (shipped / "calm" / "concept.yaml").write_text("name: [")
    assert_one_clear_line(build("calm"), "line 1")


def test_vectors_may_be_kept_in_a_folder(build: Build, tmp_path: Path) -> None:
    result = build("calm", "happy", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    files = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*"))
    assert files == [str(Path("calm", "llama.gguf")), str(Path("happy", "llama.gguf"))]
    assert kept() == []
    assert "calm: there already (built)" in build("calm", "-o", tmp_path / "out").out


# Calibrating


def test_each_vector_is_built_and_calibrated(build: Build, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch)
    library.save_vector("calm", calibrated(tiny.fingerprint), tiny)
    result = build("--calibrate")
    assert result.code == 0, result.err
    lines = [line.split(" in ")[0] for line in result.out.splitlines()]
    assert lines[0] == "calm: there already (built, calibrated)"
    assert lines[1:] == ["formal: built", "happy: built", "formal: calibrated", "happy: calibrated"]
    assert all(read_vector(file).provenance.calibration is not None for file in cache_folder().iterdir())
    # What it takes is told once, before it starts.
    said = result.err.splitlines()
    (price,) = (line for line in said if "tokens/s answering" in line)
    assert price.startswith("2 to calibrate on tiny: up to ")
    assert said.index(price) < said.index("2 of 3: calibrating formal")
    assert build("--calibrate").out.count("there already (built, calibrated)") == 3


def test_a_calibration_goes_on_after_ctrl_c(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch, measuring=True)
    build("calm", "happy")
    with monkeypatch.context() as patch:
        interrupt_at(patch, concept=2, steps=2)
        result = build("calm", "happy", "--calibrate")
    assert result.code == 130
    assert "1 of 2 are done and kept; the same command goes on from there." in result.err
    result = build("calm", "happy", "--calibrate")
    assert result.code == 0, result.err
    assert "calm: there already (built, calibrated)" in result.out
    assert "1 to calibrate on tiny" in result.err
    assert "measured already" in result.err


def test_a_concept_without_a_dose_does_not_stop_the_others(
    build: Build, tiny: Model, monkeypatch: pytest.MonkeyPatch, shipped: Path
) -> None:
    find_sides(monkeypatch)
    found = Search.run

    def search(self: Search) -> Findings:
        findings = found(self)
        if self.interview.contrast is not None and self.interview.contrast.name == "formal":
            findings.sides = {key: nothing(one, "measured") for key, one in findings.sides.items()}
        return findings

    monkeypatch.setattr(Search, "run", search)
    result = build("--calibrate", "--json")
    assert result.code == 1
    calm, formal, happy = result.document["vectors"]
    assert [one["calibrated"] for one in (calm, formal, happy)] == [True, False, True]
    assert [one["state"] for one in (calm, formal, happy)] == ["built"] * 3
    assert "does nothing inside the budget" in formal["error"]
    assert any(line.startswith("formal: The vector does nothing") for line in result.err.splitlines())
    assert_one_clear_line_at_end(result, "1 of 3 concepts", "formal")
    assert library.load_vector("formal", tiny).provenance.calibration is None


def test_the_only_concept_gives_its_own_error(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch, without=tuple(DOSES), limit="measured")
    result = build("happy", "--calibrate")
    assert result.code == 1
    assert result.out.startswith("happy: built in ")
    assert result.err.count("does nothing inside the budget") == 1
    assert_one_clear_line_at_end(result, "does nothing inside the budget")
