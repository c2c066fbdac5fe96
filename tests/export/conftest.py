from __future__ import annotations

import pytest

from localsteer.llama import library


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model gains nothing from a second thread, and loses much when the other core is busy."""
    monkeypatch.setattr(library, "default_threads", lambda: 1)
