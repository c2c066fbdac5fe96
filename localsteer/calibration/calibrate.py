"""A vector and a model -> the vector with doses that sampled answers confirm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from localsteer.building.dosing import dose
from localsteer.building.layers import scale_to_dose
from localsteer.building.own_answers import Progress
from localsteer.calibration.effort import QUICK, THOROUGH, Effort
from localsteer.calibration.findings import Findings, nothing_found
from localsteer.calibration.interview import LONG, Interview, Speed, probe_speed, prompt_length, questions_of
from localsteer.calibration.loops import ANSWERS, MOST, without_loops
from localsteer.calibration.search import Search
from localsteer.concepts.contrast import Contrast
from localsteer.engine.checks import check_anchored
from localsteer.errors import CalibrationError
from localsteer.files.home import cache_folder
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.vector.calibration import DEFAULT_BUDGET, POLES, Calibration, Mode, Pole
from localsteer.vector.control_vector import ControlVector, Floats, format_layers
from localsteer.vector.dosing import Dosing

logger = logging.getLogger("localsteer")


@dataclass(frozen=True)
class CalibrationSettings:
    """How a vector is calibrated.

    Attributes:
        budget: most coherence cost, nats a token.
        layers: first and last layer to steer; None for those that the vector steers.
        quick: fewer and shorter answers, and wider intervals.
        seed: of all sampling.
        by_cost: choose the dose by its cost alone where the effect cannot be shown, instead of finding none. The instrument of
            the effect is the model itself, and does not see everything that a person would.
        anchored: measure the doses of anchored answers, too; only those, where a calibration of the same concept on this model
            with the same budget, seed and effort is known.
        long: hold the doses to what long answers bear, which are asked for at each; where such a calibration is known, only that.
    """

    budget: float = DEFAULT_BUDGET
    layers: tuple[int, int] | None = None
    quick: bool = False
    seed: int = 0
    by_cost: bool = False
    anchored: bool = False
    long: bool = False

    @property
    def effort(self) -> Effort:
        """How many answers are sampled."""
        return QUICK if self.quick else THOROUGH


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A calibration's outcome.

    Attributes:
        vector: the vector, rescaled so that strength 1 is the calibrated dose.
        findings: everything measured.
    """

    vector: ControlVector
    findings: Findings

    @property
    def calibration(self) -> Calibration:
        """What the vector now carries."""
        carried = self.vector.provenance.calibration
        assert carried is not None
        return carried


