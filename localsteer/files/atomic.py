"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from localsteer.errors import LocalsteerError


@contextlib.contextmanager
def atomic_path(path: Path, error: type[LocalsteerError] = LocalsteerError) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` when the block ends well and removed when it does not.

    Args:
        path: where the file shall be.
        error: what to raise when it cannot be written.

    Raises:
        LocalsteerError: the folder is missing or read-only, or the disk is full; of the class `error`.
    """
    _refuse_folder(path, error)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as problem:
        raise _unwritable(path, error, problem) from problem
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner may read; give it what the user's umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as problem:
        raise _unwritable(path, error, problem) from problem
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path, error: type[LocalsteerError] = LocalsteerError) -> None:
    """Find out before minutes of work that a file cannot be written at their end.

    Raises:
        LocalsteerError: as `atomic_path`.
    """
    _refuse_folder(path, error)
    if not path.parent.is_dir():
        raise error(f"{path} cannot be written: there is no folder {path.parent}.")
    if not os.access(path.parent, os.W_OK):
        raise error(f"{path} cannot be written: the folder {path.parent} is read-only.")


def _refuse_folder(path: Path, error: type[LocalsteerError]) -> None:
    try:
        is_folder = path.is_dir()
    except OSError as problem:  # a name that is too long, for one
        raise _unwritable(path, error, problem) from problem
    if is_folder:
        raise error(f"{path} is a folder.", hint="Give the name of a file.")
    if path.exists() and not path.is_file():
        raise error(f"{path} is not an ordinary file.", hint="Give the name of a file.")


def _unwritable(path: Path, error: type[LocalsteerError], problem: OSError) -> LocalsteerError:
    # numpy tells of a full disk without an error number, in words of its own.
    return error(f"{path} cannot be written: {problem.strerror or problem}.")
