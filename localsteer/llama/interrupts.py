"""Keep Ctrl-C out of C callbacks, where ctypes would print it and go on; and end the work of other threads as it ends ours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class Stop:
    """Ends the work of one thread: it is interrupted where it leaves llama.cpp, or before it gets there again.

    Attributes:
        inside: whether the thread is in llama.cpp now.
    """

    def __init__(self) -> None:
        self.inside = False
        self._wanted = False
        self._lock = threading.Lock()

    def ask(self) -> None:
        """From now on; the thread gets a KeyboardInterrupt."""
        with self._lock:
            self._wanted = True

    def enter(self) -> None:
        """Called by the thread before it calls llama.cpp.

        Raises:
            KeyboardInterrupt: it is to end.
        """
        with self._lock:
            if self._wanted:
                raise KeyboardInterrupt
            self.inside = True

    def leave(self) -> None:
        """Called by the thread after that.

        Raises:
            KeyboardInterrupt: it is to end.
        """
        with self._lock:
            self.inside = False
            if self._wanted:
                raise KeyboardInterrupt


class _Here(threading.local):
    stop: Stop | None = None


_here = _Here()


def set_stop(stop: Stop) -> None:
    """By what this thread can be ended."""
    _here.stop = stop


class InterruptsAfter:
    """A context manager around a call into llama.cpp that may call back into Python: Ctrl-C takes effect after it.

    Python delivers a signal at the next function entry, which may be that of a callback; an exception cannot leave one. A thread
    that has a `Stop` is interrupted by that in the same places.
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
        elif _here.stop is not None:
            _here.stop.enter()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before if self._before is not None else signal.SIG_DFL)
        elif _here.stop is not None:
            _here.stop.leave()
        if self._pending is not None and callable(self._before):
            self._before(*self._pending)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._pending = (number, frame)
