from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from localsteer.errors import VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import (
    check_vector_path,
    read_directions,
    read_provenance,
    read_vector,
    read_vector_header,
    write_vector,
)
from tests.calibration.made import calibrated, calibration

MODEL = Fingerprint("Tiny Großmodell", "qwen2", 6, 8, "a" * 64, "b" * 64)
FULL = Provenance(
    concept="happy",
    description='Cheerful "and" hopeful \N{GRINNING FACE}.',
    positive="happy",
    negative="sad",
    method="pca",
    position="response",
    model=MODEL,
    model_hint="qwen2",
    dataset_sha256="c" * 64,
    n_pairs=96,
    reliability=np.array([np.nan, 0.25, 0.9, 1, -0.1, np.nan], np.float32),
    hidden_norm=np.array([np.nan, 1, 1e-20, 3e30, 0.1, np.nan], np.float32),
    source="name: happy\n# a comment\nquestions: [a, b]\n",
    origin="imported from happy.npz",
)
ARRAYS = ("reliability", "hidden_norm")


def vector(provenance: Provenance | None = None, layers: tuple[int, ...] = (2, 3, 5)) -> ControlVector:
    random = np.random.default_rng(0)
    return ControlVector({layer: random.standard_normal(8).astype(np.float32) for layer in layers}, provenance or Provenance())


