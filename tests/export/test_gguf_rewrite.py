from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.errors import ExportError
from localsteer.export.gguf_rewrite import open_model_file, rewrite
from localsteer.files.gguf_header import read_header
from localsteer.llama.model import Model
from tests.conftest import TinyPath, random_tokens, run_alone
from tests.export.conftest import Opened
from tests.made_files import gguf_bytes, key, split_model, tensor
from tests.tiny_models import write_tiny_model

BIAS = np.linspace(-1, 1, 64, dtype=np.float32)


def assert_kept(before: Path, after: Path) -> None:
    """Every key and every tensor of a file is in another one, byte for byte and in the same order."""
    old, new = read_header(before, ExportError), read_header(after, ExportError)
    kept = [name for name in new.fields if name in old.fields]
    assert kept == [name for name in old.fields if not name.startswith("split.")]
    old_bytes, new_bytes = before.read_bytes(), after.read_bytes()
    for name in kept:
        one, other = old.fields[name], new.fields[name]
        assert old_bytes[one.start : one.stop] == new_bytes[other.start : other.stop], name
    for name, found in old.tensors.items():
        assert (found.shape, found.kind) == (new.tensors[name].shape, new.tensors[name].kind)
        assert old.tensor_bytes(found) == new.tensor_bytes(new.tensors[name]), name


def test_nothing_added_is_the_same_file(opened: Opened, tiny_path: TinyPath, tmp_path: Path) -> None:
    rewrite(opened(tiny_path("llama")), tmp_path / "m.gguf", tensors={}, keys={})
    assert (tmp_path / "m.gguf").read_bytes() == tiny_path("llama").read_bytes()


