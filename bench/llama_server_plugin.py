"""A pytest plugin for llama.cpp's own server tests, which run in an environment without localsteer (`-p llama_server_plugin`).

It writes the outcome of every test to a file as it ends, leaves out those that are in there, and ends those that take too long.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(os.environ["COMPATIBILITY_RESULTS"])
LIMIT = float(os.environ["COMPATIBILITY_LIMIT"])  # seconds for a test
_KEPT = 3000  # characters of what a failed test has printed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is known; and no server is started once in advance for each model to be downloaded."""
    import utils  # type: ignore[import-not-found]  # of llama.cpp's tests

    utils.ServerPreset.load_all = lambda: None
    utils.ServerProcess.start.__defaults__ = (LIMIT,)  # beside other work a server may take longer to start than a minute
    known = {json.loads(line)["test"] for line in RESULTS.read_text().splitlines()} if RESULTS.exists() else set()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """End a test that takes too long."""

    def over(*_: object) -> None:
        raise TimeoutError(f"more than {LIMIT:.0f} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Write down what came of it."""
    report: pytest.TestReport = yield
    if report.when == "call" or (not report.passed and report.when == "setup"):
        crash = getattr(report.longrepr, "reprcrash", None)
        if report.skipped:
            message = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        else:
            message = crash.message if crash is not None else str(report.longrepr or "")
        said = report.capstdout[-_KEPT:] if report.failed else ""
        line = {"test": item.nodeid, "outcome": report.outcome, "message": message, "said": said, "seconds": call.duration}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return report
