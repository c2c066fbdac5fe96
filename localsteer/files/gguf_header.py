"""A GGUF file, read without trusting it: its values and tensors.

A file may be replaced or written over at any moment, and places told by one version in the bytes of another hold garbage that
looks like numbers. So all of a file is read through one open file, or from one copy of its bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, shown
from localsteer.files.gguf_layout import (
    ARRAY_TYPE,
    SCALARS,
    STRING_TYPE,
    DamagedError,
    Layout,
    OtherKindError,
    TensorInfo,
    UnknownError,
    read_layout,
)
from localsteer.files.text import readable

# Of a tensor that is copied. Larger ones are no faster: 4 MiB already keep a disk busy.
_CHUNK = 4 << 20

Value = str | int | float | bool


@dataclass(frozen=True)
class GGUFHeader(Layout):
    """What a GGUF file says of itself.

    Attributes:
        path: the file.
        file: its bytes: a copy in memory, or the open file.
        error: what is raised where a value is not what it should be.
    """

    path: Path
    file: BinaryIO
    error: type[LocalsteerError]

    def value(self, key: str) -> Value | None:
        """A number or a text; None where the file does not have the key.

        Raises:
            LocalsteerError: it is an array, or no UTF-8 text.
        """
        field = self.fields.get(key)
        if field is None:
            return None
        data = self.read(field.value_start, field.stop)
        if field.kind == STRING_TYPE:
            try:
                return data[8:].decode("utf-8")
            except UnicodeDecodeError:
                raise self._damaged(f"the key {key} is not UTF-8 text") from None
        if field.kind == ARRAY_TYPE:
            raise self._damaged(f"the key {key} is an array")
        value: Value = struct.unpack(SCALARS[field.kind], data)[0]
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
        data = self.read(field.value_start, field.stop) if field.kind == ARRAY_TYPE else b""
        kind = struct.unpack_from("<I", data)[0] if data else ARRAY_TYPE
        if kind not in SCALARS:
            raise self._damaged(f"the key {key} is no array of numbers")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite
            return np.frombuffer(data, SCALARS[kind], offset=12).astype(np.float32)

    def tensor_bytes(self, tensor: TensorInfo) -> bytes:
        """The data of one tensor."""
        start = self.data_start + tensor.offset
        return self.read(start, start + tensor.size)

    def copy(self, start: int, stop: int, target: BinaryIO, tell: Callable[[int], object] | None = None) -> None:
        """Write bytes of this file into another, and tell how many after each chunk.

        Raises:
            LocalsteerError: they cannot be read, or are no longer there.
        """
        for at in range(start, stop, _CHUNK):
            written = target.write(self.read(at, min(at + _CHUNK, stop)))
            if tell is not None:
                tell(written)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the file.

        Raises:
            LocalsteerError: they cannot be read, or are no longer there.
        """
        with readable(self.path, self.error):
            self.file.seek(start)
            data = self.file.read(stop - start)
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
    most: int = -1,
    on_kind: Callable[[str, str], None] | None = None,
) -> GGUFHeader:
    """Read a small GGUF file at once, and make sure that all that its header promises lies within it.

    Args:
        path: the file.
        error: what to raise.
        kind: what to call the file where it is missing.
        not_gguf: what to do where it is no GGUF file.
        most: how many bytes to read, -1 for all; `GGUFHeader.size` tells whether there are more.
        on_kind: called with `general.architecture` and `general.type` as soon as they are read, before the rest of the header: a
            wrong kind of file is best refused by that.

    Raises:
        LocalsteerError: of the class `error`: it is missing, cannot be read, is no GGUF file, damaged or cut short.
    """
    with _refusals(path, error, kind, not_gguf), path.open("rb") as file:
        size, data = os.fstat(file.fileno()).st_size, io.BytesIO(file.read(most))
        layout = read_layout(data, size, on_kind=on_kind)
    return GGUFHeader(**vars(layout), path=path, file=data, error=error)


@contextlib.contextmanager
def open_header(path: Path, error: type[LocalsteerError], *, kind: str = "file", measure: bool = True) -> Iterator[GGUFHeader]:
    """The header of a GGUF file of any size, whose tensors can be read within the block.

    Args:
        path: the file.
        error: what to raise.
        kind: what to call the file where it is missing.
        measure: find out the size of every tensor, for which the installed gguf package has to know its type, and make sure that
            it lies within the file.

    Raises:
        LocalsteerError: of the class `error`: it is missing, cannot be read, is no GGUF file, damaged or cut short, or somebody
            wrote to it within the block.
    """
    with contextlib.ExitStack() as opened:
        with _refusals(path, error, kind):
            file = opened.enter_context(path.open("rb"))
            before = os.fstat(file.fileno())
            layout = read_layout(file, before.st_size, measure=measure)
        yield GGUFHeader(**vars(layout), path=path, file=file, error=error)
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise error(f"{path} was written to while it was read.", hint="Try again when it is whole.")


def type_name(kind: int) -> str:
    """The name of a tensor type, by ggml's number of it."""
    import gguf

    try:
        return str(gguf.GGMLQuantizationType(kind).name)
    except ValueError:
        return f"type {kind}"


@contextlib.contextmanager
def _refusals(path: Path, error: type[LocalsteerError], kind: str, not_gguf: str | None = None) -> Iterator[None]:
    """Say for a person what is found to be wrong within the block."""
    try:
        with readable(path, error, kind=kind, ordinary=True):
            yield
    except OtherKindError:
        raise error(f"{path} is not a GGUF file.", hint=not_gguf) from None
    except DamagedError as problem:
        raise error(f"{path} is damaged: {shown(problem)}.", hint="Make or download it again.") from None
    except UnknownError as problem:
        raise error(f"{path} cannot be read: {shown(problem)}.") from None
