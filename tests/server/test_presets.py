from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.server.presets import load_presets
from localsteer.server.steerings import SteeringError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "presets.yaml"
    path.write_text(text)
    return path


def test_presets_are_names_for_expressions(tmp_path: Path) -> None:
    path = written(tmp_path, 'presets:\n  cheerful: "0.6 happy"\n  Stiff-2.0_x: formal - happy\n  plain: ""\n')
    assert load_presets(path) == {"cheerful": "0.6 happy", "Stiff-2.0_x": "formal - happy", "plain": ""}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("presets:\n  a: happy\n  latest: happy\n", ("line 3", "Ollama")),
        ('presets:\n  "a=1": happy\n', ("line 2",)),
        ('presets:\n  "a,b": happy\n', ("line 2",)),
        ('presets:\n  "a:b": happy\n', ("line 2",)),
        ('presets:\n  "": happy\n', ("line 2",)),
        ("presets:\n  a: happy\n  b: 0.5 happy 2\n", ("line 3",)),
        ("presets:\n  a: ./happy.gguf\n", ("line 2", "can only name vectors")),
        ("presets:\n  a: 9 happy\n", ("line 2", "stronger than 8")),
        ("presets:\n  a: [happy]\n", ("line 2",)),
        ("presets:\n  a: 1\n", ("line 2",)),
        ("presets: []\n", ("presets",)),
        ("preset:\n  a: happy\n", ("line 1", "preset")),
        ("presets: {\n", ("not valid YAML",)),
        ("", ("presets",)),
        ("- a\n", ()),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(SteeringError) as refused:
        load_presets(written(tmp_path, text))
    for part in ("presets.yaml", *parts):
        assert part in str(refused.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match=r"gone\.yaml"):
        load_presets(tmp_path / "gone.yaml")
