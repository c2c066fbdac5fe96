"""Which steering a request means: expressions, presets and names of models, resolved for the model that is served."""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

from localsteer.building.ahead import Shelf
from localsteer.building.library import is_built_from, load_vector
from localsteer.building.own_answers import Progress
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import LibraryConcept, concepts, is_path
from localsteer.errors import LocalsteerError, VectorError
from localsteer.files.text import read_text
from localsteer.files.unchanged import WhileUnchanged
from localsteer.files.yaml_lines import YamlDocument, YamlFile
from localsteer.llama.model import Model
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import NOTHING, Steering, Term, parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.steering.worth import is_shown, strongest_tried
from localsteer.vector.calibration import POLES, Mode
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector

# Expressions whose plans are kept: 0.5 MB each for an 8B model (32 layers of 4,096 floats).
_KEPT_PLANS = 64

MAX_TERMS = 8

MAX_STRENGTH = 8.0


class SteeringError(LocalsteerError):
    """A steering that a request may not ask for."""


class UnknownModelError(LocalsteerError):
    """A name that is not the served model's."""


class UnknownVectorError(VectorError):
    """A name that no vector has."""


class UnbuiltVectorError(VectorError):
    """A concept whose vector is not there yet."""


def parse_requested(expression: str) -> Steering:
    """Parse an expression that came from outside.

    Raises:
        LocalsteerError: it cannot be parsed, is too long or too strong, or names a file.
    """
    if len(expression) > 1000:
        raise SteeringError("The steering expression is too long.", hint=f"At most {MAX_TERMS} terms are allowed.")
    return check_steering(parse_steering(expression))


def check_steering(steering: Steering) -> Steering:
    """The same steering, if a request may ask for it.

    Raises:
        SteeringError: it is too long or too strong, or names a file.
    """
    if len(steering.terms) > MAX_TERMS:
        raise SteeringError(f"The expression has {len(steering.terms)} terms, and {MAX_TERMS} are allowed.")
    for term in steering.terms:
        if is_path(term.vector):
            raise SteeringError(
                f'"{term.vector}" looks like a file, and a request can only name vectors.', hint="GET /v1/vectors lists them."
            )
        if abs(term.strength) > MAX_STRENGTH:
            raise SteeringError(f"{term} is stronger than {MAX_STRENGTH:g}, the most that is allowed.")
    return steering


