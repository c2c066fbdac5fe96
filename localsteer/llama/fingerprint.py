"""Identity of a model file, as far as control vectors care."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# 1 MiB of header holds the hyperparameters and the start of the vocabulary; 16 samples of 64 KiB tell one quantisation or
# fine-tune from another without reading gigabytes (10 ms on a cold 5 GB file, where hashing all of it takes half a minute).
_HEADER_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 16


@dataclass(frozen=True)
class Fingerprint:
    """Which model a vector was read from.

    Attributes:
        name: the model's own name, for people.
        architecture: llama.cpp's name of it ("llama", "gemma3", ...).
        n_layer: number of transformer blocks.
        n_embd: width of the residual stream.
        vocabulary: sha256 over all token texts.
        content: sha256 over the file's header and samples of its tensor bytes; another quantisation differs.
    """

    name: str
    architecture: str
    n_layer: int
    n_embd: int
    vocabulary: str
    content: str

    def same_file(self, other: Fingerprint) -> bool:
        """Whether both are the very same weights."""
        return self.content == other.content

    def same_shape(self, other: Fingerprint) -> bool:
        """Whether a direction of one can be added to the residual stream of the other at all."""
        return (self.n_layer, self.n_embd) == (other.n_layer, other.n_embd)

    def same_model(self, other: Fingerprint) -> bool:
        """Whether both are the same model, perhaps quantised differently or tuned further."""
        return self.same_shape(other) and self.architecture == other.architecture and self.vocabulary == other.vocabulary


def hash_texts(texts: Iterable[bytes]) -> str:
    """sha256 over length-prefixed texts (so that moving a boundary changes the hash)."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(4, "little"))
        digest.update(text)
    return digest.hexdigest()


def hash_model_files(paths: Iterable[Path]) -> str:
    """sha256 over the size, the first MiB and 16 evenly spaced samples of each file.

    Args:
        paths: the model's file, or the parts of a split model in order.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            digest.update(file.read(_HEADER_BYTES))
            for index in range(_SAMPLES):
                file.seek(max(0, (size - _SAMPLE_BYTES) * index // (_SAMPLES - 1)))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
