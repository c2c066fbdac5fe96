"""Files that a user names: read, or refused with a reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from localsteer.errors import LocalsteerError


@contextlib.contextmanager
def readable(
    path: Path, error: type[LocalsteerError], *, kind: str = "file", hint: str | None = None, ordinary: bool = False
) -> Iterator[None]:
    """Around the reading of a file: what keeps it from being read is told as a person needs it.

    Args:
        path: the file.
        error: what to raise.
        kind: what to call it.
        hint: what to do where it is missing.
        ordinary: refuse terminals, pipes and the like, which may never end.

    Raises:
        LocalsteerError: of the class `error`: it is missing, or cannot be read.
    """
    try:
        if ordinary and path.exists() and not (path.is_file() or path.is_dir()):
            raise error(f"{path} is not an ordinary file.")
        yield
    except FileNotFoundError:
        raise error(f"There is no {kind} {path}.", hint=hint) from None
    except OSError as problem:
        raise error(f"The {kind} {path} cannot be read: {problem.strerror or problem}.") from problem


def read_text(
    path: Path, error: type[LocalsteerError], *, kind: str = "file", encoding: str = "utf-8", hint: str | None = None
) -> str:
    """A text file as it is: a lone carriage return does not end a line.

    Args:
        path: the file.
        error: what to raise.
        kind: what to call it.
        encoding: UTF-8, or "utf-8-sig" where a byte order mark may stand in front.
        hint: what to do where it is missing.

    Raises:
        LocalsteerError: of the class `error`: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        with readable(path, error, kind=kind, hint=hint), path.open(encoding=encoding, newline="") as file:
            return file.read()
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text (byte {problem.start}).") from problem
