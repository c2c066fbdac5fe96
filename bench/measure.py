"""Time and memory of whole processes, and what is kept of repeated measurements."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux


class MeasurementError(Exception):
    """A measured program failed."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well: its wall time, its peak resident memory (mapped model pages included), its stdout."""

    seconds: float
    peak_mib: float
    output: str


def run_process(command: Sequence[str]) -> Finished:
    """Run a program from the repository's root, to the end.

    The peak is never below the memory of this process, which the child shares until it starts the program: so nothing
    large, llama.cpp least of all, is loaded here.

    Raises:
        MeasurementError: it failed; the end of what it said is in the message.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=ROOT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        output = stdout.read().decode(errors="replace")
        if process.returncode:
            said = "\n".join((output + stderr.read().decode(errors="replace")).splitlines()[-20:])
            raise MeasurementError(f"{said}\n{' '.join(command)} failed (exit code {process.returncode}).")
    return Finished(seconds, usage.ru_maxrss * _MAXRSS_UNIT / 2**20, output)


def run_cli(*arguments: str) -> Finished:
    """Run our command line from the checkout."""
    return run_process([sys.executable, "cli.py", *arguments])


def run_worker(*arguments: str) -> Finished:
    """Run `bench.worker`, for what is measured inside a process through the Python API."""
    return run_process([sys.executable, "-m", "bench.worker", *arguments])


@dataclass(frozen=True)
class Series:
    """One quantity, measured once a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: Series) -> Series:
        """The ratio in each round: a round's two sides met the same load of a shared machine, so its drift cancels."""
        return Series(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)))


@dataclass(frozen=True)
class Target:
    """What the ratio has to reach."""

    bound: float
    at_least: bool

    def met_by(self, ratio: float) -> bool:
        return ratio >= self.bound if self.at_least else ratio <= self.bound


@dataclass(frozen=True)
class Comparison:
    """A line of the results: two ways to do one thing, round after round.

    Attributes:
        what: what is measured.
        unit: of both series, such as "s" or "tokens/s".
        ours: our figures.
        other: name of what they are compared with.
        theirs: its figures.
        ratio: of the two, in each round.
        ratio_is: which way round the ratio is, in words.
        target: None where no figure was asked for.
    """

    what: str
    unit: str
    ours: Series
    other: str
    theirs: Series
    ratio: Series
    ratio_is: str
    target: Target | None = None


@dataclass(frozen=True)
class Section:
    """A part of the results page.

    Attributes:
        title: heading.
        how: what was run, and what a reader must know to judge the comparison.
        comparisons: the lines of its table.
    """

    title: str
    how: str
    comparisons: tuple[Comparison, ...]
