"""The header of a GGUF file, read without trusting it: every length is checked against the file before it is followed.

The format is that of ggml/docs/gguf.md; what is refused here, llama.cpp's `gguf_init_from_file` refuses, too. Nothing but the
header is read, and of it only what is asked for is kept, so a file of any size costs little memory.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, shown

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# GGML_MAX_DIMS and GGML_MAX_NAME of ggml.h.
_MAX_DIMENSIONS = 4
_MAX_TENSOR_NAME = 64

# enum gguf_type of gguf.h.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
STRING_TYPE, UINT32_TYPE, INT32_TYPE = _STRING, 4, 5

# The type that every tensor of a vector has, of enum ggml_type of ggml.h. Known here, so that using one does not import the gguf
# package for its table of types, which takes 0.07 s, ten times what reading the vector does.
FLOAT32 = 0

Value = str | int | float | bool


class _DamagedError(Exception):
    """What is wrong with the bytes."""


class _UnknownError(Exception):
    """What is newer than this reader, or made for another machine."""


@dataclass(frozen=True)
class Field:
    """Where one key and its value stand in the file.

    Attributes:
        kind: GGUF's number of the value's type.
        start: first byte of the key's length.
        value_start: first byte of the value.
        stop: the byte behind the value.
    """

    kind: int
    start: int
    value_start: int
    stop: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        name: its name.
        shape: GGUF's order, the fastest running dimension first.
        kind: ggml's number of its type.
        offset: first byte, from the start of the data section.
        size: bytes.
        entry: first byte of its entry in the header, and the byte behind it.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int
    entry: tuple[int, int]


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of itself.

    Attributes:
        path: the file.
        error: what is raised where a value is not what it should be.
        version: of the format.
        fields: by key, in the file's order.
        tensors: by name, in the file's order.
        alignment: of the data section and of each tensor in it.
        data_start: first byte of the data section.
        size: bytes of the whole file.
    """

    path: Path
    error: type[LocalsteerError]
    version: int
    fields: Mapping[str, Field]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data_start: int
    size: int

    def value(self, key: str) -> Value | None:
        """A number or a text; None where the file does not have the key.

        Raises:
            LocalsteerError: it is an array, or no UTF-8 text.
        """
        field = self.fields.get(key)
        if field is None:
            return None
        data = self._bytes(field.value_start, field.stop)
        if field.kind == _STRING:
            try:
                return data[8:].decode("utf-8")
            except UnicodeDecodeError:
                raise self._damaged(f"the key {key} is not UTF-8 text") from None
        if field.kind == _ARRAY:
            raise self._damaged(f"the key {key} is an array")
        value: Value = struct.unpack(_SCALARS[field.kind], data)[0]
        return value

    def text(self, key: str) -> str | None:
        """A text; None where the file does not have the key.

        Raises:
            LocalsteerError: it is no text.
        """
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value
        raise self._damaged(f"the key {key} is no text")

    def whole_number(self, key: str) -> int | None:
        """A whole number; None where the file does not have the key.

        Raises:
            LocalsteerError: it is none.
        """
        value = self.value(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._damaged(f"the key {key} is no whole number")

    def numbers(self, key: str) -> NDArray[np.float32] | None:
        """An array of numbers as float32; None where the file does not have the key.

        Raises:
            LocalsteerError: it is no array of numbers.
        """
        field = self.fields.get(key)
        if field is None:
            return None
        data = self._bytes(field.value_start, field.stop) if field.kind == _ARRAY else b""
        kind = struct.unpack_from("<I", data)[0] if data else _ARRAY
        if kind not in _SCALARS:
            raise self._damaged(f"the key {key} is no array of numbers")
        return np.frombuffer(data, _SCALARS[kind], offset=12).astype(np.float32)

    def tensor_bytes(self, tensor: TensorInfo) -> bytes:
        """The data of one tensor."""
        start = self.data_start + tensor.offset
        return self._bytes(start, start + tensor.size)

    def _bytes(self, start: int, stop: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        except OSError as problem:
            raise self.error(f"{self.path} cannot be read: {problem.strerror}.") from problem
        if len(data) != stop - start:
            raise self._damaged("it ends too early")
        return data

    def _damaged(self, problem: str) -> LocalsteerError:
        return self.error(f"{self.path} is damaged: {problem}.")


def read_header(
    path: Path,
    error: type[LocalsteerError],
    *,
    kind: str = "file",
    not_gguf: str | None = None,
    on_architecture: Callable[[str], None] | None = None,
) -> GGUFHeader:
    """Read the header of a GGUF file, and make sure that all it promises lies within the file.

    Args:
        path: the file.
        error: what to raise.
        kind: what to call the file where it is missing.
        not_gguf: what to do where it is no GGUF file.
        on_architecture: called with `general.architecture` as soon as it is read, before the rest of the header: a wrong kind of
            file is best refused by that.

    Raises:
        LocalsteerError: of the class `error`: it is missing, cannot be read, is no GGUF file, damaged or cut short.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise error(f"{path} is not a GGUF file.", hint=not_gguf)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, error, data, on_architecture)
    except FileNotFoundError:
        raise error(f"There is no {kind} {path}.") from None
    except OSError as problem:
        raise error(f"The {kind} {path} cannot be read: {problem.strerror}.") from problem
    except _DamagedError as problem:
        raise error(f"{path} is damaged: {shown(problem)}.", hint="Make or download it again.") from None
    except _UnknownError as problem:
        raise error(f"{path} cannot be read: {shown(problem)}.") from None


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` from `position` on."""
    return -(-position // alignment) * alignment


def type_name(kind: int) -> str:
    """The name of a tensor type, by ggml's number of it."""
    import gguf

    try:
        return str(gguf.GGMLQuantizationType(kind).name)
    except ValueError:
        return f"type {kind}"


def _parse(
    path: Path, error: type[LocalsteerError], data: mmap.mmap, on_architecture: Callable[[str], None] | None
) -> GGUFHeader:
    cursor = _Cursor(data)
    cursor.at = len(MAGIC)
    version = cursor.number("<I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "its bytes are in big-endian order" if swapped in _VERSIONS else f"it is GGUF version {version}, not 2 or 3"
        raise _UnknownError(what)
    n_tensors, n_fields = cursor.number("<Q"), cursor.number("<Q")
    fields: dict[str, Field] = {}
    # Every key takes 13 bytes, every tensor 24, or more.
    cursor.expect(n_fields, 13)
    for _ in range(n_fields):
        start = cursor.at
        key = cursor.name()
        kind = cursor.number("<I")
        value_start = cursor.at
        cursor.skip_value(kind)
        if key in fields:
            raise _DamagedError(f"the key {key} stands there twice")
        fields[key] = Field(kind, start, value_start, cursor.at)
        if key == "general.architecture" and on_architecture is not None:
            on_architecture(shown(bytes(data[value_start + 8 : cursor.at]).decode("utf-8", "replace")) if kind == _STRING else "")
    alignment = _alignment(data, fields)
    cursor.expect(n_tensors, 24)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        tensor = cursor.tensor()
        if tensor.name in tensors:
            raise _DamagedError(f"the tensor {tensor.name} stands there twice")
        tensors[tensor.name] = tensor
    data_start = align(cursor.at, alignment)
    for tensor in tensors.values():
        if tensor.offset % alignment or data_start + tensor.offset + tensor.size > len(data):
            raise _DamagedError(f"the tensor {tensor.name} does not lie within the file")
    return GGUFHeader(path, error, version, fields, tensors, alignment, data_start, len(data))


def _alignment(data: mmap.mmap, fields: Mapping[str, Field]) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return _DEFAULT_ALIGNMENT
    alignment = struct.unpack_from("<I", data, field.value_start)[0] if field.kind == UINT32_TYPE else 0
    if alignment == 0 or alignment & (alignment - 1):
        raise _DamagedError("its alignment is not a power of two")
    return int(alignment)


class _Cursor:
    """A place in the file that never leaves it."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0

    def skip(self, length: int) -> None:
        if length > self.size - self.at:
            raise _DamagedError("it ends too early")
        self.at += length

    def expect(self, count: int, least: int) -> None:
        """Make sure that `count` things of at least so many bytes can follow."""
        if count * least > self.size - self.at:
            raise _DamagedError("it ends too early")

    def number(self, form: str) -> int:
        start = self.at
        self.skip(struct.calcsize(form))
        value: int = struct.unpack_from(form, self.data, start)[0]
        return value

    def name(self) -> str:
        length = self.number("<Q")
        start = self.at
        self.skip(length)
        try:
            text = bytes(self.data[start : self.at]).decode("utf-8")
        except UnicodeDecodeError:
            raise _DamagedError("a name in it is not UTF-8 text") from None
        if not text.isprintable():
            raise _DamagedError(f"a name in it holds control characters ({text})")
        return text

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip(self.number("<Q"))
        elif kind == _ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            if kind == _STRING:
                self.skip_texts(count)
            elif kind in _SCALARS:
                self.skip(count * struct.calcsize(_SCALARS[kind]))
            else:
                raise _DamagedError(f"it holds an array of type {kind}")
        elif kind in _SCALARS:
            self.skip(struct.calcsize(_SCALARS[kind]))
        else:
            raise _DamagedError(f"it holds a value of type {kind}")

    def skip_texts(self, count: int) -> None:
        # A vocabulary has up to 300,000 texts and as many merges: a loop without calls takes 0.1 s.
        self.expect(count, 8)
        at, last, data = self.at, self.size - 8, self.data
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > last:
                raise _DamagedError("it ends too early")
            at += 8 + length_of(data, at)[0]
        if at > self.size:
            raise _DamagedError("it ends too early")
        self.at = at

    def tensor(self) -> TensorInfo:
        start = self.at
        name = self.name()
        if len(name.encode()) >= _MAX_TENSOR_NAME:
            raise _DamagedError(f"the name of a tensor is longer than {_MAX_TENSOR_NAME - 1} bytes")
        n_dimensions = self.number("<I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise _DamagedError(f"the tensor {name} has {n_dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(n_dimensions))
        kind, offset = self.number("<I"), self.number("<Q")
        return TensorInfo(name, shape, kind, offset, _tensor_size(name, shape, kind), (start, self.at))


def _tensor_size(name: str, shape: tuple[int, ...], kind: int) -> int:
    if kind == FLOAT32:
        return 4 * math.prod(shape)
    import gguf

    sizes: Mapping[Any, tuple[int, int]] = gguf.GGML_QUANT_SIZES
    try:
        block, block_bytes = sizes[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _UnknownError(f"{name} is of type {kind}, which the installed gguf package does not know (upgrade it)") from None
    if math.prod(shape[:1]) % block:
        raise _DamagedError(f"the rows of the tensor {name} are not whole blocks")
    return math.prod(shape) // block * block_bytes
