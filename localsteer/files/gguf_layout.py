"""Where everything stands in a GGUF file: every length is checked against the file before it is followed.

The format is that of ggml/docs/gguf.md; what is refused here, llama.cpp's `gguf_init_from_file` refuses, too. Nothing but the
header is read, through a small window, so a file of any size costs little memory.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from localsteer.errors import shown

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# GGML_MAX_DIMS and GGML_MAX_NAME of ggml.h.
_MAX_DIMENSIONS = 4
_MAX_TENSOR_NAME = 64
# ggml/docs/gguf.md: "It can be at most 2^16-1 bytes long."
_MAX_KEY = (1 << 16) - 1
# The header of most models takes a few of them (of the demo model 1.6 MB, of one with 262,144 tokens 8 MB).
_WINDOW = 1 << 20

# enum gguf_type of gguf.h.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING_TYPE, ARRAY_TYPE, UINT32_TYPE, INT32_TYPE = 8, 9, 4, 5

# The type that every tensor of a vector has, of enum ggml_type of ggml.h. Known here, so that using one does not import the gguf
# package for its table of types, which takes 0.07 s, ten times what reading the vector does.
FLOAT32 = 0


class OtherKindError(Exception):
    """The file is no GGUF."""


class DamagedError(Exception):
    """What is wrong with the bytes."""


class UnknownError(Exception):
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
        size: bytes; where it was not measured, those up to the next tensor.
        entry: first byte of its entry in the header, and the byte behind it.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int
    entry: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Where everything stands.

    Attributes:
        version: of the format.
        fields: by key, in the file's order.
        tensors: by name, in the file's order.
        alignment: of the data section and of each tensor in it.
        data_start: first byte of the data section.
        size: bytes of the whole file.
    """

    version: int
    fields: Mapping[str, Field]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data_start: int
    size: int


