"""ControlVector <-> GGUF, in exactly the form that llama.cpp loads.

`general.architecture = controlvector`, `controlvector.model_hint`, `controlvector.layer_count`, and a tensor `direction.k`
(F32, one-dimensional, k >= 1) for each steered block. Provenance goes into keys of our own, `localsteer.*`, which llama.cpp
ignores; a file without them loads too.

A LoRA adapter of localsteer's holds the vector that it was made of in keys of that kind. What it adds at its matrices is not
always that: a norm may follow (Gemma), or a block without such a matrix has handed its direction on.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from localsteer.errors import LocalsteerError, VectorError, shown
from localsteer.files.atomic import atomic_path, check_writable
from localsteer.files.gguf_header import GGUFHeader, read_header, type_name
from localsteer.files.gguf_layout import FLOAT32
from localsteer.files.gguf_writing import write_out
from localsteer.files.json_values import build, read_json
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.calibration import Calibration
from localsteer.vector.control_vector import ControlVector, Floats, Provenance
from localsteer.vector.dosing import Dosing
from localsteer.vector.glp import removal_of, write_removal
from localsteer.vector.probe import Probe

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE = "controlvector"
FORMAT_VERSION = 1
# LLAMA_MAX_LAYERS of llama.cpp.
MAX_LAYERS = 512
# Three times the widest residual stream of an open model (20,480), rounded up.
MAX_WIDTH = 65_536
# Four times what the largest open model takes: 126 layers of 16,384 float32 are 8 MB, and as much again as an estimate.
MAX_BYTES = 64 << 20

# Where the kind of a GGUF file stands; writers put it first, 32 bytes from the beginning.
_HEAD_BYTES = 4096

# Of an adapter: what `_pack` makes of the directions.
_PACKED_DIRECTIONS = "localsteer.adapter.directions"

_DIRECTION = re.compile(r"^direction\.(?P<layer>\d+)$")
_TEXTS = ("concept", "description", "positive", "negative", "method", "position", "dataset_sha256", "source", "origin")
_LAYER_ARRAYS = ("reliability", "hidden_norm")


def check_vector_path(path: Path, error: type[LocalsteerError] = VectorError) -> None:
    """Find out before minutes of work that a vector cannot be written at their end, or would replace something else.

    Raises:
        LocalsteerError: as `write_vector`, or there is a file that is no vector; of the class `error`.
    """
    check_writable(path, error)
    if not path.is_file():
        return
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head and not (head.startswith(b"GGUF") and ARCHITECTURE.encode() in head):
            raise error(f"{path} is there already, and no vector.", hint="Give another name, or remove it first.")


def write_vector(vector: ControlVector, path: str | Path) -> None:
    """Write a vector; an interrupted write leaves the old file or none.

    Raises:
        VectorError: the folder is missing or read-only, or the disk is full.
    """
    with atomic_path(Path(path), VectorError) as temporary:
        fill_file(vector, temporary)


def fill_file(vector: ControlVector, path: Path) -> None:
    """Write a vector into a file that gets its name later.

    Raises:
        OSError: the disk is full.
    """
    import gguf

    provenance = vector.provenance
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    hint = provenance.model.architecture if provenance.model is not None else provenance.model_hint
    writer.add_string(f"{ARCHITECTURE}.model_hint", hint or "unknown")
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vector.layers))
    _add_provenance(writer, provenance)
    if provenance.removal is not None:
        write_removal(writer, provenance.removal)
    for layer, direction in vector.directions.items():
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(direction, np.float32))
    write_out(writer)


def add_to_adapter(writer: GGUFWriter, vector: ControlVector) -> None:
    """Have the file of a LoRA adapter hold the vector that it is made of; `read_vector` finds it there."""
    _add_provenance(writer, vector.provenance)
    writer.add_string(_PACKED_DIRECTIONS, _pack(vector.rows(vector.layers[-1] + 1)))


def _add_provenance(writer: GGUFWriter, provenance: Provenance) -> None:
    writer.add_uint32("localsteer.version", FORMAT_VERSION)
    for name in _TEXTS:
        if text := getattr(provenance, name):
            writer.add_string(f"localsteer.{name}", text)
    if provenance.n_pairs:
        writer.add_uint32("localsteer.n_pairs", provenance.n_pairs)
    for name in _LAYER_ARRAYS:
        values = getattr(provenance, name)
        if values is not None:
            writer.add_array(f"localsteer.{name}", [float(value) for value in values])
    for name, (text_of, _) in _DOCUMENTS.items():
        if (value := getattr(provenance, name)) is not None:
            writer.add_string(f"localsteer.{name}", text_of(value))


def read_vector(path: str | Path) -> ControlVector:
    """Read a vector, ours or from elsewhere.

    Raises:
        VectorError: no such file, no GGUF, damaged, neither a control vector nor an adapter that holds one, larger than any,
            `direction.0`, a tensor that is not one-dimensional F32, or a value that is not finite.
    """
    path = Path(path)
    header = read_vector_header(path)
    directions, provenance = read_directions(header), read_provenance(header)
    try:
        return ControlVector(directions, provenance)
    except VectorError as error:
        raise VectorError(f"{path}: {shown(error.message)}", hint=error.hint) from None


def read_vector_header(path: Path) -> GGUFHeader:
    """The header of a control vector, or of an adapter that holds one.

    Raises:
        VectorError: no such file, no GGUF, damaged, neither of the two, or larger than any.
    """

    def refuse_others(architecture: str, kind: str) -> None:
        if architecture != ARCHITECTURE and kind != "adapter":
            raise VectorError(
                f'{path} is not a control vector: its architecture is "{architecture}".', hint="A model goes after -m."
            )

    header = read_header(
        path,
        VectorError,
        kind="vector file",
        not_gguf="Control vectors are GGUF files, as llama.cpp makes them.",
        most=MAX_BYTES,
        on_kind=refuse_others,
    )
    if "general.architecture" not in header.fields:
        raise VectorError(f"{path} is not a control vector: it does not name its kind (general.architecture).")
    if is_adapter(header) and _PACKED_DIRECTIONS not in header.fields:
        raise VectorError(
            f"{path} is a LoRA adapter of another kind: what it does to a model is no control vector.",
            hint="llama.cpp's programs load it with --lora; here only adapters of `localsteer export lora` can be used.",
        )
    if header.size > MAX_BYTES:
        raise VectorError(f"{path} is larger than any control vector: {header.size:,} bytes.")
    if header.value("localsteer.version") not in (None, FORMAT_VERSION):
        raise VectorError(f"{path} was written by a newer localsteer.", hint="Upgrade localsteer to read it.")
    return header


def is_adapter(header: GGUFHeader) -> bool:
    """Whether the file is a LoRA adapter, and no plain control vector."""
    return header.text("general.architecture") != ARCHITECTURE


def read_directions(header: GGUFHeader) -> dict[int, Floats]:
    """The tensors `direction.k`, `direction.0` too, by k: float32 arrays (n_embd,); of an adapter the directions that it holds.

    Raises:
        VectorError: another tensor is among them, or one that is not one-dimensional F32; of an adapter, they are damaged.
    """
    if is_adapter(header):
        try:
            rows = _unpack(header.text(_PACKED_DIRECTIONS) or "")
        except ValueError as error:
            raise VectorError(f"{header.path}: its directions are damaged: {shown(error)}.", hint="Export it again.") from None
        with np.errstate(invalid="ignore"):  # numpy warns of some kinds of NaN, which are refused later
            return {layer: row for layer, row in enumerate(rows) if row.any()}
    directions: dict[int, Floats] = {}
    for name, tensor in header.tensors.items():
        match = _DIRECTION.match(name)
        if match is None:
            raise VectorError(f"{header.path} holds a tensor {name}, which does not belong in a control vector.")
        if tensor.kind != FLOAT32 or len(tensor.shape) != 1:
            raise VectorError(
                f"{name} in {header.path} is a {len(tensor.shape)}-dimensional {type_name(tensor.kind)} tensor; "
                "llama.cpp takes one-dimensional F32 only."
            )
        if (layer := int(match["layer"])) >= MAX_LAYERS:
            raise VectorError(f"{name} in {header.path} belongs to no model: they have up to {MAX_LAYERS} layers.")
        if not 0 < tensor.shape[0] <= MAX_WIDTH:
            raise VectorError(f"{name} in {header.path} is {tensor.shape[0]:,} wide: no model is.")
        if layer in directions:
            raise VectorError(f"{header.path} holds two directions for block {layer}.")
        directions[layer] = np.frombuffer(header.tensor_bytes(tensor), "<f4").astype(np.float32)
    return directions


def read_provenance(header: GGUFHeader) -> Provenance:
    """Where a vector comes from, as far as its file says.

    Raises:
        VectorError: a key is damaged, or asks for what cannot be done here.
    """
    values: dict[str, Any] = {
        "model_hint": shown(header.text(f"{ARCHITECTURE}.model_hint") or ""),
        "removal": removal_of(header),
    }
    for name in _TEXTS:
        if (text := header.text(f"localsteer.{name}")) is not None:
            # Names and descriptions go to terminals as they are; the concept's text is YAML, which allows no control characters.
            values[name] = text if name == "source" else "\n".join(map(shown, text.splitlines()))
    for name in _LAYER_ARRAYS:
        if (numbers := header.numbers(f"localsteer.{name}")) is not None:
            values[name] = numbers
    if (n_pairs := header.whole_number("localsteer.n_pairs")) is not None:
        values["n_pairs"] = n_pairs
    try:
        for name, (_, read) in _DOCUMENTS.items():
            if (document := header.text(f"localsteer.{name}")) is not None:
                values[name] = read(document)
        return Provenance(**values)
    except ValueError as error:
        raise VectorError(
            f"{header.path}: the key localsteer.{name} is damaged: {shown(error)}.", hint="Build it again."
        ) from error
    except VectorError as error:
        raise VectorError(f"{header.path}: {shown(error.message)}", hint=error.hint) from error


def _pack(rows: Floats) -> str:
    """Rows as text: as tensors llama.cpp would add them or refuse the file, and an array of numbers takes seconds to read."""
    read = np.flatnonzero(rows.any(axis=1))
    data = base64.b64encode(np.ascontiguousarray(rows[read], "<f4").tobytes()).decode()
    return json.dumps({"shape": rows.shape, "layers": read.tolist(), "float32": data})


@dataclass(frozen=True)
class _Packed:
    """What `_pack` writes: the shape of all rows, which of them are there, and their float32 as base64."""

    shape: tuple[int, int]
    layers: tuple[int, ...]
    float32: str


def _unpack(text: str) -> Floats:
    packed = build(_Packed, read_json(text))
    data = np.frombuffer(base64.b64decode(packed.float32), "<f4")
    (n_layer, n_embd), layers = packed.shape, packed.layers
    # Checked before room is made for it.
    if not (0 <= n_layer <= MAX_LAYERS and 0 < n_embd <= MAX_WIDTH) or len(layers) * n_embd != len(data):
        raise ValueError(f"{len(data)} numbers for {len(layers)} of {n_layer} layers of {n_embd}")
    if not set(layers) <= set(range(n_layer)):
        raise ValueError(f"layers that are none of {n_layer}")
    rows = np.zeros((n_layer, n_embd), np.float32)
    rows[list(layers)] = data.reshape(len(layers), n_embd)
    return rows


def _model_text(model: Fingerprint) -> str:
    return json.dumps(asdict(model))


def _model(text: str) -> Fingerprint:
    model = build(Fingerprint, read_json(text))
    return replace(model, name=shown(model.name), architecture=shown(model.architecture))


# How each is written, and read.
_DOCUMENTS: Mapping[str, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    "model": (_model_text, _model),
    "estimate": (_pack, _unpack),
    "dosing": (Dosing.to_json, Dosing.from_json),
    "calibration": (Calibration.to_json, Calibration.from_json),
    "probe": (Probe.to_json, Probe.from_json),
}
