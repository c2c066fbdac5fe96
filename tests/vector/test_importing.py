from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from localsteer.errors import VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from localsteer.vector.importing import import_vector
from tests.calibration.made import calibrated
from tests.made_files import write_foreign_vector

MODEL = Fingerprint("Tiny", "llama", 6, 8, "a" * 64, "b" * 64)


def row(block: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What was read at a block."""
    return np.full(8, block + 0.5, np.float32)


def directions(first: int, last: int, *, late: int = 0) -> dict[int, np.ndarray[Any, np.dtype[np.float32]]]:
    """Directions by the number that a file gives them."""
    return {block + late: row(block) for block in range(first, last + 1)}


def assert_at_home(vector: ControlVector, blocks: range) -> None:
    """Each direction is that of its block."""
    assert vector.layers == tuple(blocks)
    for block in blocks:
        np.testing.assert_array_equal(vector.directions[block], row(block))


# GGUF


def test_repeng_is_aligned(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "happy.gguf", directions(1, 5), layer_count=5)
    found = import_vector(path, model=MODEL)
    assert (found.kind, found.shift) == ("repeng", 0)
    assert_at_home(found.vector, range(1, 6))
    assert found.vector.provenance.concept == "happy"
    assert found.vector.provenance.model_hint == "llama"
    assert found.vector.provenance.origin == "imported from happy.gguf (repeng)"


def test_llama_cvector_generator_is_one_block_late(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", directions(0, 4, late=1), layer_count=5, signed=True)
    found = import_vector(path)
    assert (found.kind, found.shift) == ("llama-cvector-generator", -1)
    assert_at_home(found.vector, range(1, 5))
    assert "one block late" in found.findings[0]
    assert any("moved by -1" in finding for finding in found.findings)
    assert any("Number 1 was left out" in finding for finding in found.findings)
    assert found.vector.provenance.origin.endswith("layer numbers moved by -1")


def test_jukofyork_is_one_block_late(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", directions(0, 4, late=1), layer_count=6)
    found = import_vector(path, model=MODEL)
    assert (found.kind, found.shift) == ("jukofyork/control-vectors", -1)
    assert_at_home(found.vector, range(1, 5))


def test_a_last_direction_behind_the_last_block_shows_that_all_are_late(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", directions(0, 5, late=1), layer_count=6)
    assert import_vector(path).shift == 0
    found = import_vector(path, model=MODEL)
    assert found.shift == -1
    assert f"its last direction is 6, and the last block of {MODEL.name} 5" in found.findings[0]
    assert_at_home(found.vector, range(1, 6))


def test_an_unknown_make_is_taken_at_its_word(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", directions(2, 3), layer_count=None)
    found = import_vector(path)
    assert (found.kind, found.shift) == ("GGUF", 0)
    assert "--shift" in found.findings[0]


@pytest.mark.parametrize("signed", [True, False])
def test_the_user_knows_better(tmp_path: Path, signed: bool) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", directions(1, 3, late=2), layer_count=3, signed=signed)
    found = import_vector(path, shift=-2, name="glad")
    assert_at_home(found.vector, range(1, 4))
    assert found.vector.provenance.concept == "glad"
    assert any("moved by -2 as asked" in finding for finding in found.findings)


def test_block_0_is_left_out_and_a_row_of_zeros_too(tmp_path: Path) -> None:
    given = {0: row(0), 1: row(1), 2: np.zeros(8, np.float32), 3: row(3)}
    found = import_vector(write_foreign_vector(tmp_path / "v.gguf", given, layer_count=4))
    assert found.vector.layers == (1, 3)
    assert any("Number 0 was left out" in finding for finding in found.findings)
    assert any("Blocks 2 left out" in finding for finding in found.findings)


# Ours


def test_ours_comes_back_to_the_last_byte(tmp_path: Path) -> None:
    write_vector(calibrated(MODEL), tmp_path / "1.gguf")
    found = import_vector(tmp_path / "1.gguf", model=MODEL)
    assert (found.kind, found.shift) == ("localsteer", 0)
    write_vector(found.vector, tmp_path / "2.gguf")
    assert (tmp_path / "2.gguf").read_bytes() == (tmp_path / "1.gguf").read_bytes()


def test_ours_moved_is_no_longer_calibrated(tmp_path: Path) -> None:
    write_vector(calibrated(MODEL), tmp_path / "1.gguf")
    moved = import_vector(tmp_path / "1.gguf", shift=1).vector
    assert moved.layers == (2, 3)
    assert moved.provenance.calibration is None


def test_what_was_imported_is_ours(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", directions(0, 4, late=1), layer_count=5, signed=True)
    first = import_vector(path)
    write_vector(first.vector, tmp_path / "1.gguf")
    again = import_vector(tmp_path / "1.gguf")
    assert again.shift == 0
    assert again.vector.provenance.origin == first.vector.provenance.origin
    assert read_vector(tmp_path / "1.gguf").layers == first.vector.layers


# Arrays


def test_a_row_for_each_block(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", anything=np.stack([row(block) for block in range(6)]))
    for model in (None, MODEL):
        found = import_vector(tmp_path / "v.npz", model=model)
        assert found.shift == 0
        assert_at_home(found.vector, range(1, 6))
    assert found.vector.provenance.model_hint == "llama"
    assert "-m MODEL" in import_vector(tmp_path / "v.npz").findings[0]


def test_rows_that_begin_with_the_embeddings(tmp_path: Path) -> None:
    save_file({"v": np.stack([row(block) for block in range(-1, 6)])}, tmp_path / "v.safetensors")
    found = import_vector(tmp_path / "v.safetensors", model=MODEL)
    assert found.shift == -1
    assert_at_home(found.vector, range(1, 6))
    assert "row 0 is the embeddings" in found.findings[0]


def test_an_array_for_each_layer(tmp_path: Path) -> None:
    save_file({f"layers.{block}.direction": row(block)[None] for block in (2, 4)}, tmp_path / "v.safetensors")
    assert import_vector(tmp_path / "v.safetensors", model=MODEL).vector.layers == (2, 4)
    numbered: dict[str, Any] = {str(block + 1): row(block) for block in range(-1, 6)}
    np.savez(tmp_path / "v.npz", **numbered)
    found = import_vector(tmp_path / "v.npz", model=MODEL)
    assert found.shift == -1
    assert_at_home(found.vector, range(1, 6))


ARRAYS: dict[str, tuple[dict[str, np.ndarray[Any, Any]], str]] = {
    "nothing": ({}, "no arrays|no file of vectors"),
    "no number in the name": ({"v": row(1)}, r"v in .* shape \(8,\).*layer_12"),
    "two numbers in the name": ({"v1_2": row(1)}, "number in its name|layer_12"),
    "one layer twice": ({"a1": row(1), "b1": row(1)}, "two arrays for layer 1"),
    "three dimensions": ({"v": np.ones((2, 6, 8), np.float32)}, r"shape \(2, 6, 8\)"),
    "two arrays of rows": ({"a": np.ones((6, 8), np.float32), "b": np.ones((6, 8), np.float32)}, r"shape \(6, 8\)"),
    "rows beside a row": ({"v1": row(1), "v2": np.ones((2, 8), np.float32)}, r"v2 in .* shape \(2, 8\)"),
    "a number alone": ({"v1": np.zeros(0, np.float32)}, r"shape \(0,\)"),
    "another width": ({"v": np.ones((6, 9), np.float32)}, "rows of 9 numbers, and Tiny has n_embd 8"),
    "turned round": ({"v": np.ones((8, 6), np.float32)}, "wrong way round"),
    "fewer rows": ({"v": np.ones((5, 8), np.float32)}, "5 rows, and Tiny has 6 blocks"),
    "thousands of rows": ({"v": np.ones((4000, 8), np.float32)}, "4,000 rows"),
    "a layer in the thousands": ({"v4000": row(1)}, "layer_12"),
    "widths that differ": ({"v1": row(1), "v2": np.ones(9, np.float32)}, "9"),
    "no number at all": ({"v": np.full((6, 8), np.nan, np.float32)}, r"v\.npz: direction\.\d holds a value that is not"),
    "zeros": ({"v": np.zeros((6, 8), np.float32)}, "no direction for a block"),
}


@pytest.mark.parametrize(("arrays", "message"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_that_are_no_vector_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(VectorError, match=message):
        import_vector(tmp_path / "v.npz", model=MODEL)


def test_a_shift_that_is_asked_for_needs_no_row_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", v=np.stack([row(block) for block in range(1, 6)]))  # as llama.cpp's own buffer
    assert_at_home(import_vector(tmp_path / "v.npz", model=MODEL, shift=1).vector, range(1, 6))


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", directions(1, 9), layer_count=9)
    with pytest.raises(VectorError, match=r"v\.gguf does not fit this model"):
        import_vector(path, model=MODEL)
    path = write_foreign_vector(tmp_path / "v.gguf", {1: np.ones(9, np.float32)}, layer_count=1)
    with pytest.raises(VectorError, match="n_embd 9"):
        import_vector(path, model=MODEL)


def test_a_layer_in_the_thousands_is_refused(tmp_path: Path) -> None:
    path = write_foreign_vector(tmp_path / "v.gguf", {1_000_000: row(1)}, layer_count=1)
    for read in (import_vector, read_vector):
        with pytest.raises(VectorError, match=r"direction\.1000000 .*belongs to no model"):
            read(path)


def test_provenance_of_a_vector_without_any_names_its_file(tmp_path: Path) -> None:
    write_vector(ControlVector({1: row(1)}, Provenance(concept="glad")), tmp_path / "v.gguf")
    assert import_vector(tmp_path / "v.gguf").vector.provenance.concept == "glad"
