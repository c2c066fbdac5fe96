"""A grammar tried in a process of its own: some are more than llguidance can take, and would take time, memory or this process.

Run as a program it says that it has started, reads a grammar, and says why it is too much, or nothing. What else is wrong with it
is no matter here.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits

# Seconds of a processor until a grammar is too much, its process's start of 0.1 s included; and those for one byte of an answer.
_PATIENCE = 3
_SLOWEST_STEP = 0.1
# Seconds for the same on a machine that has much else to do, and where a process's time cannot be limited (Windows).
_LONGEST = 30.0
# How far it is followed: what is too much most often shows at the first byte within a string.
_STEPS = 8
# A chain of 600 rules has room on this stack, and one of 2,500 on the 8 MB that a thread has elsewhere.
_STACK = 2 * 2**20
_MEMORY = 2**30
# Processes at a time, each with that much memory.
_AT_A_TIME = threading.BoundedSemaphore(2)
_REMEMBERED = 32
_STARTED = b"started\n"

# Why the last ones are too much; nothing for those that are not.
_known: OrderedDict[str, str] = OrderedDict()


class TooMuchError(Exception):
    """A grammar that is more than llguidance can take; says why."""


class NotTriedError(Exception):
    """No grammar can be tried on this machine; says why."""


def limits() -> LLParserLimits:
    """Of the parser. What people ask for takes some thousands of states, and some hundreds of items.

    Its defaults are 250,000 states, which is 500 MB, and 2,000 items, of which one byte takes 0.6 s.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=50_000, max_items_in_row=1000, verbose_errors=False)


def try_apart(lark: str) -> None:
    """Make sure that a grammar can be read here, whatever the vocabulary is. What came of the last ones is remembered.

    Raises:
        TooMuchError: it cannot.
        NotTriedError: the process does not start.
    """
    reason = _known.get(lark)
    if reason is None:
        with _AT_A_TIME:
            reason = _known.get(lark)  # others may have waited for the same
            if reason is None:
                reason = _known[lark] = _tried(lark)
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
    if reason:
        raise TooMuchError(reason)


def _tried(lark: str) -> str:
    command = [sys.executable or "python", "-P", __file__]
    try:
        tried = subprocess.run(command, input=lark.encode(), capture_output=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired as error:
        if not (error.stdout or b"").startswith(_STARTED):
            raise NotTriedError(f"{command[0]}, which tries it, has not started within {_LONGEST:g} s") from error
        raise TooMuchError("it takes too long to read") from error  # not remembered: the machine may have had much else to do
    except OSError as error:
        raise NotTriedError(f"{command[0]}, which tries it, does not start ({error.strerror})") from error
    if not tried.stdout.startswith(_STARTED):
        said = tried.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {tried.returncode}"]
        raise NotTriedError(f"{command[0]}, which tries it, does not start ({said[-1]})")
    if sys.platform != "win32" and tried.returncode == -signal.SIGXCPU:
        return "it takes too long to read"
    if tried.returncode:
        return "it is too large, or too deeply nested"
    return tried.stdout[len(_STARTED) :].decode(errors="replace")


def _try(lark: str) -> str:
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), lark, limits=limits(), log_level=0)
    for _ in range(_STEPS):
        if matcher.is_stopped():
            break
        begun = time.thread_time()
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        matcher.consume_token((bits & -bits).bit_length() - 1)  # the first that is allowed
        if time.thread_time() - begun > _SLOWEST_STEP:
            return "there are too many ways to follow it"
    return ""


def _main() -> None:
    import llguidance  # noqa: F401  # fails before the start is told

    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        # That of time ends one whose parent was killed as well. Behind the one that can be heard of comes the one that kills.
        for kind, least, most in (
            (resource.RLIMIT_CPU, _PATIENCE, _PATIENCE + 1),
            (resource.RLIMIT_AS, _MEMORY, _MEMORY),
        ):
            with contextlib.suppress(ValueError):  # macOS may refuse that of memory; a lower one may be set already
                resource.setrlimit(kind, (least, most))
    sys.stdout.buffer.write(_STARTED)
    sys.stdout.buffer.flush()
    lark = sys.stdin.buffer.read().decode()
    threading.stack_size(_STACK)
    thread = threading.Thread(target=lambda: sys.stdout.buffer.write(_try(lark).encode()))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
