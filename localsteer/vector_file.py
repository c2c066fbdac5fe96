"""ControlVector <-> GGUF, in exactly the form that llama.cpp loads.

`general.architecture = controlvector`, `controlvector.model_hint`, `controlvector.layer_count`, and a tensor `direction.k`
(F32, one-dimensional, k >= 1) for each steered block. Provenance goes into keys of our own, `localsteer.*`, which llama.cpp
ignores; a file without them loads too.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsteer.atomic import atomic_path
from localsteer.calibrated import Calibration
from localsteer.errors import VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.probe import Probe
from localsteer.vector import ControlVector, Provenance

ARCHITECTURE = "controlvector"
FORMAT_VERSION = 1

logger = logging.getLogger("localsteer")

_DIRECTION = re.compile(r"^direction\.(?P<layer>\d+)$")
_TEXTS = ("concept", "description", "positive", "negative", "method", "position", "dataset_sha256", "source")
_LAYER_ARRAYS = ("reliability", "hidden_norm")


def write_vector(vector: ControlVector, path: str | Path) -> None:
    """Write a vector; an interrupted write leaves the old file or none.

    Raises:
        VectorError: the folder is missing or read-only, or the disk is full.
    """
    import gguf

    provenance = vector.provenance
    with atomic_path(Path(path), VectorError) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        hint = provenance.model.architecture if provenance.model is not None else provenance.model_hint
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint or "unknown")
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vector.layers))
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
        if provenance.model is not None:
            writer.add_string("localsteer.model", json.dumps(asdict(provenance.model)))
        if provenance.estimate is not None:
            writer.add_string("localsteer.estimate", _pack(provenance.estimate))
        if provenance.calibration is not None:
            writer.add_string("localsteer.calibration", provenance.calibration.to_json())
        if provenance.probe is not None:
            writer.add_string("localsteer.probe", provenance.probe.to_json())
        for layer, direction in vector.directions.items():
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(direction, np.float32))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_vector(path: str | Path) -> ControlVector:
    """Read a vector, ours or from elsewhere.

    Raises:
        VectorError: no such file, no GGUF, damaged, not a control vector, `direction.0`, a tensor that is not
            one-dimensional F32, or a value that is not finite.
    """
    path = Path(path)
    fields, tensors = _read_gguf(path)
    if "general.architecture" not in fields:
        raise VectorError(f"{path} is not a control vector: it does not name its kind (general.architecture).")
    if fields.get("localsteer.version", FORMAT_VERSION) != FORMAT_VERSION:
        raise VectorError(f"{path} was written by a newer localsteer.", hint="Upgrade localsteer to read it.")
    directions: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for name, (kind, array) in tensors.items():
        match = _DIRECTION.match(name)
        if match is None:
            raise VectorError(f"{path} holds a tensor {name}, which does not belong in a control vector.")
        if kind != "F32" or array.ndim != 1:
            raise VectorError(
                f"{name} in {path} is a {array.ndim}-dimensional {kind} tensor; llama.cpp takes one-dimensional F32 only."
            )
        directions[int(match["layer"])] = np.array(array, np.float32)
    try:
        return ControlVector(directions, _provenance(fields))
    except VectorError as error:
        raise VectorError(f"{path}: {error.message}", hint=error.hint) from None


def _read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """Metadata values and (type name, array) of each tensor of a GGUF file."""
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        """Stops at the first sign that this is no sound control vector.

        The base class takes short slices past the end of the file (a damaged array length would keep it busy for
        hours), and reads all of a model's vocabulary (12 s) before anyone can ask what kind of file it is.
        """

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            values = super()._get(offset, dtype, count, override_order)
            if len(values) != count:
                raise ValueError("it ends too early")
            return values

        def _push_field(self, field: Any, skip_sum: bool = False) -> int:
            if field.name == "general.architecture" and (architecture := field.contents()) != ARCHITECTURE:
                raise VectorError(
                    f'{path} is not a control vector: its architecture is "{architecture}".',
                    hint="A model goes after -m.",
                )
            return int(super()._push_field(field, skip_sum))

    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise VectorError(f"There is no vector file {path}.") from None
    except OSError as error:
        raise VectorError(f"The vector file {path} cannot be read: {error.strerror}.") from error
    if magic != b"GGUF":
        raise VectorError(f"{path} is not a GGUF file.", hint="Control vectors are GGUF files, as llama.cpp makes them.")
    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        tensors = {tensor.name: (tensor.tensor_type.name, tensor.data) for tensor in reader.tensors}
    except VectorError:
        raise
    except Exception as error:  # gguf raises whatever a damaged length or offset leads to
        raise VectorError(f"{path} is damaged: {error}.", hint="Build or download it again.") from error
    return fields, tensors


def _provenance(fields: Mapping[str, Any]) -> Provenance:
    values: dict[str, Any] = {name: fields[key] for name in _TEXTS if (key := f"localsteer.{name}") in fields}
    readers: dict[str, Callable[[Any], Any]] = dict.fromkeys(_LAYER_ARRAYS, _layer_array)
    readers |= {
        "n_pairs": int,
        "model": lambda text: Fingerprint(**json.loads(text)),
        "estimate": _unpack,
        "calibration": Calibration.from_json,
        "probe": Probe.from_json,
    }
    for name, read in readers.items():
        if (key := f"localsteer.{name}") in fields:
            try:
                values[name] = read(fields[key])
            except (ValueError, TypeError, KeyError, IndexError) as error:
                raise VectorError(f"the key {key} is damaged: {error}.") from error
    return Provenance(**values, model_hint=str(fields.get(f"{ARCHITECTURE}.model_hint", "")))


def _pack(rows: NDArray[np.float32]) -> str:
    """Rows as text: as tensors llama.cpp would add them or refuse the file, and an array of numbers takes seconds to read."""
    read = np.flatnonzero(rows.any(axis=1))
    data = base64.b64encode(np.ascontiguousarray(rows[read], "<f4").tobytes()).decode()
    return json.dumps({"shape": rows.shape, "layers": read.tolist(), "float32": data})


def _unpack(text: str) -> NDArray[np.float32]:
    document = json.loads(text)
    rows = np.zeros(document["shape"], np.float32)
    data = np.frombuffer(base64.b64decode(document["float32"]), "<f4")
    rows[document["layers"]] = data.reshape(len(document["layers"]), -1)
    return rows


def _layer_array(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)
