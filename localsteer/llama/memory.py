"""How much memory this process may still take, and how it gives back what it no longer needs."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from pathlib import Path

import psutil

from localsteer.llama import library

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# More than the logits of a token, which are allocated again and again (1 MB for Gemma), and less than most conversations.
_LARGE = 1_200_000
_FREE_AT_THE_END = 8 << 20


def keep_few_holes() -> None:
    """Have freed memory go back to the system, or be used again, where the C library is glibc; to be called before threads.

    By default only those blocks go back that are larger than any that was freed before, and each thread has a heap of its own.
    Conversations that wait in main memory are of all sizes, and any thread may take or free one: they leave ever more holes. With
    64 MB of them, 45 MB after eight minutes of mixed requests; where large blocks went back, 1 MB more a minute for half an hour,
    in the heaps of nine threads. One heap costs a lock, which is taken seldom: llama.cpp hardly allocates while it computes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            library_c = ctypes.CDLL(None)
            library_c.mallopt(_M_MMAP_THRESHOLD, _LARGE)
            library_c.mallopt(_M_TRIM_THRESHOLD, _FREE_AT_THE_END)
            library_c.mallopt(_M_ARENA_MAX, 1)


def free_memory(*, swapping: bool = False) -> int:
    """Bytes that can be written to from now on.

    Args:
        swapping: count what others would have to be swapped out for. On Linux that is its swap space; macOS and Windows make
            theirs as they need it, and there all memory counts.
    """
    memory = psutil.virtual_memory()
    free = [memory.available]
    if swapping:
        free = [memory.available + psutil.swap_memory().free if sys.platform == "linux" else memory.total]
    if sys.platform == "linux":
        free += [left for group, version in library.control_groups("memory") if (left := _left(group, version)) is not None]
        process = psutil.Process()
        limit, _ = process.rlimit(psutil.RLIMIT_AS)
        if limit > 0:  # -1: none
            free.append(limit - process.memory_info().vms)
    return max(0, min(free))


def _left(group: Path, version: int) -> int | None:
    """What a control group still allows, as `docker run --memory` sets it; None where it has no limit."""
    limit, used = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        left = int((group / limit).read_text()) - int((group / used).read_text())
        counts: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE))
    except (OSError, ValueError):  # "max", or the controller is off
        return None
    # Files that were read count as used, and make room where it is needed. Version 1 counts the groups within by "total_".
    return left + sum(int(counts.get(f"total_{name}", counts.get(name, "0"))) for name in ("inactive_file", "active_file"))
