"""Commands of the system, whose output is context for a message."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable

from localsteer.chat.session import MOST_CONTEXT
from localsteer.errors import LocalsteerError

# A command that takes longer is no context for a message.
_SECONDS = 60
# More than that is no context either: a character has four bytes at most.
_MOST_BYTES = 4 * MOST_CONTEXT + 1


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
    # Into a file: what is left running is not waited for. In a session of its own: it can be ended with all that it started,
    # and cannot ask anything on the terminal.
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        why = ""
        while not why:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(0.1)
                output.seek(0)
                return status, output.read(_MOST_BYTES).decode("utf-8", errors="replace")
            if should_stop():
                why = "was stopped"
            elif time.monotonic() > end:
                why = f"did not end within {_SECONDS} seconds, and was ended"
            elif os.fstat(output.fileno()).st_size > _MOST_BYTES:
                why = f"wrote more than {_MOST_BYTES:,} bytes, and was ended"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    raise LocalsteerError(f"{command} {why}.")
