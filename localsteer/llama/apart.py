"""What a stranger gave, tried in a process of its own, whose time and memory have limits.

Some files and texts end the process of llama.cpp or llguidance, take all memory, or never come back.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localsteer.errors import shown

_STARTED = b"started\n"
# This package wherever it is, and nothing else from there: a folder of packages must not stand in front of Python's own.
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import localsteer; del sys.path[0]; "
_PROGRAM += "from localsteer.llama.apart import run_here; run_here(*sys.argv[2:])"
_FOLDER = Path(__file__).parents[2]
# ggml starts a debugger to print its stack where it fails, for seconds. OpenBLAS takes 30 MB a processor, and is not used.
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "OPENBLAS_NUM_THREADS": "1"}
_LONGEST_WORDS = 200
# The folder of a source file that llama.cpp names, which is one of the machine that it was compiled on.
_SOURCE_FOLDER = re.compile(r"^.*/(?=[^/]+:\d+: )")


class NotStartedError(Exception):
    """The process does not start on this machine; says why."""


@dataclass(frozen=True)
class Limits:
    """What the process may take.

    Attributes:
        processor: seconds of all its threads together, the start included; not on Windows.
        clock: seconds for the same on a machine that has much else to do.
        memory: bytes that it writes to (files that are only read do not count); only on Linux.
    """

    processor: int
    clock: float
    memory: int


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        end: whether it ended by itself, was ended by one of the limits of time, or died.
        output: what it returned where it ended well.
        last_words: where it died, the last that it said, or by which signal.
    """

    end: Literal["well", "processor", "clock", "died"]
    output: bytes = b""
    last_words: str = ""


def run_apart(module: str, given: bytes, limits: Limits) -> Outcome:
    """Run a module's `prepare()`, and then what that returns on `given`, in a process of its own.

    Args:
        module: its name. What `prepare` imports counts as the start: where that fails, nothing is said of what was given.
        given: what to try; what is returned for it comes back.
        limits: of the process.

    Raises:
        NotStartedError: the process does not start.
    """
    python = sys.executable or "python"
    command = [python, "-P", "-c", _PROGRAM, str(_FOLDER), module, str(limits.processor), str(limits.memory)]
    environment = {**os.environ, **_ENVIRONMENT}
    try:
        ran = subprocess.run(command, input=given, capture_output=True, timeout=limits.clock, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        if not (error.stdout or b"").startswith(_STARTED):
            raise NotStartedError(f"{python} has not started within {limits.clock:g} s") from error
        return Outcome("clock")
    except OSError as error:
        raise NotStartedError(f"{python} does not start ({error.strerror})") from error
    words = _last_words(ran.stderr, ran.returncode)
    if not ran.stdout.startswith(_STARTED):
        raise NotStartedError(f"{python} does not start ({words})")
    if ran.returncode == 0:
        return Outcome("well", ran.stdout[len(_STARTED) :])
    if sys.platform != "win32" and ran.returncode == -signal.SIGXCPU:
        return Outcome("processor")
    return Outcome("died", last_words=words)


def _last_words(said: bytes, code: int) -> str:
    lines = [line for line in said.decode("utf-8", errors="replace").splitlines() if line.strip()]
    if lines:
        return shown(_SOURCE_FOLDER.sub("", lines[-1]).strip())[:_LONGEST_WORDS]
    with contextlib.suppress(ValueError):  # no signal of this system
        if code < 0 and (name := signal.strsignal(-code)):
            return name
    return f"exit status {code}"


def run_here(module: str, processor: str, memory: str) -> None:
    """Be that process."""
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        # That of time ends one whose parent was killed as well. Behind the one that can be heard of comes the one that kills.
        for kind, least, most in (
            (resource.RLIMIT_CPU, int(processor), int(processor) + 1),
            (resource.RLIMIT_DATA, int(memory), int(memory)),
        ):
            with contextlib.suppress(ValueError, OSError):  # macOS may refuse that of memory; a lower one may be set already
                resource.setrlimit(kind, (least, most))
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    try_it = importlib.import_module(module).prepare()
    answer.write(_STARTED)
    answer.flush()
    answer.write(try_it(sys.stdin.buffer.read()))
    answer.close()