def write_foreign(
    path: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    *,
    architecture: str = "controlvector",
    texts: Mapping[str, str] | None = None,
) -> Path:
    """A file as another program would write it."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, text in (texts or {}).items():
        writer.add_string(key, text)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ones(*shape: int, dtype: type[np.generic] = np.float32) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


# There and back


def test_a_vector_is_read_without_the_gguf_package(tmp_path: Path) -> None:
    write_vector(vector(FULL), tmp_path / "happy.gguf")
    code = "import sys; from localsteer.vector.file import read_vector; read_vector(sys.argv[1]); print('gguf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "happy.gguf")], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_byte_of_the_directions_comes_back(tmp_path: Path) -> None:
    extremes = np.array([1e-45, -0.0, 3.4028235e38, 1 / 3, -1, 1e-30, 7, 0], np.float32)
    made = ControlVector({**vector().directions, 40: extremes})
    write_vector(made, tmp_path / "v.gguf")
    found = read_vector(tmp_path / "v.gguf")
    assert found.layers == (2, 3, 5, 40)
    for layer, direction in made.directions.items():
        assert found.directions[layer].dtype == np.float32
        assert found.directions[layer].tobytes() == direction.tobytes()


def test_all_provenance_comes_back(tmp_path: Path) -> None:
    write_vector(vector(FULL), tmp_path / "v.gguf")
    found = read_vector(tmp_path / "v.gguf").provenance
    for field in fields(Provenance):
        if field.name not in ARRAYS:
            assert getattr(found, field.name) == getattr(FULL, field.name), field.name
    for name in ARRAYS:
        assert getattr(found, name).dtype == np.float32
        assert np.array_equal(getattr(found, name), getattr(FULL, name), equal_nan=True), name


def test_the_estimate_of_every_layer_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    estimate = np.zeros((6, 8), np.float32)
    estimate[1:5] = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32) * np.float32(1e-20)
    estimate[2, 3] = 3e38
    write_vector(vector(Provenance(estimate=estimate)), tmp_path / "v.gguf")
    found = read_vector(tmp_path / "v.gguf").provenance.estimate
    assert found is not None
    assert found.dtype == np.float32
    assert found.tobytes() == estimate.tobytes()


def test_a_calibration_comes_back_and_steers_as_before(tmp_path: Path) -> None:
    for without in ((), (("negative", "response"), ("negative", "prompt"))):
        made = calibrated(MODEL, without=without)
        write_vector(made, tmp_path / "v.gguf")
        found = read_vector(tmp_path / "v.gguf")
        assert found.provenance.calibration == made.provenance.calibration
        for strength in (1.0, -1.0, -0.3):
            assert np.array_equal(found.at(strength).rows(6), made.at(strength).rows(6))
            assert np.array_equal(found.at(strength, "prompt").rows(6), made.at(strength, "prompt").rows(6))


def test_llama_cpp_gets_strength_one_of_a_calibrated_vector(tmp_path: Path) -> None:
    made = calibrated(MODEL)
    write_vector(made, tmp_path / "v.gguf")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "v.gguf").tensors}
    assert sorted(tensors) == ["direction.1", "direction.2"]
    np.testing.assert_allclose(tensors["direction.2"], made.at(1).directions[2], rtol=1e-5)


def test_no_provenance_comes_back_as_none(tmp_path: Path) -> None:
    write_vector(vector(), tmp_path / "v.gguf")
    found = read_vector(tmp_path / "v.gguf").provenance
    assert asdict(replace(found, model_hint="")) == asdict(Provenance())


def test_one_layer_of_one_value(tmp_path: Path) -> None:
    made = ControlVector({1: np.array([2.5], np.float32)}, Provenance(hidden_norm=np.array([np.nan, 1], np.float32)))
    write_vector(made, tmp_path / "v.gguf")
    assert read_vector(tmp_path / "v.gguf").directions[1].tolist() == [2.5]


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_vector(vector(FULL), tmp_path / "1.gguf")
    write_vector(read_vector(tmp_path / "1.gguf"), tmp_path / "2.gguf")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_a_vector_may_be_written_over_the_file_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    write_vector(vector(FULL), path)
    made = read_vector(path)
    write_vector(made * 2.0, path)
    assert np.array_equal(read_vector(path).rows(6), 2 * vector().rows(6))
    assert np.array_equal(made.rows(6), vector().rows(6))


@pytest.mark.parametrize("name", ["v.gguf", "no ending", "größe 🙂.gguf"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    write_vector(vector(), str(tmp_path / name))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert read_vector(str(tmp_path / name)).layers == (2, 3, 5)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_vector_that_is_replaced_while_it_is_read_is_read_whole(tmp_path: Path, in_place: bool) -> None:
    path, other = tmp_path / "v.gguf", tmp_path / "other.gguf"
    write_vector(vector(replace(FULL, source="")), path)
    write_vector(vector() * 2.0, other)
    header = read_vector_header(path)
    if in_place:
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    assert np.array_equal(ControlVector(read_directions(header)).rows(6), vector().rows(6))
    assert read_provenance(header).concept == "happy"


def test_a_view_with_gaps_is_written_as_what_it_shows(tmp_path: Path) -> None:
    wide = np.arange(16, dtype=np.float32)
    write_vector(ControlVector({1: wide[::2]}), tmp_path / "v.gguf")
    assert read_vector(tmp_path / "v.gguf").directions[1].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


# What llama.cpp expects


def test_the_file_is_what_llama_cpp_loads(tmp_path: Path) -> None:
    made = vector(FULL)
    write_vector(made, tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "qwen2"
    layer_count = reader.fields["controlvector.layer_count"]
    assert layer_count.contents() == 3
    assert layer_count.types == [gguf.GGUFValueType.UINT32]
    assert [tensor.name for tensor in reader.tensors] == ["direction.2", "direction.3", "direction.5"]
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [8]
        assert tensor.data.tolist() == made.directions[int(tensor.name.split(".")[1])].tolist()
    others = {name for name in reader.fields if not name.startswith(("GGUF.", "general.", "controlvector."))}
    assert all(name.startswith("localsteer.") for name in others)


@pytest.mark.parametrize(
    ("provenance", "hint"),
    [
        (Provenance(), "unknown"),
        (Provenance(model_hint="llama"), "llama"),
        (Provenance(model=MODEL), "qwen2"),
        (Provenance(model=MODEL, model_hint="llama"), "qwen2"),
    ],
)
def test_the_model_hint_is_the_architecture(tmp_path: Path, provenance: Provenance, hint: str) -> None:
    write_vector(vector(provenance), tmp_path / "v.gguf")
    assert gguf.GGUFReader(tmp_path / "v.gguf").fields["controlvector.model_hint"].contents() == hint


# Files from elsewhere


def test_a_file_from_elsewhere_loads(tmp_path: Path) -> None:
    texts = {"controlvector.model_hint": "llama", "someone.else": "x"}
    path = write_foreign(tmp_path / "v.gguf", {"direction.12": ones(8), "direction.3": 2 * ones(8)}, texts=texts)
    found = read_vector(path)
    assert found.layers == (3, 12)
    assert found.directions[3].tolist() == [2.0] * 8
    assert found.provenance.model_hint == "llama"
    assert asdict(replace(found.provenance, model_hint="")) == asdict(Provenance())


def test_a_file_without_any_keys_but_the_architecture_loads(tmp_path: Path) -> None:
    assert read_vector(write_foreign(tmp_path / "v.gguf", {"direction.1": ones(8)})).provenance.model_hint == ""


NOT_FINITE = np.array([1, np.nan], np.float32), np.array([1, np.inf], np.float32)
REFUSED: list[tuple[dict[str, np.ndarray[Any, Any]], str]] = [
    ({}, "at least one layer"),
    ({"direction.0": ones(8), "direction.1": ones(8)}, "block 0"),
    ({"direction.1": ones(8, dtype=np.float16)}, r"direction\.1.*F16"),
    ({"direction.1": ones(8), "direction.2": ones(8, dtype=np.float64)}, r"direction\.2.*F64"),
    ({"direction.1": ones(8, dtype=np.int32)}, r"direction\.1.*I32"),
    ({"direction.4": ones(2, 8)}, r"direction\.4.*2-dimensional"),
    ({"direction.4": ones(1, 8)}, r"direction\.4.*2-dimensional"),
    ({"direction.1": ones(8), "direction.2": ones(9)}, r"\(8,\).*\(9,\)"),
    ({"direction.3": NOT_FINITE[0]}, r"direction\.3.*finite"),
    ({"direction.3": NOT_FINITE[1]}, r"direction\.3.*finite"),
    ({"direction.1": ones(8), "token_embd.weight": ones(8)}, r"token_embd\.weight"),
    ({"direction": ones(8)}, "tensor direction,"),
    ({"direction.x": ones(8)}, r"direction\.x"),
    ({"direction.-1": ones(8)}, r"direction\.-1"),
    ({"direction.1.weight": ones(8)}, r"direction\.1\.weight"),
    ({"my.direction.1": ones(8)}, r"my\.direction\.1"),
    ({"direction.1": ones(8), "direction.01": ones(8)}, "two directions for block 1"),
]


@pytest.mark.parametrize(("tensors", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_no_control_vector_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray[Any, Any]], message: str) -> None:
    path = write_foreign(tmp_path / "v.gguf", tensors)
    with pytest.raises(VectorError, match=message) as caught:
        read_vector(path)
    assert str(path) in str(caught.value)


def test_a_model_given_as_a_vector_is_refused(tiny_path: Callable[[str], Path]) -> None:
    path = tiny_path("llama")
    with pytest.raises(VectorError, match=r'not a control vector.*"llama".*-m') as caught:
        read_vector(path)
    assert str(path) in str(caught.value)


def test_a_model_is_refused_by_its_first_key(tiny_path: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "half-downloaded.gguf"
    path.write_bytes(tiny_path("llama").read_bytes()[:500])
    with pytest.raises(VectorError, match=r'not a control vector.*"llama"'):
        read_vector(path)


def test_an_adapter_given_as_a_vector_is_refused(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "lora.gguf", {"direction.1": ones(8)}, architecture="adapter")
    with pytest.raises(VectorError, match='"adapter"'):
        read_vector(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04", b"GGML" + bytes(100), b"name: happy\n"])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(content)
    with pytest.raises(VectorError, match=r"v\.gguf is not a GGUF file"):
        read_vector(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match=r"no vector file .*v\.gguf"):
        read_vector(tmp_path / "v.gguf")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="cannot be read"):
        read_vector(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str = "r") -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    write_vector(vector(), tmp_path / "v.gguf")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(VectorError, match="cannot be read: Permission denied"):
        read_vector(tmp_path / "v.gguf")


# Damage


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path, cut = tmp_path / "v.gguf", tmp_path / "cut.gguf"
    write_vector(vector(replace(FULL, source="", description="")), path)
    data = path.read_bytes()
    # The data of 8 floats is as long as GGUF's alignment, so no harmless padding stands at the end.
    n_data = 3 * 32
    lengths = {*range(0, len(data) - n_data, 17), *range(len(data) - n_data, len(data), 11), len(data) - 1, 4, 8, 23, 24}
    for length in sorted(lengths):
        cut.write_bytes(data[:length])
        with pytest.raises(VectorError, match=r"cut\.gguf"):
            read_vector(cut)


def test_a_damaged_byte_is_never_more_than_a_vector_error(tmp_path: Path) -> None:
    path, damaged = tmp_path / "v.gguf", tmp_path / "damaged.gguf"
    write_vector(vector(Provenance(concept="happy", model=MODEL, n_pairs=3)), path)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for at in random.integers(4, len(data), 60):
        damaged.write_bytes(data[:at] + bytes([data[at] ^ int(random.integers(1, 256))]) + data[at + 1 :])
        try:
            read_vector(damaged)
        except VectorError:
            refused += 1
    assert refused > 10


MODEL_TEXT = json.dumps(asdict(MODEL))
MODELS = ["{", "[]", "5", "{}", '{"name": "x"}', '{"colour": 1}', "[" * 100_000, MODEL_TEXT.replace('"qwen2"', "[]")]
MODELS += [MODEL_TEXT.replace('"n_layer": 6', f'"n_layer": {number}') for number in ("null", '"6"', "6.0", "true", "Infinity")]


@pytest.mark.parametrize("model", MODELS, ids=range(len(MODELS)))
def test_a_damaged_fingerprint_is_refused(tmp_path: Path, model: str) -> None:
    path = write_foreign(tmp_path / "v.gguf", {"direction.1": ones(8)}, texts={"localsteer.model": model})
    with pytest.raises(VectorError, match=r"v\.gguf: the key localsteer\.model is damaged"):
        read_vector(path)


@pytest.mark.parametrize("key", ["n_pairs", *ARRAYS])
def test_a_key_of_another_type_is_refused(tmp_path: Path, key: str) -> None:
    path = write_foreign(tmp_path / "v.gguf", {"direction.1": ones(8)}, texts={f"localsteer.{key}": "many"})
    with pytest.raises(VectorError, match=key):
        read_vector(path)


ESTIMATES = {
    "no json": "{",
    "a list": "[]",
    "nothing": "{}",
    "no data": '{"shape": [6, 8], "layers": [1]}',
    "no base64": '{"shape": [6, 8], "layers": [1], "float32": "?"}',
    "too short": '{"shape": [6, 8], "layers": [1], "float32": "AAAA"}',
    "a layer too many": f'{{"shape": [6, 8], "layers": [6], "float32": "{"A" * 42}A="}}',
    "a row too many": f'{{"shape": [6, 8], "layers": [], "float32": "{"A" * 42}A="}}',
    "another width": f'{{"shape": [6, 4], "layers": [1, 2], "float32": "{"A" * 42}A="}}',
    "no rows": '{"shape": [6], "layers": [], "float32": ""}',
    "a layer from behind": f'{{"shape": [6, 8], "layers": [-1], "float32": "{"A" * 42}A="}}',
    "layers that are true": f'{{"shape": [6, 8], "layers": [true], "float32": "{"A" * 42}A="}}',
    "nothing but depth": "[" * 100_000,
}


@pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)
def test_a_damaged_estimate_is_refused(tmp_path: Path, estimate: str) -> None:
    path = write_foreign(tmp_path / "v.gguf", {"direction.1": ones(8)}, texts={"localsteer.estimate": estimate})
    with pytest.raises(VectorError, match=r"v\.gguf: .*localsteer\.estimate"):
        read_vector(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", calibration(MODEL).to_json()[:-9]])
def test_a_damaged_calibration_is_refused(tmp_path: Path, text: str) -> None:
    path = write_foreign(tmp_path / "v.gguf", {"direction.1": ones(8)}, texts={"localsteer.calibration": text})
    with pytest.raises(VectorError, match=r"v\.gguf: the calibration is damaged") as caught:
        read_vector(path)
    assert "Calibrate the vector again" in (caught.value.hint or "")


def test_control_characters_reach_no_terminal(tmp_path: Path) -> None:
    texts = {
        f"localsteer.{name}": "\x1b[2Jhappy\x07" for name in ("concept", "positive", "negative", "method", "position", "origin")
    }
    texts |= {"localsteer.description": "one\ntwo\x1b", "controlvector.model_hint": "ll\x1bama"}
    texts["localsteer.model"] = json.dumps(asdict(replace(MODEL, name="Tiny\x1b", architecture="\x1bqwen2")))
    provenance = read_vector(write_foreign(tmp_path / "v.gguf", {"direction.1": ones(8)}, texts=texts)).provenance
    assert {provenance.concept, provenance.positive, provenance.negative, provenance.origin} == {"?[2Jhappy?"}
    assert (provenance.description, provenance.model_hint) == ("one\ntwo?", "ll?ama")
    assert provenance.model == replace(MODEL, name="Tiny?", architecture="?qwen2")


def test_a_calibration_of_layers_that_the_estimate_lacks_is_refused() -> None:
    made = calibrated(MODEL)
    assert made.provenance.estimate is not None
    estimate = made.provenance.estimate.copy()
    estimate[3] = 0
    with pytest.raises(VectorError, match=r"calibration names layers 3"):
        replace(made, provenance=replace(made.provenance, estimate=estimate))


# Writes that fail


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.gguf"
    write_vector(vector(), path)
    before = path.read_bytes()

    def interrupt(self: gguf.GGUFWriter) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_vector(vector(FULL) * 2.0, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", ["write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("existed", [True, False])
def test_a_write_that_fails_leaves_the_old_file_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, existed: bool
) -> None:
    path = tmp_path / "v.gguf"
    if existed:
        path.write_bytes(b"old")

    def fail(self: gguf.GGUFWriter) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(gguf.GGUFWriter, step, fail)
    with pytest.raises(VectorError, match=os.strerror(code)) as caught:
        write_vector(vector(FULL), path)
    assert str(path) in str(caught.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([b"old"] if existed else [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.gguf"
    write_vector(vector(), path)
    before = path.read_bytes()

    class OnAFullDisk(gguf.GGUFWriter):  # type: ignore[misc]
        def __init__(self, path: Path, architecture: str) -> None:
            path.unlink()
            path.symlink_to("/dev/full")
            super().__init__(path, architecture)

    monkeypatch.setattr(gguf, "GGUFWriter", OnAFullDisk)
    with pytest.raises(VectorError, match="No space left on device"):
        write_vector(vector(FULL), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_disk_that_fills_up_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows limits no file sizes")
    path = tmp_path / "v.gguf"
    path.write_bytes(b"old")
    large = ControlVector({layer: np.ones(4096, np.float32) for layer in range(1, 9)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(VectorError, match=r"cannot be written: .* written") as caught:
            write_vector(large, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in str(caught.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match=r"missing.v\.gguf cannot be written: No such file or directory"):
        write_vector(vector(), tmp_path / "missing" / "v.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Root, as which tests run in a container, may write to any folder.
    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(VectorError, match=r"v\.gguf cannot be written: Permission denied"):
        write_vector(vector(), tmp_path / "v.gguf")


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="is a folder"):
        write_vector(vector(), tmp_path)


def test_a_vector_may_be_replaced_and_an_empty_file_and_nothing_else(tmp_path: Path, tiny_path: Callable[[str], Path]) -> None:
    path = tmp_path / "there.gguf"
    check_vector_path(path)
    path.touch()
    check_vector_path(path)
    write_vector(vector(), path)
    check_vector_path(path)
    for content in (b"notes on control vectors (controlvector)", tiny_path("llama").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(VectorError, match="there already, and no vector"):
            check_vector_path(path)
