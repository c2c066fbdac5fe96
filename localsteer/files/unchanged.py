"""What was read from files, kept as long as they stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class WhileUnchanged(Generic[T]):
    """Reads a file, and again only where it is another one: by its time of change, its size, or its number on the disk.

    The number tells of a file that took the other's place within one tick of the clock, which is 4 ms on Linux.

    Args:
        read: reads it; what it raises is not kept.
    """

    def __init__(self, read: Callable[[Path], T]) -> None:
        self._read = read
        self._known: dict[Path, tuple[tuple[int, int, int], T]] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> T:
        """The contents; the same object as long as the file is the same.

        Raises:
            Exception: what `read` raises.
        """
        with self._lock:  # also while it is read: who wants it meanwhile gets the same object
            try:
                # Before it is read: what changes meanwhile is read again next time.
                state = path.stat()
            except OSError:
                self._known.pop(path, None)
                return self._read(path)
            stamp = state.st_mtime_ns, state.st_size, state.st_ino
            if path not in self._known or self._known[path][0] != stamp:
                self._known[path] = stamp, self._read(path)
            return self._known[path][1]