class Steerings:
    """The steerings that can be asked for.

    Vectors are as their files are at the time of a request; as long as those stay the same, an expression gives the same plan.

    Args:
        model: the model that is served.
        name: what it is called in requests.
        folder: vectors that can be named besides those of the library: the files NAME.gguf in it.
        presets: names for expressions (`load_presets`).
        default: what requests that name none are steered by.
        mode: what is steered where a request says nothing.
        limit: the largest relative dose; None for any.
        list_steerings: how many steerings are listed beside the model and the presets.
        strict: refuse requests that name another model; else the one that is served answers them.
        fixed: requests get the default, or a preset that they name, and may ask for no other steering; calls of tools and answers
            in a form are steered as well.
        progress: told about the building of the default's vectors.

    Raises:
        LocalsteerError: the default cannot be used, or the folder does not exist.

    Attributes:
        mode: what is steered where a request says nothing.
        fixed: as given.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        *,
        folder: Path | None = None,
        presets: Mapping[str, Steering] | None = None,
        default: Steering = NOTHING,
        mode: Mode = "response",
        limit: DoseLimit | None = None,
        list_steerings: int = 0,
        strict: bool = False,
        fixed: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise VectorError(f"{folder} is not a folder.", hint="Name a folder of control vectors (GGUF files).")
        self.model = model
        self.name = name
        self.presets = dict(presets or {})
        self.mode = mode
        self.fixed = fixed
        # Taken now: it cannot be had any more once somebody has touched the file.
        self._fingerprint = model.fingerprint
        self._folder = folder
        self._limit = limit
        self._strict = strict
        self._most_listed = list_steerings
        self._read = WhileUnchanged(read_vector)
        self._shelf = Shelf.for_model(model.path, read=self._read)
        self._unkept: dict[str, ControlVector] = {}
        self._lock = threading.Lock()  # of the plans; nothing long happens under it
        self._plans: OrderedDict[tuple[Steering, Mode], tuple[dict[str, ControlVector], Plan]] = OrderedDict()
        for term in check_steering(default).terms:
            if self.find(term.vector) is None:
                self.build(term.vector, progress)
        self.default = default

    @property
    def default(self) -> Steering:
        """What requests that name none are steered by; may be set while the server runs."""
        return self._default

    @default.setter
    def default(self, steering: Steering) -> None:
        self.plan(steering, self.mode)
        self._default = steering

    @property
    def names(self) -> list[str]:
        """What the model can be called: its name, and one more for each preset."""
        return [self.name, *(f"{self.name}:{preset}" for preset in self.presets)]

    def listed(self) -> list[str]:
        """`names`, and the model steered by what is built for it and does something on it: programs offer their users no others.

        At strength 1 and -1, as far as each was seen to do something; what is calibrated stands first.
        """
        ready: list[tuple[bool, str, ControlVector]] = []
        own, known = self._own_files(), concepts()
        for name in sorted({*own, *known}) if self._most_listed and not self.fixed else ():
            with contextlib.suppress(LocalsteerError):
                if (vector := self._look(name, own, known)[0]) is not None:
                    ready.append((vector.provenance.calibration is None, name, vector))
        steered = [
            f"{self.name}:{name}" if pole == "positive" else f"{self.name}:{name}=-1"
            for _, name, vector in sorted(ready, key=lambda one: one[:2])
            for pole in POLES
            if is_shown(vector, pole) and name not in self.presets
        ]
        return [*self.names, *steered[: self._most_listed]]

    def of_model_name(self, name: str) -> Steering | None:
        """The steering that a model's name asks for; None where it asks for nothing.

        `NAME`, `NAME:latest` (which Ollama's programs add), `NAME:PRESET`, `NAME:happy=0.5,formal@8-20=-0.3`, `NAME:happy`.

        Raises:
            UnknownModelError: the name is not the served model's.
            SteeringError: what follows it is no steering, or is one that requests may not ask for here.
        """
        # The name itself may hold a colon, as Ollama's do.
        if name in (self.name, f"{self.name}:latest"):
            return None
        if not name.startswith(f"{self.name}:"):
            raise UnknownModelError(f'There is no model "{name}" here.', hint=f"This server has {', '.join(self.names)}.")
        suffix = name.removeprefix(f"{self.name}:").removesuffix(":latest")
        if suffix in self.presets:
            return self.presets[suffix]
        self.refuse_if_fixed()
        terms: list[Term] = []
        for part in suffix.split(","):
            vector, equals, strength = part.strip().partition("=")
            try:
                found = parse_steering(f"{float(strength) if equals else 1.0:+.12f} {vector}").terms
            except (ValueError, LocalsteerError):
                found = ()
            if len(found) != 1:  # "happy - formal=0.5" would slip in another one
                raise SteeringError(
                    f'"{part}" in the model\'s name "{name}" is no steering.',
                    hint=f"Write it as {self.name}:happy=0.5, with a number behind the vector, or name a preset.",
                )
            terms += found
        return check_steering(Steering(tuple(terms)))

    def refuse_if_fixed(self) -> None:
        """For whatever else a request may ask to be steered by.

        Raises:
            SteeringError: it may not.
        """
        if self.fixed:
            names = ", ".join(self.names)
            raise SteeringError("What steers is fixed on this server (serve --fixed-steering).", hint=f"Ask for {names}.")

    def of_requested_name(self, name: str) -> tuple[Steering | None, str | None]:
        """What `of_model_name` says, and a note where the name is another model's: programs send the one that they were made for.

        Raises:
            UnknownModelError: the name is another model's, and asks for a steering or is refused here.
            SteeringError: what follows the model's own name is no steering.
        """
        if not name:
            return None, None
        try:
            return self.of_model_name(name), None
        except UnknownModelError as error:
            if self._strict or "=" in name:
                raise
            return None, f"{error.message} {self.name} answers."

    def plan(self, steering: Steering, mode: Mode = "response") -> Plan | None:
        """What an expression does to the model; None where it steers nothing.

        Raises:
            UnbuiltVectorError: it names a concept whose vector is not built yet.
            LocalsteerError: it asks for too much, or names a vector that there is not, or is stronger than allowed.
        """
        if not check_steering(steering):
            return None
        vectors = {term.vector: self.vector(term.vector) for term in steering.terms}
        key = steering, mode
        with self._lock:
            kept = self._plans.get(key)
        if kept is None or kept[0] != vectors:
            kept = vectors, resolve(steering, self._fingerprint, vectors.__getitem__, mode, self._limit)
        with self._lock:
            self._plans[key] = kept
            self._plans.move_to_end(key)
            if len(self._plans) > _KEPT_PLANS:
                self._plans.popitem(last=False)
        return kept[1]

    def find(self, name: str) -> ControlVector | None:
        """A vector by its name; None where it is to be built first.

        Raises:
            LocalsteerError: there is none, or it is damaged or does not fit the model.
        """
        return self._look(name, self._own_files(), concepts())[0]

    def vector(self, name: str) -> ControlVector:
        """A vector that is there.

        Raises:
            UnbuiltVectorError: it is to be built first.
            LocalsteerError: as `find`.
        """
        vector = self.find(name)
        if vector is None:
            raise UnbuiltVectorError(f'The vector "{name}" is not built yet.', hint=f"POST /v1/vectors/{name} builds it.")
        return vector

    def build(self, name: str, progress: Progress | None = None) -> None:
        """Build the vector of a concept, so that `find` finds it.

        Raises:
            LocalsteerError: there is no such concept, or it cannot be built.
        """
        vector = load_vector(name, self.model, progress)
        if self.find(name) is None:
            self._unkept[name] = vector  # the cache cannot be written

    def describe(self, name: str) -> dict[str, object]:
        """A vector's state and what it is about, without building it.

        Raises:
            LocalsteerError: there is none, or it cannot be used.
        """
        return self._document(name, *self._look(name, self._own_files(), concepts()))

    def list_vectors(self) -> list[dict[str, object]]:
        """The vectors that can be named; what cannot be used is left out."""
        documents, own, known = [], self._own_files(), concepts()
        for name in sorted({*own, *known}):
            with contextlib.suppress(LocalsteerError):
                documents.append(self._document(name, *self._look(name, own, known)))
        return documents

    def _own_files(self) -> dict[str, Path]:
        files = self._folder.glob("*.gguf") if self._folder is not None else ()
        return {file.stem: file for file in files}

    def _document(self, name: str, vector: ControlVector | None, about: Contrast | Provenance) -> dict[str, object]:
        calibration = vector.provenance.calibration if vector is not None else None
        dosing = vector.provenance.dosing if vector is not None else None
        calibrated = calibration is not None and calibration.content == self._fingerprint.content
        dosed = calibration is None and dosing is not None and dosing.content == self._fingerprint.content
        tried = {pole: strongest_tried(vector, pole) for pole in POLES} if vector is not None and (calibrated or dosed) else None
        return {
            "id": name,
            "object": "vector",
            "positive": about.positive,
            "negative": about.negative,
            "description": about.description,
            "state": "ready" if vector is not None else "built at first use",
            "calibrated": calibrated,
            "dosed": dosed,
            "tried": tried,
        }

    def _look(
        self, name: str, own: Mapping[str, Path], known: Mapping[str, LibraryConcept]
    ) -> tuple[ControlVector | None, Contrast | Provenance]:
        """A vector, None where it is not built, and what it is about.

        Args:
            name: its name.
            own: the files of the folder by name.
            known: the concepts of the library.
        """
        if name in own:
            try:
                vector = self._read(own[name])
            except VectorError as error:
                raise VectorError(error.message.replace(str(own[name]), name), hint=error.hint) from None
            vector.check_fits(self._fingerprint, name=name)
            return vector, vector.provenance
        if name not in known:
            near = difflib.get_close_matches(name, {*known, *own}, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else "GET /v1/vectors lists them."
            raise UnknownVectorError(f'There is no vector "{name}".', hint=hint)
        place = self._shelf.look(known[name])
        if place.error is not None:
            raise place.error
        assert place.contrast is not None  # or else there is an error
        if place.found is not None:
            return place.found.vector, place.contrast
        unkept = self._unkept.get(name)
        fits = unkept is not None and is_built_from(unkept, place.contrast.source, self._shelf.content)
        return unkept if fits else None, place.contrast


# What stands behind the colon of a model's name must not look like a steering.
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class _PresetsFile(YamlDocument):
    presets: dict[_Name, str]


def load_presets(path: Path) -> dict[str, Steering]:
    """Read the file of presets: names for expressions, which requests use as part of the model's name.

    Raises:
        SteeringError: it is missing or broken; the message names the line.
    """
    text = read_text(path, SteeringError, kind="file of presets")
    file = YamlFile.parse(text, where=str(path), kind="a file of presets", page="docs/server.md", error=SteeringError)
    presets = {}
    for name, expression in file.validate(_PresetsFile).presets.items():
        if name == "latest":
            raise file.mistake(("presets", name), "programs for Ollama add this to every model's name")
        try:
            presets[name] = parse_requested(expression)
        except LocalsteerError as error:
            raise file.mistake(("presets", name), error.message) from None
    return presets
