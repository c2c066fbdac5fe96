"""The user's own folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from localsteer.errors import LocalsteerError

_NAME = "localsteer"


def home_folder() -> Path:
    """The user's home.

    Raises:
        LocalsteerError: there is none, as in a container that runs under the number of no user.
    """
    with _told():
        return Path.home()


def cache_folder() -> Path:
    """Where is kept what can be made again; it may not be there yet.

    Raises:
        LocalsteerError: as `home_folder`, unless the environment names it.
    """
    with _told():
        return platformdirs.user_cache_path(_NAME)


def data_folder() -> Path:
    """Where is kept what belongs to the user; it may not be there yet.

    Raises:
        LocalsteerError: as `cache_folder`.
    """
    with _told():
        return platformdirs.user_data_path(_NAME)


def expanded(path: str | Path, error: type[LocalsteerError] = LocalsteerError) -> Path:
    """A path as users write it, with the home that "~" or "~name" stands for.

    Raises:
        LocalsteerError: of the class `error`: nobody knows it.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise error(f"{path} names the home of someone who is not known here.") from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LocalsteerError("This user has no home folder.", hint="Let HOME name one that can be written.") from error
