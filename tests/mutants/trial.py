"""The tests of a mutant, in a copy of the tree: forked from a process that has imported what the tests import from elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

# Seconds of a processor for one test, of which the longest takes 4; then it hangs.
_HANGS = 15
# Seconds in which no test begins or ends; then all wait for something that never comes.
_STANDS = 150.0
# A mutant may keep what it should drop.
_MEMORY = 6 << 30
_LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")


@dataclass(frozen=True)
class Ran:
    """Tests that have been run, up to the first that failed.

    Attributes:
        failed: that one, or the file that could not be imported; "" for none.
        how: "failed", "hung", or "died".
        seconds: of a processor, by test.
        reached: functions of `localsteer` by test, each as `path:qualified name`.
        said: the end of what pytest said.
    """

    failed: str = ""
    how: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    reached: Mapping[str, Sequence[str]] = field(default_factory=dict)
    said: str = ""


def get_ready() -> None:
    """Import what the tests import, but for what is mutated; llama.cpp is not initialised by that."""
    import llama_cpp  # noqa: F401
    import numpy  # noqa: F401

    for plugin in importlib.metadata.entry_points(group="pytest11"):
        plugin.load()


class Tree:
    """A copy of the tree, in which one file at a time is another one.

    Args:
        source: the root of the tree.
        folder: where the copy is made.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.root, self._source, self._folder = folder / "tree", source, folder
        shutil.copytree(source, self.root, ignore=_LEFT_BEHIND)

    def run(
        self,
        tests: Sequence[str],
        *,
        mutated: tuple[str, str] | None = None,
        limit: float = math.inf,
        trace: bool = False,
    ) -> Ran:
        """Run tests, in this order, up to the first that fails.

        Args:
            tests: files, or tests of files, as pytest names them.
            mutated: a file's path from the root, and what it holds.
            limit: seconds of a processor behind which no further test is begun.
            trace: note which functions each test calls.
        """
        if mutated is not None:
            path = self.root / mutated[0]
            path.write_text(mutated[1], encoding="utf-8")
            os.utime(path, (0, 0))  # Python would take the compiled original of the same second and size
        try:
            return self._forked(_Watch(tests, limit, trace), is_mutated=mutated is not None)
        finally:
            if mutated is not None:
                shutil.copy2(self._source / mutated[0], self.root / mutated[0])

    def _forked(self, watch: _Watch, *, is_mutated: bool) -> Ran:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        log = self._folder / "said.txt"
        context = multiprocessing.get_context("fork")
        process = context.Process(target=self._test, args=(watch, theirs, log, is_mutated))
        process.start()
        theirs.close()
        test, failed, hung = "the start", "", False
        seconds: dict[str, float] = {}
        reached: dict[str, list[str]] = {}
        try:
            while not (hung := not ours.poll(_STANDS)):
                what, *told = ours.recv()
                if what == "began":
                    test = told[0]
                elif what == "failed":
                    failed = failed or told[0]
                elif what == "ended":
                    seconds[told[0]], reached[told[0]] = told[1:]
        except EOFError:
            pass
        finally:
            if hung or sys.exc_info()[0] is not None:
                _end(process.pid)
            process.join()
            _end(process.pid)  # what it has started
        how = "failed" if failed else ""
        if not failed and (hung or process.exitcode not in (0, 2, 5)):
            failed, how = test, "hung" if hung or process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) else "died"
        return Ran(failed, how, seconds, reached, log.read_text(errors="replace")[-2000:])

    def _test(self, watch: _Watch, tell: Connection, log: Path, is_mutated: bool) -> None:
        """Be the process that runs them."""
        os.setsid()
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(self.root)
        os.environ["PYTHONPATH"] = str(self.root)
        sys.path[:] = [str(self.root), *(one for one in sys.path if Path(one or ".").resolve() != self._source)]
        # Python takes a module as it was compiled before where its file has the size and time of then: `run` gives the time back,
        # and what is mutated is not kept.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1" if is_mutated else ""
        sys.dont_write_bytecode = is_mutated
        for name in [name for name in sys.modules if name.partition(".")[0] in ("localsteer", "tests", "bench", "handbook")]:
            del sys.modules[name]
        _limit(resource.RLIMIT_DATA, _MEMORY)
        watch.tell, watch.root = tell.send, str(self.root)
        options = ["-x", "-p", "no:xdist", "-p", "no:cacheprovider", f"--basetemp={self._folder / 'temporary'}"]
        files = list(dict.fromkeys(test.partition("::")[0] for test in watch.tests))
        code = pytest.main([*options, *files], plugins=[watch])
        sys.stdout.flush()
        os._exit(code)


