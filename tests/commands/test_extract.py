from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.concepts.concept_file import load_concept
from localsteer.engine.request import Answer, Timing
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import calibrated
from tests.commands.runner import CONCEPT, Result, assert_one_clear_line, run
from tests.made_files import write_foreign_vector

TinyPath = Callable[[str], Path]


@pytest.fixture
def concept(tmp_path: Path) -> Path:
    path = tmp_path / "loud.yaml"
    path.write_text(CONCEPT)
    return path


def test_builds_a_vector_from_a_concept(
    tiny_path: TinyPath, concept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loud.gguf"
    result = run(capfd, "extract", concept, "-m", tiny_path("llama"), "-o", out, "--layers", "1-3", "--json")
    assert result.code == 0, result.err
    assert result.document["layers"] == [1, 2, 3]
    assert result.document["pairs"] == 12
    vector = read_vector(out)
    assert vector.layers == (1, 2, 3)
    assert (vector.provenance.positive, vector.provenance.negative) == ("loud", "quiet")


def test_builds_a_vector_from_prompt_files(tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    positive, negative = tmp_path / "a.txt", tmp_path / "b.txt"
    positive.write_text("".join(f"I am loud.\\n{word}\n" for word in ("One", "Two", "Three", "Four")))
    negative.write_text("".join(f"I am quiet.\\n{word}\n" for word in ("One", "Two", "Three", "Four")))
    out = tmp_path / "out.gguf"
    files = ("--positive", positive, "--negative", negative)
    result = run(capfd, "extract", *files, "-m", tiny_path("llama"), "-o", out, "--layers", "1-2")
    assert result.code == 0, result.err
    assert "4 pairs" in result.out
    assert read_vector(out).provenance.concept == "out"


def test_asks_for_one_kind_of_prompts(concept: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "extract").code == 2
    assert run(capfd, "extract", concept, "--positive", concept, "--negative", concept).code == 2
    assert run(capfd, "extract", "--positive", concept).code == 2


def described(capfd: pytest.CaptureFixture[str], tiny_path: TinyPath, *arguments: str | Path) -> Result:
    return run(capfd, "extract", "--concept-from", *arguments, "-m", tiny_path("llama"), "--layers", "1-3")


def test_builds_a_vector_from_a_description(
    tiny_path: TinyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = described(capfd, tiny_path, "a weary sea captain")
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weary-sea-captain.gguf", "weary-sea-captain.yaml"]
    assert "weary sea captain against ordinary person from 96 pairs" in result.out
    assert "weary-sea-captain.yaml" in result.out
    vector = read_vector("weary-sea-captain.gguf")
    assert vector.provenance.concept == "weary-sea-captain"
    # It is a concept like any other.
    assert load_concept("weary-sea-captain.yaml").source == vector.provenance.source
    again = run(capfd, "extract", "weary-sea-captain.yaml", "-m", tiny_path("llama"), "--layers", "1-3", "-o", "again.gguf")
    assert again.code == 0
    assert np.array_equal(read_vector("again.gguf").rows(4), vector.rows(4))


def test_the_output_names_the_concept_of_a_description(
    tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "Captain.gguf"
    result = described(capfd, tiny_path, "a weary sea captain", "--against", "a cheerful cook", "-o", out, "--json")
    assert result.code == 0, result.err
    document = result.document
    assert (document["vector"], document["concept_file"]) == (str(out), str(tmp_path / "Captain.yaml"))
    assert document["concept"] == load_concept(tmp_path / "Captain.yaml").name == "captain"
    assert read_vector(out).provenance.negative == "cheerful cook"


def test_another_concept_file_of_that_name_is_left_alone(
    tiny_path: TinyPath, concept: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = described(capfd, tiny_path, "a loud man", "-o", concept.with_suffix(".gguf"))
    assert_one_clear_line(result, str(concept), f"localsteer extract {concept}")
    assert concept.read_text() == CONCEPT
    assert not concept.with_suffix(".gguf").exists()


def test_a_description_leaves_nothing_where_no_vector_can_be_built(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "captain.gguf"
    result = run(capfd, "extract", "--concept-from", "a captain", "-m", tmp_path / "none.gguf", "-o", out)
    assert_one_clear_line(result, "none.gguf")
    assert list(tmp_path.iterdir()) == []


def test_descriptions_that_make_no_concept_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (("",), "empty"),
        (("a cook", "--against", "A cook."), "both sides"),
        (("老船长",), "-o"),
        (("a cook", "-o", tmp_path / "missing" / "cook.gguf"), "no folder"),
    ):
        assert_one_clear_line(run(capfd, "extract", "--concept-from", *arguments, "-m", "none.gguf"), message)


def test_asks_for_one_kind_of_concept(concept: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "extract", concept, "--concept-from", "a cook").code == 2
    assert run(capfd, "extract", "--concept-from", "a cook", "--positive", concept).code == 2
    assert run(capfd, "extract", concept, "--against", "a cook").code == 2
    result = run(capfd, "extract", "--concept-from", "a cook", "-o", "cook.yaml")
    assert result.code == 2
    assert "cook.gguf" in result.err


@pytest.mark.parametrize("layers", ["0-2", "2-9", "3-2"])
def test_refuses_layers_that_the_model_lacks(
    tiny_path: TinyPath, concept: Path, tmp_path: Path, layers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    result = run(capfd, "extract", concept, "-m", tiny_path("llama"), "-o", out, "--layers", layers)
    assert_one_clear_line(result, layers, "1-3")
    assert not out.exists()


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [("a\nb\n", "a\n", "holds 2 prompts"), ("", "a\n", "holds no prompts"), ("x" * 2000, "y", "tokens")],
)
def test_refuses_prompt_files_that_do_not_fit(
    tiny_path: TinyPath,
    tmp_path: Path,
    positive: str,
    negative: str,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.txt").write_text(positive)
    (tmp_path / "b.txt").write_text(negative)
    out = tmp_path / "out.gguf"
    files = ("--positive", tmp_path / "a.txt", "--negative", tmp_path / "b.txt")
    assert_one_clear_line(run(capfd, "extract", *files, "-m", tiny_path("llama"), "-o", out), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_finds_out_before_the_work_that_the_output_cannot_be_written(
    concept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The model does not exist either: the output is looked at first.
    missing = tmp_path / "no-such-folder" / "out.gguf"
    assert_one_clear_line(run(capfd, "extract", concept, "-m", "none.gguf", "-o", missing), str(missing.parent))
    assert_one_clear_line(run(capfd, "extract", concept, "-m", "none.gguf", "-o", tmp_path), str(tmp_path))


@pytest.mark.parametrize("kind", ["concept", "text", "model"])
def test_what_is_no_vector_is_not_replaced(
    kind: str, tiny_path: TinyPath, concept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(tiny_path("llama"), model)
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    output = {"concept": concept, "text": text, "model": model}[kind]
    before = output.read_bytes()
    result = run(capfd, "extract", concept, "-m", tiny_path("llama"), "-o", output, "--layers", "1-2")
    assert_one_clear_line(result, output.name)
    assert output.read_bytes() == before


def test_an_older_vector_is_replaced(
    tiny_path: TinyPath, concept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.gguf"
    output.touch()  # an empty file, as mktemp makes one, is nobody's
    for layers in ((1,), (1, 2)):
        chosen = f"{layers[0]}-{layers[-1]}"
        code = run(capfd, "extract", concept, "-m", tiny_path("llama"), "-o", output, "--layers", chosen).code
        assert code == 0
        assert read_vector(output).layers == layers


def test_what_is_calibrated_or_of_another_model_is_replaced_by_force_only(
    tiny: Model, tiny_path: TinyPath, concept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, late = tmp_path / "out.gguf", tmp_path / "late.gguf"
    write_foreign_vector(late, {block + 1: np.ones(64, np.float32) for block in range(3)}, layer_count=3, signed=True)
    mine, other = tiny.fingerprint, replace(tiny.fingerprint, content="0" * 64, name="Other")
    extract = ("extract", concept, "--layers", "1-2", "-m", tiny_path("llama"), "-o", output)
    imports = ("vectors", "import", late, "-o", output)
    combines = ("vectors", "combine", late, "-o", output)
    exports = ("export", "llama-cpp", late, "--no-verify", "-o", output)
    built = ControlVector({1: np.ones(64, np.float32)}, Provenance(model=other))
    for vector, known, commands in (
        (calibrated(mine), mine.name, (extract, imports, combines, exports)),
        (calibrated(other), "Other", (extract, imports, combines, exports, ("calibrate", output, "-m", tiny_path("llama")))),
        (built, "Other", (extract,)),
    ):
        for arguments in commands:
            write_vector(vector, output)
            before = output.read_bytes()
            assert_one_clear_line(run(capfd, *arguments), str(output), known, "-o", "--force")
            assert output.read_bytes() == before
            if arguments[0] != "calibrate":
                result = run(capfd, *arguments, "--force")
                assert result.code == 0, result.err
                assert output.read_bytes() != before
                # What was made in that way can be made again.
                assert run(capfd, *arguments).code == 0


def test_a_model_that_answers_nothing_is_told_how_a_vector_is_made_all_the_same(
    concept: Path, tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_given: object) -> list[Answer]:
        return [Answer("", (), "stop", 0, Timing(9, 0, 0.1, 0, 0.1))] * 16

    monkeypatch.setattr("localsteer.building.own_answers.generate_many", silent)
    command = ("extract", concept, "-o", tmp_path / "out.gguf", "-m", tiny_path("llama"), "--layers", "1-3")
    assert_one_clear_line(run(capfd, *command), "gives no answers", "--no-dose leaves that out.")
    assert not (tmp_path / "out.gguf").exists()
    assert run(capfd, *command, "--no-dose").code == 0


def test_a_full_disk_leaves_no_file(
    tiny_path: TinyPath, concept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import errno

    import gguf

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out.gguf"
    run(capfd, "extract", concept, "-m", tiny_path("llama"), "-o", out, "--layers", "1-1")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    old = out.read_bytes()
    result = run(capfd, "extract", concept, "-m", tiny_path("llama"), "-o", out, "--layers", "1-2")
    assert_one_clear_line(result, "No space left")
    assert out.read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loud.yaml", "out.gguf"]


def test_a_model_whose_layers_cannot_be_read_is_refused(
    tiny_path: TinyPath, concept: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny_models import UNSTEERABLE_ARCHITECTURE

    out = tmp_path / "out.gguf"
    result = run(capfd, "extract", concept, "-m", tiny_path(UNSTEERABLE_ARCHITECTURE), "-o", out, "--layers", "1-2")
    assert_one_clear_line(result, "residual stream")
    assert not out.exists()
