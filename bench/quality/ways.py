"""The ways to move an answer that are compared, and what each does to the model: system prompts, ours, the peers', and chance."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from bench import peers
from bench.models import demo_model
from localsteer.building.ahead import Place, Shelf
from localsteer.building.dosing import Doser
from localsteer.building.extraction import ExtractionSettings, Position, default_position, extract
from localsteer.calibration.calibrate import Calibrated, CalibrationSettings, Calibrator, measurements_folder
from localsteer.calibration.effort import ANCHORED as ANCHORED_DOSES
from localsteer.calibration.effort import FACTORS
from localsteer.calibration.report import write_report
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast, Pair
from localsteer.concepts.names import LibraryConcept, shipped_folder
from localsteer.errors import CalibrationError, VectorError
from localsteer.llama.closing import Closing
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.forced import Reading
from localsteer.steering.dose import relative_dose
from localsteer.steering.expression import Steering, parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import DEFAULT_BUDGET, POLES, SIGN, Mode, Pole
from localsteer.vector.control_vector import ControlVector, Floats
from localsteer.vector.file import read_vector, write_vector

UNSTEERED, PROMPT, FRESH, CALIBRATED, BOTH = "unsteered", "system prompt", "fresh", "calibrated", "prompt and calibrated"
ANCHORED, NULL, PEERS = "anchored", "null", peers.NAMES
WAYS = (PROMPT, FRESH, CALIBRATED, BOTH, NULL, *PEERS, ANCHORED)
"""In the order in which they are measured, and of the columns."""
_MODES: Mapping[str, Mode] = {ANCHORED: "anchored"}
# Times our dose, between which that of the null is looked for that leads as far away from the unsteered model.
_NULL_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
_SETTINGS = CalibrationSettings(by_cost=True)
_READ: Mapping[Position, int] = {"last": 1, "response": 1, "opening": 2}
_THEIRS = 1
"""Of our ways, by where a vector is read, and of the peers': counted up when the code comes to make something so different of the
same prompts and settings that what was measured before tells nothing of it. The cache of vectors counts what users had better
build anew, which is more."""


def construction(model: Model, contrast: Contrast) -> int:
    """Which making of our vectors is today's."""
    return _READ[default_position(model, contrast)]


