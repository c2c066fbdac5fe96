"""Commands of the system, whose output is context for a message."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

from localsteer.errors import LocalsteerError

# A command that takes longer is no context for a message.
_SECONDS = 60


def run_shell(command: str, should_stop: Callable[[], bool]) -> tuple[int, str]:
    """Run a line of the shell.

    Args:
        command: the line.
        should_stop: asked several times a second; True ends the command and all that it started.

    Returns:
        Its exit status, and what it wrote.

    Raises:
        LocalsteerError: it was stopped, or did not end within a minute.
    """
    end = time.monotonic() + _SECONDS
    # In a session of its own: it can be ended with all that it started, and cannot ask anything on the terminal.
    with subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        while not should_stop() and time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=0.1)
                return process.returncode, output.decode("utf-8", errors="replace")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    why = "was stopped" if time.monotonic() < end else f"did not end within {_SECONDS} seconds, and was ended"
    raise LocalsteerError(f"{command} {why}.")
