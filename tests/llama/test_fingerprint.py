from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.llama.fingerprint import Fingerprint, hash_model_files, hash_texts
from localsteer.llama.model import Model
from tests.tiny_models import write_tiny_model

MIB = 1 << 20
MODEL = Fingerprint("Tiny", "llama", 6, 3, "vocabulary", "content")


def write(path: Path, size: int, *, seed: int = 0) -> Path:
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


def change(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


# Comparisons


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, (True, True, True)),
        ({"name": "renamed"}, (True, True, True)),
        ({"content": "another quantisation"}, (False, True, True)),
        ({"content": "x", "vocabulary": "x"}, (False, False, True)),
        ({"content": "x", "architecture": "qwen2"}, (False, False, True)),
        ({"content": "x", "n_layer": 7}, (False, False, False)),
        ({"content": "x", "n_embd": 4}, (False, False, False)),
    ],
)
def test_what_counts_as_the_same(change: dict[str, str | int], same: tuple[bool, bool, bool]) -> None:
    other = replace(MODEL, **change)  # type: ignore[arg-type]
    for one, two in ((MODEL, other), (other, MODEL)):
        assert (one.same_file(two), one.same_model(two), one.same_shape(two)) == same


# Texts


def test_a_hash_of_texts_is_stable() -> None:
    # It is stored in vector files: another value would turn every vector into one of another model.
    assert hash_texts([b"a", b"bc"]) == "47ea6f805c5b663e33012cd34184e1398ad81a0dcea50071346f05d26692e843"


@pytest.mark.parametrize(
    "others", [[b"ab", b"c"], [b"abc"], [b"bc", b"a"], [b"a", b"bc", b""], [b"", b"a", b"bc"], [b"a", b"bd"], [b"a"], []]
)
def test_other_texts_have_another_hash(others: list[bytes]) -> None:
    assert hash_texts(others) != hash_texts([b"a", b"bc"])


# Files


def test_a_hash_of_files_is_stable(tmp_path: Path) -> None:
    # It is stored in vector files, too.
    path = tmp_path / "model"
    path.write_bytes(hashlib.shake_256(b"model").digest(3 * MIB))
    assert hash_model_files([path, path]) == "dbeac6d8d8a31cb3c3f6b9cedd91fd197d82f8104744819cfb3000031f2adfa3"


def test_a_copy_has_the_same_hash(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", 3 * MIB), write(tmp_path / "other", 3 * MIB)
    assert hash_model_files([one]) == hash_model_files([other])


@pytest.mark.parametrize("size", [1, 100, 1 << 16, MIB, MIB + 1, 5 * MIB])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_change_at_either_end_changes_the_hash(tmp_path: Path, size: int, place: str) -> None:
    path = write(tmp_path / "model", size)
    before = hash_model_files([path])
    change(path, 0 if place == "first" else size - 1)
    assert hash_model_files([path]) != before


def test_every_byte_of_the_first_megabyte_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "model", 2 * MIB)
    before = hash_model_files([path])
    for at in (1, MIB // 3, MIB - 1):
        change(path, at)
        assert hash_model_files([path]) != before
        change(path, at)


def test_other_weights_anywhere_in_a_large_file_change_the_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "model", 8 * MIB)
    hashes = {hash_model_files([path])}
    for sixteenth in range(16):
        with path.open("r+b") as file:
            file.seek(sixteenth * MIB // 2)
            file.write(np.random.default_rng(1 + sixteenth).bytes(MIB // 2))
        hashes.add(hash_model_files([path]))
    assert len(hashes) == 17


@pytest.mark.parametrize("grow", [lambda data: data + b"\0", lambda data: data[:-1], lambda data: b""])
def test_another_size_changes_the_hash(tmp_path: Path, grow: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "model"
    path.write_bytes(bytes(100))
    before = hash_model_files([path])
    path.write_bytes(grow(path.read_bytes()))
    assert hash_model_files([path]) != before


def test_all_parts_of_a_split_model_count_in_order(tmp_path: Path) -> None:
    one, other = write(tmp_path / "1", 1000), write(tmp_path / "2", 1000, seed=1)
    hashes = {hash_model_files(parts) for parts in ([one, other], [other, one], [one], [other], [one, one])}
    assert len(hashes) == 5


def test_a_missing_part_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_model_files([write(tmp_path / "1", 10), tmp_path / "2"])


# Models


def fingerprint(path: Path) -> Fingerprint:
    with Model(path, threads=1) as model:
        return model.fingerprint


def test_the_fingerprint_of_a_model(tmp_path: Path) -> None:
    found = fingerprint(write_tiny_model(tmp_path / "a.gguf", n_layer=3, n_embd=32))
    assert (found.name, found.architecture, found.n_layer, found.n_embd) == ("tiny", "llama", 3, 32)
    assert found == fingerprint(write_tiny_model(tmp_path / "copy.gguf", n_layer=3, n_embd=32))


def test_other_weights_are_another_file_of_the_same_model(tmp_path: Path) -> None:
    one, other = (fingerprint(write_tiny_model(tmp_path / f"{seed}.gguf", seed=seed)) for seed in (0, 1))
    assert not one.same_file(other)
    assert one.same_model(other)


def test_another_architecture_is_another_model(tmp_path: Path) -> None:
    one, other = (fingerprint(write_tiny_model(tmp_path / f"{kind}.gguf", kind)) for kind in ("llama", "qwen2"))
    assert one.same_shape(other)
    assert not one.same_model(other)
