"""Damaged files by the thousand: each is read, or refused with one clear error, within 1 GB, leaving nothing behind.

`make test` tries 400 of them; LOCALSTEER_MUTATIONS=10000 that many.
"""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from localsteer.calibration.calibrate import CalibrationSettings, Calibrator
from localsteer.concepts.names import shipped_folder
from localsteer.concepts.shared import read_folder
from localsteer.errors import ExportError, LocalsteerError, VectorError
from localsteer.export.adapter import write_adapter
from localsteer.export.adapter_fit import Row
from localsteer.export.bake import refuse_baked
from localsteer.export.gguf_rewrite import open_model_file, rewrite
from localsteer.export.merge import merge
from localsteer.files.gguf_header import GGUFHeader, read_header
from localsteer.files.gguf_layout import ARRAY_TYPE, STRING_TYPE
from localsteer.llama.fingerprint import Fingerprint
from localsteer.server import vectors_api
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.calibration import MODES
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector, write_vector
from localsteer.vector.importing import import_vector
from tests.calibration.made import calibrated
from tests.commands.runner import run
from tests.door_report import Door
from tests.made_files import gguf_bytes, text, write_foreign_vector
from tests.mutations import EXAMPLES, one_more_gigabyte
from tests.tiny_models import write_tiny_model

