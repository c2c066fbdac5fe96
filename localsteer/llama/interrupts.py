"""Keep Ctrl-C out of C callbacks, where ctypes would print it and go on; and end the work of other threads as it ends ours."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Stop:
    """Ends the work of one thread: it is interrupted where it leaves llama.cpp, or before it gets there again.

    Attributes:
        wanted: set by others: from now on, the thread gets a KeyboardInterrupt.
        inside: set by the thread while it is in llama.cpp.
    """

    wanted: bool = False
    inside: bool = False


# Its `stop` is that by which this thread can be ended.
here = threading.local()


@contextlib.contextmanager
def interrupts_after() -> Iterator[None]:
    """Around a call into llama.cpp that may call back into Python: Ctrl-C takes effect after it.

    Python delivers a signal at the next function entry, which may be that of a callback; an exception cannot leave one. A thread
    that has a `Stop` is interrupted by that in the same places.

    Raises:
        KeyboardInterrupt: this thread is to end.
    """
    stop: Stop | None = getattr(here, "stop", None)
    # Only the main thread may set handlers, and only it is interrupted.
    if threading.current_thread() is threading.main_thread():
        pending: list[Any] = []
        before = signal.signal(signal.SIGINT, lambda *arrived: pending.append(arrived))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
            if pending and callable(before):
                before(*pending[-1])
    elif stop is not None:
        stop.inside = True  # before the look at what is wanted: who wants it looks at this one afterwards
        try:
            _end_if(stop.wanted)
            yield
        finally:
            stop.inside = False
            _end_if(stop.wanted)
    else:
        yield


def _end_if(wanted: bool) -> None:
    if wanted:
        raise KeyboardInterrupt
