"""A grammar tried in a process of its own: some are more than llguidance can take, and would take time, memory or this process.

The process says why a grammar is too much, or nothing. What else is wrong with it is no matter here.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from localsteer.llama.apart import Limits, run_apart

if TYPE_CHECKING:
    from llguidance import LLParserLimits

# Seconds of a processor until a grammar is too much, its process's start of 0.1 s included.
_LIMITS = Limits(processor=3, clock=30.0, memory=2**30)
_SLOWEST_STEP = 0.1  # seconds for one byte of an answer
# How far it is followed: what is too much most often shows at the first byte within a string.
_STEPS = 8
# A chain of 600 rules has room on this stack, and one of 2,500 on the 8 MB that a thread has elsewhere.
_STACK = 2 * 2**20
# Processes at a time, each with that much memory.
_AT_A_TIME = threading.BoundedSemaphore(2)
_REMEMBERED = 32

# Why the last ones are too much; nothing for those that are not.
_known: OrderedDict[str, str] = OrderedDict()


class TooMuchError(Exception):
    """A grammar that is more than llguidance can take; says why."""


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
        NotStartedError: the process does not start.
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
    outcome = run_apart(__name__, lark.encode(), _LIMITS)
    if outcome.end == "clock":
        raise TooMuchError("it takes too long to read")  # not remembered: the machine may have had much else to do
    if outcome.end == "processor":
        return "it takes too long to read"
    if outcome.end == "died":
        return "it is too large, or too deeply nested"
    return outcome.output.decode(errors="replace")


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


def prepare() -> Callable[[bytes], bytes]:
    """What the process does."""
    import llguidance  # noqa: F401  # fails before the start is told

    def on_small_stack(given: bytes) -> bytes:
        said: list[str] = []
        threading.stack_size(_STACK)
        thread = threading.Thread(target=lambda: said.append(_try(given.decode())))
        thread.start()
        thread.join()
        return "".join(said).encode()

    return on_small_stack