@dataclass(eq=False)
class Ways(Closing):
    """What each way does, for one concept on one model; everything is built, dosed or calibrated when it is first asked for.

    A context manager.

    Attributes:
        model: the model.
        concept: of the library.
        contrast: its contents.
        shelf: where our vectors are kept.
        ships: whether our vector is the shipped one, so that its reports stand beside it.
    """

    model: Model
    concept: LibraryConcept
    contrast: Contrast
    shelf: Shelf
    ships: bool

    @classmethod
    def of(cls, model: Model, name: str) -> Ways:
        """Those of a concept that comes along, by its name."""
        concept = LibraryConcept(name, shipped_folder() / name, shipped=True)
        ships = model.path == demo_model()
        shelf = Shelf.for_model(model.path, shipped_folder() if ships else None)
        return cls(model, concept, parse_concept(concept.source(), name), shelf, ships)

    def key(self, way: str) -> str:
        """What the answers of a way depend on but for the questions: where it is another one, they are asked anew.

        The shipped vector is the same everywhere, so it is its doses that count. Others are built anew on each machine, and
        differ by rounding: there it is how they are made.

        Raises:
            CalibrationError: the way needs a calibration, and no dose can be found.
        """
        source, content = self.contrast.source, self.model.fingerprint.content
        made: list[object] = [way, source, content]
        if way == PROMPT:
            return _digest(made)
        if self.ships and way not in PEERS:
            own = self._ours(way).provenance
            made.append(own.dosing.to_json() if own.dosing is not None else None)
            if own.calibration is not None:
                made += [repr(own.calibration.sides[pole, _MODES.get(way, "response")]) for pole in POLES]
        else:
            made.append(_THEIRS if way in PEERS else construction(self.model, self.contrast))
            if way not in (FRESH, NULL):
                made.append(repr([_SETTINGS.effort, FACTORS, ANCHORED_DOSES if way == ANCHORED else (), DEFAULT_BUDGET]))
        return _digest(made)

    def plan(self, way: str, pole: Pole) -> Plan | None:
        """What a way does to the model; None for a system prompt alone.

        Raises:
            CalibrationError: the way needs a calibration, and no dose can be found.
            ToolsError: a peer cannot be installed.
        """
        if way == PROMPT:
            return None
        if way == NULL:
            return self._null[pole]
        expression = parse_steering("vector" if SIGN[pole] > 0 else "-vector")
        vector = self._peer(way) if way in PEERS else self._ours(way)
        return resolve(expression, self.model.fingerprint, lambda _: vector, _MODES.get(way, "response"))

    def systems(self, way: str, pole: Pole) -> list[str]:
        """Its system prompts, if any."""
        return [pair[POLES.index(pole)] for pair in self.contrast.personas] if way in (PROMPT, BOTH) else []

    def _ours(self, way: str) -> ControlVector:
        if way in (FRESH, NULL):
            return self.fresh
        return self._anchored if way == ANCHORED else self._calibrated

    def close(self) -> None:
        """Free what dosing holds."""
        if doser := self.__dict__.get("_doser"):
            doser.close()

    # ---- ours

    @cached_property
    def _place(self) -> Place:
        place = self.shelf.look(self.concept)
        if place.to_build:
            _say(f"{self.concept.name}: building")
            place = self.shelf.build(place, self.model)
        if place.found is None:
            raise place.error or VectorError(f"{self.concept.name} has no vector.")
        return place

    @cached_property
    def fresh(self) -> ControlVector:
        """Our vector as it is built and dosed at first use, whatever calibration it has got since."""
        assert self._place.found is not None
        return without_calibration(self._place.found.vector)

    @cached_property
    def _calibrated(self) -> ControlVector:
        place = self._place
        assert place.found is not None
        if not _is_calibrated_by(place.found.vector, _SETTINGS):
            place = self.shelf.calibrate(place, functools.partial(self._calibrate, _SETTINGS))
        if place.error is not None or place.found is None:
            raise place.error or VectorError(f"{self.concept.name} has no vector.")
        return place.found.vector

    @cached_property
    def _anchored(self) -> ControlVector:
        known = self._calibrated
        calibration = known.provenance.calibration
        if calibration is not None and "anchored" in calibration.modes:
            return known
        settings = replace(_SETTINGS, anchored=True)
        place = self.shelf.calibrate(self.shelf.look(self.concept), functools.partial(self._calibrate, settings))
        if place.error is not None or place.found is None:
            raise place.error or VectorError(f"{self.concept.name} has no vector.")
        return place.found.vector

    def _calibrate(self, settings: CalibrationSettings, vector: ControlVector, contrast: Contrast) -> ControlVector:
        _say(f"{self.concept.name}: calibrating{' anchored answers' if settings.anchored else ''}")
        result = Calibrator(self.model, vector, contrast, settings, folder=measurements_folder()).run()
        if self.ships:
            _write_report(result, self.concept.folder, "ANCHORED.md" if settings.anchored else "REPORT.md")
        return result.vector

    @cached_property
    def _doser(self) -> Doser:
        return Doser(self.model, self.contrast)

    # ---- chance

    @cached_property
    def _null(self) -> dict[Pole, Plan]:
        """Our own construction, with the labels of half of the pairs exchanged, at the dose that leads as many nats away."""
        model, vector = self.model, self.fresh
        swapped = np.random.default_rng(0).permutation(len(self.contrast.pairs)) % 2
        pairs = [
            Pair(one.negative, one.positive) if swap else one for one, swap in zip(self.contrast.pairs, swapped, strict=True)
        ]
        layers = (vector.layers[0], vector.layers[-1])
        shuffled = replace(self.contrast, pairs=tuple(pairs))
        rows = extract(model, shuffled, ExtractionSettings(layers=layers, dose=False)).rows(model.n_layer)
        unit: Floats = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)).astype(
            np.float32
        )
        ours = {pole: vector.at(SIGN[pole]).rows(model.n_layer) for pole in POLES}
        # As long as ours at each layer, and toward the pole that the pairs which were left as they are point to.
        like = {pole: unit * np.linalg.norm(ours[pole], axis=1)[:, None] * np.float32(SIGN[pole]) for pole in POLES}
        edits = {pole: [Edit(ours[pole]), *(Edit(like[pole], scale=factor) for factor in _NULL_FACTORS)] for pole in POLES}
        own = self._doser.own
        compared = [number for pole in POLES for number in own.read[pole][:2]]
        readings = [Reading(edit, compared) for pole in POLES for edit in edits[pole]]
        kl = np.array([one.kl for one in own.reader.under(readings)]).reshape(len(POLES), -1)
        hidden = vector.provenance.hidden_norm
        assert hidden is not None
        plans = {}
        for pole, (wanted, *found) in zip(POLES, kl, strict=True):
            rising = np.maximum.accumulate(found)
            if not rising[0] <= wanted <= rising[-1]:
                raise CalibrationError(
                    f"No dose of the null from {_NULL_FACTORS[0]:g} to {_NULL_FACTORS[-1]:g} times ours leads as far away: "
                    f"{rising[0]:.3f} to {rising[-1]:.3f} nats, where ours leads {wanted:.3f}."
                )
            factor = float(np.exp(np.interp(np.log(wanted), np.log(rising), np.log(_NULL_FACTORS))))
            added = (like[pole] * np.float32(factor)).astype(np.float32)
            plans[pole] = Plan(Steering(), Edit(added), relative_dose(added, hidden))
        return plans

    # ---- the peers

    def _peer(self, name: str) -> ControlVector:
        """At its own best strength: dosed and calibrated as ours is, on the same questions. It is kept."""
        file = user_cache_path("localsteer") / "bench-peers" / f"{self.concept.name}-{self.key(name)}.gguf"
        if file.exists():
            return read_vector(file)
        _say(f"{self.concept.name}: the vector of {name}, and its strength")
        rows = self._peer_rows[name]
        theirs = ControlVector({int(layer): rows[layer] for layer in np.flatnonzero(rows.any(axis=1))})
        dosed = self._doser.dose(theirs)
        made = Calibrator(self.model, dosed, self.contrast, _SETTINGS, folder=measurements_folder()).run().vector
        file.parent.mkdir(parents=True, exist_ok=True)
        write_vector(made, file)
        return made

    @cached_property
    def _peer_rows(self) -> Mapping[str, Floats]:
        return peers.peer_vectors(self.model, self.contrast.source)


