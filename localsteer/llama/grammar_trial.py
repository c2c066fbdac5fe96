"""A grammar tried in a process of its own: some are more than llguidance can take, and would take time, memory or this process.

Run as a program it reads a grammar, and writes why it is too much, or nothing. What else is wrong with it is no matter here.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import threading
import time

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Its defaults are 250,000 states, which is 500 MB, and 2,000 items, of which one byte takes 0.6 s; what people ask for takes some
# thousands, and some hundreds.
LIMITS = LLParserLimits(max_lexer_states=50_000, max_items_in_row=1000, verbose_errors=False)
# Seconds until a grammar is too much, its process's start of 0.1 s included; and seconds for one byte of an answer.
_PATIENCE = 3.0
_SLOWEST_STEP = 0.1
# How far it is followed: what is too much most often shows at the first byte within a string.
_STEPS = 8
# A chain of 600 rules has room on this stack, and one of 2,500 on the 8 MB that a thread has elsewhere.
_STACK = 2 * 2**20
_MEMORY = 2**30


class TooMuchError(Exception):
    """A grammar that is more than llguidance can take; says why."""


@functools.lru_cache(maxsize=32)
def try_apart(lark: str) -> None:
    """Make sure that a grammar can be read here, whatever the vocabulary is. One that could is not tried again soon.

    Raises:
        TooMuchError: it cannot.
    """
    command = [sys.executable, "-P", __file__]
    try:
        tried = subprocess.run(command, input=lark.encode(), capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise TooMuchError("it takes too long to read") from error
    if tried.returncode:
        raise TooMuchError("it is too large, or too deeply nested")
    if tried.stdout:
        raise TooMuchError(tried.stdout.decode(errors="replace"))


def _try(lark: str) -> str:
    matcher = LLMatcher(LLTokenizer("byte"), lark, limits=LIMITS, log_level=0)
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
    with contextlib.suppress(ImportError, ValueError):  # Windows has no such limit, and macOS may refuse it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    lark = sys.stdin.buffer.read().decode()
    threading.stack_size(_STACK)
    thread = threading.Thread(target=lambda: sys.stdout.buffer.write(_try(lark).encode()))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
