"""Text files that a user names: read whole, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

from localsteer.errors import LocalsteerError


def read_text(
    path: Path, error: type[LocalsteerError], *, kind: str = "file", encoding: str = "utf-8", hint: str | None = None
) -> str:
    """A text file as it is: a lone carriage return does not end a line.

    Args:
        path: the file.
        error: what to raise.
        kind: what to call it where it is missing.
        encoding: UTF-8, or "utf-8-sig" where a byte order mark may stand in front.
        hint: what to do where it is missing.

    Raises:
        LocalsteerError: of the class `error`: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding=encoding, newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise error(f"There is no {kind} {path}.", hint=hint) from None
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text (byte {problem.start}).") from problem
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}.") from problem
