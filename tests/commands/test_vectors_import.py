from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.concepts.names import user_folder
from localsteer.engine.request import Answer, Timing
from localsteer.export import share as share_module
from localsteer.files.gguf_writing import write_out
from localsteer.llama.model import Model
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import calibrated
from tests.commands.runner import CONCEPT, assert_one_clear_line, run
from tests.conftest import TinyPath
from tests.made_files import write_foreign_vector

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def late(tmp_path: Path) -> Path:
    """As llama-cvector-generator writes it for the tiny model: of blocks 0 to 2."""
    given = {block + 1: np.full(64, block + 0.5, np.float32) for block in range(3)}
    return write_foreign_vector(tmp_path / "late.gguf", given, layer_count=3, signed=True)


def test_what_was_found_and_done_is_told(late: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    output = tmp_path / "out.gguf"
    told: list[str | Path] = ["vectors", "import", late, "-o", output, "-m", tiny_path("llama"), "--name", "glad", "--no-dose"]
    result = run(capfd, *told)
    assert result.code == 0, result.err
    assert "one block late" in result.out
    assert "moved by -1" in result.out
    assert f"{output}: glad, layers 1-2, n_embd 64" in result.out.splitlines()
    made = read_vector(output)
    assert made.directions[1].tolist() == [1.5] * 64
    assert made.provenance.concept == "glad"


def test_with_a_model_it_is_dosed_there(late: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    output = tmp_path / "out.gguf"
    result = run(capfd, "vectors", "import", late, "-o", output, "-m", tiny_path("llama"), "--json")
    assert result.code == 0, result.err
    found = read_vector(output).provenance.dosing
    assert found is not None
    assert result.document["dosing"] == found.document()
    assert result.document["seconds"] > 0
    shown = run(capfd, "vectors", "import", late, "-o", output, "-m", tiny_path("llama"), "--force")
    assert re.search(r"^dosed in \d+\.\d s$", shown.out, re.MULTILINE)
    assert f"relative dose {found.sides['negative'].dose['response']:.2f}" in shown.out
    plain = run(capfd, "vectors", "import", late, "-o", output, "--force")
    assert "Neither dosed nor calibrated: strength 1 is what the file says" in plain.err
    assert "dosed in" not in plain.out


def test_a_model_that_answers_nothing_keeps_no_vector_from_being_imported(
    late: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_given: object) -> list[Answer]:
        return [Answer("", (), "stop", 0, Timing(9, 0, 0.1, 0, 0.1))] * 16

    monkeypatch.setattr("localsteer.building.own_answers.generate_many", silent)
    result = run(capfd, "vectors", "import", late, "-o", tmp_path / "out.gguf", "-m", tiny_path("llama"))
    assert_one_clear_line(result, "The vector cannot be dosed on this model: ", "gives no answers")
    assert result.err.count("--no-dose") == 1
    assert not (tmp_path / "out.gguf").exists()


def test_it_is_one_json_document(late: Path, tmp_path: Path, capfd: Capture) -> None:
    result = run(capfd, "vectors", "import", late, "-o", tmp_path / "out.gguf", "--shift", "0", "--json")
    document = result.document
    assert (document["made_by"], document["shift"], document["layers"]) == ("llama-cvector-generator", 0, [1, 2, 3])
    assert any("as asked" in finding for finding in document["findings"])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("v.gguf", b"GGUF" + bytes(20), "GGUF version 0"),
        ("v.npz", b"PK\x03\x04" + bytes(20), "damaged"),
        ("v.safetensors", b"\xff" * 20, "damaged"),
        ("v.pt", b"PK\x03\x04" + bytes(20), "pickle"),
        ("v.txt", b"hello", "no file of vectors"),
    ],
)
def test_a_bad_file_is_one_clear_line_and_no_file(tmp_path: Path, capfd: Capture, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = run(capfd, "vectors", "import", tmp_path / name, "-o", tmp_path / "out.gguf")
    assert_one_clear_line(result, name, told)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_another_model_is_refused(late: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    np.savez(tmp_path / "v.npz", v=np.ones((4, 32), np.float32))
    result = run(capfd, "vectors", "import", tmp_path / "v.npz", "-o", tmp_path / "out.gguf", "-m", tiny_path("llama"))
    assert_one_clear_line(result, "rows of 32 numbers", "n_embd 64")
    assert not (tmp_path / "out.gguf").exists()


# Adapters, and folders that are shared


@pytest.fixture
def shared(tiny_path: TinyPath, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `localsteer vectors share` makes one."""
    monkeypatch.setattr(share_module, "_TOKENS", 4)
    vector, folder = tmp_path / "loud.gguf", tmp_path / "shared"
    with Model(tiny_path("llama"), threads=1) as model:
        made = calibrated(model.fingerprint)
    write_vector(replace(made, provenance=replace(made.provenance, concept="loud", source=CONCEPT)), vector)
    result = run(capfd, "vectors", "share", vector, "-o", folder, "-m", tiny_path("llama"), "--license", "cc0-1.0")
    assert result.code == 0, result.err
    assert result.out == f"{folder}: loud.gguf, loud-lora.gguf, concept.yaml, README.md\n"
    assert "no base model" in result.err
    assert "no license" not in result.err
    return folder


def test_a_shared_folder_works_by_its_name(shared: Path, tiny_path: TinyPath, capfd: Capture) -> None:
    result = run(capfd, "vectors", "import", shared)
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == f"loud: kept in {user_folder() / 'loud'}, with its vector for {_name(tiny_path)}"
    listed = run(capfd, "vectors", "list", "-m", tiny_path("llama"), "--json").document
    (loud,) = [one for one in listed if one["name"] == "loud"]
    assert (loud["source"], loud["vector"]["state"]) == ("yours", "built")
    answered = run(capfd, "generate", "Hello", "-s", "loud", "-m", tiny_path("llama"), "-n", "2", "--json")
    assert answered.code == 0, answered.err
    document = run(capfd, "vectors", "import", shared, "--name", "louder", "--json").document
    assert document == {"name": "louder", "folder": str(user_folder() / "louder"), "vectors": [_name(tiny_path)]}


def _name(tiny_path: TinyPath) -> str:
    with Model(tiny_path("llama"), threads=1) as model:
        return model.fingerprint.name


def test_a_shared_folder_becomes_a_file(shared: Path, tmp_path: Path, capfd: Capture) -> None:
    output = tmp_path / "out.gguf"
    assert run(capfd, "vectors", "import", shared, "-o", output).code == 0
    assert output.read_bytes() == (shared / "loud.gguf").read_bytes()
    for option in (("--shift", "1"), ("--no-dose",), ("-m", "demo")):
        refused = run(capfd, "vectors", "import", shared, *option)
        assert refused.code == 2
        assert "go with -o" in refused.err
    assert run(capfd, "vectors", "import", shared / "loud.gguf").code == 2


def test_an_adapter_is_shown_steers_and_is_imported(shared: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    adapter, output = shared / "loud-lora.gguf", tmp_path / "out.gguf"
    shown = run(capfd, "vectors", "show", adapter)
    assert shown.code == 0, shown.err
    assert "loud" in shown.out
    answered = run(capfd, "generate", "Hello", "-s", adapter, "-m", tiny_path("llama"), "-n", "2", "--json")
    assert answered.code == 0, answered.err
    imported = run(capfd, "vectors", "import", adapter, "-o", output, "--json")
    assert "an adapter of localsteer's" in imported.document["findings"][0]
    assert read_vector(output).layers == read_vector(adapter).layers


def test_somebody_elses_adapter_is_one_clear_line(tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((8, 64), np.float32))
    write_out(writer)
    for command in (("import", path, "-o", tmp_path / "out.gguf"), ("show", path)):
        assert_one_clear_line(run(capfd, "vectors", *command), "theirs.gguf is a LoRA adapter of another kind", "--lora")
    refused = run(capfd, "generate", "Hello", "-s", path, "-m", tiny_path("llama"))
    assert_one_clear_line(refused, "is a LoRA adapter of another kind")


@pytest.mark.parametrize(
    ("option", "told"), [(("--license", "do what you like"), "cc0-1.0"), (("--base-model", "somewhere"), "Qwen/Qwen3-8B")]
)
def test_what_no_hub_would_take_is_refused(tmp_path: Path, capfd: Capture, option: tuple[str, str], told: str) -> None:
    result = run(capfd, "vectors", "share", "happy", "-o", tmp_path / "shared", *option)
    assert result.code == 2
    assert told in result.err
