from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.errors import ModelError
from localsteer.llama.model import Model
from localsteer.llama.model_file import check_model_file, content_hash, model_parts, model_stem
from tests.conftest import TinyPath

PARTS = ["big-00001-of-00003.gguf", "big-00002-of-00003.gguf", "big-00003-of-00003.gguf"]


@pytest.mark.parametrize(
    ("name", "parts", "stem"),
    [
        ("big-00001-of-00003.gguf", PARTS, "big"),
        ("tiny.Q4_1.gguf", ["tiny.Q4_1.gguf"], "tiny.Q4_1"),
        ("big-1-of-3.gguf", ["big-1-of-3.gguf"], "big-1-of-3"),
        ("sha256-0123", ["sha256-0123"], "sha256-0123"),
    ],
)
def test_the_parts_of_a_model(name: str, parts: list[str], stem: str) -> None:
    path = Path("/models", name)
    assert model_parts(path) == [Path("/models", part) for part in parts]
    assert model_stem(path) == stem


def test_the_content_is_known_without_opening_the_model(tiny: Model, tiny_path: TinyPath) -> None:
    assert content_hash(tiny_path("llama")) == tiny.fingerprint.content


def test_every_part_counts(tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / part).write_bytes(b"GGUF" + part.encode())
    before = content_hash(tmp_path / PARTS[0])
    (tmp_path / PARTS[2]).write_bytes(b"GGUF changed")
    assert content_hash(tmp_path / PARTS[0]) != before


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / PARTS[0]).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=PARTS[1]):
        content_hash(tmp_path / PARTS[0])


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("notes")
    for check in (check_model_file, content_hash):
        with pytest.raises(ModelError, match=r"notes\.gguf.*GGUF"):
            check(tmp_path / "notes.gguf")
        with pytest.raises(ModelError, match=r"none\.gguf"):
            check(tmp_path / "none.gguf")
        with pytest.raises(ModelError, match=str(tmp_path)):
            check(tmp_path)
