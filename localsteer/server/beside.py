"""Long work beside the answers: vectors that are built, texts that are read.

Who waits for it waits in the event loop. In one of the threads that requests are prepared in, of which there are 40, as many
requests for one vector would keep everybody else waiting until it is built.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request

from localsteer.llama.threads import Apart
from localsteer.server.engine import BusyError, StoppingError

T = TypeVar("T")

# Requests that may wait for the same kind of work, all of its names together: as many as may wait for answers by default.
_MOST_WAITING = 32


@dataclass(eq=False)
class _Work(Generic[T]):
    do: Callable[[], T]
    waiting: int = 0
    done: Future[T] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.done.set_running_or_notify_cancel()  # one who waits no more does not cancel it for the others


class Beside(Generic[T]):
    """Does long work, one after another, for as many as want it: each computes with all cores, so two at once gain nothing.

    Args:
        what: what requests wait for, in words.
        seconds: what one takes, as long as none has been done.
        clock: tells the time, in seconds.
    """

    def __init__(self, what: str, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._seconds = seconds
        self._clock = clock
        self._began = 0.0  # what is being done
        self._lock = threading.Lock()
        self._works: dict[Hashable, _Work[T]] = {}  # the first is being done
        self._apart: Apart[None] | None = None
        self._stopping = False

    def __contains__(self, name: Hashable) -> bool:
        """Whether something is being done, or about to be."""
        return name in self._works

    async def wait_for(self, name: Hashable, do: Callable[[], T]) -> T:
        """Wait until something is done; what is wanted under the same name meanwhile is done once.

        Raises:
            BusyError: too many wait already.
            StoppingError: the server is about to end.
            Exception: what `do` raises.
        """
        with self._lock:
            if self._stopping:
                raise _stopping()
            if sum(work.waiting for work in self._works.values()) >= _MOST_WAITING:
                # Those who wait for what is being done are gone when it is; what takes longer than usual may take as long again.
                elapsed = self._clock() - self._began
                left = self._seconds - elapsed if elapsed < self._seconds else elapsed
                raise BusyError(f"{_MOST_WAITING} requests wait already for {self._what}.", max(1, round(left)))
            work = self._works.setdefault(name, _Work(do))
            work.waiting += 1
            if self._apart is None:
                self._begin()
        try:
            return await asyncio.wrap_future(work.done)
        finally:
            with self._lock:
                work.waiting -= 1

    def refuse(self) -> None:
        """From now on: an error for all who wait, and who come."""
        with self._lock:
            self._stopping = True
            works = list(self._works.values())
            self._works.clear()
        for work in works:
            work.done.set_exception(_stopping())

    def stop(self) -> None:
        """Refuse, and end what is being done."""
        self.refuse()
        if self._apart is not None:
            self._apart.stop()

    def _begin(self) -> None:
        """Do the next that somebody still waits for. Called with the lock."""
        self._works = {name: work for name, work in self._works.items() if work.waiting}
        first = next(iter(self._works.items()), None)
        self._apart = None
        if first is None:
            return
        try:
            self._apart = Apart(functools.partial(self._run, *first))
        except RuntimeError as error:  # the system gives no more threads: nobody may wait for ever
            works, self._works = self._works, {}
            for work in works.values():
                work.done.set_exception(error)

    def _run(self, name: Hashable, work: _Work[T]) -> None:
        self._began = self._clock()
        try:
            tell = functools.partial(work.done.set_result, work.do())
        except BaseException as error:
            tell = functools.partial(work.done.set_exception, error)
        with self._lock:
            if self._stopping:
                return  # who waited has been told
            self._seconds = self._clock() - self._began
            del self._works[name]
            self._begin()
        tell()


async def while_connected(http: Request, wanted: Coroutine[Any, Any, T]) -> T:
    """Wait for something as long as the client does.

    Raises:
        ClientDisconnect: the client has gone away.
    """

    async def client_leaves() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    coming, leaving = asyncio.ensure_future(wanted), asyncio.ensure_future(client_leaves())
    try:
        await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise ClientDisconnect
        return coming.result()
    finally:
        coming.cancel()
        leaving.cancel()


def _stopping() -> StoppingError:
    return StoppingError("The server is stopping.", hint="Start it again.")
