"""`localsteer doctor`: what it says of vectors."""

from __future__ import annotations

import pytest

from tests.commands.runner import run
from tests.conftest import TinyPath


def test_vectors_are_told_a_line_each(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("doctor", "-m", tiny_path("llama"))
    told = run(capfd, *command).out
    assert told.count("not built for it yet") == 1
    assert "{" not in told
    assert "happy" in run(capfd, *command, "--json").document["vectors"]["not built for it yet"]
