"""A log that cannot fill a disk: what is said again and again is written the 1st, 2nd, 4th, 8th, ... time only."""

from __future__ import annotations

import logging
import threading
import time

# Everybody who writes where a request, or a lack of descriptors, can make them do so.
_LOGGERS = ("asyncio", "uvicorn.error", "localsteer.server")
# Seconds without it after which a message is news again.
_FORGOTTEN = 600.0


class Sparing(logging.Filter):
    """Counts messages by the line of code that they come from, and by their exception: texts may hold what strangers sent."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[int, float]] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        kind = record.exc_info[0] if record.exc_info else None
        key = record.pathname, record.lineno, kind.__name__ if kind is not None else ""
        now = time.monotonic()
        with self._lock:
            count, latest = self._seen.get(key, (0, now))
            count = count + 1 if now - latest < _FORGOTTEN else 1
            self._seen[key] = count, now
        if count & (count - 1):
            return False
        if count > 1:
            record.msg, record.args = f"{record.getMessage().rstrip()} ({count:,} times; not all are written)", ()
        return True


def spare() -> None:
    """From now on, for the loggers of the server."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, Sparing) for one in logger.filters):
            logger.addFilter(Sparing())
