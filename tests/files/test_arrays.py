from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from localsteer.errors import VectorError
from localsteer.files import arrays as tensor_file
from localsteer.files.arrays import read_arrays

ROWS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_arrays_of_numpy_come_back(tmp_path: Path, save: Any, dtype: Any) -> None:
    save(tmp_path / "v.npz", a=ROWS.astype(dtype), b=np.asfortranarray(ROWS).astype(dtype), one=ROWS[1].astype(dtype))
    found = read_arrays(tmp_path / "v.npz")
    assert {name: array.shape for name, array in found.items()} == {"a": (3, 4), "b": (3, 4), "one": (4,)}
    for array in (found["a"], found["b"], found["one"][None] + 0 * ROWS):
        assert array.dtype == np.float32
    np.testing.assert_array_equal(found["a"], ROWS.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(found["b"], found["a"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_safetensors_come_back(tmp_path: Path, dtype: Any) -> None:
    save_file({"a": ROWS.astype(dtype)}, tmp_path / "v.safetensors")
    np.testing.assert_array_equal(read_arrays(tmp_path / "v.safetensors")["a"], ROWS.astype(dtype).astype(np.float32))


def write_safetensors(path: Path, kind: str, shape: list[int], data: bytes) -> Path:
    header = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_bfloat16_is_read_though_numpy_has_none(tmp_path: Path) -> None:
    halves = (ROWS.view(np.uint32) >> 16).astype("<u2")
    path = write_safetensors(tmp_path / "v.safetensors", "BF16", [3, 4], halves.tobytes())
    np.testing.assert_allclose(read_arrays(path)["a"], ROWS, rtol=2**-7)


def test_whole_numbers_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", a=np.ones((3, 4), np.int64))
    with pytest.raises(VectorError, match=r"a in .*v\.npz holds int64, not floating"):
        read_arrays(tmp_path / "v.npz")
    path = write_safetensors(tmp_path / "v.safetensors", "I8", [4], bytes(4))
    with pytest.raises(VectorError, match="holds I8, not floating"):
        read_arrays(path)


class Trap:
    """Would leave a file if it were ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    data = pickle.dumps(Trap(sprung))
    (tmp_path / "v.pt").write_bytes(data)
    (tmp_path / "v.npz").write_bytes(data)
    np.savez(tmp_path / "object.npz", a=np.array([Trap(sprung)], object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "torch.npz", "w") as archive:  # a torch file under another name
        archive.writestr("archive/data.pkl", data)
    for name in ("v.pt", "v.npz", "object.npz", "torch.npz"):
        with pytest.raises(VectorError):
            read_arrays(tmp_path / name)
    assert not sprung.exists()
    with pytest.raises(VectorError, match=r"v\.pt is a pickle.*save_file"):
        read_arrays(tmp_path / "v.pt")


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


HEADERS = {
    "larger than the file": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", bytes(16)),
    "larger by one": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5,)}", bytes(16)),
    "a negative shape": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(16)),
    "no header": npy("", bytes(16)),
    "no dictionary": npy("7", bytes(16)),
    "brackets": npy("(" * 9000, bytes(16)),
    "a very long header": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}" + " " * 20_000, bytes(16), 2),
    "another version": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", bytes(16), 9),
    "no array": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, data: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(VectorError, match=r"v\.npz"):
        read_arrays(tmp_path / "v.npz")


def test_what_would_unpack_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros((1000, 1000), np.float32))
    (tmp_path / "v.npz").write_bytes(buffer.getvalue())
    monkeypatch.setattr(tensor_file, "MAX_BYTES", 1_000_000)
    assert len(buffer.getvalue()) < 10_000
    with pytest.raises(VectorError, match="larger than any vector once unpacked"):
        read_arrays(tmp_path / "v.npz")
    (tmp_path / "v.safetensors").write_bytes(bytes(1_000_001))
    with pytest.raises(VectorError, match="larger than any vector: 1,000,001 bytes"):
        read_arrays(tmp_path / "v.safetensors")


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": ROWS}, tmp_path / "v.safetensors")
    whole = (tmp_path / "v.safetensors").read_bytes()
    for data in (whole[:-1], whole[:20], b"", struct.pack("<Q", 2**62) + whole[8:], whole + b"x"):
        (tmp_path / "v.safetensors").write_bytes(data)
        with pytest.raises(VectorError, match="damaged"):
            read_arrays(tmp_path / "v.safetensors")
    np.savez(tmp_path / "v.npz", a=ROWS)
    whole = (tmp_path / "v.npz").read_bytes()
    at = whole.index(ROWS.tobytes())
    for data in (whole[:-1], whole[: len(whole) // 2], whole.replace(b"NUMPY", b"numpy"), whole[:at] + b"\xff" + whole[at + 1 :]):
        (tmp_path / "v.npz").write_bytes(data)
        with pytest.raises(VectorError, match=r"v\.npz"):
            read_arrays(tmp_path / "v.npz")
    with pytest.raises(VectorError, match="There is no file"):
        read_arrays(tmp_path / "none.npz")
    with pytest.raises(VectorError, match="cannot be read"):
        read_arrays(tmp_path)
    (tmp_path / "v.txt").write_text("1 2 3")
    with pytest.raises(VectorError, match=r"no file of vectors.*safetensors"):
        read_arrays(tmp_path / "v.txt")
