"""Grammars tried in a process of their own, and processes that do not start."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama import grammar_trial
from localsteer.llama.grammar import Grammar
from localsteer.llama.grammar_trial import TooMuchError, try_apart
from localsteer.llama.model import Model

# Takes minutes.
ENDLESS = "start: x\nx: " + " | ".join(f'"a" x "b{number}"' for number in range(3000)) + ' | ""'


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_trial, "_known", OrderedDict())


@pytest.mark.skipif(sys.platform == "win32", reason="a process's time cannot be limited")
def test_it_ends_by_itself() -> None:
    command = [sys.executable, "-P", grammar_trial.__file__]
    tried = subprocess.run(command, input=ENDLESS.encode(), capture_output=True, timeout=100, check=False)
    assert tried.returncode == -signal.SIGXCPU


def test_a_process_that_does_not_start_says_nothing_of_the_grammar(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "app"
    program.write_text("#!/bin/sh\necho no such option: -P >&2\nexit 2\n")
    program.chmod(0o755)
    for executable, problem in ((str(tmp_path / "gone"), "No such file"), (str(program), "no such option: -P")):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", executable)
            with pytest.raises(LocalsteerError) as caught:
                Grammar(tiny, 'start: "a"')
        assert executable in str(caught.value)
        assert problem in str(caught.value)
    assert Grammar(tiny, 'start: "a"').matcher().allows(ord("a"))


def test_one_that_does_not_start_in_time_is_told_from_one_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, problem in ((b"", "not started"), (grammar_trial._STARTED, "too long")):

        def run(*_: Any, said: bytes = said, **__: Any) -> Any:
            raise subprocess.TimeoutExpired("python", 30, output=said)

        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises((TooMuchError, grammar_trial.NotTriedError), match=problem):
            try_apart("start: a")
    monkeypatch.undo()
    try_apart("start: a")  # neither is remembered


def test_few_run_at_a_time_and_what_came_of_each_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[bytes] = []
    begun: list[bytes] = []
    most = 0
    lock = threading.Lock()

    def run(*_: Any, input: bytes, **__: Any) -> Any:
        nonlocal most
        with lock:
            begun.append(input)
            running.append(input)
            most = max(most, len(running))
        time.sleep(0.01)
        with lock:
            running.remove(input)
        return subprocess.CompletedProcess([], 0, grammar_trial._STARTED + b"it is odd" * (input[-1] % 2), b"")

    def tried(number: int) -> str:
        try:
            try_apart(f"start: {number % 10}")
        except TooMuchError as error:
            return str(error)
        return ""

    monkeypatch.setattr(subprocess, "run", run)
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(tried, range(40))) == ["", "it is odd"] * 20
    assert most <= 2
    assert len(begun) <= 20  # two of the same may run side by side
    begun.clear()
    assert [tried(number) for number in range(10)] == ["", "it is odd"] * 5
    assert begun == []
