from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from localsteer.errors import ExportError
from localsteer.export.knobs import export_knobs, server_command
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector
from tests.conftest import random_rows


def loud(model: Model, name: str) -> ControlVector:
    rows = random_rows(model, (1, 2), seed=len(name), norm=3.0)
    return ControlVector({layer: rows[layer] for layer in (1, 2)})


def test_each_knob_is_an_adapter_with_the_number_that_llama_server_gives_it(tiny: Model, tmp_path: Path) -> None:
    folder = tmp_path / "my knobs"
    made = export_knobs(["loud", "warm.gguf"], folder, lambda name: loud(tiny, name), tiny)
    assert [(knob.number, knob.name) for knob in made] == [(0, "loud"), (1, "warm")]
    assert {path.name for path in folder.iterdir()} == {"loud.gguf", "warm.gguf", "README.md"}
    assert all(knob.adapted.fidelity is not None for knob in made)
    command = server_command(made, Path("m.gguf"))
    assert command == f"llama-server -m m.gguf --lora-scaled '{folder / 'loud.gguf'}:0' --lora-scaled '{folder / 'warm.gguf'}:0'"


def test_the_page_says_how_to_start_and_to_ask(tiny: Model, tmp_path: Path) -> None:
    made = export_knobs(["loud", "warm"], tmp_path, lambda name: loud(tiny, name), tiny, verify=False)
    page = (tmp_path / "README.md").read_text()
    assert server_command(made, tiny.path) in page
    assert "| 0 | loud | 1 | -1 | not verified |" in page
    asked = [json.loads(text) for text in re.findall(r"-d '(.*)'", page)]
    assert asked[0]["lora"] == [{"id": 0, "scale": 0.5}, {"id": 1, "scale": 0.5}]
    assert asked[1] == [{"id": 0, "scale": 1}]


def test_knobs_are_made_again_and_nobody_elses_page_is_replaced(tiny: Model, tmp_path: Path) -> None:
    for names in (["loud"], ["loud", "warm"]):
        export_knobs(names, tmp_path / "ours", lambda name: loud(tiny, name), tiny, verify=False)
    assert "| 1 | warm |" in (tmp_path / "ours" / "README.md").read_text()
    (tmp_path / "README.md").write_text("# A project\n")
    with pytest.raises(ExportError, match=r"README\.md is there already"):
        export_knobs(["loud"], tmp_path, lambda name: loud(tiny, name), tiny, verify=False)
    assert not (tmp_path / "loud.gguf").exists()


def test_a_name_that_llama_server_would_split_is_an_error(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "at 12:30"
    odd.mkdir()
    with pytest.raises(ExportError, match="no file with a colon"):
        export_knobs(["loud"], odd, lambda name: loud(tiny, name), tiny)
    assert not list(odd.iterdir())
    monkeypatch.chdir(odd)  # as a drive does, it stands in front of all names
    made = export_knobs(["loud"], odd / "knobs", lambda name: loud(tiny, name), tiny, verify=False)
    assert server_command(made, Path("m.gguf")) == "llama-server -m m.gguf --lora-scaled knobs/loud.gguf:0"


def test_two_knobs_of_one_name_and_a_folder_that_is_a_file_are_errors(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Two vectors would be .*loud\.gguf"):
        export_knobs(["loud", "other/loud.gguf"], tmp_path / "knobs", lambda name: loud(tiny, name), tiny)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot be made"):
        export_knobs(["loud"], tmp_path / "file", lambda name: loud(tiny, name), tiny)
