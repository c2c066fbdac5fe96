"""uvicorn, ended by a signal without an error: what is being answered may come to its end, and is told where it may not."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from localsteer.server.answers import Service
from localsteer.server.connections import Connection, room
from localsteer.server.log import spare

# Connections that the system may hold until they are accepted; asyncio tries so many at once, and complains of each that fails.
_BACKLOG = 128
# Seconds that answers (and builds) have to come to their end, and then those that their connections have to close.
_GRACE = 2
_CLOSING = 5
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        # uvicorn itself would cancel what still runs: its clients would see the connection break, and the user a traceback.
        ending = loop.call_later(_GRACE, lambda: loop.run_in_executor(None, self._service.stop))
        await super().shutdown(sockets)
        ending.cancel()


def configured(app: ASGIApp, *, closing: int = _GRACE + _CLOSING) -> uvicorn.Config:
    """What uvicorn is to do, with as many connections as there is room for now."""
    Connection.limit = room()
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        backlog=_BACKLOG,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=closing,
    )


def run(app: ASGIApp, bound: Sequence[socket.socket], service: Service, ready: Callable[[], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP: the usual ways to end, and no error. One that is ignored (`nohup`) stays so.

    Args:
        app: what to serve.
        bound: a socket for each address.
        service: stopped where answers do not come to their end in time.
        ready: called when clients may connect and signals may come.
    """
    config = configured(app)
    spare()  # uvicorn has set up its loggers
    server = _Server(config, service)

    def end(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn has handlers of its own while it runs, and raises the signal again when it is done.
    before = {number: signal.signal(number, end) for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    try:
        for one in bound:
            one.listen(config.backlog)
        ready()
        server.run(sockets=list(bound))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
