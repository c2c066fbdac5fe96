"""Computing in a thread that ends, for a process in which another thread must stay fast."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from localsteer.llama.interrupts import Stop, here

T = TypeVar("T")

# Seconds that work outside llama.cpp has to come to its end. None of ours takes that long but waiting for another process.
_PATIENCE = 2.0
# Seconds between two looks at Ctrl-C: on Windows a wait without an end keeps it out.
_LOOK = 0.2


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
        self._stop = Stop()
        # A daemon: at the end of the process nobody waits for what did not stop.
        self._thread = threading.Thread(target=self._run, name="localsteer-apart", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        here.stop = self._stop
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
        self._stop.wanted = True
        ends = time.monotonic() + _PATIENCE
        while self._thread.is_alive() and (self._stop.inside or time.monotonic() < ends):
            self._thread.join(_LOOK)


def compute_apart(compute: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and wait for it; Ctrl-C stops it.

    Raises:
        BaseException: what the function raises; or Ctrl-C.
    """
    apart = Apart(compute)
    try:
        return apart.result()
    finally:
        apart.stop()
