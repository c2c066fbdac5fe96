"""Policies, probes and texts for tiny models, whose vocabulary is bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.policy import model_classifier as judge
from localsteer.policy.examples import Example
from localsteer.policy.statistics import measure
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from localsteer.vector.probe import Probe, Watch

# Hostile texts that are tried in all; LOCALSTEER_EXAMPLES=10100 for as many as before a release.
EXAMPLES = int(os.environ.get("LOCALSTEER_EXAMPLES", "1500"))


def yes_and_no_are_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """No word is a single token of a tiny model: y and Y mean yes, n means no."""
    monkeypatch.setattr(judge, "_YES", ("yes", "y", "Y"))
    monkeypatch.setattr(judge, "_NO", ("no", "n"))


def texts(alphabet: str, count: int, label: bool | None, seed: int = 0, *, length: int = 12) -> list[Example]:
    """Random words, each a message as well as an answer; a tiny model tells alphabets apart by their embeddings."""
    generator = np.random.default_rng(seed)
    words = ("".join(generator.choice(list(alphabet), length)) for _ in range(count))
    return [Example(word, word, label, f"{alphabet}.txt, line {number}") for number, word in enumerate(words, 1)]


def low_and_high(count: int, seed: int = 0) -> list[Example]:
    """As many texts of small letters (positive) as of capital ones, which share none."""
    return [*texts("abcdefgh", count, True, seed), *texts("STUVWXYZ", count, False, seed + 1000)]


def alike(count: int, seed: int = 0) -> list[Example]:
    """Texts of two alphabets that share most of their letters, so that no probe sorts all of them."""
    return [*texts("abcdefghijkl", count, True, seed), *texts("cdefghijklmn", count, False, seed + 1000)]


def push(folder: Path, name: str = "push.gguf", *, layer: int = 1, size: float = 3.0, seed: int = 0) -> Path:
    """A control vector that changes the answers of a tiny model."""
    direction = np.random.default_rng(seed).standard_normal(64).astype(np.float32)
    path = folder / name
    write_vector(ControlVector({layer: size * direction}), path)
    return path


def probe_vector(
    model: Model, *, watch: Watch = "prompt", layer: int = 2, threshold: float = 0.0, window: int = 4
) -> ControlVector:
    """A probe in a random direction."""
    unseen = measure([1.0, -1.0], [True, False], 0.0)
    probe = Probe(layer, 0.0, threshold, watch, window, (5, 5), None, unseen)
    direction = np.random.default_rng(layer).standard_normal(model.n_embd).astype(np.float32)
    return ControlVector({layer: direction}, Provenance(concept="made", model=model.fingerprint, probe=probe))


@contextmanager
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """All tokens that any context runs, in their order."""
    tokens: list[int] = []
    decode = Context.decode

    def watched(self: Context, batch: Batch) -> None:
        tokens.extend(batch.tokens.tolist())
        decode(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Context, "decode", watched)
        yield tokens
