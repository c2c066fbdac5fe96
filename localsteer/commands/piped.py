"""What is piped into a command."""

from __future__ import annotations

import io
import os
import select
import stat
import sys

from localsteer.commands.output import note

# A program that was started with a pipe which nobody writes to must not wait for ever, and one that writes has had the time in
# which the model was opened.
_SECONDS_OF_SILENCE = 0.5


def with_stdin(prompt: str) -> str:
    """The prompt that a command was given, behind what is piped in; - stands for what comes from stdin, and waits for it."""
    if prompt == "-":
        return sys.stdin.read()
    context = _piped_text().rstrip()
    return f"{context}\n\n{prompt}" if context else prompt


def _piped_text() -> str:
    """All that a pipe or a file on stdin gives, up to its end; nothing where stdin is anything else.

    Nothing either of a file that somebody else reads (as in `while read -r line; do localsteer ...; done < lines.txt`), nor of a
    pipe that is open and silent, which is told.
    """
    try:
        number = sys.stdin.fileno()
        mode = os.fstat(number).st_mode
    except (AttributeError, ValueError, OSError, io.UnsupportedOperation):  # closed, or no file of the system's
        return ""
    if stat.S_ISREG(mode):
        return sys.stdin.read() if os.lseek(number, 0, os.SEEK_CUR) == 0 else ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):  # what Node's programs pipe comes through a socket
        return ""
    if not _says_something(number):
        note("Nothing came through the pipe on stdin, and it is not waited for. With - as the prompt it is.")
        return ""
    return sys.stdin.read()


def _says_something(pipe: int) -> bool:
    """Whether there is something to read, or the end."""
    try:
        return bool(select.select([pipe], [], [], _SECONDS_OF_SILENCE)[0])
    except OSError:  # Windows can select sockets only
        return False
