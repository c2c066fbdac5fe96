"""Files as other programs write them, made here byte by byte where gguf-py would refuse to."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, Any]


def write_foreign_vector(
    path: Path, directions: Mapping[int, Array], *, layer_count: int | None, signed: bool = False, hint: str = "llama"
) -> Path:
    """A control vector as repeng, llama-cvector-generator (signed) and jukofyork/control-vectors write it."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", hint)
    if layer_count is not None:
        (writer.add_int32 if signed else writer.add_uint32)("controlvector.layer_count", layer_count)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, value: str) -> bytes:
    """A key with a text."""
    return text(name) + struct.pack("<I", 8) + text(value)


def tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's entry."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(
    keys: Sequence[bytes],
    tensors: Sequence[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A whole file; the numbers of keys and tensors may be lies."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def split_model(path: Path, folder: Path, counts: Sequence[int]) -> list[Path]:
    """A model in parts of so many tensors, as llama-gguf-split makes them; returns their paths."""
    reader = gguf.GGUFReader(path)
    parts = []
    start = 0
    for number, count in enumerate(counts):
        part = folder / f"split-{number + 1:05d}-of-{len(counts):05d}.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for field in reader.fields.values():
                if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                    kind = field.types[0]
                    writer.add_key_value(field.name, field.contents(), kind, field.types[1] if len(field.types) > 1 else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(counts))
        writer.add_int32("split.tensors.count", sum(counts))
        for one in reader.tensors[start : start + count]:
            writer.add_tensor(one.name, np.array(one.data))
        start += count
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    return parts
