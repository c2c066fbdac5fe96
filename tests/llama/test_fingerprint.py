from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from localsteer.llama.fingerprint import Fingerprint, hash_texts
from localsteer.llama.model import Model
from tests.tiny_models import write_tiny_model

MODEL = Fingerprint("Tiny", "llama", 6, 3, "vocabulary", "content")


# Comparisons


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"name": "renamed"}, True),
        ({"content": "another quantisation"}, True),
        ({"content": "x", "vocabulary": "x"}, False),
        ({"content": "x", "architecture": "qwen2"}, False),
        ({"content": "x", "n_layer": 7}, False),
        ({"content": "x", "n_embd": 4}, False),
    ],
)
def test_what_counts_as_the_same_model(change: dict[str, str | int], same: bool) -> None:
    other = replace(MODEL, **change)  # type: ignore[arg-type]
    for one, two in ((MODEL, other), (other, MODEL)):
        assert one.same_model(two) == same


# Texts


def test_a_hash_of_texts_is_stable() -> None:
    # It is stored in vector files: another value would turn every vector into one of another model.
    assert hash_texts([b"a", b"bc"]) == "47ea6f805c5b663e33012cd34184e1398ad81a0dcea50071346f05d26692e843"


@pytest.mark.parametrize(
    "others", [[b"ab", b"c"], [b"abc"], [b"bc", b"a"], [b"a", b"bc", b""], [b"", b"a", b"bc"], [b"a", b"bd"], [b"a"], []]
)
def test_other_texts_have_another_hash(others: list[bytes]) -> None:
    assert hash_texts(others) != hash_texts([b"a", b"bc"])


# Models


def fingerprint(path: Path) -> Fingerprint:
    with Model(path, threads=1) as model:
        return model.fingerprint


def test_the_fingerprint_of_a_model(tmp_path: Path) -> None:
    found = fingerprint(write_tiny_model(tmp_path / "a.gguf", n_layer=3, n_embd=32))
    assert (found.name, found.architecture, found.n_layer, found.n_embd) == ("tiny", "llama", 3, 32)
    assert found == fingerprint(write_tiny_model(tmp_path / "copy.gguf", n_layer=3, n_embd=32))


def test_other_weights_are_another_file_of_the_same_model(tmp_path: Path) -> None:
    one, other = (fingerprint(write_tiny_model(tmp_path / f"{seed}.gguf", seed=seed)) for seed in (0, 1))
    assert one.content != other.content
    assert one.same_model(other)


def test_another_architecture_is_another_model(tmp_path: Path) -> None:
    one, other = (fingerprint(write_tiny_model(tmp_path / f"{kind}.gguf", kind)) for kind in ("llama", "qwen2"))
    assert (one.n_layer, one.n_embd) == (other.n_layer, other.n_embd)
    assert not one.same_model(other)
