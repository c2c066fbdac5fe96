"""Connections that nobody ends are ended, and there are never more than the process has descriptors for."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
from uvicorn.protocols.http.h11_impl import H11Protocol

from localsteer.server.errors import error_bytes

# Seconds for the head of a request, from its first byte or from the connection's beginning: programs send it at once.
HEAD_SECONDS = 10.0
# Seconds in which somebody who does not read what was sent to them must read some of it. nginx waits as long.
UNREAD_SECONDS = 60.0
# More than that are no laptop's clients, each with some 30 kB of memory.
MOST = 512
# Descriptors that are left for files (vectors, logs, the page), where there are so many.
_FOR_FILES = 64
# Those beyond the limit that are told so, and the seconds that they have to hear it; others are hung up on.
_TOLD = 16
_TOLD_SECONDS = 2.0
_TOO_MANY = error_bytes("There are too many connections.", "server_error", "too_many_connections")


def room() -> int:
    """How many connections this process can have."""
    process = psutil.Process()
    if not hasattr(process, "rlimit"):  # macOS, Windows
        return MOST
    soft, _ = process.rlimit(psutil.RLIMIT_NOFILE)
    free = soft - process.num_fds() if soft > 0 else MOST + _FOR_FILES  # -1: no limit
    return max(1, min(MOST, free - min(_FOR_FILES, free // 2) - _TOLD))


class Connection(H11Protocol):
    """uvicorn's, with limits. Where there are too many, the oldest that asks for nothing makes room for a new one.

    Attributes:
        limit: how many there may be; set once for a server.
    """

    limit = MOST

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._surplus = False
        self._began = self.loop.time()
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    @property
    def _waits(self) -> bool:
        """Whether there is no request that is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has come."""
        super().connection_made(transport)
        # Paused as soon as the system takes no more: so a reader who stands still is known from the first byte that is left.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self.limit and not self._make_room():
            self._surplus = True
            if len(self.connections) > self.limit + _TOLD:
                transport.abort()
        self._head = self.loop.call_later(_TOLD_SECONDS if self._surplus else HEAD_SECONDS, transport.abort)

    def _make_room(self) -> bool:
        idle = [one for one in self.connections if isinstance(one, Connection) and one is not self and one._can_go()]
        if not idle:
            return False
        oldest = min(idle, key=lambda one: one._began)
        oldest.transport.abort()
        self.connections.discard(oldest)
        return True

    def _can_go(self) -> bool:
        return self._waits and not self._surplus and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """A part of a request, or of several."""
        if self._surplus:
            if not self.transport.is_closing() and self.transport.can_write_eof():
                self.transport.write(_TOO_MANY)
                self.transport.write_eof()  # not closed: what still comes would be answered by a reset, which destroys the answer
            return
        super().data_received(data)
        if not self._waits:
            _cancel(self._head)
            self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """The other side does not read."""
        super().pause_writing()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        left = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < left:
                self._wait_for_reader()
            else:
                self.transport.abort()

        self._unread = self.loop.call_later(UNREAD_SECONDS, look)

    def resume_writing(self) -> None:
        """It has read."""
        _cancel(self._unread)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        _cancel(self._head)
        _cancel(self._unread)
        super().connection_lost(exc)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
