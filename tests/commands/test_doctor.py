"""`localsteer doctor`: what it says of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from tests.commands.runner import CONCEPT, run
from tests.conftest import TinyPath
from tests.vector.made_dosing import dosing


def test_vectors_are_told_a_line_each(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("doctor", "-m", tiny_path("llama"))
    told = run(capfd, *command).out
    assert told.count("not built for it yet") == 1
    assert "{" not in told
    assert "happy" in run(capfd, *command, "--json").document["vectors"]["not built for it yet"]


def test_a_built_vector_is_told_by_what_was_measured_and_one_that_was_not_dosed_as_such(
    tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with Model(tiny_path("llama")) as model:
        own, row = model.fingerprint, np.ones(model.n_embd, np.float32)
    for name, measured in (("loud", dosing(content=own.content)), ("quiet", None)):
        folder = tmp_path / "localsteer" / "vectors" / name
        folder.mkdir(parents=True)
        (folder / "concept.yaml").write_text(CONCEPT.replace("name: loud", f"name: {name}"))
        write_vector(ControlVector({1: row}, Provenance(model=own, dosing=measured)), folder / "tiny.gguf")
    torn = tmp_path / "localsteer" / "vectors" / "torn"
    torn.mkdir()
    (torn / "concept.yaml").write_bytes(b"name: \xff")
    lines = run(capfd, "doctor", "-m", tiny_path("llama")).out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(" +1 ")] == [["+1", "loud"]]
    assert any(line.startswith(" -1 loud ") and "its answers 0.5 nats likelier" in line for line in lines)
    assert [line.split()[0] for line in lines if "never dosed" in line] == ["quiet"]
    assert any(line.startswith(" torn ") for line in lines)
    told = run(capfd, "doctor", "-m", tiny_path("llama"), "--json").document["vectors"]
    assert told["torn"]
    assert "0.5 nats a token likelier" in told["+1 loud"]
    assert told["quiet"].startswith("there, and never dosed")
