"""Concepts by name: those that come with localsteer, and the user's own before them."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localsteer.errors import ContrastError, VectorError
from localsteer.files.home import data_folder
from localsteer.files.text import read_text
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector

logger = logging.getLogger("localsteer")

CONCEPT_FILE = "concept.yaml"


@dataclass(frozen=True)
class LibraryConcept:
    """A concept that can be named in an expression.

    Attributes:
        name: what it is called there.
        folder: where it lies.
        shipped: whether it comes with localsteer; otherwise the user wrote it.
        hides_shipped: whether it is the user's, and one of the same name is shipped.
    """

    name: str
    folder: Path
    shipped: bool
    hides_shipped: bool = False

    @property
    def file(self) -> Path:
        """Its concept.yaml."""
        return self.folder / CONCEPT_FILE

    def source(self) -> str:
        """The text of its concept.yaml.

        Raises:
            ContrastError: it cannot be read.
        """
        return read_text(self.file, ContrastError)

    def beside(self, read: Callable[[Path], ControlVector] = read_vector) -> Iterator[tuple[Path, ControlVector]]:
        """The vectors that lie beside it, for whatever models; `read` reads their files."""
        for path in sorted(self.folder.glob("*.gguf")):
            try:
                yield path, read(path)
            except VectorError as error:
                logger.warning("%s", error)


def user_folder() -> Path:
    """Where users put concepts of their own; they come before shipped ones of the same name."""
    return data_folder() / "vectors"


def shipped_folder() -> Path:
    """The concept library: inside the package in an installed wheel, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "vectors"
    return inside if inside.is_dir() else package.parent / "vectors"


# What others write for a strength: "happy:0.5", "happy=0.5", "0.5happy".
_STRENGTH = r"(?P<strength>-?(?:\d+\.?\d*|\.\d+))"

_GLUED = re.compile(rf"(?P<name>.+?)[:=]{_STRENGTH}"), re.compile(rf"{_STRENGTH}[:=]?(?P<name>[a-z].*)")


def concepts() -> dict[str, LibraryConcept]:
    """All concepts by name."""
    found: dict[str, LibraryConcept] = {}
    for root, shipped in ((shipped_folder(), True), (user_folder(), False)):
        for file in sorted(root.glob(f"*/{CONCEPT_FILE}")):
            name = file.parent.name
            found[name] = LibraryConcept(name, file.parent, shipped, hides_shipped=name in found)
    return found


def is_path(name: str) -> bool:
    """Whether the name of a vector in an expression means a file."""
    return name.endswith(".gguf") or "/" in name or "\\" in name


def find_concept(name: str) -> LibraryConcept:
    """The concept of that name; a user's own comes before a shipped one, with a note.

    Raises:
        VectorError: there is none; the message names the nearest ones.
    """
    known = concepts()
    if name in known:
        if known[name].hides_shipped:
            _note_hidden(known[name].file)
        return known[name]
    near = [name.lower()] if name.lower() in known else difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(sorted(known))}."
    if opposite := _with_negative(name.lower(), known.values()):
        hint = f'It is the other pole of {" and of ".join(opposite)}: in an expression "-{opposite[0]}".'
    if os.path.exists(name):
        is_concept = name.endswith((".yaml", ".yml"))
        hint = f"`localsteer extract {name}` makes one." if is_concept else f"For the file of that name write ./{name}."
    if os.path.exists(f"{name}.gguf"):
        hint = f"For the file of that name write {name}.gguf."
    for pattern in _GLUED:
        if (glued := pattern.fullmatch(name)) is not None and glued["name"] in known:
            sign = "; a sign stays in front" if name.startswith(glued["strength"]) else ""
            hint = f'In an expression "{name}" is written "{glued["strength"]} {glued["name"]}"{sign}.'
    raise VectorError(f'There is no vector "{name}".', hint=hint)


def _with_negative(pole: str, known: Iterable[LibraryConcept]) -> list[str]:
    """The concepts whose negative pole is called so; broken ones are passed over."""
    from localsteer.concepts.concept_file import parse_concept

    found = []
    for concept in known:
        with contextlib.suppress(ContrastError):
            if parse_concept(concept.source(), concept.name).negative.lower() == pole:
                found.append(concept.name)
    return sorted(found)


@functools.cache  # said once
def _note_hidden(file: Path) -> None:
    logger.warning("%s is your own: it is used instead of the concept of that name that comes with localsteer.", file)