def test_what_is_added_stands_behind_what_was_there(opened: Opened, tiny_path: TinyPath, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    told: list[tuple[int, int]] = []
    rewrite(
        opened(tiny_path("llama")),
        target,
        tensors={"blk.1.ffn_down.bias": BIAS, "blk.2.ffn_down.bias": 2 * BIAS},
        keys={"mine.text": "größer"},
        progress=lambda _what, done, total: told.append((done, total)),
    )
    assert_kept(tiny_path("llama"), target)
    reader = gguf.GGUFReader(target)
    assert reader.fields["mine.text"].contents() == "größer"
    found = {one.name: one for one in reader.tensors}
    assert list(found)[-2:] == ["blk.1.ffn_down.bias", "blk.2.ffn_down.bias"]
    assert found["blk.2.ffn_down.bias"].data.tolist() == (2 * BIAS).tolist()
    assert all(one.data_offset % 32 == 0 for one in reader.tensors)
    assert target.stat().st_size % 32 == 0  # llama.cpp reads the padding behind the last tensor, too
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    with Model(target, threads=1):
        pass


def replaced(path: Path, data: bytes) -> None:
    (path.parent / "new.gguf").write_bytes(data)
    (path.parent / "new.gguf").replace(path)


def test_a_model_that_is_replaced_while_it_is_copied_is_copied_whole(opened: Opened, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    before, model = path.read_bytes(), opened(path)
    replaced(path, write_tiny_model(tmp_path / "other.gguf", n_layer=3, seed=1).read_bytes())
    norm = model.floats("blk.1.ffn_norm.weight")
    rewrite(model, tmp_path / "n.gguf", tensors={"blk.1.ffn_norm.weight": norm}, keys={})
    assert (tmp_path / "n.gguf").read_bytes() == before


def test_a_model_that_is_written_to_while_it_is_copied_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    os.utime(path, (1, 1))  # a file system's clock may tick 100 times a second only
    other = write_tiny_model(tmp_path / "other.gguf", seed=1).read_bytes()

    def copy(data: bytes) -> None:
        with open_model_file(path) as model:
            path.write_bytes(data)
            rewrite(model, tmp_path / "n.gguf", tensors={}, keys={})

    with pytest.raises(ExportError, match=r"m\.gguf was written to"):
        copy(other)
    with pytest.raises(ExportError, match=r"m\.gguf is damaged"):
        copy(other[:5000])


def test_the_data_of_a_tensor_can_be_replaced(opened: Opened, tiny_path: TinyPath, tmp_path: Path) -> None:
    model = opened(tiny_path("llama"))
    name = "blk.1.ffn_norm.weight"
    rewrite(model, tmp_path / "m.gguf", tensors={name: model.floats(name) + BIAS}, keys={})
    again = opened(tmp_path / "m.gguf")
    assert list(again.tensors) == list(model.tensors)
    np.testing.assert_array_equal(again.floats(name), model.floats(name) + BIAS)


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_another_alignment_is_kept_to(opened: Opened, tmp_path: Path, alignment: int) -> None:
    names = ["a", "b"]
    align = struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, alignment)
    offsets = [0, -(-12 // alignment) * alignment]
    head = gguf_bytes(
        [key("general.architecture", "llama"), align], [tensor(n, [3], 0, o) for n, o in zip(names, offsets, strict=True)]
    )
    start = -(-len(head.rstrip(b"\0")) // alignment) * alignment
    data = bytearray(start + offsets[1] + 12)
    data[: len(head.rstrip(b"\0"))] = head.rstrip(b"\0")
    for offset, value in zip(offsets, (1, 2), strict=True):
        data[start + offset : start + offset + 12] = np.full(3, value, "<f4").tobytes()
    (tmp_path / "m.gguf").write_bytes(data)
    rewrite(opened(tmp_path / "m.gguf"), tmp_path / "n.gguf", tensors={"c": np.full(5, 3, np.float32)}, keys={"x": "y"})
    made = opened(tmp_path / "n.gguf")
    assert made.first.data_start % alignment == 0
    assert all(one.offset % alignment == 0 for one in made.tensors.values())
    assert [made.floats(name).tolist() for name in "abc"] == [[1.0] * 3, [2.0] * 3, [3.0] * 5]


@pytest.mark.parametrize("counts", [(20, 19), (0, 30, 9), (1, 1, 37)])
def test_a_split_model_becomes_one_file(opened: Opened, tiny_path: TinyPath, tmp_path: Path, counts: tuple[int, ...]) -> None:
    whole = tiny_path("llama")
    parts = split_model(whole, tmp_path, counts)
    rewrite(opened(parts[0]), tmp_path / "m.gguf", tensors={"blk.1.ffn_down.bias": 0 * BIAS}, keys={})
    made = read_header(tmp_path / "m.gguf", ExportError)
    assert not [name for name in made.fields if name.startswith("split.")]
    assert_kept(parts[0], tmp_path / "m.gguf")
    old = read_header(whole, ExportError)
    assert list(made.tensors)[:-1] == list(old.tensors)
    for name, found in old.tensors.items():
        assert old.tensor_bytes(found) == made.tensor_bytes(made.tensors[name])
    tokens = random_tokens(8, 0)
    with Model(whole, threads=1) as one, Model(tmp_path / "m.gguf", threads=1) as other:
        assert np.array_equal(run_alone(one, tokens).logits, run_alone(other, tokens).logits)


def test_a_split_model_with_something_wrong_is_refused(opened: Opened, tiny_path: TinyPath, tmp_path: Path) -> None:
    parts = split_model(tiny_path("llama"), tmp_path, (20, 19))
    with pytest.raises(ExportError, match="00001-of-00002"):
        opened(parts[1])
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ExportError, match="00001-of-00002"):
        opened(tmp_path / "renamed.gguf")
    (tmp_path / "renamed.gguf").rename(parts[0])
    second = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(ExportError, match=r"no part of the model .*00002-of-00002"):
        opened(parts[0])
    parts[1].write_bytes(second[:-40])
    with pytest.raises(ExportError, match=r"00002-of-00002.* is damaged"):
        opened(parts[0])
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(ExportError, match="is not part 2"):
        opened(parts[0])
    split_model(tiny_path("llama"), tmp_path, (20, 18))
    parts[1].write_bytes(second)
    with pytest.raises(ExportError, match="hold 39 tensors together, and 38 are expected"):
        opened(parts[0])


def test_a_model_cut_short_is_refused(opened: Opened, tiny_path: TinyPath, tmp_path: Path) -> None:
    data = tiny_path("llama").read_bytes()
    for length in (100, 5000, len(data) // 2, len(data) - 64):
        (tmp_path / "m.gguf").write_bytes(data[:length])
        with pytest.raises(ExportError, match=r"m\.gguf is damaged"):
            opened(tmp_path / "m.gguf")


def test_only_float32_can_be_added_to(opened: Opened, tmp_path: Path) -> None:
    made = gguf_bytes([key("general.architecture", "llama")], [tensor("t", [4], 1, 0)], bytes(8))
    (tmp_path / "m.gguf").write_bytes(made)
    with pytest.raises(ExportError, match=r"t in .*m\.gguf is F16"):
        opened(tmp_path / "m.gguf").floats("t")


_MEASURE = """
import sys
from pathlib import Path
import numpy as np
from localsteer.export.gguf_rewrite import open_model_file, rewrite
with open_model_file(Path(sys.argv[1])) as model:
    rewrite(model, Path(sys.argv[2]), tensors={"x": np.ones(64, np.float32)}, keys={})
# Not getrusage, whose peak holds that of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in other units")
def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    # 400 MB of nothing: a file system that knows holes stores none of it.
    size = 400 << 20
    head = gguf_bytes([key("general.architecture", "llama")], [tensor("t", [size // 4], 0, 0)])
    with (tmp_path / "m.gguf").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "m.gguf"), str(tmp_path / "n.gguf")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (tmp_path / "n.gguf").unlink()
    assert peak < 150_000  # KiB; Python, numpy and gguf-py alone take 50,000


def test_the_header_of_a_model_with_a_large_vocabulary_is_read(opened: Opened, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    texts = b"".join(struct.pack("<Q", 6) + b"abcdef" for _ in range(300_000))
    array = struct.pack("<Q", 6) + b"tokens" + struct.pack("<IIQ", 9, 8, 300_000) + texts
    path.write_bytes(gguf_bytes([key("general.architecture", "llama"), array], []))
    assert len(opened(path).first.fields) == 2
