"""A vector, a concept and a model -> the vector with its measured dose."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs

from localsteer.building.layers import MIN_RELIABILITY, readable_layers
from localsteer.calibration.effort import QUICK, THOROUGH, Effort
from localsteer.calibration.findings import Findings
from localsteer.calibration.laboratory import INSTRUMENT_READINGS, Laboratory, Speed
from localsteer.calibration.search import Search
from localsteer.calibration.shapes import PROFILES, Directions, Shape, as_profile, ranges
from localsteer.concepts.contrast import Contrast
from localsteer.errors import CalibrationError, ContrastError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.scoring import Scored, reread
from localsteer.vector.calibration import DEFAULT_BUDGET, MODES, SIGN, Calibration
from localsteer.vector.control_vector import ControlVector, Floats, format_layers

logger = logging.getLogger("localsteer")

# Two halves to fit the instrument on, with two questions each.
MIN_QUESTIONS = 4


@dataclass(frozen=True)
class CalibrationSettings:
    """How a vector is calibrated.

    Attributes:
        budget: most coherence cost, nats a token.
        layers: first and last layer that may be steered; None lets the measurements choose.
        quick: a quarter of the tokens: all layers (or `layers`) with equal relative doses and nothing else, and wider intervals.
        seed: of all sampling.
        by_cost: choose the dose by its cost alone where the effect cannot be shown, instead of finding none. The instrument of
            the effect is the model itself, and does not see everything that a person would.
        anchored: measure the doses of anchored answers, too; only those, where a calibration of the same concept on this model
            with the same budget, seed and effort is known.
    """

    budget: float = DEFAULT_BUDGET
    layers: tuple[int, int] | None = None
    quick: bool = False
    seed: int = 0
    by_cost: bool = False
    anchored: bool = False

    @property
    def effort(self) -> Effort:
        """How many answers are sampled."""
        return QUICK if self.quick else THOROUGH


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A calibration's outcome.

    Attributes:
        vector: the vector, rescaled and trimmed so that strength 1 is the calibrated dose.
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

    Args:
        model: the model to calibrate on.
        vector: the vector; a former calibration of it is set aside.
        contrast: the concept, with held-out questions and (unless it is made of explicit pairs) personas.
        settings: how.
        folder: where measurements are kept, so that an interrupted calibration goes on; None keeps none.
        fresh: forget what an earlier run has left there.
        on_progress: told how many answers are measured, and of how many.

    Raises:
        CalibrationError: too few held-out questions, or a vector without a direction at the layers asked for.
        VectorError: the vector does not fit the model.
    """

    def __init__(
        self,
        model: Model,
        vector: ControlVector,
        contrast: Contrast,
        settings: CalibrationSettings | None = None,
        *,
        folder: Path | None = None,
        fresh: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = model
        self.vector = vector
        self.contrast = contrast
        self.settings = settings or CalibrationSettings()
        if len(contrast.held_out) < MIN_QUESTIONS:
            count = len(contrast.held_out)
            questions = f"{count or 'no'} held-out question{'' if count == 1 else 's'}"
            raise CalibrationError(
                f"The concept {contrast.name} has {questions}, and calibration needs at least {MIN_QUESTIONS}: "
                "doses are measured on questions that the vector was not built from.",
                hint="List them under held_out: questions: in its concept.yaml (docs/concepts.md).",
            )
        vector.check_fits(model.fingerprint)
        self._directions = _directions(model, vector, contrast)
        self.shapes = _shapes(vector, self._directions, self.settings.layers)
        if self.settings.quick:
            self.shapes = self.shapes[:1]
        self._known = None if fresh else self._earlier()
        total = self.answers

        def tell(done: int) -> None:
            if on_progress is not None:
                on_progress(min(done, total), total)

        self._laboratory = Laboratory(
            model,
            self._directions,
            contrast,
            seed=self.settings.seed,
            max_tokens=self.settings.effort.max_tokens,
            folder=folder,
            fresh=fresh,
            on_progress=tell,
        )

    def _earlier(self) -> Calibration | None:
        """An earlier calibration of the vector that only wants the doses of anchored answers."""
        own, settings = self.vector.provenance, self.settings
        earlier = own.calibration
        if earlier is None or not settings.anchored or settings.layers is not None or own.source != self.contrast.source:
            return None
        before = (earlier.content, earlier.budget, earlier.seed, earlier.unsteered.answers)
        now = (self.model.fingerprint.content, settings.budget, settings.seed, settings.effort.unsteered)
        return earlier if before == now else None

    @property
    def only_anchored(self) -> bool:
        """Whether the other doses are known, and kept."""
        return self._known is not None

    @property
    def answers(self) -> int:
        """How many answers it takes."""
        effort = self.settings.effort
        anchored = effort.anchored_answers if self.settings.anchored else 0
        return anchored + (effort.baselines if self._known is not None else effort.answers(len(self.shapes)))

    @property
    def tokens(self) -> int:
        """How many tokens are sampled at most."""
        return self.answers * self.settings.effort.max_tokens

    @property
    def measured(self) -> int:
        """How many answers that it may use are measured, now or by an earlier run."""
        if self._known is not None:
            sides = self._known.sides.values()
            return self._laboratory.measured_for([Shape(side.layers, as_profile(side.profile)) for side in sides], ["anchored"])
        modes = MODES if self.settings.anchored else tuple(mode for mode in MODES if mode != "anchored")
        return self._laboratory.measured_for(self.shapes, modes)

    @property
    def keeps(self) -> bool:
        """Whether measurements are kept, so that the next run goes on from them."""
        return self._laboratory.keeps

    def seconds(self, speed: Speed) -> float:
        """How long it will take, from a measured speed."""
        questions = [prompt_tokens(self.model, [Message("user", question)]) for question in self.contrast.held_out]
        # Every prompt is read twice, and each time for three answers of a batch to the same question or so.
        prompt = 2 / 3 * float(np.mean([len(question) for question in questions]))
        length = self.settings.effort.max_tokens
        left = max(0, self.answers - self.measured)
        # Every token of an anchored answer is computed twice.
        twice = min(left, self.settings.effort.anchored_answers) if self.settings.anchored else 0
        fitting = INSTRUMENT_READINGS * (length + 2 * prompt)
        return (left + twice) * length / speed.answering + (left * (length + prompt) + fitting) / speed.reading

    def probe_speed(self) -> Speed:
        """Measured on a few tokens; takes seconds."""
        return self._laboratory.probe_speed()

    def run(self) -> Calibrated:
        """Measure and choose.

        Raises:
            CalibrationError: nothing inside the budget does anything, toward either pole.
        """
        settings = self.settings
        search = Search(
            self._laboratory,
            self.shapes,
            budget=settings.budget,
            effort=settings.effort,
            seed=settings.seed,
            by_cost=settings.by_cost,
            anchored=settings.anchored,
        )
        earlier = self._known
        if earlier is not None:
            findings = search.run_anchored(earlier.sides)
            # By chance another persona may move the model beyond doubt on another machine: effects have another unit then.
            if findings.scale == dict(earlier.scale):
                tokens = earlier.generated_tokens + self._laboratory.generated_tokens
                calibration = replace(earlier, sides=findings.sides, generated_tokens=tokens)
                return Calibrated(self._rescaled(calibration), findings)
            logger.warning("What an effect of 1 is has changed since the vector was calibrated: all of it is measured anew.")
        findings = search.run()
        calibration = Calibration(
            model=self.model.fingerprint.name,
            content=self.model.fingerprint.content,
            budget=settings.budget,
            seed=settings.seed,
            questions=min(len(self.contrast.held_out), settings.effort.unsteered),
            generated_tokens=self._laboratory.generated_tokens,
            unsteered=findings.unsteered,
            personas=findings.personas,
            scale=findings.scale,
            sides=findings.sides,
        )
        return Calibrated(self._rescaled(calibration), findings)

    def _rescaled(self, calibration: Calibration) -> ControlVector:
        sides = calibration.sides
        main = next((pole for pole in SIGN if sides[pole, "response"].dose is not None), None)
        if main is None:
            raise self._nothing(calibration)
        side = sides[main, "response"]
        directions = {
            layer: (self._directions.unit[layer] * np.float32(norm)).astype(np.float32)
            for layer, norm in zip(side.layers, side.norms, strict=True)
        }
        # As it is, to the last bit: it names the measurements that the next calibration may use.
        estimate = self.vector.provenance.estimate
        if estimate is None:
            estimate = self.vector.rows(self.model.n_layer)
        own, contrast = self.vector.provenance, self.contrast
        provenance = replace(
            own,
            concept=own.concept or contrast.name,
            description=own.description or contrast.description,
            positive=own.positive or contrast.positive,
            negative=own.negative or contrast.negative,
            hidden_norm=self._directions.hidden,
            estimate=estimate,
            source=own.source or contrast.source,
            dosing=None,  # the calibration takes its place, and holds other layers and doses
            calibration=calibration,
        )
        return ControlVector(directions, provenance)

    def _nothing(self, calibration: Calibration) -> CalibrationError:
        """Why there is no dose: everything costs too much, or nothing that is cheap enough does anything."""
        budget, points = calibration.budget, [point for side in calibration.sides.values() for point in side.curve]
        inside = [point for point in points if point.cost.mean <= budget]
        if points and not inside:
            least = min(points, key=lambda point: point.cost.mean)
            return CalibrationError(
                f"No dose of the vector meets the budget of {budget:g} nats a token on {calibration.model}: "
                f"the least cost measured is {least.cost.mean:.2f}, at a relative dose of {least.dose:.3f}.",
                hint="Allow more with --budget.",
            )
        best = max(inside, key=lambda point: point.effect.mean, default=calibration.unsteered).effect
        return CalibrationError(
            f"The vector does nothing inside the budget of {budget:g} nats a token on {calibration.model}: no dose moves the "
            f"answers beyond doubt (at best an effect of {best.mean:.2f}, which may be chance).",
            hint="Allow more with --budget, use personas that are further apart, or choose the dose by its cost: --by-cost.",
        )


def measurements_folder() -> Path:
    """Where the measurements of calibrations are kept."""
    return platformdirs.user_cache_path("localsteer") / "calibration"


def _directions(model: Model, vector: ControlVector, contrast: Contrast) -> Directions:
    """All directions that the vector knows; those it steers by, for a vector from elsewhere."""
    provenance = vector.provenance
    estimate = provenance.estimate if provenance.estimate is not None else vector.rows(model.n_layer)
    hidden = provenance.hidden_norm
    layers = np.flatnonzero(estimate.any(axis=1))
    if not len(layers):
        raise CalibrationError("The vector is zero at every layer: there is nothing to calibrate.")
    if hidden is None or not np.isfinite(hidden[layers]).all():
        hidden = _hidden_norms(model, contrast, [int(layer) for layer in layers])
    return Directions.of(estimate, hidden)


def _hidden_norms(model: Model, contrast: Contrast, layers: list[int]) -> Floats:
    """Mean norm of the residual stream over the held-out questions, NaN at other layers."""
    prompts = [prompt_tokens(model, [Message("user", question)]) for question in contrast.held_out]
    # The second half of each prompt: its first token alone has a norm many times that of the others.
    pairs = [Scored(prompt[: len(prompt) // 2], prompt[len(prompt) // 2 :]) for prompt in prompts if len(prompt) > 1]
    if not pairs:
        raise ContrastError("The held-out questions are too short to read.", hint="Write whole sentences.")
    hidden = np.full(model.n_layer, np.nan, np.float32)
    hidden[layers] = np.nanmean(reread(model, pairs, layers).norms, axis=0)
    return hidden


def _shapes(vector: ControlVector, directions: Directions, layers: tuple[int, int] | None) -> list[Shape]:
    """What to choose from: layer ranges with equal relative doses, and the first of them with other profiles."""
    n_layer = len(directions.hidden)
    readable = set(readable_layers(n_layer))
    reliability = vector.provenance.reliability
    known = [int(layer) for layer in np.flatnonzero(directions.unit.any(axis=1)) if layer > 0]
    if not known:
        raise CalibrationError("The vector has a direction at block 0 alone, and llama.cpp cannot steer that one.")
    available = [
        layer
        for layer in known
        if (layers is None and layer in readable and not (reliability is not None and reliability[layer] < MIN_RELIABILITY))
        or (layers is not None and layers[0] <= layer <= layers[1])
    ]
    if not available and layers is not None:
        raise CalibrationError(
            f"The vector has directions at layers {format_layers(known)}, and none at {layers[0]}-{layers[1]}.",
            hint="Leave out --layers, or extract the vector with the same ones.",
        )
    choices = [tuple(available)] if layers is not None else list(ranges(available or known, n_layer))
    shapes = [Shape(choice, "relative") for choice in choices]
    return shapes + [Shape(choices[0], profile) for profile in PROFILES if profile != "relative"]
