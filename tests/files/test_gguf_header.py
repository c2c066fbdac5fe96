from __future__ import annotations

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.errors import ExportError, VectorError
from localsteer.files.gguf_header import open_header, read_header
from tests.conftest import TinyPath
from tests.made_files import gguf_bytes, key, tensor, text

ARCHITECTURE = key("general.architecture", "controlvector")
FLOATS = np.arange(8, dtype="<f4").tobytes()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_it_finds_what_gguf_py_finds(tiny_path: TinyPath) -> None:
    path = tiny_path("llama")
    header, reader = read_header(path, ExportError), gguf.GGUFReader(path)
    assert list(header.fields) == [name for name in reader.fields if not name.startswith("GGUF.")]
    assert header.text("general.architecture") == "llama"
    assert header.whole_number("llama.block_count") == 4
    assert header.value("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert header.value("tokenizer.ggml.add_bos_token") is False
    assert header.value("no.such.key") is None
    assert list(header.tensors) == [found.name for found in reader.tensors]
    for found in reader.tensors:
        tensor = header.tensors[found.name]
        assert tensor.shape == tuple(found.shape.tolist())
        assert (header.data_start + tensor.offset, tensor.size) == (found.data_offset, found.n_bytes)
        assert header.tensor_bytes(tensor) == found.data.tobytes()


def test_a_header_longer_than_a_window_is_read(tmp_path: Path) -> None:
    texts = b"".join(text("x" * (n % 97)) for n in range(40_000))
    tokens = scalar("tokens", 9, struct.pack("<IQ", 8, 40_000) + texts)
    scores = scalar("scores", 9, struct.pack("<IQ", 6, 1_000_000) + bytes(4_000_000))
    path = write(tmp_path / "v.gguf", gguf_bytes([tokens, scores, ARCHITECTURE], [tensor("t", [8], 0, 0)], FLOATS))
    with open_header(path, VectorError) as header:
        assert (list(header.fields), header.text("general.architecture")) == (
            ["tokens", "scores", "general.architecture"],
            "controlvector",
        )
        assert header.tensor_bytes(header.tensors["t"]) == FLOATS


def test_a_type_that_nobody_knows_yet_takes_the_room_up_to_the_next_tensor(tmp_path: Path) -> None:
    entries = [tensor("a", [8], 999, 0), tensor("b", [3], 999, 64), tensor("c", [3], 0, 32)]
    path = write(tmp_path / "v.gguf", gguf_bytes([ARCHITECTURE], entries, bytes(76)))
    with open_header(path, VectorError, measure=False) as header:
        assert [(one.offset, one.size) for one in header.tensors.values()] == [(0, 32), (64, 12), (32, 32)]
    path.write_bytes(path.read_bytes()[:-13])
    with pytest.raises(VectorError, match=r"v\.gguf is damaged: the tensor"), open_header(path, VectorError, measure=False):
        pass


def test_the_alignment_that_a_file_names_is_kept_to(tmp_path: Path) -> None:
    alignment = text("general.alignment") + struct.pack("<II", 4, 4096)
    head = gguf_bytes([ARCHITECTURE, alignment], [tensor("direction.1", [8], 0, 0)]).rstrip(b"\0")
    path = write(tmp_path / "v.gguf", head + bytes(4096 - len(head)) + FLOATS)
    header = read_header(path, VectorError)
    assert (header.alignment, header.data_start) == (4096, 4096)
    assert header.tensor_bytes(header.tensors["direction.1"]) == FLOATS


def scalar(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


DAMAGED: dict[str, bytes] = {
    "more keys than bytes": gguf_bytes([ARCHITECTURE], [], n_keys=2**63),
    "more tensors than bytes": gguf_bytes([ARCHITECTURE], [], n_tensors=2**63),
    "a key of 2^64 bytes": gguf_bytes([struct.pack("<Q", 2**64 - 1)], [], n_keys=1),
    "a text beyond the end": gguf_bytes([scalar("a", 8, struct.pack("<Q", 2**40))], []),
    "an array beyond the end": gguf_bytes([scalar("a", 9, struct.pack("<IQ", 12, 2**60))], []),
    "an array of texts beyond the end": gguf_bytes([scalar("a", 9, struct.pack("<IQ", 8, 2**60))], []),
    "a text in an array beyond the end": gguf_bytes([scalar("a", 9, struct.pack("<IQQ", 8, 1, 2**62))], []),
    "an array of arrays": gguf_bytes([scalar("a", 9, struct.pack("<IQ", 9, 1))], []),
    "a value of no type": gguf_bytes([scalar("a", 77, b"")], []),
    "a key twice": gguf_bytes([ARCHITECTURE, ARCHITECTURE], []),
    "a tensor twice": gguf_bytes([ARCHITECTURE], [tensor("t", [8], 0, 0), tensor("t", [8], 0, 0)], FLOATS),
    "a name of half a character": gguf_bytes([struct.pack("<Q", 1) + b"\xc3" + struct.pack("<IB", 0, 0)], []),
    "a tensor larger than the file": gguf_bytes([ARCHITECTURE], [tensor("t", [9], 0, 0)], FLOATS),
    "a tensor of 2^120 bytes": gguf_bytes([ARCHITECTURE], [tensor("t", [2**60, 2**60], 0, 0)], FLOATS),
    "a tensor behind the file": gguf_bytes([ARCHITECTURE], [tensor("t", [8], 0, 2**62)], FLOATS),
    "a tensor between two multiples": gguf_bytes([ARCHITECTURE], [tensor("t", [2], 0, 4)], FLOATS),
    "a tensor of five dimensions": gguf_bytes([ARCHITECTURE], [tensor("t", [1] * 5, 0, 0)], FLOATS),
    "a quantised row of half a block": gguf_bytes([ARCHITECTURE], [tensor("t", [8], 2, 0)], FLOATS),
    "a long name of a tensor": gguf_bytes([ARCHITECTURE], [tensor("t" * 64, [8], 0, 0)], FLOATS),
    "an alignment of three": gguf_bytes([scalar("general.alignment", 4, struct.pack("<I", 3))], []),
    "an alignment of nothing": gguf_bytes([scalar("general.alignment", 4, struct.pack("<I", 0))], []),
    "an alignment in words": gguf_bytes([key("general.alignment", "32")], []),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_what_does_not_lie_within_the_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "v.gguf", data)
    start = time.perf_counter()
    with pytest.raises(VectorError, match=r"v\.gguf is damaged: .*Make or download it again"):
        read_header(path, VectorError)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gguf_bytes([], [], version=1), "GGUF version 1"),
        (gguf_bytes([], [], version=4), "GGUF version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf_bytes([ARCHITECTURE], [tensor("t", [8], 999, 0)], FLOATS), "type 999.*upgrade"),
    ],
)
def test_what_is_newer_or_of_another_machine_is_called_so(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(VectorError, match=rf"cannot be read: .*{reason}"):
        read_header(write(tmp_path / "v.gguf", data), VectorError)


def test_a_value_of_another_type_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    numbers = scalar("n", 9, struct.pack("<IQ2i", 5, 2, 7, -7))
    half = text("half") + struct.pack("<IQ", 8, 1) + b"\xc3"
    header = read_header(write(tmp_path / "v.gguf", gguf_bytes([ARCHITECTURE, numbers, half], [])), VectorError)
    found = header.numbers("n")
    assert found is not None
    assert found.tolist() == [7, -7]
    for ask in (header.numbers, header.whole_number):
        with pytest.raises(VectorError, match=r"general\.architecture is no"):
            ask("general.architecture")
    with pytest.raises(VectorError, match="n is an array"):
        header.text("n")
    with pytest.raises(VectorError, match="half is not UTF-8"):
        header.text("half")


def test_an_empty_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"v\.gguf is not a GGUF file\. Do this"):
        read_header(write(tmp_path / "v.gguf", b""), ExportError, not_gguf="Do this.")
    with pytest.raises(ExportError, match=r"The thing .* cannot be read"):
        read_header(tmp_path, ExportError, kind="thing")
    with pytest.raises(ExportError, match="There is no thing"):
        read_header(tmp_path / "none", ExportError, kind="thing")
