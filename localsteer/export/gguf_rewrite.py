"""A model file written anew with more in it, tensor by tensor: what is not replaced keeps every byte, and memory stays small.

gguf-py's reader and writer would hold the vocabulary as Python objects and the tensors in memory; here the keys and the tensors'
entries are copied as bytes, and their data in chunks.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from localsteer.errors import ExportError
from localsteer.files.gguf_header import GGUFHeader, open_header, type_name
from localsteer.files.gguf_layout import FLOAT32, MAGIC, STRING_TYPE, TensorInfo, align
from localsteer.llama.model_file import model_parts
from localsteer.vector.control_vector import Floats

Progress = Callable[[str, int, int], None]

# Only true of the parts of a split model; the whole needs none of them (llama_model_loader reads them where they are).
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
# Those that multiply what is added to the residual stream (f_residual_scale).
_SCALED = ("granite", "granitemoe", "granitehybrid", "minicpm")


@dataclass(frozen=True)
class ModelFile:
    """A model's file, or the parts of a split model in order."""

    parts: tuple[GGUFHeader, ...]

    @property
    def first(self) -> GGUFHeader:
        """The part that holds the keys."""
        return self.parts[0]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors by name."""
        return {name: tensor for part in self.parts for name, tensor in part.tensors.items()}

    def part_of(self, name: str) -> GGUFHeader:
        """The part that holds a tensor."""
        return next(part for part in self.parts if name in part.tensors)

    def floats(self, name: str) -> Floats:
        """An F32 tensor, flat.

        Raises:
            ExportError: it is of another type.
        """
        part = self.part_of(name)
        tensor = part.tensors[name]
        if tensor.kind != FLOAT32:
            raise ExportError(f"{name} in {part.path} is {type_name(tensor.kind)}, and only F32 can be added to.")
        return np.frombuffer(part.tensor_bytes(tensor), "<f4").astype(np.float32)

    def matrix(self, name: str, rows: slice = slice(None)) -> Floats:
        """(n_rows, n_in) a matrix of any type, or some rows of it, each of which gives one number of the result.

        Raises:
            ExportError: the gguf package cannot read its type.
        """
        import gguf

        part = self.part_of(name)
        tensor = part.tensors[name]
        n_in, n_out = tensor.shape
        row_bytes = tensor.size // n_out
        first, last, _ = rows.indices(n_out)
        start = part.data_start + tensor.offset
        data = np.frombuffer(part.read(start + first * row_bytes, start + last * row_bytes), np.uint8)
        try:
            found: Floats = gguf.dequantize(data.reshape(last - first, row_bytes), gguf.GGMLQuantizationType(tensor.kind))
        except NotImplementedError:
            raise ExportError(
                f"{name} in {part.path} is {type_name(tensor.kind)}, which the installed gguf package cannot read."
            ) from None
        return found.reshape(last - first, n_in)


@dataclass(frozen=True)
class Replacement:
    """What a tensor holds instead, in the same shape.

    Attributes:
        kind: ggml's number of its type.
        size: bytes.
        chunks: makes them, piece by piece.
    """

    kind: int
    size: int
    chunks: Callable[[], Iterator[bytes]]


def residual_scale(file: ModelFile) -> float:
    """What a model multiplies the output of its attention and of its feed-forward layer by before they are added."""
    architecture = file.first.text("general.architecture")
    value = file.first.value(f"{architecture}.residual_scale") if architecture in _SCALED else None
    return float(value) if isinstance(value, int | float) and value else 1.0


@contextlib.contextmanager
def open_model_file(path: Path) -> Iterator[ModelFile]:
    """A model, whose tensors can be read within the block; of a split one the path is that of its first part.

    Raises:
        ExportError: a part is missing, damaged, cut short, or not of this model; or somebody wrote to one within the block.
    """
    with contextlib.ExitStack() as opened:
        first = opened.enter_context(open_header(path, ExportError, kind="model file"))
        count = first.whole_number("split.count") or 1
        parts = [first]
        if count > 1:
            paths = model_parts(path)
            if len(paths) != count or first.whole_number("split.no") != 0:
                raise ExportError(
                    f"{path} is one of {count} parts of a split model, and not named as the first of them.",
                    hint=f"Give the first part, which ends in -00001-of-{count:05d}.gguf.",
                )
            for number in range(1, count):
                part = opened.enter_context(open_header(paths[number], ExportError, kind="part of the model"))
                if part.whole_number("split.no") != number:
                    raise ExportError(f"{part.path} is not part {number + 1} of {path.name}.")
                parts.append(part)
        model = ModelFile(tuple(parts))
        expected = first.whole_number("split.tensors.count") if count > 1 else len(first.tensors)
        if len(model.tensors) != expected or sum(len(part.tensors) for part in parts) != expected:
            raise ExportError(
                f"The parts of {path.name} hold {len(model.tensors)} tensors together, and {expected} are expected."
            )
        yield model


def rewrite(
    model: ModelFile,
    target: Path,
    *,
    tensors: Mapping[str, Floats],
    replaced: Mapping[str, Replacement] = MappingProxyType({}),
    keys: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Write a model with more in it; the parts of a split one become a single file.

    Args:
        model: what is copied.
        target: the new file; it must be none of the model's.
        tensors: one-dimensional arrays. A name that the model has already must be an F32 tensor of the same length: its data is
            replaced. The others go behind all that is there.
        replaced: by the names of tensors that the model has.
        keys: texts for the header, behind all keys that are there. None of them may be there already.
        progress: told what is done, how many MB, and of how many.

    Raises:
        ExportError: the model file cannot be read, or became shorter.
    """
    first = model.first
    entries = [(part, tensor) for part in model.parts for tensor in part.tensors.values()]
    added = {name: array for name, array in tensors.items() if name not in model.tensors}
    kept_keys = [field for key, field in first.fields.items() if len(model.parts) == 1 or key not in _SPLIT_KEYS]
    sizes = {tensor.name: tensor.size for _, tensor in entries} | {name: one.size for name, one in replaced.items()}
    total = sum(sizes.values()) + sum(array.nbytes for array in added.values())
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("writing (MB)", done // 1_000_000, total // 1_000_000)

    with target.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", first.version, len(entries) + len(added), len(kept_keys) + len(keys)))
        for field in kept_keys:
            first.copy(field.start, field.stop, file)
        for key, text in keys.items():
            file.write(_text(key) + struct.pack("<I", STRING_TYPE) + _text(text))
        offset = 0
        for part, tensor in entries:
            # All of the entry but the type and the offset, its last twelve bytes.
            part.copy(tensor.entry[0], tensor.entry[1] - 12, file)
            file.write(struct.pack("<IQ", replaced[tensor.name].kind if tensor.name in replaced else tensor.kind, offset))
            offset = align(offset + sizes[tensor.name], first.alignment)
        for name, array in added.items():
            file.write(_text(name) + struct.pack("<IQIQ", 1, len(array), FLOAT32, offset))
            offset = align(offset + array.nbytes, first.alignment)
        _pad(file, first.alignment)
        for part, tensor in entries:
            if tensor.name in tensors:
                tell(file.write(_bytes(tensors[tensor.name])))
            elif tensor.name in replaced:
                for chunk in replaced[tensor.name].chunks():
                    tell(file.write(chunk))
            else:
                start = part.data_start + tensor.offset
                part.copy(start, start + tensor.size, file, tell)
            _pad(file, first.alignment)
        for array in added.values():
            tell(file.write(_bytes(array)))
            _pad(file, first.alignment)


def _pad(file: BinaryIO, alignment: int) -> None:
    # The data section begins at a multiple of the alignment, so that offsets in it and in the file agree.
    file.write(bytes(align(file.tell(), alignment) - file.tell()))


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _bytes(array: Floats) -> bytes:
    return np.ascontiguousarray(array, "<f4").tobytes()
