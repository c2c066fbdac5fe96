from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localsteer.vector.file import read_vector
from tests.commands.runner import assert_one_clear_line, run
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
    shown = run(capfd, "vectors", "import", late, "-o", output, "-m", tiny_path("llama"), "--force")
    assert f"relative dose {found.sides['negative'].dose['response']:.2f}" in shown.out
    plain = run(capfd, "vectors", "import", late, "-o", output, "--force")
    assert "Neither dosed nor calibrated: strength 1 is what the file says" in plain.err


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
