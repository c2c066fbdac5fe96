"""Which steering a request means: expressions, presets and names of models, resolved for the model that is served."""

from __future__ import annotations

import difflib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from localsteer.building.ahead import Shelf
from localsteer.building.extraction import Progress
from localsteer.building.library import load_vector
from localsteer.concepts.names import LibraryConcept, concepts, is_path
from localsteer.errors import LocalsteerError, VectorError
from localsteer.files.text import read_text
from localsteer.files.yaml_lines import YamlFile
from localsteer.llama.model import Model
from localsteer.llama.threads import compute_apart
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import NOTHING, Steering, Term, parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector

# Expressions whose plans are kept: 16 MB each for an 8B model (32 layers of 4,096 floats, and its opposite).
_KEPT_PLANS = 64

MAX_TERMS = 8

MAX_STRENGTH = 8.0


class SteeringError(LocalsteerError):
    """A steering that a request may not ask for."""


class UnknownModelError(LocalsteerError):
    """A name that is not the served model's."""


class UnknownVectorError(VectorError):
    """A name that no vector has."""


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

    The same expression always gives the same plan object: prefixes are shared between requests of one steering only.

    Args:
        model: the model that is served.
        name: what it is called in requests.
        folder: vectors that can be named besides those of the library: the files NAME.gguf in it.
        presets: names for expressions (`load_presets`).
        default: what requests that name none are steered by.
        mode: what is steered where a request says nothing.
        limit: the largest relative dose; None for any.
        progress: told about the building of the default's vectors.

    Raises:
        LocalsteerError: the default cannot be used, or the folder does not exist.

    Attributes:
        mode: what is steered where a request says nothing.
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
        progress: Progress | None = None,
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise VectorError(f"{folder} is not a folder.", hint="Name a folder of control vectors (GGUF files).")
        self.model = model
        self.name = name
        self.presets = dict(presets or {})
        self.mode = mode
        self._folder = folder
        self._limit = limit
        self._vectors: dict[str, ControlVector] = {}
        self._lock = threading.Lock()  # of the dictionaries; nothing long happens under it
        self._building: dict[str, threading.Lock] = {}  # by vector
        self._plans: OrderedDict[tuple[Steering, Mode], Plan] = OrderedDict()
        self._progress = progress
        self.default = default
        self._progress = None  # requests have nobody to show it to

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

    def of_model_name(self, name: str) -> Steering | None:
        """The steering that a model's name asks for; None where it asks for nothing.

        `NAME`, `NAME:latest` (which Ollama's programs add), `NAME:PRESET`, `NAME:happy=0.5,formal@8-20=-0.3`, `NAME:happy`.

        Raises:
            UnknownModelError: the name is not the served model's.
            SteeringError: what follows it is no steering.
        """
        # The name itself may hold a colon, as Ollama's do.
        for own in (self.name, f"{self.name}:latest"):
            if name == own:
                return None
        if not name.startswith(f"{self.name}:"):
            raise UnknownModelError(f'There is no model "{name}" here.', hint=f"This server has {', '.join(self.names)}.")
        suffix = name.removeprefix(f"{self.name}:").removesuffix(":latest")
        if suffix in self.presets:
            return self.presets[suffix]
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

    def plan(self, steering: Steering, mode: Mode = "response") -> Plan | None:
        """What an expression does to the model; None where it steers nothing. It may take the time to build a vector.

        Raises:
            LocalsteerError: it asks for too much, or names a vector that there is not, or is stronger than allowed.
        """
        if not check_steering(steering):
            return None
        key = steering, mode
        with self._lock:
            plan = self._plans.get(key)
        if plan is None:
            plan = resolve(steering, self.model.fingerprint, self._load, mode, self._limit)
        with self._lock:
            plan = self._plans.pop(key, plan)  # another request may have been faster
            self._plans[key] = plan
            if len(self._plans) > _KEPT_PLANS:
                self._plans.popitem(last=False)
        return plan

    def vector(self, name: str) -> ControlVector:
        """A vector by its name, built where it is not there yet.

        Raises:
            LocalsteerError: there is none, or it does not fit the model.
        """
        if is_path(name):
            raise UnknownVectorError(f'There is no vector "{name}".', hint="GET /v1/vectors lists them.")
        vector = self._load(name)
        vector.check_fits(self.model.fingerprint, name=name)
        return vector

    def list_vectors(self) -> list[dict[str, object]]:
        """The vectors that can be named, without building any."""
        own = {name: self._own_document(name) for name in self._own_files()}
        shelf = Shelf.for_model(self.model.path)
        library = {name: _document(concept, shelf) for name, concept in concepts().items() if name not in own}
        return [document for _, document in sorted({**library, **own}.items()) if document is not None]

    def _own_files(self) -> dict[str, Path]:
        files = self._folder.glob("*.gguf") if self._folder is not None else ()
        return {file.stem: file for file in files}

    def _own_document(self, name: str) -> dict[str, object] | None:
        try:
            vector = self.vector(name)
        except LocalsteerError:
            return None
        own = vector.provenance
        calibrated = own.calibration is not None and own.calibration.content == self.model.fingerprint.content
        return _described(name, own.positive, own.negative, own.description, ready=True, calibrated=calibrated)

    def _load(self, name: str) -> ControlVector:
        if name in self._vectors:
            return self._vectors[name]
        with self._lock:
            building = self._building.setdefault(name, threading.Lock())
        # Who wants this vector waits while it is built; everybody else does not.
        with building:
            if name not in self._vectors:
                try:
                    self._vectors[name] = self._find(name)
                finally:
                    self._building.pop(name, None)
            return self._vectors[name]

    def _find(self, name: str) -> ControlVector:
        file = self._own_files().get(name)
        if file is not None:
            try:
                return read_vector(file)
            except VectorError as error:
                raise VectorError(error.message.replace(str(file), name), hint=error.hint) from None
        if name in (known := concepts()):
            return compute_apart(lambda: load_vector(name, self.model, self._progress))  # it may have to be built
        near = difflib.get_close_matches(name, {*known, *self._own_files()}, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "GET /v1/vectors lists them."
        raise UnknownVectorError(f'There is no vector "{name}".', hint=hint)


def _document(concept: LibraryConcept, shelf: Shelf) -> dict[str, object] | None:
    place = shelf.look(concept)
    if place.contrast is None:
        return None  # broken: it cannot be used
    contrast = place.contrast
    return _described(
        concept.name,
        contrast.positive,
        contrast.negative,
        contrast.description,
        ready=place.found is not None,
        calibrated=place.calibrated,
    )


def _described(name: str, positive: str, negative: str, description: str, *, ready: bool, calibrated: bool) -> dict[str, object]:
    return {
        "id": name,
        "object": "vector",
        "positive": positive,
        "negative": negative,
        "description": description,
        "state": "ready" if ready else "built at first use",
        "calibrated": calibrated,
    }


# What stands behind the colon of a model's name must not look like a steering.
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class _PresetsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

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
