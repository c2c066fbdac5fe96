"""Computing in a thread that ends, and signals that wait for llama.cpp: out of a C callback ctypes would print them and go on."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds that work outside llama.cpp has to come to its end. None of ours takes that long but waiting for another process.
_PATIENCE = 2.0
# Seconds between two looks at Ctrl-C: on Windows a wait without an end keeps it out.
_LOOK = 0.2


@dataclass
class _Stop:
    """Ends the work of one thread: it is interrupted where it leaves llama.cpp, or before it gets there again.

    Attributes:
        wanted: tells whether the thread is to get a KeyboardInterrupt.
        inside: set by the thread while it is in llama.cpp.
    """

    wanted: Callable[[], bool]
    inside: bool = False


# Its `stop` is that by which this thread can be ended.
_here = threading.local()
# Those by which users and systems end programs. SIGHUP is that of a terminal that is closed; Windows has none.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def interrupts_after() -> Iterator[Callable[[], bool]]:
    """Around a call into llama.cpp that may call back into Python, or what must be done as a whole: signals take effect after it.

    Python delivers a signal at the next function entry, which may be that of a callback; an exception cannot leave one. A thread
    that has a `_Stop` is interrupted by that in the same places. Signals that have no handler end the process as ever.

    Yields:
        Tells whether something waits for the call to end, for calls that can be told to.

    Raises:
        BaseException: what the handler of a signal raises; KeyboardInterrupt where this thread is to end.
    """
    stop: _Stop | None = getattr(_here, "stop", None)
    # Only the main thread may set handlers, and only it is interrupted.
    if threading.current_thread() is threading.main_thread():
        pending: list[tuple[int, FrameType | None]] = []
        before = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
        for number in before:
            signal.signal(number, lambda *arrived: pending.append(arrived))
        try:
            yield lambda: bool(pending)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for number, frame in pending:
                before[number](number, frame)
    elif stop is not None:
        stop.inside = True  # before the look at what is wanted: who wants it looks at this one afterwards
        try:
            _end_if(stop.wanted())
            yield stop.wanted
        finally:
            stop.inside = False
            _end_if(stop.wanted())
    else:
        yield lambda: False


def _end_if(wanted: bool) -> None:
    if wanted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def ended_by(wanted: Callable[[], bool]) -> Iterator[None]:
    """Within it, a thread other than the main one is interrupted in its calls into llama.cpp, as that one is by signals.

    Args:
        wanted: tells whether it is to be, from then on.
    """
    before = getattr(_here, "stop", None)
    _here.stop = _Stop(wanted)
    try:
        yield
    finally:
        _here.stop = before


class Apart(Generic[T]):
    """A function in a thread of its own, which ends with it.

    OpenMP keeps the helpers of every thread that ever computed, as long as that thread lives; where all of them together are
    more than the cores, its barriers sleep instead of spinning. On two cores the server decoded 46 tokens a second beside the
    main thread's idle helpers, and 61 without them.

    Args:
        compute: the function.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._result: Future[T] = Future()
        self._wanted = threading.Event()
        self._stop = _Stop(self._wanted.is_set)
        # A daemon: at the end of the process nobody waits for what did not stop.
        self._thread = threading.Thread(target=self._run, name="localsteer-apart", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        _here.stop = self._stop
        try:
            self._result.set_result(self._compute())
        except BaseException as error:
            self._result.set_exception(error)

    def result(self) -> T:
        """Wait for what the function returns.

        Raises:
            BaseException: what it raises; or Ctrl-C.
        """
        while not wait([self._result], timeout=_LOOK).done:
            pass
        return self._result.result()

    def stop(self) -> None:
        """End the function by a KeyboardInterrupt after its present call into llama.cpp, and wait for its thread.

        A model must not be closed while it is run, so that call is waited for. What does not end otherwise is left behind; it
        will not call llama.cpp any more.
        """
        self._wanted.set()
        ends = time.monotonic() + _PATIENCE
        while not self._result.done():
            if self._stop.inside:
                ends = time.monotonic() + _PATIENCE  # what follows the call frees the context, and the model must outlive it
            elif time.monotonic() >= ends:
                return
            with contextlib.suppress(KeyboardInterrupt, SystemExit):  # nor must a second one close the model under llama.cpp
                wait([self._result], timeout=_LOOK)
        self._thread.join()


def compute_apart(compute: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and wait for it; Ctrl-C stops it.

    Raises:
        BaseException: what the function raises; or Ctrl-C.
    """
    apart = None
    try:
        with interrupts_after():  # a thread that runs already while its start is interrupted would be left behind
            apart = Apart(compute)
        return apart.result()
    finally:
        if apart is not None:
            apart.stop()