def _is_calibrated_by(vector: ControlVector, settings: CalibrationSettings) -> bool:
    """Whether it is calibrated on the model that it was built on, as thoroughly as these settings ask for."""
    own, model = vector.provenance.calibration, vector.provenance.model
    if own is None or model is None:
        return False
    return (own.content, own.budget, own.seed, own.unsteered.answers) == (
        model.content,
        settings.budget,
        settings.seed,
        settings.effort.unsteered,
    )


def without_calibration(vector: ControlVector) -> ControlVector:
    """A vector as it was built and dosed, whatever calibration it has got since.

    Raises:
        CalibrationError: it was calibrated before vectors were dosed.
    """
    calibration, dosing = vector.provenance.calibration, vector.provenance.dosing
    if calibration is None:
        return vector
    if dosing is None:
        raise CalibrationError("The vector was calibrated without a dosing; build it anew.")
    factor = np.float32(dosing.unit / calibration.main_dose)
    rows = {layer: row * factor for layer, row in vector.directions.items()}
    return ControlVector(rows, replace(vector.provenance, calibration=None))


def _write_report(result: Calibrated, folder: Path, page: str) -> None:
    with tempfile.TemporaryDirectory(prefix="localsteer-bench-") as name:
        write_report(result, Path(name))
        shutil.copy(Path(name, "report.md"), folder / page)
        for plot in Path(name).glob("*.svg"):
            shutil.copy(plot, folder)


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
