from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from localsteer.llama import library


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model gains nothing from a second thread, and loses much when the other core is busy."""
    monkeypatch.setattr(library, "default_threads", lambda: 1)


@pytest.fixture(autouse=True)
def _hangs_up() -> Iterator[None]:
    """SIGHUP reaches the tests that send it, and what they start, also where pytest itself was started by nohup."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
