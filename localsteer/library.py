"""Vectors by name: a concept's prompts are shipped, and its vector fits the model at hand.

A concept is a folder with a `concept.yaml` and vectors that were built from it. For a model that none of them was read from, the
vector is built at first use and kept in the user's cache (`localsteer.vector_cache`).
"""

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

import platformdirs

from localsteer.errors import ContrastError, VectorError
from localsteer.extraction import Progress, extract
from localsteer.llama.model import Model
from localsteer.text_file import read_text
from localsteer.vector import ControlVector
from localsteer.vector_cache import cache_path, cached_vectors, make_folder, one_at_a_time
from localsteer.vector_file import read_vector, write_vector

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

    def beside(self) -> Iterator[tuple[Path, ControlVector]]:
        """The vectors that lie beside it, for whatever models."""
        for path in sorted(self.folder.glob("*.gguf")):
            try:
                yield path, read_vector(path)
            except VectorError as error:
                logger.warning("%s", error)


@dataclass(frozen=True, eq=False)
class FoundVector:
    """A concept's vector for one model, as it lies on this machine.

    Attributes:
        vector: the vector.
        path: its file.
        shipped: whether it came with localsteer; otherwise it was built by the user.
        calibrated: whether it was calibrated on that model.
    """

    vector: ControlVector
    path: Path
    shipped: bool
    calibrated: bool

    @classmethod
    def of(cls, vector: ControlVector, path: Path, content: str, *, shipped: bool = False) -> FoundVector:
        """A vector in a file, for the model of this content hash."""
        calibration = vector.provenance.calibration
        return cls(vector, path, shipped, calibration is not None and calibration.content == content)


def user_folder() -> Path:
    """Where users put concepts of their own; they come before shipped ones of the same name."""
    return platformdirs.user_data_path("localsteer") / "vectors"


def shipped_folder() -> Path:
    """The concept library: inside the package in an installed wheel, beside it in a checkout."""
    package = Path(__file__).parent
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
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(sorted(known))}."
    if opposite := _with_negative(name, known.values()):
        hint = f'It is the other pole of {" and of ".join(opposite)}: in an expression "-{opposite[0]}".'
    if os.path.exists(name):
        is_concept = name.endswith((".yaml", ".yml"))
        hint = f"`localsteer extract {name}` makes one." if is_concept else f"For the file of that name write ./{name}."
    if os.path.exists(f"{name}.gguf"):
        hint = f"For the file of that name write {name}.gguf."
    for pattern in _GLUED:
        if (glued := pattern.fullmatch(name)) is not None and glued["name"] in known:
            hint = f'In an expression "{name}" is written "{glued["strength"]} {glued["name"]}".'
    raise VectorError(f'There is no vector "{name}".', hint=hint)


def _with_negative(pole: str, known: Iterable[LibraryConcept]) -> list[str]:
    """The concepts whose negative pole is called so; broken ones are passed over."""
    from localsteer.concept_file import parse_concept  # pydantic takes 0.1 s to import

    found = []
    for concept in known:
        with contextlib.suppress(ContrastError):
            if parse_concept(concept.source(), concept.name).negative == pole:
                found.append(concept.name)
    return sorted(found)


@functools.cache  # said once
def _note_hidden(file: Path) -> None:
    logger.warning("%s is your own: it is used instead of the concept of that name that comes with localsteer.", file)


def find_vector(concept: LibraryConcept, source: str, content: str) -> FoundVector | None:
    """Where a concept's vector for a model lies; None where it is not built yet. No model is needed for that.

    A calibrated one comes first, and one from the cache before one beside the concept.

    Args:
        concept: the concept.
        source: its text. A vector from another wording is another one.
        content: hash of the model's file (`model_file.content_hash`).
    """
    found = []
    cached = cache_path(concept.name, source, content)
    if cached.exists():
        try:
            found.append(FoundVector.of(read_vector(cached), cached, content))
        except VectorError as error:
            logger.warning("%s; it is built again", error.message)
    for path, vector in concept.beside():
        if is_built_from(vector, source, content):
            found.append(FoundVector.of(vector, path, content, shipped=concept.shipped))
    return next((one for one in found if one.calibrated), found[0] if found else None)


