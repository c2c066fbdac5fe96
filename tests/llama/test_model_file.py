from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from localsteer.errors import ModelError
from localsteer.llama.model import Model
from localsteer.llama.model_file import check_model_file, content_hash, is_later_part, model_parts, model_stem
from tests.conftest import TinyPath
from tests.made_files import gguf_bytes, key, tensor

PARTS = ["big-00001-of-00003.gguf", "big-00002-of-00003.gguf", "big-00003-of-00003.gguf"]


@pytest.mark.parametrize(
    ("name", "parts", "stem"),
    [
        ("big-00001-of-00003.gguf", PARTS, "big"),
        ("Big-00001-of-00002.GGUF", ["Big-00001-of-00002.GGUF", "Big-00002-of-00002.GGUF"], "Big"),
        ("tiny.Q4_1.gguf", ["tiny.Q4_1.gguf"], "tiny.Q4_1"),
        ("big-1-of-3.gguf", ["big-1-of-3.gguf"], "big-1-of-3"),
        ("sha256-0123", ["sha256-0123"], "sha256-0123"),
    ],
)
def test_the_parts_of_a_model(name: str, parts: list[str], stem: str) -> None:
    path = Path("/models", name)
    assert model_parts(path) == [Path("/models", part) for part in parts]
    assert model_stem(path) == stem
    assert [is_later_part(part) for part in model_parts(path)] == [False] + [True] * (len(parts) - 1)


def test_the_content_is_known_without_opening_the_model(tiny: Model, tiny_path: TinyPath) -> None:
    assert content_hash(tiny_path("llama")) == tiny.fingerprint.content


SIZES = (70_000, 100, 5000, 4096)


def write(path: Path, *, kind: int = 0, seed: int = 0) -> tuple[Path, list[int]]:
    """A file of tensors of SIZES bytes; returns where their data begin."""
    data, entries, starts = b"", [], []
    for number, size in enumerate(SIZES):
        entries.append(tensor(f"t{number}", [size // 4], kind, len(data)))
        starts.append(len(data))
        data += hashlib.shake_256(f"{seed} {number}".encode()).digest(size) + bytes(-size % 32)
    made = gguf_bytes([key("general.architecture", "llama"), key("tokenizer.chat_template", "{{ messages }}")], entries, data)
    path.write_bytes(made)
    return path, [len(made) - len(data) + start for start in starts]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_the_hash_of_the_content_is_stable(tmp_path: Path) -> None:
    # It is stored in vector files: another value would turn every vector into one of another model.
    path, _ = write(tmp_path / "model")
    assert content_hash(path) == "bd836b599ee48aff7797d02d87e3f6b1ad38f322d167e0cb9a7092488d80ef84"
    assert content_hash(write(tmp_path / "copy")[0]) == content_hash(path)


def test_a_change_of_any_tensor_changes_the_content(tmp_path: Path) -> None:
    path, starts = write(tmp_path / "model")
    before = content_hash(path)
    for start, size in zip(starts, SIZES, strict=True):
        flip(path, start + size // 2)
        assert content_hash(path) != before
        flip(path, start + size // 2)
    flip(path, starts[1])  # of a small one every byte counts
    assert content_hash(path) != before


def test_one_tensor_replaced_in_a_large_file_changes_the_content(tmp_path: Path) -> None:
    # 5 GB of nothing: a file system that knows holes stores none of it.
    size = 60_000_000
    head = gguf_bytes([key("general.architecture", "llama")], [tensor(f"t{k}", [size // 4], 0, k * size) for k in range(80)])
    path = tmp_path / "model"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 80 * size)
    before = content_hash(path)
    with path.open("r+b") as file:
        file.seek(len(head) + 7 * size)
        file.write(b"\xff" * size)
    assert content_hash(path) != before


def test_every_byte_of_the_header_changes_the_content(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model")
    before, data = content_hash(path), path.read_bytes()
    path.write_bytes(data.replace(b"messages", b"Messages"))
    assert content_hash(path) != before
    path.write_bytes(data.replace(b"t3", b"x3"))
    assert content_hash(path) != before


def test_another_size_changes_the_content(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "model")
    before = content_hash(path)
    path.write_bytes(path.read_bytes() + bytes(32))
    assert content_hash(path) != before


def test_the_content_of_tensors_of_a_type_that_the_gguf_package_does_not_know(tmp_path: Path) -> None:
    path, starts = write(tmp_path / "model", kind=999)
    before = content_hash(path)
    flip(path, starts[2] + 2500)
    assert content_hash(path) != before


def test_every_part_counts(tmp_path: Path) -> None:
    places = [write(tmp_path / part, seed=number)[1] for number, part in enumerate(PARTS)]
    before = content_hash(tmp_path / PARTS[0])
    for part, starts in zip(PARTS, places, strict=True):
        flip(tmp_path / part, starts[0] + 35_000)
        assert content_hash(tmp_path / PARTS[0]) != before
        flip(tmp_path / part, starts[0] + 35_000)
    assert content_hash(tmp_path / PARTS[0]) == before


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write(tmp_path / PARTS[0])
    with pytest.raises(ModelError, match=PARTS[1]):
        content_hash(tmp_path / PARTS[0])


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("notes")
    for check in (check_model_file, content_hash):
        with pytest.raises(ModelError, match=r"notes\.gguf.*GGUF"):
            check(tmp_path / "notes.gguf")
        with pytest.raises(ModelError, match=r"none\.gguf"):
            check(tmp_path / "none.gguf")
        with pytest.raises(ModelError, match=str(tmp_path)):
            check(tmp_path)
