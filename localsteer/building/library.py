"""Vectors by name: a concept's prompts are shipped, and its vector fits the model at hand.

A concept is a folder with a `concept.yaml` and vectors that were built from it. For a model that none of them was read from, the
vector is built at first use and kept in the user's cache (`localsteer.building.cache`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localsteer.building.cache import cache_path, cached_vectors, forget_lock, make_folder, one_at_a_time
from localsteer.building.extraction import extract
from localsteer.building.own_answers import Progress
from localsteer.concepts.names import LibraryConcept, find_concept, is_path
from localsteer.errors import VectorError
from localsteer.files.home import expanded
from localsteer.llama.model import Model
from localsteer.steering.worth import worth
from localsteer.vector.calibration import SIGN
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector, write_vector

logger = logging.getLogger("localsteer")

OnBuilt = Callable[[str, ControlVector, float], None]
"""Called with a concept's name, the vector that had to be built for it, and the seconds that it took."""


@dataclass(frozen=True, eq=False)
class FoundVector:
    """A concept's vector for one model, as it lies on this machine.

    Attributes:
        vector: the vector.
        path: its file.
        shipped: whether it came with localsteer; otherwise it was built by the user.
    """

    vector: ControlVector
    path: Path
    shipped: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether it was calibrated on that model."""
        model, calibration = self.vector.provenance.model, self.vector.provenance.calibration
        return model is not None and calibration is not None and calibration.content == model.content


def find_vector(
    concept: LibraryConcept, source: str, content: str, read: Callable[[Path], ControlVector] = read_vector
) -> FoundVector | None:
    """Where a concept's vector for a model lies; None where it is not built yet. No model is needed for that.

    A calibrated one comes first, and one from the cache before one beside the concept.

    Args:
        concept: the concept.
        source: its text. A vector from another wording is another one.
        content: hash of the model's file (`model_file.content_hash`).
        read: reads a vector's file.
    """
    found = []
    cached = cache_path(concept.name, source, content)
    if cached.exists():
        forget_lock(cached)
        try:
            found.append(FoundVector(read(cached), cached))
        except VectorError as error:
            logger.warning("%s; it is built again", error.message)
    for path, vector in concept.beside(read):
        if is_built_from(vector, source, content):
            found.append(FoundVector(vector, path, concept.shipped))
    return max(found, key=lambda one: one.calibrated, default=None)


def is_built_from(vector: ControlVector, source: str, content: str) -> bool:
    """Whether a vector was read from this wording of its concept (or does not say) and this model file.

    One that was exported holds another dose.
    """
    own = vector.provenance
    return own.model is not None and own.model.content == content and own.source in ("", source) and not own.origin


def load_vector(name: str, model: Model, progress: Progress | None = None, on_built: OnBuilt | None = None) -> ControlVector:
    """The vector that a name or path stands for, for this model.

    Where several processes want a vector that is not built yet, one builds it and the others wait.

    Args:
        name: a path, or the name of a concept.
        model: the model that will be steered.
        progress: told about the building of a vector that is not there yet.
        on_built: told once it is built.

    Raises:
        VectorError: no such file or concept, or a damaged file.
        ContrastError: the concept file is broken.
        CalibrationError: a vector is to be built, and the model gives no answers to dose it by.
        ModelError: the model's residual stream cannot be read.
    """
    if is_path(name):
        return read_vector(expanded(name, VectorError))
    concept = find_concept(name)
    source, content = concept.source(), model.fingerprint.content
    found = find_vector(concept, source, content)
    if found is not None:
        return found.vector
    start = time.perf_counter()
    vector = build_vector(concept, source, model, cache_path(name, source, content), progress=progress, keep=_keep_if_possible)
    if on_built is not None:
        on_built(name, vector, time.perf_counter() - start)
    return vector


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
        CalibrationError: the model gives no answers, so that what strength 1 is cannot be measured.
        ModelError: the model's residual stream cannot be read.
        VectorError: the vector cannot be written.
    """
    from localsteer.concepts.concept_file import parse_concept

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


def loader(model: Model, progress: Progress | None = None, on_built: OnBuilt | None = None) -> Callable[[str], ControlVector]:
    """`load_vector` for one model, as `localsteer.steering.plan.resolve` wants it."""
    return lambda name: load_vector(name, model, progress, on_built)


def telling(lines: list[str], model: Model) -> OnBuilt:
    """Adds to lines what is to be said of a vector that had to be built: what that took, and what the vector is worth."""

    def tell(name: str, vector: ControlVector, seconds: float) -> None:
        lines.append(f"{name} was built for {model.name} in {seconds:.0f} s. Strength 1 and -1 of it:")
        lines.extend(f"{SIGN[pole]:+.0f} {said}" for pole, said in worth(vector))

    return tell


def load_for_showing(name: str, content: str | None = None) -> ControlVector:
    """A vector to look at: that for a model, or else whichever there is.

    Args:
        name: a path, or the name of a concept.
        content: hash of the model's file (`model_file.content_hash`); None for no model in particular.

    Raises:
        VectorError: no such file or concept, or a concept that is not built for any model yet.
    """
    if is_path(name):
        return read_vector(expanded(name, VectorError))
    concept = find_concept(name)
    source = concept.source()
    if content is not None and (own := find_vector(concept, source, content)) is not None:
        return own.vector
    found = [*cached_vectors(name, source), *(vector for _, vector in concept.beside())]
    if found:
        return max(found, key=lambda vector: vector.provenance.calibration is not None)
    raise VectorError(
        f'The concept "{name}" comes without a built vector.',
        hint=f"Build one with `localsteer vectors build {name}`.",
    )
