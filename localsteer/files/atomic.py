"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from localsteer.errors import LocalsteerError


@contextlib.contextmanager
def writable(path: Path, error: type[LocalsteerError]) -> Iterator[None]:
    """Around the writing of a file: what keeps it from being written is told as a person needs it.

    Raises:
        LocalsteerError: of the class `error`: it cannot be written.
    """
    try:
        yield
    except OSError as problem:
        # numpy tells of a full disk without an error number, in words of its own.
        raise error(f"{path} cannot be written: {problem.strerror or problem}.") from problem


@contextlib.contextmanager
def atomic_path(path: Path, error: type[LocalsteerError] = LocalsteerError) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` when the block ends well and removed when it does not.

    What was written is on the disk before the rename, so that a power cut, too, leaves the old file or the new one. A file that
    is there already keeps its permissions, and a link stays: what it points to is written.

    Args:
        path: where the file shall be.
        error: what to raise when it cannot be written.

    Raises:
        LocalsteerError: the folder is missing or read-only, or the disk is full; of the class `error`.
    """
    _refuse_folder(path, error)
    target = _behind_links(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with writable(path, error):
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        # Made with the permissions that it shall have, from which the system takes away what the user's umask forbids: asking for
        # the umask means to change it, for all threads.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode | stat.S_IWUSR))
    try:
        with writable(path, error):
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(target)
            _keep_name(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path, error: type[LocalsteerError] = LocalsteerError) -> None:
    """Find out before minutes of work that a file cannot be written at their end.

    Raises:
        LocalsteerError: as `atomic_path`.
    """
    _refuse_folder(path, error)
    folder = _behind_links(path).parent
    if not folder.is_dir():
        raise error(f"{path} cannot be written: there is no folder {folder}.")
    if not os.access(folder, os.W_OK):
        raise error(f"{path} cannot be written: the folder {folder} is read-only.")


def _behind_links(path: Path) -> Path:
    """The file that a link leads to; the path itself where it is none."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _keep_name(path: Path) -> None:
    """Have the folder's new entry written to the disk, on systems that can be told to (Windows and some shares cannot)."""
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _refuse_folder(path: Path, error: type[LocalsteerError]) -> None:
    with writable(path, error):  # a name may be too long, for one
        is_folder = path.is_dir()
    if is_folder:
        raise error(f"{path} is a folder.", hint="Give the name of a file.")
    if path.exists() and not path.is_file():
        raise error(f"{path} is not an ordinary file.", hint="Give the name of a file.")
