"""Runs the command line inside the test process."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from localsteer.commands import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document it must be."""
        return json.loads(self.out)


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Result:
    """Call `main`; the logging that it sets up for a process is undone."""
    loggers = [logging.getLogger(name) for name in ("localsteer", "localsteer.llama")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers = handlers
    out, err = capfd.readouterr()
    code = stopped.value.code
    return Result(code if isinstance(code, int) else 0, out, err)


def assert_one_clear_line(result: Result, *parts: str) -> None:
    """Exit code 1, nothing on stdout, and one message on stderr that names these parts."""
    assert result.code == 1, result
    assert result.out == ""
    assert result.err.startswith("localsteer: ")
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    for part in parts:
        assert part in result.err, result.err


CONCEPT = """\
name: loud
poles: {positive: loud, negative: quiet}
template: "You are {persona}."
personas:
  positive: [very loud, a shouting man]
  negative: [very quiet, a whispering man]
openings: [I, "Well,", Today, "In the house", "My", "All of"]
held_out: {questions: ["How are you?"]}
"""
