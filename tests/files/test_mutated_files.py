"""Damaged files by the thousand: each is read, or refused with one clear error, within 1 GB, leaving nothing behind.

`make test` tries 400 of them; LOCALSTEER_MUTATIONS=10000 that many.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from localsteer.errors import ExportError, LocalsteerError, VectorError
from localsteer.export.bake import refuse_unbakeable
from localsteer.export.gguf_rewrite import open_model_file, rewrite
from localsteer.files.gguf_header import read_header
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.file import write_vector
from localsteer.vector.importing import import_vector
from tests.calibration.made import calibrated
from tests.made_files import write_foreign_vector
from tests.tiny_models import write_tiny_model

EXAMPLES = int(os.environ.get("LOCALSTEER_MUTATIONS", "400"))
MODEL = Fingerprint("Tiny", "llama", 6, 8, "a" * 64, "b" * 64)
ROWS = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)
MEMORY = 1 << 30

# What lengths and offsets are likely to be mistaken for.
_NUMBERS = st.sampled_from([0, 1, 2, 8, 255, 512, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
_PLACES = st.floats(0, 1, exclude_max=True)
_EDITS = st.one_of(
    st.tuples(st.just("byte"), _PLACES, st.integers(0, 255)),
    st.tuples(st.just("word"), _PLACES, _NUMBERS),
    st.tuples(st.just("half"), _PLACES, _NUMBERS),
    st.tuples(st.just("cut"), _PLACES, st.integers(1, 64)),
    st.tuples(st.just("insert"), _PLACES, st.integers(1, 64)),
    st.tuples(st.just("end"), _PLACES, st.just(0)),
)
Edits = list[tuple[str, float, int]]


def mutate(data: bytes, edits: Edits, within: int | None = None) -> bytes:
    """The bytes with edits at places that are shares of their length (or of the first bytes)."""
    for kind, place, value in edits:
        at = int(place * min(len(data), within or len(data)))
        if kind == "byte":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif kind == "word":
            data = data[:at] + struct.pack("<Q", value) + data[at + 8 :]
        elif kind == "half":
            data = data[:at] + struct.pack("<I", value & 0xFFFFFFFF) + data[at + 4 :]
        elif kind == "cut":
            data = data[:at] + data[at + value :]
        elif kind == "insert":
            data = data[:at] + bytes(value) + data[at:]
        else:
            data = data[:at]
    return data


@contextlib.contextmanager
def one_more_gigabyte() -> Iterator[None]:
    """Whoever asks for more memory than that gets a MemoryError, which no test expects."""
    if sys.platform != "linux":
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def assert_clear(error: LocalsteerError, name: str) -> None:
    """One line that a terminal can show, and that names the file."""
    assert name in str(error)
    assert str(error).isprintable()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Sound files of every kind, by a name for the mutated ones."""
    folder = tmp_path_factory.mktemp("originals")
    write_vector(calibrated(MODEL), folder / "ours.gguf")
    write_foreign_vector(folder / "theirs.gguf", {k: ROWS[k] for k in range(1, 6)}, layer_count=5, signed=True)
    np.savez(folder / "rows.npz", v=ROWS[:6])
    np.savez_compressed(folder / "layers.npz", **{f"layer_{k}": ROWS[k] for k in range(6)})
    save_file({"v": ROWS}, folder / "rows.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["ours.gguf", "theirs.gguf", "rows.npz", "layers.npz", "rows.safetensors"])
def test_a_damaged_vector_is_imported_or_refused(
    originals: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    source, target = folder / name, folder / "out.gguf"

    @settings(max_examples=-(-EXAMPLES // 6), suppress_health_check=list(HealthCheck))
    @given(edits=st.lists(_EDITS, min_size=1, max_size=4))
    @example(edits=[])
    def check(edits: Edits) -> None:
        source.write_bytes(mutate(originals[name], edits))
        refused = None
        try:
            write_vector(import_vector(source, model=MODEL).vector, target)
        except VectorError as error:
            refused = error
        if refused is None:
            import_vector(target)
            target.unlink()
        else:
            assert_clear(refused, name)
        assert [path.name for path in folder.iterdir()] == [name]

    with one_more_gigabyte():
        check()


def test_a_damaged_model_is_rewritten_or_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "m.gguf", tmp_path / "out.gguf"
    original = write_tiny_model(source, n_layer=2, n_embd=8).read_bytes()
    header = read_header(source, ExportError).data_start

    @settings(max_examples=-(-EXAMPLES // 6), suppress_health_check=list(HealthCheck))
    @given(edits=st.lists(_EDITS, min_size=1, max_size=4))
    @example(edits=[])
    def check(edits: Edits) -> None:
        source.write_bytes(mutate(original, edits, within=header))
        try:
            with open_model_file(source) as file:
                refuse_unbakeable(file)
                rewrite(file, target, tensors={"blk.1.ffn_down.bias": ROWS[0]}, keys={"localsteer.baked.by": "x"})
        except ExportError as error:
            assert_clear(error, "m.gguf")
        else:
            with open_model_file(target) as made:
                assert "blk.1.ffn_down.bias" in made.tensors
            target.unlink()
        assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]

    with one_more_gigabyte():
        check()