def read_layout(file: BinaryIO, size: int, *, measure: bool = True, on_kind: Callable[[str, str], None] | None = None) -> Layout:
    """Read the header of a file.

    Args:
        file: the file, or its first bytes.
        size: bytes of the whole file.
        measure: find out the size of every tensor, for which the installed gguf package has to know its type, and make sure that
            it lies within the file.
        on_kind: called with `general.architecture` and `general.type` ("" without one) once the key behind the architecture is
            read, which is where writers put the type.

    Raises:
        OtherKindError: it is no GGUF.
        DamagedError: it promises what it does not hold.
        UnknownError: it is of a newer version, or made for another machine.
        OSError: the file cannot be read.
    """
    cursor = _Cursor(file, size)
    if size < len(MAGIC) or cursor.take(len(MAGIC)) != MAGIC:
        raise OtherKindError
    version = cursor.number("<I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "its bytes are in big-endian order" if swapped in _VERSIONS else f"it is GGUF version {version}, not 2 or 3"
        raise UnknownError(what)
    n_tensors, n_fields = cursor.number("<Q"), cursor.number("<Q")
    fields: dict[str, Field] = {}
    # Every key takes 13 bytes, every tensor 24, or more.
    cursor.expect(n_fields, 13)
    for _ in range(n_fields):
        start = cursor.at
        key = cursor.name(_MAX_KEY)
        kind = cursor.number("<I")
        value_start = cursor.at
        cursor.skip_value(kind)
        if key in fields:
            raise DamagedError(f"the key {key} stands there twice")
        fields[key] = Field(kind, start, value_start, cursor.at)
        if (
            on_kind is not None
            and "general.architecture" in fields
            and (key != "general.architecture" or len(fields) == n_fields)
        ):
            on_kind(*(_name_at(cursor, fields.get(one)) for one in ("general.architecture", "general.type")))
            on_kind = None
    alignment = _alignment(cursor, fields.get("general.alignment"))
    cursor.expect(n_tensors, 24)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        tensor = cursor.tensor()
        if tensor.name in tensors:
            raise DamagedError(f"the tensor {tensor.name} stands there twice")
        tensors[tensor.name] = tensor
    data_start = align(cursor.at, alignment)
    found = list(tensors.values())
    sizes = [_size(tensor) for tensor in found] if measure else _room(found, size - data_start)
    for tensor, n_bytes in zip(found, sizes, strict=True):
        if tensor.offset % alignment or data_start + tensor.offset + n_bytes > size:
            raise DamagedError(f"the tensor {tensor.name} does not lie within the file")
        tensors[tensor.name] = replace(tensor, size=n_bytes)
    return Layout(version, fields, tensors, alignment, data_start, size)


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` from `position` on."""
    return -(-position // alignment) * alignment


def _name_at(cursor: _Cursor, field: Field | None) -> str:
    """The beginning of a text that names something, for messages; "" where there is none."""
    if field is None or field.kind != STRING_TYPE:
        return ""
    start = field.value_start + 8
    return shown(cursor.look(start, min(field.stop, start + _MAX_TENSOR_NAME)).decode("utf-8", "replace"))


def _alignment(cursor: _Cursor, field: Field | None) -> int:
    if field is None:
        return _DEFAULT_ALIGNMENT
    alignment = int.from_bytes(cursor.look(field.value_start, field.stop), "little") if field.kind == UINT32_TYPE else 0
    if alignment == 0 or alignment & (alignment - 1):
        raise DamagedError("its alignment is not a power of two")
    return alignment


class _Cursor:
    """A place in the file that never leaves it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.at = 0
        self._window = b""
        self._window_start = 0

    def look(self, start: int, stop: int) -> bytes:
        """Some bytes of the file."""
        first = start - self._window_start
        if first < 0 or stop - self._window_start > len(self._window):
            self._move_window(start, stop - start)
            first = 0
        return self._window[first : first + stop - start]

    def _move_window(self, start: int, least: int) -> None:
        if start + least <= self.size:
            self.file.seek(start)
            self._window, self._window_start = self.file.read(max(least, _WINDOW)), start
        if start + least > self.size or len(self._window) < least:
            raise DamagedError("it ends too early")

    def take(self, length: int) -> bytes:
        start = self.at
        self.skip(length)
        return self.look(start, self.at)

    def skip(self, length: int) -> None:
        self.expect(length, 1)
        self.at += length

    def expect(self, count: int, least: int) -> None:
        """Make sure that `count` things of at least so many bytes can follow."""
        if count * least > self.size - self.at:
            raise DamagedError("it ends too early")

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def name(self, most: int) -> str:
        length = self.number("<Q")
        if length > most:
            raise DamagedError(f"a name in it is longer than {most} bytes")
        try:
            text = self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedError("a name in it is not UTF-8 text") from None
        if not text.isprintable():
            raise DamagedError(f"a name in it holds control characters ({text})")
        return text

    def skip_value(self, kind: int) -> None:
        if kind == STRING_TYPE:
            self.skip(self.number("<Q"))
        elif kind == ARRAY_TYPE:
            kind, count = self.number("<I"), self.number("<Q")
            if kind == STRING_TYPE:
                self.skip_texts(count)
            elif kind in SCALARS:
                self.skip(count * struct.calcsize(SCALARS[kind]))
            else:
                raise DamagedError(f"it holds an array of type {kind}")
        elif kind in SCALARS:
            self.skip(struct.calcsize(SCALARS[kind]))
        else:
            raise DamagedError(f"it holds a value of type {kind}")

    def skip_texts(self, count: int) -> None:
        # A vocabulary has up to 300,000 texts and as many merges: a loop without calls takes 0.1 s.
        self.expect(count, 8)
        at, last = self.at, self.at - 1
        length_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > last:
                self._move_window(at, 8)
                window, start, last = self._window, at, at + len(self._window) - 8
            at += 8 + length_of(window, at - start)[0]
        self.skip(at - self.at)

    def tensor(self) -> TensorInfo:
        start = self.at
        name = self.name(_MAX_TENSOR_NAME - 1)
        n_dimensions = self.number("<I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise DamagedError(f"the tensor {name} has {n_dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(n_dimensions))
        kind, offset = self.number("<I"), self.number("<Q")
        return TensorInfo(name, shape, kind, offset, 0, (start, self.at))


def _room(tensors: Collection[TensorInfo], size: int) -> list[int]:
    """How many bytes there are from each tensor to the next one, or to the end of a data section of `size` bytes."""
    offsets = sorted({tensor.offset for tensor in tensors})
    ends = dict(itertools.pairwise([*offsets, size]))
    return [ends[tensor.offset] - tensor.offset for tensor in tensors]


def _size(tensor: TensorInfo) -> int:
    """How many bytes a tensor takes by its type."""
    name, shape, kind = tensor.name, tensor.shape, tensor.kind
    if kind == FLOAT32:
        return 4 * math.prod(shape)
    import gguf

    sizes: Mapping[Any, tuple[int, int]] = gguf.GGML_QUANT_SIZES
    try:
        block, block_bytes = sizes[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise UnknownError(f"{name} is of type {kind}, which the installed gguf package does not know (upgrade it)") from None
    if math.prod(shape[:1]) % block:
        raise DamagedError(f"the rows of the tensor {name} are not whole blocks")
    return math.prod(shape) // block * block_bytes
