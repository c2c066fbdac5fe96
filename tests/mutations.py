"""Sound inputs made unsound: what a damaged disk, a careless hand or a stranger does to them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from types import FrameType

from localsteer.errors import ExpressionError, LocalsteerError

# How many of each door are tried: `make fuzz` takes 10,000.
EXAMPLES = int(os.environ.get("LOCALSTEER_MUTATIONS", "400"))
MEMORY = 1 << 30
SECONDS = 5

# What steers a terminal, what no encoding has, what parsers trip over, and what numbers and names are mistaken for.
_PIECES = [
    *(
        b"\x1b[2J",
        b"\x1b]0;x\x07",
        b"\x9b2J",
        b"\xc2\x9b2J",
        b"\0",
        b"\x08",
        b"\r",
        b"\r\n",
        b"\n",
        b"\t",
        b"\xff",
        b"\xed\xa0\x80",
    ),
    *(
        "\u202e".encode(),
        "\u2028".encode(),
        "\ufeff".encode(),
        "é".encode(),
        "🙂".encode()[:2],
        b"\\u001b[2J",
        b"\\ud800",
        b"\\x1b",
    ),
    *(
        b"[" * 3000,
        b'{"a":' * 1500,
        b"9" * 400,
        b"9" * 5000,
        b"1e999",
        b"-1e999",
        b"NaN",
        b"-Infinity",
        b"-0",
        b"1e-400",
        b"0x10",
    ),
    *(b"null", b"true", b"[]", b"{}", b'""', b"''", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"-", b"~", b"*", b"|", b">"),
    *(
        b"&a [*a, *a]",
        b"*a",
        b"&a",
        b"!!python/object/apply:os.system [x]",
        b"!!binary x",
        b"2001-99-99",
        b"<<: *a",
        b"? ",
        b"- " * 800,
    ),
    *(
        b"../" * 40,
        b"/etc/passwd",
        b"C:\\x",
        b"x" * 20_000,
        b" " * 5000,
        b"a\n" * 3000,
        b"(" * 2000,
        b"@1-999999",
        b"!",
        b"+ " * 500,
    ),
]
_TOKEN = re.compile(rb"[A-Za-z_][\w-]*|-?\d+(?:\.\d+)?|\"[^\"\n]*\"")


def mutated(originals: Sequence[bytes], random: Random) -> bytes:
    """One of the inputs after one to four changes."""
    data = random.choice(originals)
    for _ in range(random.randint(1, 4)):
        data = _changed(data, originals, random)
    return data


def _changed(data: bytes, originals: Sequence[bytes], random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    kind = random.randrange(9)
    if kind == 0:
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + random.choice((1, 2, 16, 200)) :]
    if kind == 2:
        return data[:at]
    if kind == 3:  # a part twice
        return data[: at + random.randint(1, 400)] + data[at:]
    if kind == 4:  # the end of another one
        other = random.choice(originals)
        return data[:at] + other[random.randrange(len(other) + 1) :]
    if kind == 5:  # lines in another order
        lines = data.split(b"\n")
        random.shuffle(lines)
        return b"\n".join(lines)
    tokens = list(_TOKEN.finditer(data))
    if kind in (6, 7) and tokens:  # a word or number that is another, or something else
        token, other_token = random.choice(tokens), random.choice(tokens)
        new = random.choice((*_PIECES, other_token[0]))
        return data[: token.start()] + new + data[token.end() :]
    return data[:at] + random.choice(_PIECES) + data[at:]


def assert_clear(error: LocalsteerError) -> None:
    """One or two lines (three with the caret below an expression) that a terminal can show."""
    lines = str(error).split("\n")
    assert len(lines) <= (3 if isinstance(error, ExpressionError) else 2), lines
    assert all(line.isprintable() for line in lines), lines
    assert len(str(error)) < 3000, f"{len(str(error))} characters"


@contextlib.contextmanager
def one_more_gigabyte() -> Iterator[None]:
    """Whoever asks for more memory than that gets a MemoryError, which no test expects."""
    if sys.platform != "linux":
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


class TooSlowError(BaseException):
    """More than any door may take; no exception that some handler takes for its own."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Whoever computes for longer is interrupted; waiting for other programs of a busy machine does not count."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
