"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from localsteer.errors import LocalsteerError

if sys.platform != "win32":
    import fcntl


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
    is there already keeps its permissions, and a link stays: what it points to is written. Temporary files of processes that were
    killed while they wrote the same file are removed.

    Args:
        path: where the file shall be.
        error: what to raise when it cannot be written.

    Raises:
        LocalsteerError: the folder is missing or read-only, or the disk is full; of the class `error`.
    """
    _refuse_folder(path, error)
    target = _behind_links(path)
    with writable(path, error):
        for left in _abandoned(target):
            left.unlink(missing_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        temporary, claim = _claimed(target, mode)
    try:
        with writable(path, error):
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            if mode is not None:
                temporary.chmod(mode)
            if sys.platform == "win32":  # which renames no file that is open
                claim.close()
            temporary.replace(target)
            _keep_name(target)
    finally:
        if sys.platform == "win32":  # nor removes it
            claim.close()
        temporary.unlink(missing_ok=True)
        claim.close()


def is_unfinished(path: Path) -> bool:
    """Whether a process was killed while it wrote this file, and nothing has written it since."""
    return next(_abandoned(_behind_links(path)), None) is not None


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


def _claimed(target: Path, mode: int | None) -> tuple[Path, IO[bytes]]:
    """A new temporary file for a target, and what tells other processes that somebody still writes it, until it is closed."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        # Made with the permissions that it shall have, from which the system takes away what the user's umask forbids: asking for
        # the umask means to change it, for all threads.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode | stat.S_IWUSR)
        claim = os.fdopen(handle, "wb", buffering=0)
        # Another process may have taken it for abandoned before it was locked.
        if _lock(claim) is not False and os.fstat(handle).st_nlink:
            return temporary, claim
        temporary.unlink(missing_ok=True)
        claim.close()


def _abandoned(target: Path) -> Iterator[Path]:
    """Temporary files of this target that nobody writes any more: the system drops the locks of a process that ends."""
    if sys.platform == "win32":
        return  # without such locks nobody can tell
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError), Path(entry.path).open("rb") as file:
                    if _lock(file):
                        yield Path(entry.path)


def _lock(file: IO[bytes]) -> bool | None:
    """Lock a file until it is closed; False where another one has it, None where locks cannot be had."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk that knows none
        return None
    return True


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
