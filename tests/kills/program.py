"""localsteer on a tiny model, in a process that has imported it already, and which may end right before it changes the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# All that commands import, once for all of them: the processes are forked from one that has done so (`multiprocessing`).
# llama.cpp is imported and not initialised (`localsteer.llama.library.load`): its threads would not be there behind a fork.
import llama_cpp  # noqa: F401
import pytest

import localsteer.chat.live
import localsteer.commands.calibrate
import localsteer.commands.chat
import localsteer.commands.export
import localsteer.commands.extract
import localsteer.commands.generate
import localsteer.commands.history
import localsteer.commands.models
import localsteer.commands.policy
import localsteer.commands.serve
import localsteer.commands.vectors
import localsteer.policy.arm
import localsteer.server.app
import localsteer.server.listener  # noqa: F401
from localsteer.commands import main
from localsteer.export import share
from tests.calibration.made import make_small

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink", "os.utime")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Run:
    """What a process does.

    Attributes:
        box: its folder, with `home` and `work`.
        arguments: behind `localsteer`.
        environment: all of it.
        streams: files that are its stdin, stdout and stderr.
        notes: a file outside of the box that gets a byte for each change of what is in it.
        before: the change before which it ends, counted from 1; 0 for none.
        signal: by which.
    """

    box: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    streams: tuple[Path, Path, Path]
    notes: Path
    before: int = 0
    signal: int = signal.SIGKILL

    def __call__(self) -> None:
        """Be that process."""
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.box / "work")
        for number, (path, mode) in enumerate(zip(self.streams, (os.O_RDWR, os.O_RDWR, os.O_WRONLY | os.O_APPEND), strict=True)):
            opened = os.open(path, mode)
            os.dup2(opened, number)
            os.close(opened)
        for name, number, way in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
            buffering = 1 if name == "stderr" else -1
            setattr(sys, name, os.fdopen(number, way, buffering, encoding="utf-8", closefd=False))
        # What takes minutes with a real model shall take a second.
        make_small(pytest.MonkeyPatch())
        share._TOKENS = 4
        self._count_changes()
        with contextlib.suppress(KeyboardInterrupt):  # between `main` and the end
            main(self.arguments)

    def _count_changes(self) -> None:
        counter, folder = os.open(self.notes, os.O_WRONLY | os.O_APPEND), str(self.box)
        count = 0

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            place = _place(event, arguments)
            if place is None or isinstance(place, int) or not os.path.abspath(os.fsdecode(place)).startswith(folder):
                return
            os.write(counter, b".")
            count += 1
            if count == self.before:
                os.kill(os.getpid(), self.signal)

        sys.addaudithook(look)


def _place(event: str, arguments: tuple[Any, ...]) -> Any:
    """What is changed; None where nothing is."""
    if event == "open":
        path, _, flags = arguments
        return path if flags & _WRITES else None
    return arguments[0] if event in _CHANGES else None
