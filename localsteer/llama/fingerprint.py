"""Identity of a model file, as far as control vectors care."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fingerprint:
    """Which model a vector was read from.

    Attributes:
        name: the model's own name, for people.
        architecture: llama.cpp's name of it ("llama", "gemma3", ...).
        n_layer: number of transformer blocks.
        n_embd: width of the residual stream.
        vocabulary: sha256 over all token texts.
        content: sha256 over the file's header and a sample of every tensor (see `model_file.content_hash`); another
            quantisation differs.
    """

    name: str
    architecture: str
    n_layer: int
    n_embd: int
    vocabulary: str
    content: str

    def same_model(self, other: Fingerprint) -> bool:
        """Whether both are the same model, perhaps quantised differently or tuned further."""
        return replace(self, name=other.name, content=other.content) == other


def hash_texts(texts: Iterable[bytes]) -> str:
    """sha256 over length-prefixed texts (so that moving a boundary changes the hash)."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(4, "little"))
        digest.update(text)
    return digest.hexdigest()
