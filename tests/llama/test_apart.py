"""Processes that die, run on, take too much memory, or do not start."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from localsteer.llama.apart import Limits, NotStartedError, run_apart

LIMITS = Limits(processor=20, clock=120, memory=1 << 30)
PROGRAM = """
import ctypes, os, sys

def prepare():
    return lambda given: eval(given)
"""


ASSERTION = b"first\n/build/src/llama.cpp:7: GGML_ASSERT(\x1b[2Jx) failed\n"


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_what_it_returns_comes_back() -> None:
    outcome = run_apart("stranger", b"b'said: ' + b'x' * 3", LIMITS)
    assert (outcome.end, outcome.output, outcome.last_words) == ("well", b"said: xxx", "")


@pytest.mark.parametrize(
    ("given", "last_words"),
    [
        (b"os.abort()", "Aborted"),
        (b"ctypes.string_at(0)", "Segmentation fault"),
        (b"os.write(2, %r) + os.abort()" % ASSERTION, "llama.cpp:7: GGML_ASSERT(?[2Jx) failed"),
        (b"os._exit(9)", "exit status 9"),
        (b"1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="it has no signals")
def test_the_last_words_of_one_that_dies(given: bytes, last_words: str) -> None:
    outcome = run_apart("stranger", given, LIMITS)
    assert (outcome.end, outcome.last_words) == ("died", last_words)


@pytest.mark.skipif(sys.platform == "win32", reason="a process's time cannot be limited")
def test_one_that_runs_on_is_ended_and_what_it_wrote_is_kept() -> None:
    given = b"[os.write(1, b'begun'), [0 for _ in iter(int, 1)]]"
    outcome = run_apart("stranger", given, Limits(processor=1, clock=120, memory=1 << 30))
    assert (outcome.end, outcome.output) == ("processor", b"begun")


def test_one_that_waits_is_ended() -> None:
    begun = time.monotonic()
    assert run_apart("stranger", b"__import__('time').sleep(1000)", Limits(20, clock=20, memory=1 << 30)).end == "clock"
    assert time.monotonic() - begun < 500


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory cannot be limited")
def test_one_that_takes_all_memory_gets_none() -> None:
    assert run_apart("stranger", b"bytes(b'x' * (2 << 30))[:0]", LIMITS).last_words == "MemoryError"


def test_one_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotStartedError, match="No module named 'nobody'"):
        run_apart("nobody", b"", LIMITS)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NotStartedError, match="No such file"):
        run_apart("stranger", b"", LIMITS)


def test_a_folder_of_packages_does_not_stand_before_pythons_own() -> None:
    outcome = run_apart("stranger", b"repr([__import__('localsteer').__file__, sys.path]).encode()", LIMITS)
    import localsteer

    file, path = eval(outcome.output)
    assert Path(file) == Path(localsteer.__file__)
    assert str(Path(file).parents[1]) not in path[:2]
