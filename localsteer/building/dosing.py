"""A fresh vector's dose, measured in seconds: what strength 1 is on this model, toward each pole.

What a model says under a pole's persona (its *own answers*) is read again under the vector instead of the persona. As the dose
grows these answers first become likelier, where the persona changes what is said, or stay as they are, where it hardly does; at
some dose they begin to fall, because the text falls apart. Strength 1 is the strongest dose at which they are within `TOLERANCE`
of the likeliest that the vector makes them. Nothing is sampled for that but the answers themselves, so the curve is smooth: a few
doses and a secant find it. Some answers sampled there confirm that the text holds, or weaken the dose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from localsteer.building.voices import Tokens, Voices, voices
from localsteer.concepts.contrast import Contrast
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.errors import CalibrationError
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.forced import ForcedReader
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.reading.scoring import Scored, answer_nll
from localsteer.steering.dose import relative_dose
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import OTHER, POLES, SIGN, Interval, Pole
from localsteer.vector.control_vector import ControlVector, Floats
from localsteer.vector.dosing import DosedSide, Dosing, Tried

Progress = Callable[[str, int, int], None]

# Own answers of each pole, and how long.
ANSWERS = 8
TOKENS = 12
# Of each pole's those along which steered and unsteered are compared, that are read for the ratio, and that are read for the dose
# of a steered prompt; and how many answers are sampled to confirm a dose.
_COMPARED = 2
_READ_AT_LAST = 5
_PROMPTED = 4
_CONFIRMED = 4

TOLERANCE = 0.15
# Without own answers (a vector from elsewhere) it is unsteered answers that are read, which lose from the first.
PLAIN_TOLERANCE = 0.25

LADDER = (0.2, 0.5, 1.2)
_MAX_DOSE = 4.0
# A dose between two that are as near as this is known well enough; otherwise one more is read.
_CLOSE = 1.15
# Of the response's dose, for a prompt that is steered as well: between 0.67 and 1 of it was as strong (happy - sad; demo, 1.5B).
_PROMPT_SHARE = 0.75

# Nats a token that the sampled answers may be less likely under their pole's persona than its own answers.
_INCOHERENT = 1.2
_WEAKER = 0.75
# What a weaker dose must gain, likewise.
_BETTER = 0.3
_RESAMPLES = 1000


@dataclass
class _Search:
    """The strongest dose at which given answers are within a tolerance of the likeliest that they become."""

    tolerance: float
    next: list[float]
    points: dict[float, float] = field(default_factory=lambda: {0.0: 0.0})
    refined: bool = False

    def add(self, found: Sequence[float]) -> None:
        """Take down what was measured at the doses asked for, and ask for others or none."""
        self.points |= zip(self.next, found, strict=True)
        self.next = []
        low, high = self._bracket()
        if high is None:
            if low < _MAX_DOSE:
                self.next = [min(_MAX_DOSE, 2 * low)]
        elif not self.refined and high > _CLOSE * low:
            self.refined = True
            self.next = [self.dose]

    @property
    def tried(self) -> tuple[Tried, ...]:
        """All that was measured."""
        return tuple(Tried(dose, self.points[dose]) for dose in sorted(self.points) if dose > 0)

    @property
    def dose(self) -> float:
        """The dose, as far as is known: where the cubic through the four nearest points falls below the level."""
        low, high = self._bracket()
        if high is None:
            return low
        doses = sorted(self.points)
        first = min(max(0, doses.index(low) - 1), max(0, len(doses) - 4))
        near = doses[first : first + 4]
        curve = np.polyfit(near, [self.points[dose] for dose in near], len(near) - 1)
        between = np.linspace(low, high, 201)
        below = between[np.polyval(curve, between) < self._level()]
        return float(below[0]) if len(below) else high

    def _level(self) -> float:
        return max(self.points.values()) - self.tolerance

    def _bracket(self) -> tuple[float, float | None]:
        """The strongest measured dose below which all are good from the best one on, and the next stronger one."""
        doses, level = sorted(self.points), self._level()
        best = max(doses, key=self.points.__getitem__)
        bad = next((dose for dose in doses if dose > best and not self.points[dose] >= level), None)
        return max(dose for dose in doses if bad is None or dose < bad), bad


def dose(
    model: Model, vector: ControlVector, contrast: Contrast | None, *, seed: int = 0, progress: Progress | None = None
) -> ControlVector:
    """Measure what strength 1 of a vector shall be.

    Args:
        model: the model.
        vector: the vector; what strength 1 of it was before has no part in it.
        contrast: what it was built from; None for a vector from elsewhere, which is dosed by how far it leads away from unsteered
            answers to everyday questions.
        seed: of the answers.
        progress: told what is going on.

    Returns:
        The same directions at strength 1, with what was measured (`Provenance.dosing`) and without a calibration.

    Raises:
        CalibrationError: the vector is zero at every layer, or the model gives no answers.
        VectorError: the vector does not fit the model.
        ModelError: the model's residual stream cannot be read.
    """
    vector.check_fits(model.fingerprint)
    hidden = _hidden_norm(model, vector)
    rows = vector.rows(model.n_layer)
    length = relative_dose(rows, hidden)
    if not length > 0:
        raise CalibrationError("The vector is zero at every layer: there is nothing to dose.")
    unit = rows / np.float32(length)
    found = voices(model, contrast, ANSWERS)
    sides = _Doser(model, unit, found, seed, progress).sides()
    dosing = Dosing(model.fingerprint.name, model.fingerprint.content, seed, ANSWERS, sides)
    directions = {layer: unit[layer] * np.float32(dosing.unit) for layer in vector.layers}
    return ControlVector(directions, replace(vector.provenance, hidden_norm=hidden, dosing=dosing, calibration=None))


def _hidden_norm(model: Model, vector: ControlVector) -> Floats:
    own = vector.provenance.hidden_norm
    if own is not None and np.isfinite(own[list(vector.layers)]).all():
        return own
    return read_hidden_norm(model)


class _Doser:
    """One vector on one model."""

    def __init__(self, model: Model, unit: Floats, found: Voices, seed: int, progress: Progress | None) -> None:
        self._model = model
        self._unit = unit
        self._voices = found
        self._seed = seed
        self._tolerance = TOLERANCE if found.spoken else PLAIN_TOLERANCE
        self._tell = progress if progress is not None else lambda *_: None

    def sides(self) -> dict[Pole, DosedSide]:
        """Both, measured."""
        own = self._answers()
        texts = [
            Scored(prompt, answer.tokens)
            for pole in POLES
            for prompt, answer in zip(self._voices.start[pole], own[pole], strict=True)
        ]
        personas = [
            Scored(prompt, answer.tokens)
            for pole in POLES
            for prompt, answer in zip(self._voices.own[pole], own[pole], strict=True)
        ]
        count = len(own["positive"])
        mine: dict[Pole, range] = {"positive": range(count), "negative": range(count, 2 * count)}
        self._tell("dosing", 0, 4)
        reader = ForcedReader(self._model, texts, personas, {*range(_COMPARED), *range(count, count + _COMPARED)})
        doses, searches = self._search(reader, mine)
        self._tell("dosing", 1, 4)
        doses, coherence = self._confirm(doses, own)
        self._tell("dosing", 2, 4)
        at_last = {pole: mine[pole][:_READ_AT_LAST] for pole in POLES}
        forced = reader.under([(self._edit(pole, doses[pole]), [*at_last[pole], *at_last[OTHER[pole]]]) for pole in POLES])
        self._tell("dosing", 3, 4)
        prompted = self._prompted(reader, mine, doses)
        self._tell("dosing", 4, 4)
        sides: dict[Pole, DosedSide] = {}
        for pole, one in zip(POLES, forced, strict=True):
            ratio = _interval(*np.split(one.gain, [len(at_last[pole])]))
            sides[pole] = DosedSide(
                dose={"response": doses[pole], "prompt": prompted[pole]},
                tried=searches[pole].tried,
                ratio=ratio if self._voices.spoken else Interval(float("nan"), float("nan"), float("nan")),
                kl=one.kl,
                coherence=coherence[pole],
                shown=self._voices.spoken and ratio.low > 0,
            )
        return sides

    def _edit(self, pole: Pole, dose: float) -> Edit:
        return Edit(self._unit, scale=SIGN[pole] * dose * self._voices.reach)

    def _sample(self, prompts: Sequence[tuple[Tokens, Plan | None]]) -> list[Answer]:
        """Answers to prompts that come in rounds of as many as there are questions: the same questions share a seed."""
        requests = [
            Request(prompt, plan, Sampling(seed=self._seed * 1009 + number), TOKENS, logprobs=0)
            for number, (prompt, plan) in enumerate(prompts)
        ]
        return generate_many(self._model, requests)

    def _answers(self) -> dict[Pole, list[Answer]]:
        """The poles' own answers."""
        prompts = [(prompt, None) for pole in POLES for prompt in self._voices.own[pole]]
        self._tell("answering", 0, len(prompts))
        answers = self._sample(prompts)
        self._tell("answering", len(prompts), len(prompts))
        own: dict[Pole, list[Answer]] = {"positive": answers[: len(answers) // 2], "negative": answers[len(answers) // 2 :]}
        if not all(any(answer.tokens for answer in own[pole]) for pole in POLES):
            raise CalibrationError(
                f"{self._model.name} gives no answers, so no dose can be measured.",
                hint="Is it a language model that answers? `localsteer generate` shows.",
            )
        return own

    def _search(self, reader: ForcedReader, mine: Mapping[Pole, range]) -> tuple[dict[Pole, float], dict[Pole, _Search]]:
        """Both poles at once: they share a pass."""
        searches = {pole: _Search(self._tolerance, list(LADDER)) for pole in POLES}
        while asked := [(pole, dose) for pole in POLES for dose in searches[pole].next]:
            forced = reader.under([(self._edit(pole, dose), mine[pole]) for pole, dose in asked])
            for pole in {pole for pole, _ in asked}:
                own = [one.gain for (other, _), one in zip(asked, forced, strict=True) if other == pole]
                searches[pole].add([float(np.nanmean(gain)) for gain in own])
        return {pole: searches[pole].dose for pole in POLES}, searches

    def _confirm(
        self, doses: Mapping[Pole, float], own: Mapping[Pole, Sequence[Answer]]
    ) -> tuple[dict[Pole, float], dict[Pole, float]]:
        """Sample at the doses; where the text has fallen apart, weaken them until it holds."""
        found, coherence = self._voices, dict.fromkeys(POLES, float("inf"))
        kept, trying = dict(doses), dict(doses)
        while trying:
            prompts = []
            for pole, tried in trying.items():
                plan = Plan(Steering(), self._edit(pole, tried), tried)
                prompts += [(prompt, plan) for prompt in found.start[pole][:_CONFIRMED]]
            answers = self._sample(prompts)
            under = [prompt for pole in trying for prompt in found.own[pole][:_CONFIRMED]]
            nll = answer_nll(self._model, [Scored(*pair) for pair in zip(under, (one.tokens for one in answers), strict=True)])
            further: dict[Pole, float] = {}
            for (pole, tried), values in zip(trying.items(), np.split(nll, len(trying)), strict=True):
                before = np.mean([-entry.logprob for answer in own[pole] for entry in answer.logprobs])
                cost = float(np.nanmean(values) - before) if np.isfinite(values).any() else float("inf")
                # A weaker dose that is no better is not what was missing: too weak for French is English.
                if cost < coherence[pole] - _BETTER:
                    coherence[pole], kept[pole] = cost, tried
                    if cost > _INCOHERENT:
                        further[pole] = _WEAKER * tried
            trying = further
        return kept, coherence

    def _prompted(self, reader: ForcedReader, mine: Mapping[Pole, range], doses: Mapping[Pole, float]) -> dict[Pole, float]:
        """The doses for a steered prompt: a share of those of the response, less where that weighs too much."""
        readings = [(self._edit(pole, _PROMPT_SHARE * doses[pole]), mine[pole][:_PROMPTED]) for pole in POLES]
        found: dict[Pole, float] = {}
        for pole, one in zip(POLES, reader.under(readings, steer_prompt=True), strict=True):
            search = _Search(self._tolerance, [_PROMPT_SHARE * doses[pole]])
            search.add([float(np.nanmean(one.gain))])
            found[pole] = search.dose
        return found


def _interval(one: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """The difference of two means with its 95 % bootstrap interval over the answers."""
    one, other = one[np.isfinite(one)], other[np.isfinite(other)]
    if not (len(one) and len(other)):
        return Interval(float("nan"), float("nan"), float("nan"))
    generator = np.random.default_rng(0)
    drawn = [values[generator.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1) for values in (one, other)]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    return Interval(float(one.mean() - other.mean()), float(low), float(high))