MODEL = Fingerprint("Tiny", "llama", 6, 8, "a" * 64, "b" * 64)
ROWS = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)
SHIPPED = shipped_folder() / "happy" / "smollm2-135m-instruct.gguf"
PROBE = Path(__file__).parents[2] / "docs" / "policies" / "hostile.gguf"

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
# Vectors have seven tests, of five formats and of two kinds of metadata; adapters two.
_SEVENTH, _HALF = -(-EXAMPLES // 7), -(-EXAMPLES // 2)


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
    door: Door, originals: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    door("vectors", _SEVENTH)
    folder = tmp_path_factory.mktemp("mutated")
    source, target = folder / name, folder / "out.gguf"

    @settings(max_examples=_SEVENTH, suppress_health_check=list(HealthCheck))
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


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An adapter of ours, as `export lora` writes it."""
    path = tmp_path_factory.mktemp("adapter") / "a.gguf"
    vector = calibrated(MODEL).at(1.0, "prompt")
    rows = [Row(f"blk.{k}.ffn_down.weight", ROWS[0], row, 0.0) for k, row in vector.directions.items()]
    write_adapter(path, "llama", "loud", rows, {"by": "x", "expression": "loud", "layers": "1-2"}, vector)
    return path.read_bytes()


@pytest.mark.parametrize("within", [None, "header"])
def test_a_damaged_adapter_is_imported_or_refused(
    door: Door, adapter: bytes, tmp_path_factory: pytest.TempPathFactory, within: str | None
) -> None:
    """By either door: as a file, and in a folder."""
    door("adapters, as a file and in a folder", _HALF)
    folder = tmp_path_factory.mktemp("adapters")
    source, target = folder / "a.gguf", folder.parent / "imported.gguf"
    source.write_bytes(adapter)
    first = read_header(source, VectorError).data_start if within else None

    @settings(max_examples=_HALF, suppress_health_check=list(HealthCheck))
    @given(edits=st.lists(_EDITS, min_size=1, max_size=4))
    @example(edits=[])
    def check(edits: Edits) -> None:
        source.write_bytes(mutate(adapter, edits, within=first))
        for door in (import_vector, lambda path: import_vector(read_folder(path.parent).only())):
            try:
                write_vector(door(source).vector, target)
            except VectorError as error:
                assert_clear(error, "a.gguf")
            else:
                read_vector(target)
        assert [path.name for path in folder.iterdir()] == ["a.gguf"]

    with one_more_gigabyte():
        check()


# What a value of a document is likely to be mistaken for, and what no vector should hold.
_VALUES = ["null", "true", "0", "-1", "1", "3", "29", "30", "512", str(2**63), str(10**400), "0.5", "-0.5", "1e-320", "1e30"]
_VALUES += ["1e308", '""', '"1"', '"\\u001b[2J"', "[]", "[0]", "{}"]
_TEXTS = ["", "NaN", "Infinity", "-Infinity", "1e999", "{", "null", "[]", "[" * 100_000, "\x1b[31m"]


def change_document(document: Any, random: Random) -> None:
    """Change one value of a document, somewhere in it."""
    while isinstance(document, dict | list) and document:
        place = random.choice(list(document) if isinstance(document, dict) else range(len(document)))
        if not isinstance(document[place], dict | list) or random.random() < 0.1:
            how = random.random()
            if how < 0.1:
                del document[place]
            elif how < 0.2 and isinstance(document, list):
                document.append(document[place])
            else:
                document[place] = json.loads(random.choice(_VALUES))
            return
        document = document[place]


def change_field(header: GGUFHeader, name: str, random: Random) -> bytes:
    """A key with another value, as it stands in a file."""
    field = header.fields[name]
    head = text(name) + struct.pack("<I", field.kind)
    if field.kind == STRING_TYPE:
        value = header.text(name) or ""
        if value.startswith("{") and random.random() < 0.9:
            document = json.loads(value)
            for _ in range(random.randint(1, 2)):
                change_document(document, random)
            return head + text(json.dumps(document))
        return head + text(random.choice(_TEXTS))
    if field.kind == ARRAY_TYPE:
        numbers = np.array(header.numbers(name))
        if random.random() < 0.3:
            numbers = numbers[: random.randint(0, len(numbers))]
        else:
            numbers[random.randrange(len(numbers))] = random.choice([0, -1, np.nan, np.inf, -np.inf, 1e-45, 3e38])
        return head + struct.pack("<IQ", 6, len(numbers)) + numbers.astype("<f4").tobytes()
    return text(name) + struct.pack("<Iq", 11, random.choice([-1, 0, 1, 2**32, 2**62]))


def use(vector: ControlVector, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All that a vector is looked at for; nothing but a LocalsteerError may come out of it."""
    model = read_vector(SHIPPED).provenance.model
    assert model is not None
    limit = DoseLimit(0.1, np.ones(model.n_layer, np.float32))
    for expression in ("v", "-1 v", "1e30 v", "0.5 v@8-12", "!v"):
        for mode in MODES:
            with contextlib.suppress(LocalsteerError):
                resolve(parse_steering(expression), model, lambda _name: vector, mode, limit)
    opened = SimpleNamespace(fingerprint=model, n_layer=model.n_layer, sequences_share_tokens=True)
    with contextlib.suppress(LocalsteerError):
        vector.check_fits(model)
    for how in (CalibrationSettings(layers=(8, 12)), CalibrationSettings(anchored=True)):
        with contextlib.suppress(LocalsteerError):
            assert Calibrator(cast(Any, opened), vector, None, how).answers > 0
    with contextlib.suppress(LocalsteerError):
        json.dumps(vectors_api._details(cast(Any, SimpleNamespace(model=opened)), "v", vector), allow_nan=False)
    for options in ((), ("--json",)):
        shown = run(capfd, "vectors", "show", path, *options)
        assert shown.code == 0, shown.err
        assert "\x1b" not in shown.out + shown.err


@pytest.mark.parametrize("source", [SHIPPED, PROBE], ids=["calibrated", "probe"])
def test_damaged_metadata_of_a_vector_is_used_or_refused(
    door: Door, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    door("vectors", _SEVENTH)
    header = read_header(source, VectorError)
    entries = [header.read(*one.entry) for one in header.tensors.values()]
    data = header.read(header.data_start, header.size)
    path = tmp_path / "mutated.gguf"

    @settings(max_examples=_SEVENTH, suppress_health_check=list(HealthCheck))
    @given(random=st.randoms(use_true_random=False))
    def check(random: Random) -> None:
        changed = random.choice([name for name in header.fields if name.startswith("localsteer.")])
        keys = [
            change_field(header, name, random) if name == changed else header.read(field.start, field.stop)
            for name, field in header.fields.items()
        ]
        path.write_bytes(gguf_bytes(keys, entries, data))
        try:
            vector = read_vector(path)
        except VectorError as error:
            assert_clear(error, path.name)
            return
        use(vector, path, capfd)
        write_vector(vector, path)
        read_vector(path)

    with np.errstate(all="ignore"):
        check()


def test_a_damaged_model_is_rewritten_or_refused(door: Door, tmp_path: Path) -> None:
    door("model files that are rewritten", EXAMPLES)
    source, target = tmp_path / "m.gguf", tmp_path / "out.gguf"
    original = write_tiny_model(source, n_layer=2, n_embd=8).read_bytes()
    header = read_header(source, ExportError).data_start
    row = Row("blk.0.ffn_down.weight", np.ones(16, np.float32), ROWS[0], 0.0)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(edits=st.lists(_EDITS, min_size=1, max_size=4))
    @example(edits=[])
    def check(edits: Edits) -> None:
        source.write_bytes(mutate(original, edits, within=header))
        try:
            with open_model_file(source) as file:
                refuse_baked(file)
                replaced = merge(file, [row] if row.matrix in file.tensors else [])
                keys = {"localsteer.baked.by": "x"}
                rewrite(file, target, tensors={"blk.1.ffn_down.bias": ROWS[0]}, replaced=replaced, keys=keys)
        except ExportError as error:
            assert_clear(error, "m.gguf")
        else:
            with open_model_file(target) as made:
                assert "blk.1.ffn_down.bias" in made.tensors
            target.unlink()
        assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]

    with one_more_gigabyte(), np.errstate(all="ignore"):
        check()
