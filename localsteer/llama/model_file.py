"""A model's file, or files: what is known of them without loading the weights."""

from __future__ import annotations

import re
from pathlib import Path

from localsteer.errors import ModelError
from localsteer.llama.fingerprint import hash_model_files

# `llama_split_path` in llama.cpp: "%s-%05d-of-%05d.gguf", counted from 1.
_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")


def check_model_file(path: Path) -> None:
    """Say what is wrong with a file before llama.cpp fails on it in its own words.

    Raises:
        ModelError: the file is missing, cannot be read, or is no GGUF.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise ModelError(
            f"There is no model file {path}.", hint="`localsteer models list` shows the models on this machine."
        ) from None
    except OSError as error:
        raise ModelError(f"The model file {path} cannot be read: {error.strerror}.") from error
    if magic != b"GGUF":
        raise ModelError(
            f"{path} is not a GGUF file.",
            hint="localsteer runs the GGUF models that llama.cpp, Ollama and LM Studio use.",
        )


def model_parts(path: Path) -> list[Path]:
    """The file itself, or all parts of a split model in order."""
    match = _SPLIT_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = (f"{match['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1))
    return [path.with_name(name) for name in names]


def model_stem(path: Path) -> str:
    """The file's name without its ending, and without the number of the part."""
    match = _SPLIT_NAME.match(path.name)
    return path.stem if match is None else match["stem"]


def content_hash(path: Path) -> str:
    """`Fingerprint.content` of a model, in some 10 ms.

    Args:
        path: the GGUF file (of a split model: the first part).

    Raises:
        ModelError: a file is missing, cannot be read, or is no GGUF.
    """
    check_model_file(path)
    try:
        return hash_model_files(model_parts(path))
    except OSError as error:
        raise ModelError(f"The model file {error.filename or path} cannot be read: {error.strerror}.") from error
