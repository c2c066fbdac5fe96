"""Arrays of numbers from `.npz` and `.safetensors` files: no pickle, and no more memory than the file says it needs and may.

torch's own files (`.pt`, `.bin`) are pickles, which run whatever code they hold when they are opened; they are refused.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import VectorError, shown
from localsteer.files.text import readable

Floats = NDArray[np.float32]

# 512 layers of 65,536 float32 would be 128 MiB; every step below holds such a file three times at most.
MAX_BYTES = 128 << 20
# numpy's limit of what it parses of an array's header without being asked twice.
_MAX_NPY_HEADER = 10_000
_PICKLE_HINT = (
    "It runs code when it is opened, so localsteer does not. Save the tensors without it: "
    '`safetensors.torch.save_file({"vector": tensor}, "vector.safetensors")`.'
)
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")


def read_arrays(path: Path) -> dict[str, Floats]:
    """All arrays of a file by name, as float32.

    Raises:
        VectorError: no such file, of another kind, damaged, too large, a pickle, or an array of anything but floating point.
    """
    with readable(path, VectorError, ordinary=True), path.open("rb") as file:
        data, size = file.read(MAX_BYTES), os.fstat(file.fileno()).st_size
    if path.suffix.lower() in _PICKLES:
        raise VectorError(f"{path} is a pickle.", hint=_PICKLE_HINT)
    if size > MAX_BYTES:
        raise VectorError(f"{path} is larger than any vector: {size:,} bytes, and at most {MAX_BYTES:,} are read.")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path, data)
    if data.startswith(b"PK\x03\x04"):
        return _read_npz(path, data)
    raise VectorError(f"{path} is no file of vectors.", hint="Give a .gguf, .npz or .safetensors file.")


def _read_safetensors(path: Path, data: bytes) -> dict[str, Floats]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _damaged(path, error) from error
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    arrays = {}
    for name, tensor in tensors:
        kind, data = tensor["dtype"], tensor["data"]
        if kind == "BF16":  # the upper half of a float32; numpy has no such type
            wide = np.frombuffer(data, "<u2").astype(np.uint32)
            wide <<= 16
            values = wide.view(np.float32)
        elif kind in kinds:
            values = _to_float32(np.frombuffer(data, kinds[kind]))
        else:
            raise _no_numbers(path, name, kind)
        arrays[name] = values.reshape(tensor["shape"])
    return arrays


def _read_npz(path: Path, data: bytes) -> dict[str, Floats]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("data.pkl") for entry in entries):
                raise VectorError(f"{path} is a pickle.", hint=_PICKLE_HINT)
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise VectorError(f"{path} is larger than any vector once unpacked: at most {MAX_BYTES:,} bytes are read.")
            arrays = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename:
                    raise VectorError(f"{path} holds {shown(name)}, which is no array.")
                with archive.open(entry) as file:
                    arrays[name] = _read_npy(path, name, file, entry.file_size)
            return arrays
    except VectorError:
        raise
    except Exception as error:  # zipfile and numpy raise whatever a damaged length or header leads to
        raise _damaged(path, error) from error


def _read_npy(path: Path, name: str, file: IO[bytes], size: int) -> Floats:
    """An array in numpy's own format, whose header is not believed before it was compared with the size."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise _no_numbers(path, name, "a structure")
    shape, fortran, dtype = readers[version](file, max_header_size=_MAX_NPY_HEADER)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise _no_numbers(path, name, str(dtype))
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or n_bytes > size:
        raise ValueError(f"{name} is said to be of shape {shape}, and the file is smaller")
    data = file.read(n_bytes + 1)  # to the end, where zipfile compares the checksum
    if len(data) != n_bytes:
        raise ValueError(f"{name} is said to take {n_bytes} bytes, and has {'more' if len(data) > n_bytes else 'fewer'}")
    return _to_float32(np.frombuffer(data, dtype)).reshape(shape, order="F" if fortran else "C")


def _to_float32(values: NDArray[np.floating]) -> Floats:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, which no vector may be
        return values.astype(np.float32)


def _damaged(path: Path, problem: Exception) -> VectorError:
    return VectorError(f"{path} is damaged: {shown(problem)}.", hint="Save or download it again.")


def _no_numbers(path: Path, name: str, kind: str) -> VectorError:
    return VectorError(f"{shown(name)} in {path} holds {shown(kind)}, not floating point numbers.")