def is_built_from(vector: ControlVector, source: str, content: str) -> bool:
    """Whether a vector was read from this wording of its concept (or does not say) and this model file."""
    own = vector.provenance
    return own.model is not None and own.model.content == content and own.source in ("", source)


def load_vector(name: str, model: Model, progress: Progress | None = None) -> ControlVector:
    """The vector that a name or path stands for, for this model.

    Where several processes want a vector that is not built yet, one builds it and the others wait.

    Args:
        name: a path, or the name of a concept.
        model: the model that will be steered.
        progress: told about the building of a vector that is not there yet.

    Raises:
        VectorError: no such file or concept, or a damaged file.
        ContrastError: the concept file is broken.
        ModelError: the model's residual stream cannot be read.
    """
    if is_path(name):
        return read_vector(Path(name).expanduser())
    concept = find_concept(name)
    source, content = concept.source(), model.fingerprint.content
    found = find_vector(concept, source, content)
    if found is not None:
        return found.vector
    return build_vector(concept, source, model, cache_path(name, source, content), progress=progress, keep=_keep_if_possible)


def build_vector(
    concept: LibraryConcept,
    source: str,
    model: Model,
    path: Path,
    *,
    progress: Progress | None = None,
    keep: Callable[[ControlVector, Path], None] = write_vector,
) -> ControlVector:
    """Build a concept's vector and keep it; one that another process is about to build is waited for.

    Args:
        concept: the concept.
        source: its text.
        model: the model to read.
        path: the vector's file.
        progress: told what is going on.
        keep: writes the vector.

    Raises:
        ContrastError: the concept is broken.
        ModelError: the model's residual stream cannot be read.
        VectorError: the vector cannot be written.
    """
    from localsteer.concept_file import parse_concept  # pydantic: 0.1 s and 10 MB that a built vector does not need

    contrast = parse_concept(source, str(concept.file))
    with one_at_a_time(path):
        with contextlib.suppress(VectorError):
            if is_built_from(vector := read_vector(path), source, model.fingerprint.content):
                return vector  # another process has just written it
        vector = extract(model, contrast, progress=progress)
        keep(vector, path)
    return vector


def _keep_if_possible(vector: ControlVector, path: Path) -> None:
    try:
        write_vector(vector, path)
    except VectorError as error:
        logger.warning("the vector %s cannot be kept for next time: %s", vector.provenance.concept, error)


def save_vector(name: str, vector: ControlVector, model: Model) -> Path:
    """Keep a concept's vector for this model in the user's cache, where `load_vector` finds it by name.

    Raises:
        VectorError: no such concept, or the cache cannot be written.
    """
    path = place_for(name, model)
    write_vector(vector, path)
    return path


def place_for(name: str, model: Model) -> Path:
    """Where `save_vector` writes.

    Raises:
        VectorError: no such concept, or the cache cannot be written.
    """
    concept = find_concept(name)
    path = cache_path(concept.name, concept.source(), model.fingerprint.content)
    make_folder(path.parent)
    return path


def loader(model: Model, progress: Progress | None = None) -> Callable[[str], ControlVector]:
    """`load_vector` for one model, as `steering.resolve` wants it."""
    return lambda name: load_vector(name, model, progress)


def load_for_showing(name: str, content: str | None = None) -> ControlVector:
    """A vector to look at: that for a model, or else whichever there is.

    Args:
        name: a path, or the name of a concept.
        content: hash of the model's file (`model_file.content_hash`); None for no model in particular.

    Raises:
        VectorError: no such file or concept, or a concept that is not built for any model yet.
    """
    if is_path(name):
        return read_vector(Path(name).expanduser())
    concept = find_concept(name)
    source = concept.source()
    if content is not None and (own := find_vector(concept, source, content)) is not None:
        return own.vector
    found = [*cached_vectors(name, source), *(vector for _, vector in concept.beside())]
    for vector in found:
        if vector.provenance.calibration is not None:
            return vector
    if found:
        return found[0]
    raise VectorError(
        f'The concept "{name}" comes without a built vector.',
        hint=f"Build one with `localsteer vectors build {name}`.",
    )
