from __future__ import annotations

import threading

import pytest

from localsteer.llama.threads import compute_apart


def test_what_is_computed_apart_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    worker = compute_apart(threading.current_thread)
    assert worker is not threading.current_thread()
    assert not worker.is_alive()
    assert threading.active_count() == before


def test_what_fails_apart_fails_here() -> None:
    with pytest.raises(ZeroDivisionError):
        compute_apart(lambda: 1 / 0)
