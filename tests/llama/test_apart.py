"""Processes that die, run on, take too much memory, or do not start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from localsteer.llama.apart import Limits, NotStartedError, run_apart

LIMITS = Limits(processor=20, clock=300, memory=1 << 30)
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


def test_what_it_returns_comes_back_and_nothing_that_it_prints() -> None:
    outcome = run_apart("stranger", b"[os.write(1, b'printed'), b'said: ' + b'x' * 3][1]", LIMITS)
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
def test_one_that_runs_on_is_ended() -> None:
    outcome = run_apart("stranger", b"[0 for _ in iter(int, 1)]", Limits(processor=1, clock=300, memory=1 << 30))
    assert outcome.end == "processor"


def test_one_that_waits_is_told_from_one_that_does_not_start_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b""

    def run(*_: object, **__: object) -> NoReturn:
        raise subprocess.TimeoutExpired("python", 300, output=said)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(NotStartedError, match="has not started within 300 s"):
        run_apart("stranger", b"", LIMITS)
    said = b"started\n"
    assert run_apart("stranger", b"", LIMITS).end == "clock"


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
