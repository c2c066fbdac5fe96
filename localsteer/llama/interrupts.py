"""Keep Ctrl-C out of C callbacks, where ctypes would print it and go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class InterruptsAfter:
    """A context manager around a call into llama.cpp that may call back into Python: Ctrl-C takes effect after it.

    Python delivers a signal at the next function entry, which may be that of a callback; an exception cannot leave one.
    """

    def __init__(self) -> None:
        self._before: Handler = None
        self._installed = False
        self._pending: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> None:
        # Only the main thread may set handlers, and only it is interrupted.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._record)
            self._installed = True

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before if self._before is not None else signal.SIG_DFL)
        if self._pending is not None and callable(self._before):
            self._before(*self._pending)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._pending = (number, frame)
