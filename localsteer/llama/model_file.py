"""A model's file, or files: what is known of them without loading the weights."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from localsteer.errors import ModelError
from localsteer.files.gguf_header import GGUFHeader, open_header
from localsteer.files.gguf_layout import MAGIC
from localsteer.files.text import readable

# `llama_split_path` in llama.cpp: "%s-%05d-of-%05d.gguf", counted from 1.
_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<ending>\.gguf)$", re.IGNORECASE)
# One page of a disk: less is not read any faster.
_SAMPLE_BYTES = 4096


def check_model_file(path: Path) -> None:
    """Say what is wrong with a file before llama.cpp fails on it in its own words.

    Raises:
        ModelError: the file is missing, cannot be read, or is no GGUF.
    """
    hint = "`localsteer models list` shows the models on this machine."
    with readable(path, ModelError, kind="model file", hint=hint, ordinary=True), path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise ModelError(
            f"{path} is not a GGUF file.",
            hint="localsteer runs the GGUF models that llama.cpp, Ollama and LM Studio use.",
        )


def model_parts(path: Path) -> list[Path]:
    """The file itself, or all parts of a split model in order."""
    match = _SPLIT_NAME.match(path.name)
    if match is None:
        return [path]
    parts = range(1, int(match["count"]) + 1)
    return [path.with_name(f"{match['stem']}-{part:05d}-of-{match['count']}{match['ending']}") for part in parts]


def model_stem(path: Path) -> str:
    """The file's name without its ending, and without the number of the part."""
    match = _SPLIT_NAME.match(path.name)
    return path.stem if match is None else match["stem"]


def is_later_part(path: Path) -> bool:
    """Whether it is a part of a split model, and not the first, which is the one to open."""
    match = _SPLIT_NAME.match(path.name)
    return match is not None and int(match["part"]) != 1


def why_not(path: Path, reason: str) -> str | None:
    """What to do about a file that llama.cpp does not load, and why it says so; None where nothing is known."""
    if is_later_part(path):
        first = model_parts(path)[0]
        return f"It is a part of a model: name the first one, {first.name}."
    parts = model_parts(path)
    if missing := next((part for part in parts if not part.is_file()), None):
        return f"The model has {len(parts)} parts, and {missing.name} is not beside it."
    for part in parts:
        try:
            with open_header(part, ModelError, kind="model file") as header:
                hint = _other_kind(header)
        except ModelError as error:
            return f"{error.message} If the download was cut short, fetch the file again."
        if hint is not None and len(parts) == 1:
            return hint
    if "architecture" in reason:
        return "A newer llama.cpp may know it (`pip install --upgrade llama-cpp-python`); a file of Ollama's own engine none may."
    if "alloc" in reason or "memory" in reason:
        return "A smaller model, or a smaller quantisation of this one, takes less memory."
    return None


def _other_kind(header: GGUFHeader) -> str | None:
    """What a whole file is, if it is no language model."""
    with contextlib.suppress(ModelError):
        kind, architecture = header.text("general.type"), header.text("general.architecture")
        count, number = header.whole_number("split.count"), header.whole_number("split.no")
        if kind == "adapter":
            return "It is a LoRA adapter: name the model that it is for."
        if kind in ("mmproj", "projector") or architecture == "clip":
            return "It reads pictures or sound for a language model, and is none: name the model beside it."
        if architecture == "controlvector":
            return "It is a control vector: name a model here, and the vector after -s."
        if count and count > 1:
            return (
                f"It is part {(number or 0) + 1} of a model in {count} parts, and is not called so: their names end in "
                f"-00001-of-{count:05d}.gguf and so on."
            )
        if any(name.startswith(("v.", "mm.")) for name in header.tensors):
            return "It holds a picture encoder beside the model, as Ollama's own engine wants it: take one of llama.cpp's files."
    return None


def content_hash(path: Path) -> str:
    """`Fingerprint.content` of a model: sha256 over each part's size, header and the middle 4 KiB of every tensor.

    Whatever is done to a tensor, and be it the only one, mostly touches all of its rows, and shows without reading gigabytes:
    0.05 to 0.1 s for a file of 1.1 GB, with 339 tensors and 300,000 texts in the header.

    Args:
        path: the GGUF file (of a split model: the first part).

    Raises:
        ModelError: a file is missing, cannot be read, is no GGUF, or damaged.
    """
    digest = hashlib.sha256()
    for part in model_parts(path):
        check_model_file(part)
        # Not measured: llama.cpp may know types of tensors that the gguf package does not.
        with open_header(part, ModelError, kind="model file", measure=False) as header:
            digest.update(header.size.to_bytes(8, "little"))
            digest.update(header.read(0, header.data_start))
            for tensor in sorted(header.tensors.values(), key=lambda one: one.offset):
                length = min(tensor.size, _SAMPLE_BYTES)
                start = header.data_start + tensor.offset + (tensor.size - length) // 2
                digest.update(header.read(start, start + length))
    return digest.hexdigest()