class Calibrator:
    """One calibration, prepared: what it will cost is known before it starts.

    A vector that was not dosed on this very file is dosed first (`building.dosing`).

    Args:
        model: the model to calibrate on.
        vector: the vector; a former calibration of it is set aside.
        contrast: what it was built from; None for a vector from elsewhere.
        settings: how.
        folder: where measurements are kept, so that an interrupted calibration goes on; None keeps none.
        fresh: forget what an earlier run has left there.
        on_progress: told how many answers are measured, and of how many.
        on_dosing: told what goes on before that.

    Raises:
        CalibrationError: a vector without a direction at the layers asked for.
        VectorError: the vector does not fit the model.
        ModelError: anchored answers are asked for, and the model cannot give them.

    What is asked of it later may raise CalibrationError too, where the model gives no answers to dose the vector by.
    """

    def __init__(
        self,
        model: Model,
        vector: ControlVector,
        contrast: Contrast | None,
        settings: CalibrationSettings | None = None,
        *,
        folder: Path | None = None,
        fresh: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        on_dosing: Progress | None = None,
    ) -> None:
        self.model = model
        self.vector = vector
        self.contrast = contrast
        self.settings = settings or CalibrationSettings()
        vector.check_fits(model.fingerprint)
        if self.settings.anchored:
            check_anchored(model, Sampling())
        self._given = _at_layers(vector, self.settings.layers)
        self._folder = folder
        self._fresh = fresh
        self._on_progress = on_progress
        self._on_dosing = on_dosing
        self._known = None if fresh else self._earlier()

    @cached_property
    def dosed(self) -> ControlVector:
        """The vector, dosed on this model: in seconds, where it was not."""
        if self._is_dosed:
            return self._given
        return dose(self.model, self._given, self.contrast, seed=self.settings.seed, progress=self._on_dosing)

    @property
    def _is_dosed(self) -> bool:
        """Whether the vector was given with doses of this very model file."""
        dosing = self._given.provenance.dosing
        return dosing is not None and dosing.content == self.model.fingerprint.content

    @property
    def _is_known(self) -> bool:
        """Whether it is known without any work what the vector is that will be measured."""
        return self._is_dosed or "dosed" in vars(self)

    @cached_property
    def _interview(self) -> Interview:
        dosing = self._dosing
        unit = self.dosed.rows(self.model.n_layer) / np.float32(self._length)

        def tell(done: int) -> None:
            if self._on_progress is not None:
                self._on_progress(min(done, self.answers), self.answers)

        return Interview(
            self.model,
            unit,
            self._identity,
            self.contrast,
            {pole: dosing.sides[pole].dose["response"] for pole in POLES},
            seed=self.settings.seed,
            max_tokens=self.settings.effort.max_tokens,
            folder=self._folder,
            fresh=self._fresh,
            on_progress=tell,
        )

    @property
    def _identity(self) -> bytes:
        """What names the measurements: the estimate, which a calibration leaves as it is to the last bit, and the dosing."""
        own = self.dosed.provenance
        rows = own.estimate if own.estimate is not None else self.dosed.rows(self.model.n_layer)
        return rows.tobytes() + repr(self.dosed.layers).encode() + self._dosing.to_json().encode()

    @property
    def _dosing(self) -> Dosing:
        dosing = self.dosed.provenance.dosing
        assert dosing is not None
        return dosing

    @property
    def _length(self) -> float:
        """The relative dose that the dosed vector's directions hold."""
        calibration = self.dosed.provenance.calibration
        return self._dosing.unit if calibration is None else calibration.main_dose

    def _earlier(self) -> Calibration | None:
        """An earlier calibration of the vector that only wants the doses of anchored answers, or to be held to long ones."""
        settings, earlier = self.settings, self.vector.provenance.calibration
        if earlier is None or self.vector.provenance.dosing is None:
            return None
        if settings.layers is not None or not (settings.long or settings.anchored):
            return None
        source = self.contrast.source if self.contrast is not None else ""
        before = (earlier.content, earlier.budget, earlier.seed, earlier.unsteered.answers, self.vector.provenance.source)
        now = (self.model.fingerprint.content, settings.budget, settings.seed, settings.effort.unsteered, source)
        if settings.by_cost and any(earlier.sides[pole, "response"].dose is None for pole in POLES):
            return None  # by its cost, it may have one
        return earlier if before == now else None

    @property
    def adds(self) -> bool:
        """Whether the doses of other answers are known, and kept."""
        return self._known is not None

    @property
    def _long(self) -> int:
        """How many long answers are asked for at most."""
        return MOST if self.settings.long and not self.is_held else 0

    @property
    def is_held(self) -> bool:
        """Whether doses are kept that are held to long answers already."""
        return self._known is not None and bool(self._known.long_answers)

    @property
    def answers(self) -> int:
        """How many answers it takes."""
        effort, settings = self.settings.effort, self.settings
        personas = self.contrast is not None and bool(self.contrast.personas)
        every = effort.answers(personas=personas, anchored=settings.anchored)
        if self._known is not None:
            every -= effort.answers(personas=personas, anchored=False)
            every += (effort.unsteered + personas * 2 * effort.persona) if settings.anchored else 0
        return every + self._long

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens its answers have at most: the short ones, where there are any, and the long ones."""
        short = (self.settings.effort.max_tokens,) if self.answers > self._long else ()
        return (*short, LONG) if self._long else short

    @property
    def tokens(self) -> int:
        """How many tokens are sampled at most."""
        return (self.answers - self._long) * self.settings.effort.max_tokens + self._long * LONG

    @property
    def measured(self) -> int:
        """How many answers are measured, now or by an earlier run; 0 for a vector that is dosed first."""
        if not self._is_known:
            return 0
        modes: set[Mode] = {"anchored"} if self.settings.anchored else set()
        if self._known is None:
            modes |= {"response", "prompt"}
        return min(self._interview.measured_for(modes, long=self._long > 0), self.answers)

    @property
    def keeps(self) -> bool:
        """Whether measurements are kept, so that the next run goes on from them."""
        if not self._is_known:
            return self._folder is not None
        return self._interview.keeps

    def seconds(self, speed: Speed) -> float:
        """How long it will take after the dosing, from a measured speed."""
        length, left = self.settings.effort.max_tokens, max(0, self.answers - self.measured)
        long = min(left, self._long)  # the last ones
        short = left - long
        # Each answer but those is read in four places, whose prompts some answers of a batch share.
        reading = short * 4 * (length + prompt_length(self.model, questions_of(self.contrast)) / 2)
        return (short * length + long * LONG) / speed.answering + reading / speed.reading

    def probe_speed(self) -> Speed:
        """Measured on a few tokens; takes seconds."""
        return probe_speed(self.model, questions_of(self.contrast))

    def run(self) -> Calibrated:
        """Measure and choose.

        Raises:
            CalibrationError: nothing inside the budget does anything, toward either pole.
        """
        settings, dosing = self.settings, self._dosing
        sides = dosing.sides
        layers, norms = self._unit_norms()
        search = Search(
            self._interview,
            near={pole: sides[pole].dose["response"] for pole in POLES},
            prompt_share={pole: sides[pole].dose["prompt"] / sides[pole].dose["response"] for pole in POLES},
            most={pole: _or_infinite(sides[pole].most) for pole in POLES},
            budget=settings.budget,
            effort=settings.effort,
            seed=settings.seed,
            by_cost=settings.by_cost,
            anchored=settings.anchored,
            layers=layers,
            norms=norms,
        )
        earlier = self._known
        if earlier is not None and not settings.anchored:
            allowed = {pole: earlier.sides[pole, "response"].allowed or earlier.budget for pole in POLES}
            findings = Findings(earlier.unsteered, earlier.personas, earlier.scale, allowed, dict(earlier.sides))
            return Calibrated(self._rescaled(self._held(earlier, earlier.generated_tokens), allowed), findings)
        if earlier is not None:
            findings = search.run_anchored(earlier.sides)
            # By chance another persona may move the model beyond doubt on another machine: effects have another unit then.
            if findings.scale == dict(earlier.scale):
                calibration = self._held(replace(earlier, sides=findings.sides), earlier.generated_tokens)
                return Calibrated(self._rescaled(calibration, findings.allowed), findings)
            logger.warning("What an effect of 1 is has changed since the vector was calibrated: all of it is measured anew.")
        findings = search.run()
        calibration = Calibration(
            model=self.model.fingerprint.name,
            content=self.model.fingerprint.content,
            budget=settings.budget,
            seed=settings.seed,
            questions=len(questions_of(self.contrast)),
            generated_tokens=0,
            unsteered=findings.unsteered,
            personas=findings.personas,
            scale=findings.scale,
            sides=findings.sides,
        )
        return Calibrated(self._rescaled(self._held(calibration), findings.allowed), findings)

    def _held(self, calibration: Calibration, before: int = 0) -> Calibration:
        """The same, held to what long answers bear, where that is asked for; `before` is what earlier runs have sampled of it."""
        if self._long:
            calibration = replace(calibration, sides=without_loops(self._interview, calibration.sides), long_answers=ANSWERS)
        return replace(calibration, generated_tokens=before + self._interview.generated_tokens)

    def _unit_norms(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The steered layers, and the length of what a relative dose of 1 adds at each."""
        rows = self.dosed.rows(self.model.n_layer) / np.float32(self._length)
        layers = tuple(int(layer) for layer in np.flatnonzero(rows.any(axis=1)))
        return layers, tuple(float(np.linalg.norm(rows[layer])) for layer in layers)

    def _rescaled(self, calibration: Calibration, allowed: Mapping[Pole, float]) -> ControlVector:
        sides = calibration.sides
        main = next((pole for pole in POLES if sides[pole, "response"].dose is not None), None)
        if main is None:
            raise nothing_found(self.vector, calibration, allowed)
        dose = sides[main, "response"].dose
        assert dose is not None
        factor = np.float32(dose / self._length)
        directions = {layer: row * factor for layer, row in self.dosed.directions.items()}
        own, contrast = self.dosed.provenance, self.contrast
        if contrast is not None:
            own = replace(
                own,
                concept=own.concept or contrast.name,
                description=own.description or contrast.description,
                positive=own.positive or contrast.positive,
                negative=own.negative or contrast.negative,
                source=own.source or contrast.source,
            )
        estimate = own.estimate if own.estimate is not None else self.dosed.rows(self.model.n_layer)
        return ControlVector(directions, replace(own, estimate=estimate, calibration=calibration))


def _or_infinite(dose: float) -> float:
    return dose if np.isfinite(dose) else float("inf")


def measurements_folder() -> Path:
    """Where the measurements of calibrations are kept."""
    return cache_folder() / "calibration"


def _at_layers(vector: ControlVector, layers: tuple[int, int] | None) -> ControlVector:
    """The vector at some of the layers that it has directions for, with equal relative doses; itself for None."""
    if layers is None:
        return vector
    own = vector.provenance
    estimate: Floats | None = own.estimate
    known = vector.layers if estimate is None else [int(layer) for layer in np.flatnonzero(estimate.any(axis=1)) if layer > 0]
    chosen = tuple(layer for layer in known if layers[0] <= layer <= layers[1])
    if not chosen:
        raise CalibrationError(
            f"The vector has directions at layers {format_layers(known)}, and none at {layers[0]}-{layers[1]}.",
            hint="Leave out --layers, or extract the vector with the same ones.",
        )
    if estimate is None or own.hidden_norm is None or not np.isfinite(own.hidden_norm[list(chosen)]).all():
        return vector.only(chosen)
    directions = scale_to_dose(estimate, own.hidden_norm, chosen, 1.0)
    return ControlVector(directions, replace(own, dosing=None, calibration=None, probe=None))