def _limit(kind: int, most: int) -> None:
    """So much, or as much as this process may set for itself."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _end(pid: int | None) -> None:
    """Kill a process with all that it has started."""
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class _Watch:
    """A plugin of pytest that runs the tests that are asked for, in that order, and tells what becomes of them."""

    def __init__(self, tests: Sequence[str], limit: float, trace: bool) -> None:
        self.tests, self._limit, self._trace = tests, limit, trace
        self.tell: Callable[[Any], None] = print
        self.root = ""
        self._seen: set[CodeType] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        places = {test: place for place, test in enumerate(self.tests)}
        files = [item for item in items if item.nodeid in places or item.nodeid.partition("::")[0] in places]
        items[:] = sorted(files, key=lambda item: places.get(item.nodeid, places.get(item.nodeid.partition("::")[0], 0)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.failed:
            self.tell(("failed", report.nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start = time.process_time()
        self.tell(("began", item.nodeid))
        _limit(resource.RLIMIT_CPU, int(start) + _HANGS)
        self._seen.clear()
        if self._trace:
            sys.settrace(self._look)
        try:
            return (yield)
        finally:
            if self._trace:
                sys.settrace(None)
            mine = {one for code in self._seen if (one := self._name(code))}
            self.tell(("ended", item.nodeid, time.process_time() - start, sorted(mine)))
            if time.process_time() > self._limit:
                item.session.shouldstop = "that was long enough"

    def _look(self, frame: FrameType, _event: str, _argument: object) -> None:
        self._seen.add(frame.f_code)

    def _name(self, code: CodeType) -> str:
        """Of a function of `localsteer`, the one around it where it is a comprehension or lambda."""
        if not code.co_filename.startswith(f"{self.root}/localsteer/"):
            return ""
        name = code.co_qualname
        while name.endswith(">") and not name.endswith("<locals>"):
            name = name.rpartition(".")[0].removesuffix(".<locals>")
        return f"{code.co_filename.removeprefix(self.root + '/')}:{name}"


def reach(tree: Tree, rooms: Sequence[str], kept: Path, say: Callable[[str], None]) -> dict[str, tuple[float, frozenset[str]]]:
    """Each test of the rooms: its seconds of a processor, and the functions that it calls. What was seen before is read again.

    Raises:
        RuntimeError: a test fails without any mutant.
    """
    sources = sorted((tree.root / "localsteer").rglob("*.py")) + sorted((tree.root / "tests").glob("*/conftest.py"))
    state = _digest(sources)
    found: dict[str, tuple[float, frozenset[str]]] = {}
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for file in (file for room in rooms for file in sorted((tree.root / "tests" / room).glob("test_*.py"))):
        name, now = file.relative_to(tree.root).as_posix(), f"{state} {_digest([file])}"
        if known.get(name, {}).get("state") != now:
            ran = tree.run([name], trace=True)
            if ran.failed:
                raise RuntimeError(f"{ran.failed} {ran.how} without any mutant:\n{ran.said}")
            known[name] = {"state": now, "tests": {test: [ran.seconds[test], ran.reached[test]] for test in ran.seconds}}
            kept.write_text(json.dumps(known))
            say(f"{name}: {len(ran.seconds)} tests, {sum(ran.seconds.values()):.1f} s of a processor")
        found |= {test: (seconds, frozenset(names)) for test, (seconds, names) in known[name]["tests"].items()}
    return found


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
