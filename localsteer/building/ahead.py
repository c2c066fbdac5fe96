"""Vectors of the concept library, built before they are needed: into the user's cache, or into a folder of concepts."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from localsteer.building.cache import cache_folder, cache_path, forget_lock, make_folder
from localsteer.building.library import FoundVector, build_vector, find_vector, is_built_from
from localsteer.building.own_answers import Progress
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import LibraryConcept
from localsteer.errors import CalibrationError, ContrastError, LocalsteerError, VectorError
from localsteer.llama.model import Model
from localsteer.llama.model_file import content_hash, model_stem
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector, write_vector

logger = logging.getLogger("localsteer")

State = Literal["built", "there", "shipped", "failed", "missing"]

# What these are about is one concept; others may well be built.
_OF_ONE_CONCEPT = (ContrastError, CalibrationError, VectorError)
# A server looks at every concept again and again: parsing the 15 shipped ones took it 268 ms each time.
_parse = functools.lru_cache(maxsize=256)(parse_concept)

# As llama.cpp and those who publish its models write it: Q4_K_M, IQ2_XS, UD-Q8_0, TQ1_0, MXFP4_MOE, BF16.
_QUANTISATION = re.compile(r"[-._](UD-)?((I|T)?Q\d[A-Z0-9_]*|MXFP4[A-Z0-9_]*|BF16|FP?16|FP?32)$", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """One concept's vector for one model: whether it is there, and where it shall be.

    Attributes:
        concept: the concept.
        path: the file that is written; None where the concept cannot be read.
        contrast: the concept's contents; likewise.
        found: the vector, wherever it lies; None where it is not built.
        built: whether it was built by this run.
        seconds: what this run took for it.
        error: why it could not be built, or not be calibrated.
    """

    concept: LibraryConcept
    path: Path | None = None
    contrast: Contrast | None = None
    found: FoundVector | None = None
    built: bool = False
    seconds: float = 0.0
    error: LocalsteerError | None = None

    @property
    def state(self) -> State:
        """Built by this run, there before, shipped; or why it is not there."""
        if self.found is None:
            return "failed" if self.error is not None else "missing"
        if self.built:
            return "built"
        return "shipped" if self.found.shipped else "there"

    @property
    def calibrated(self) -> bool:
        """Whether it is calibrated for the model."""
        return self.found is not None and self.found.calibrated

    @property
    def to_build(self) -> bool:
        """Whether there is something to build."""
        return self.found is None and self.error is None

    @property
    def to_calibrate(self) -> bool:
        """Whether there is something to calibrate, once it is built."""
        return self.error is None and not self.calibrated


@dataclass(frozen=True)
class Shelf:
    """Where the vectors for one model are kept.

    Attributes:
        content: hash of the model's file.
        folder: None for the user's cache, where every command finds them by name; shipped vectors count as there. Otherwise
            they are in FOLDER/CONCEPT/MODEL.gguf, and only what is there counts.
        slug: the model's part of that name.
        read: reads a vector's file.
    """

    content: str
    folder: Path | None
    slug: str
    read: Callable[[Path], ControlVector] = read_vector

    @classmethod
    def for_model(cls, path: Path, folder: Path | None = None, read: Callable[[Path], ControlVector] = read_vector) -> Shelf:
        """The shelf of a model.

        Args:
            path: the model's file.
            folder: as above.
            read: likewise.

        Raises:
            ModelError: the model's file cannot be read.
        """
        return cls(content_hash(path), folder, model_slug(path), read)

    def check_writable(self) -> None:
        """Find out before the work whether vectors can be kept.

        Raises:
            VectorError: they cannot.
        """
        make_folder(self.folder if self.folder is not None else cache_folder())

    def look(self, concept: LibraryConcept) -> Place:
        """Whether a concept's vector is there; what is wrong with the concept becomes the place's error."""
        try:
            source = concept.source()
            contrast = _parse(source, str(concept.file))
            path = self._path(concept, source)
            found = find_vector(concept, source, self.content, self.read) if self.folder is None else self._read(path, source)
        except _OF_ONE_CONCEPT as error:
            return Place(concept, error=error)
        return Place(concept, path, contrast, found)

    def build(self, place: Place, model: Model, progress: Progress | None = None) -> Place:
        """Build what is not there and keep it.

        Raises:
            ModelError: the model's residual stream cannot be read.
        """
        return self._done(
            place, lambda path, contrast: build_vector(place.concept, contrast.source, model, path, progress=progress)
        )

    def calibrate(self, place: Place, calibrate: Callable[[ControlVector, Contrast], ControlVector]) -> Place:
        """Calibrate a vector that is there, and keep it.

        Args:
            place: of a vector that is built.
            calibrate: returns the calibrated vector.
        """
        assert place.found is not None
        vector = place.found.vector

        def write(path: Path, contrast: Contrast) -> ControlVector:
            result = calibrate(vector, contrast)
            write_vector(result, path)
            return result

        return self._done(place, write, built=place.built)

    def _done(self, place: Place, work: Callable[[Path, Contrast], ControlVector], *, built: bool = True) -> Place:
        assert place.path is not None
        assert place.contrast is not None
        start = time.perf_counter()
        try:
            make_folder(place.path.parent)
            vector = work(place.path, place.contrast)
        except _OF_ONE_CONCEPT as error:
            return replace(place, error=error, seconds=place.seconds + time.perf_counter() - start)
        seconds = place.seconds + time.perf_counter() - start
        return replace(place, found=FoundVector(vector, place.path), built=built, seconds=seconds)

    def _path(self, concept: LibraryConcept, source: str) -> Path:
        if self.folder is None:
            return cache_path(concept.name, source, self.content)
        return self.folder / concept.name / f"{self.slug}.gguf"

    def _read(self, path: Path, source: str) -> FoundVector | None:
        """What is in the folder; what was built from another wording will be replaced."""
        if not path.exists():
            return None
        forget_lock(path)
        try:
            vector = self.read(path)
        except VectorError as error:
            logger.warning("%s; it is built again", error.message)
            return None
        own = vector.provenance.model
        if own is None or own.content != self.content:
            raise VectorError(
                f"{path} is there already, and was read from another file than this model's.",
                hint="Move it away, or give another folder.",
            )
        return FoundVector(vector, path) if is_built_from(vector, source, self.content) else None


def model_slug(path: Path) -> str:
    """A model's part of a vector's file name: its own file's name in lower case, without the quantisation.

    `SmolLM2-135M-Instruct.Q4_1.gguf` is `smollm2-135m-instruct`; of a split model the number of the part is left out, too.
    """
    stem = model_stem(path)
    return _QUANTISATION.sub("", stem).lower() or stem.lower()
