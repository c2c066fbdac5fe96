from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localsteer.export.gguf_rewrite import ModelFile, open_model_file
from localsteer.llama import library

Opened = Callable[[Path], ModelFile]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model gains nothing from a second thread, and loses much when the other core is busy."""
    monkeypatch.setattr(library, "default_threads", lambda: 1)


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens model files until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda path: stack.enter_context(open_model_file(path))
