"""Vectors by name: a concept's prompts are shipped, and its vector fits the model at hand.

A concept is a folder with a `concept.yaml` and vectors that were built from it. For a model that none of them was read from, the
vector is built at first use and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from localsteer.atomic import check_writable
from localsteer.dose import DEFAULT_DOSE
from localsteer.errors import ContrastError, VectorError
from localsteer.extraction import Progress, extract
from localsteer.llama.model import Model
from localsteer.text_file import read_text
from localsteer.vector import ControlVector
from localsteer.vector_file import read_vector, write_vector

logger = logging.getLogger("localsteer")

CONCEPT_FILE = "concept.yaml"
# Of the vectors in the cache: counted up when a vector of the same concept comes to hold more.
_VERSION = 2


@dataclass(frozen=True)
class LibraryConcept:
    """A concept that can be named in an expression."""

    name: str
    folder: Path
    shipped: bool

    @property
    def file(self) -> Path:
        """Its concept.yaml."""
        return self.folder / CONCEPT_FILE

    def built(self) -> Iterator[ControlVector]:
        """The vectors that lie beside it, for whatever models."""
        for path in sorted(self.folder.glob("*.gguf")):
            try:
                yield read_vector(path)
            except VectorError as error:
                logger.warning("%s", error)


def user_folder() -> Path:
    """Where users put concepts of their own; they come before shipped ones of the same name."""
    return platformdirs.user_data_path("localsteer") / "vectors"


def shipped_folder() -> Path:
    """The concept library: inside the package in an installed wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "vectors"
    return inside if inside.is_dir() else package.parent / "vectors"


def concepts() -> dict[str, LibraryConcept]:
    """All concepts by name."""
    found: dict[str, LibraryConcept] = {}
    for root, shipped in ((shipped_folder(), True), (user_folder(), False)):
        for file in sorted(root.glob(f"*/{CONCEPT_FILE}")):
            found[file.parent.name] = LibraryConcept(file.parent.name, file.parent, shipped)
    return found


def is_path(name: str) -> bool:
    """Whether the name of a vector in an expression means a file."""
    return name.endswith(".gguf") or "/" in name or "\\" in name


def find_concept(name: str) -> LibraryConcept:
    """The concept of that name.

    Raises:
        VectorError: there is none; the message names the nearest ones.
    """
    known = concepts()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(sorted(known))}."
    if os.path.exists(name):
        hint = f"For the file of that name write ./{name}."
    raise VectorError(f'There is no vector "{name}".', hint=hint)


def load_vector(name: str, model: Model, progress: Progress | None = None) -> ControlVector:
    """The vector that a name or path stands for, for this model.

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
    source = read_text(concept.file, ContrastError)
    found = []
    cached = _cache_path(concept, source, model)
    if cached.exists():
        try:
            found.append(read_vector(cached))
        except VectorError as error:
            logger.warning("%s; it is built again", error.message)
    for vector in concept.built():
        own = vector.provenance
        # A concept that was edited since is another one.
        if own.model is not None and own.model.same_file(model.fingerprint) and own.source in ("", source):
            found.append(vector)
    if found:
        return next((vector for vector in found if vector.provenance.calibration is not None), found[0])
    from localsteer.concept_file import load_concept  # pydantic: 0.1 s and 10 MB that a built vector does not need

    vector = extract(model, load_concept(concept.file), progress=progress)
    try:
        save_vector(name, vector, model)
    except VectorError as error:
        logger.warning("the vector %s cannot be kept for next time: %s", name, error)
    return vector


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
    path = _cache_path(concept, read_text(concept.file, ContrastError), model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorError(f"The cache {path.parent} cannot be written: {error.strerror}.") from error
    check_writable(path, VectorError)
    return path


def loader(model: Model, progress: Progress | None = None) -> Callable[[str], ControlVector]:
    """`load_vector` for one model, as `steering.resolve` wants it."""
    return lambda name: load_vector(name, model, progress)


def load_for_showing(name: str) -> ControlVector:
    """A vector to look at, whatever model it is for.

    Raises:
        VectorError: no such file or concept, or a concept that is not built for any model yet.
    """
    if is_path(name):
        return read_vector(Path(name).expanduser())
    concept = find_concept(name)
    found = [*_kept(concept), *concept.built()]
    for vector in found:
        if vector.provenance.calibration is not None:
            return vector
    if found:
        return found[0]
    raise VectorError(
        f'The concept "{name}" comes without a built vector.',
        hint=f"Build one with `localsteer extract {concept.file} -o {name}.gguf`.",
    )


def _kept(concept: LibraryConcept) -> Iterator[ControlVector]:
    """The concept's vectors in the user's cache, for whatever models, the latest first."""
    source = read_text(concept.file, ContrastError)
    files = _cache_folder().glob(f"{concept.name}-*.gguf")
    for path in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        with contextlib.suppress(VectorError):  # `load_vector` builds it again
            if (vector := read_vector(path)).provenance.source == source:
                yield vector


def _cache_folder() -> Path:
    return platformdirs.user_cache_path("localsteer") / "vectors"


def _cache_path(concept: LibraryConcept, source: str, model: Model) -> Path:
    """Another model file, another wording of the concept or another default dose is another vector."""
    key = hashlib.sha256(f"{_VERSION}\n{model.fingerprint.content}\n{DEFAULT_DOSE}\n{source}".encode()).hexdigest()[:16]
    return _cache_folder() / f"{concept.name}-{key}.gguf"
