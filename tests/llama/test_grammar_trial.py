"""Grammars tried in a process of their own, and processes that do not start."""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama import grammar_trial
from localsteer.llama.apart import Outcome, run_apart
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
    patient = replace(grammar_trial._LIMITS, clock=300)
    assert run_apart(grammar_trial.__name__, ENDLESS.encode(), patient).end == "processor"


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


def test_one_for_which_the_machine_had_no_time_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_trial, "run_apart", lambda *_: Outcome("clock"))
    with pytest.raises(TooMuchError, match="too long"):
        try_apart("start: a")
    monkeypatch.undo()
    try_apart("start: a")


def test_few_run_at_a_time_and_what_came_of_each_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[bytes] = []
    begun: list[bytes] = []
    most = 0
    lock = threading.Lock()

    def run(_module: str, given: bytes, *_: Any) -> Outcome:
        nonlocal most
        with lock:
            begun.append(given)
            running.append(given)
            most = max(most, len(running))
        time.sleep(0.01)
        with lock:
            running.remove(given)
        return Outcome("well", b"it is odd" * (given[-1] % 2))

    def tried(number: int) -> str:
        try:
            try_apart(f"start: {number % 10}")
        except TooMuchError as error:
            return str(error)
        return ""

    monkeypatch.setattr(grammar_trial, "run_apart", run)
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(tried, range(40))) == ["", "it is odd"] * 20
    assert most <= 2
    assert len(begun) <= 20  # two of the same may run side by side
    begun.clear()
    assert [tried(number) for number in range(10)] == ["", "it is odd"] * 5
    assert begun == []
