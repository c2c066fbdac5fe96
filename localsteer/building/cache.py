"""Where vectors that were built here are kept: one file for each concept, wording and model, built by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from localsteer.errors import VectorError
from localsteer.files import home
from localsteer.files.atomic import writable
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector

logger = logging.getLogger("localsteer")

# Of the vectors in the cache: counted up when a vector of the same concept comes to hold more, or another dose.
_VERSION = 8


def cache_folder() -> Path:
    """The user's cache of vectors."""
    return home.cache_folder() / "vectors"


def cache_path(name: str, source: str, content: str) -> Path:
    """The file of a vector: another model file or another wording of the concept is another vector.

    Args:
        name: of the concept.
        source: its YAML text.
        content: of the model's fingerprint.
    """
    key = hashlib.sha256(f"{_VERSION}\n{content}\n{source}".encode()).hexdigest()[:16]
    return cache_folder() / f"{name}-{key}.gguf"


def cached_vectors(name: str, source: str) -> Iterator[ControlVector]:
    """A concept's vectors for whatever models, the latest first; damaged and outdated ones are passed over."""
    files = cache_folder().glob(f"{name}-*.gguf")
    for path in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        with contextlib.suppress(VectorError):  # it is built again when it is needed
            vector = read_vector(path)
            model = vector.provenance.model
            if model is not None and path == cache_path(name, source, model.content):
                yield vector


def make_folder(folder: Path) -> None:
    """Make a folder for vectors, and find out before the work whether they can be written there.

    Raises:
        VectorError: they cannot.
    """
    with writable(folder, VectorError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise VectorError(f"The folder {folder} cannot be written: it is read-only.")


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Within the block no other process (or thread) builds the vector of this file; waits for one that does.

    The other one may have written it by then: look again. Where no lock can be had, in a folder that is read-only or on a disk
    that knows none, the block runs without one: files are written whole, and only the work is done twice.
    """
    lock = filelock.FileLock(_lock_file(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.warning("another process is building %s; waiting for it", path)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter from filelock, for a disk without locks
        logger.debug("%s is built without a lock: %s", path, error)
    try:
        yield
    finally:
        if lock.is_locked:
            # Removed while it is held: who waits for it finds the vector, and who comes later makes a new lock file.
            with contextlib.suppress(OSError):  # Windows does not remove a file that is open; there filelock does
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def forget_lock(path: Path) -> None:
    """Of a vector that is there: remove the lock file of a process that was killed behind its work; one that is held stays."""
    file = _lock_file(path)
    if file.exists():
        with contextlib.suppress(OSError, NotImplementedError, filelock.Timeout), filelock.FileLock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
