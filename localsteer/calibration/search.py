"""From trials to doses: the strongest one inside the coherence budget, toward each pole, and the layers that take it furthest.

Four stages, each building on the one before:

1. *Locate*: the default shape at a few doses far apart, until the budget lies between two of them.
2. *Curve*: the default shape at five doses around that place.
3. *Shapes*: other layer ranges and profiles at the dose that reaches the budget; the best one, if it beats the default
   by more than a standard error, is measured at two more doses, and taken if it still does.
4. *Prompt*: the chosen shape with the prompt steered as well.

What decides is never one noisy point but a power law through all answers of a shape and pole, each answer compared with the
unsteered ones to its own question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from localsteer.calibrated import POLES, Interval, Point, Pole, Scope, Side
from localsteer.calibration.fits import (
    COST_EXPONENTS,
    EFFECT_EXPONENTS,
    PowerLaws,
    Values,
    fit_power_laws,
    mean_interval,
    resampled_weights,
)
from localsteer.calibration.laboratory import Laboratory, Outcome, Trial
from localsteer.calibration.shapes import Shape

# How far the share of distinct 3-grams may fall below that of the unsteered answers: what repeats itself is easy to predict, so
# the coherence cost alone would not see it.
DISTINCT_MARGIN = 0.1
# Doses between which every budget so far was found; the search goes on beyond if it must.
_LADDER = (0.1, 0.2, 0.4)
_LADDER_LIMITS = (0.0125, 3.2)
# As shares of the dose that reaches the budget, or is thought to.
_CURVE = (0.5, 0.75, 1.0, 1.3, 1.7)
_REFINE = (0.6, 1.25)
# Steering the prompt as well costs about twice as much at the same dose.
_PROMPT = (0.3, 0.55, 0.9)
SIGN: dict[Pole, float] = {"positive": 1.0, "negative": -1.0}


@dataclass(frozen=True)
class Effort:
    """How many answers are sampled, and how long.

    Attributes:
        max_tokens: longest answer.
        unsteered: unsteered answers.
        persona: answers under each persona.
        locate: answers at each dose of the first stage; `curve`, `shapes`, `refine` and `prompt` likewise. No `shapes` means
            that only the default shape is calibrated.
    """

    max_tokens: int
    unsteered: int
    persona: int
    locate: int
    curve: int
    shapes: int
    refine: int
    prompt: int

    def answers(self, n_shapes: int) -> int:
        """The most answers that a calibration takes, unless its budget lies outside the usual doses.

        Args:
            n_shapes: shapes to choose from, the default one included.
        """
        steered = self.locate * len(_LADDER) + self.curve * len(_CURVE) + self.prompt * len(_PROMPT)
        if self.shapes and n_shapes > 1:
            steered += self.shapes * (n_shapes - 1) + self.refine * len(_REFINE)
        return self.unsteered + len(POLES) * (self.persona + steered)


# 36 tokens are two sentences, enough to hear a tone and to fall apart in; with six shapes 332 of them stay below 12,000.
THOROUGH = Effort(max_tokens=36, unsteered=40, persona=20, locate=4, curve=8, shapes=7, refine=8, prompt=6)
QUICK = Effort(max_tokens=28, unsteered=20, persona=8, locate=2, curve=4, shapes=0, refine=0, prompt=3)


@dataclass(frozen=True)
class ShapeResult:
    """How a shape does toward a pole.

    Attributes:
        shape: the shape.
        dose: relative dose at which its cost reaches the budget, or the strongest one tried where it does not.
        effect: effect there.
    """

    shape: Shape
    dose: float
    effect: Interval


@dataclass(frozen=True)
class Sample:
    """Answers for a person to judge: a relative dose, and (question, answer) pairs."""

    dose: float
    answers: tuple[tuple[str, str], ...]


@dataclass
class Findings:
    """What the search found.

    Attributes:
        unsteered: the unsteered answers.
        personas: the answers under each persona, on the pole's own scale; empty for a concept without personas.
        scale: what an effect of 1 is, for each pole (see `Calibration`).
        sides: by pole and scope.
        shapes: by pole, the shapes that were compared, the default one first.
        samples: by pole, some doses of the chosen shape with three answers at each.
    """

    unsteered: Point
    personas: dict[Pole, Point]
    scale: dict[Pole, str]
    sides: dict[tuple[Pole, Scope], Side] = field(default_factory=dict)
    shapes: dict[Pole, list[ShapeResult]] = field(default_factory=dict)
    samples: dict[Pole, list[Sample]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Answers under one shape, pole and scope, as numbers: (n,) each.

    Attributes:
        doses: relative doses, positive.
        questions: the question of each answer.
        costs: nats a token above the unsteered answers to the same question.
        effects: on the pole's scale, likewise.
        distinct: share of distinct 3-grams.
        ended: 1 where the answer ended by itself.
    """

    doses: Values
    questions: NDArray[np.intp]
    costs: Values
    effects: Values
    distinct: Values
    ended: Values

    def at(self, dose: float) -> _Sample:
        """The answers at one dose."""
        return self._where(self.doses == dose)

    def up_to(self, dose: float) -> _Sample:
        """The answers at doses up to this one."""
        return self._where(self.doses <= dose)

    def _where(self, picked: NDArray[np.bool_]) -> _Sample:
        return _Sample(*(getattr(self, name)[picked] for name in self.__dataclass_fields__))

    def point(self, dose: float, seed: int) -> Point:
        """All answers in one point."""
        return Point(
            dose=dose,
            answers=len(self.doses),
            effect=mean_interval(self.effects, self.questions, seed),
            cost=mean_interval(self.costs, self.questions, seed),
            distinct=float(self.distinct.mean()),
            ended=float(self.ended.mean()),
        )


class Search:
    """One calibration.

    Args:
        laboratory: measures.
        shapes: what to choose from, the default one first.
        budget: most coherence cost, nats a token.
        effort: how many answers.
        seed: of the bootstrap.
    """

    def __init__(self, laboratory: Laboratory, shapes: Sequence[Shape], *, budget: float, effort: Effort, seed: int) -> None:
        self.laboratory = laboratory
        self.shapes = tuple(shapes)
        self.budget = budget
        self.effort = effort
        self.seed = seed
        self._trials: dict[tuple[Pole, Scope, Shape], list[Trial]] = {}
        self._unit: dict[Pole, float] = dict.fromkeys(POLES, 1.0)
        self._reference: dict[int, tuple[float, float]] = {}
        self._unsteered_distinct = 1.0

    def run(self) -> Findings:
        """All stages."""
        findings = self._baselines()
        default = self.shapes[0]
        near = self._locate(default)
        self._take("response", dict.fromkeys(POLES, default), near, _CURVE, self.effort.curve)
        chosen = self._choose(default)
        for pole in POLES:
            findings.sides[pole, "response"] = self._side(pole, "response", chosen[pole])
            findings.shapes[pole] = [self._result(pole, shape) for shape in self._tried(pole)]
            findings.samples[pole] = self._samples(pole, chosen[pole])
        reach = {pole: self._dose(pole, "response", chosen[pole]) for pole in POLES}
        self._take("prompt", chosen, reach, _PROMPT, self.effort.prompt)
        for pole in POLES:
            findings.sides[pole, "prompt"] = self._side(pole, "prompt", chosen[pole])
        return findings

    # ---- stages

    def _baselines(self) -> Findings:
        unsteered = [Trial(number) for number in range(self.effort.unsteered)]
        outcomes: dict[int, list[Outcome]] = {}
        for trial, outcome in zip(unsteered, self.laboratory.measure(unsteered), strict=True):
            outcomes.setdefault(self.laboratory.question_of(trial), []).append(outcome)
        self._reference = {
            question: (float(np.nanmean([one.nll for one in found])), float(np.nanmean([one.reading for one in found])))
            for question, found in outcomes.items()
        }
        plain = self._sample("positive", unsteered)
        self._unsteered_distinct = float(plain.distinct.mean())
        personas: dict[Pole, list[Trial]] = {}
        shifts: dict[Pole, Interval] = {}
        if self.laboratory.contrast.personas:
            for pole in POLES:
                personas[pole] = [Trial(number, persona=pole) for number in range(self.effort.persona)]
                sample = self._sample(pole, personas[pole])
                shifts[pole] = mean_interval(sample.effects, sample.questions, self.seed)
        scale = {pole: self._set_unit(pole, shifts) for pole in POLES}
        points = {pole: self._sample(pole, trials).point(0.0, self.seed) for pole, trials in personas.items()}
        return Findings(self._sample("positive", unsteered).point(0.0, self.seed), points, scale)

    def _set_unit(self, pole: Pole, shifts: dict[Pole, Interval]) -> str:
        """A small model may not follow a persona: a scale must not be made of noise."""
        other: Pole = "negative" if pole == "positive" else "positive"
        for source, name in ((pole, "persona"), (other, "other persona")):
            if source in shifts and shifts[source].low > 0:
                self._unit[pole] = shifts[source].mean
                return name
        return "deviation"

    def _locate(self, shape: Shape) -> dict[Pole, float]:
        """A dose near the budget for each pole."""
        shapes = dict.fromkeys(POLES, shape)
        self._take("response", shapes, dict.fromkeys(POLES, 1.0), _LADDER, self.effort.locate)
        while True:
            further: dict[Pole, float] = {}
            for pole in POLES:
                curve = self._curve(pole, "response", shape)
                if curve[0].cost.mean > self.budget and curve[0].dose > _LADDER_LIMITS[0]:
                    further[pole] = curve[0].dose / 2
                elif curve[-1].cost.mean < self.budget and curve[-1].dose < _LADDER_LIMITS[1] and not self._repeats(curve[-1]):
                    further[pole] = curve[-1].dose * 2
            if not further:
                return {pole: self._dose(pole, "response", shape) for pole in POLES}
            self._take("response", dict.fromkeys(further, shape), further, (1.0,), self.effort.locate)

    def _choose(self, default: Shape) -> dict[Pole, Shape]:
        """The shape for each pole: the default one, unless another does better beyond a standard error."""
        if not self.effort.shapes:
            return dict.fromkeys(POLES, default)
        at = {pole: self._dose(pole, "response", default) for pole in POLES}
        trials = [self._plan("response", dict.fromkeys(POLES, one), at, (1.0,), self.effort.shapes) for one in self.shapes[1:]]
        self.laboratory.measure([trial for part in trials for trial in part])
        better = {pole: self._best(pole, default) for pole in POLES}
        better = {pole: shape for pole, shape in better.items() if shape != default}
        at = {pole: self._dose(pole, "response", shape) for pole, shape in better.items()}
        self._take("response", better, at, _REFINE, self.effort.refine)
        return {pole: self._best(pole, default) for pole in POLES}

    def _best(self, pole: Pole, default: Shape) -> Shape:
        base, base_drawn = self.effect_at_budget(pole, default)
        best, best_gain = default, 0.0
        for shape in self._tried(pole):
            effect, drawn = self.effect_at_budget(pole, shape)
            gain = effect - base - float(np.std(drawn - base_drawn))
            if gain > best_gain:
                best, best_gain = shape, gain
        return best

    def _take(self, scope: Scope, shapes: dict[Pole, Shape], at: dict[Pole, float], factors: Sequence[float], count: int) -> None:
        """Measure what `_plan` makes of the same, in shared batches."""
        self.laboratory.measure(self._plan(scope, shapes, at, factors, count))

    def _plan(
        self, scope: Scope, shapes: dict[Pole, Shape], at: dict[Pole, float], factors: Sequence[float], count: int
    ) -> list[Trial]:
        """`count` answers for each pole at each factor times its dose.

        Different factors take different questions, so that a curve sees many; shapes and poles are compared on the same ones.
        """
        trials = []
        for stage, factor in enumerate(factors):
            for pole, shape in shapes.items():
                numbers = [(stage * count + index) % self.effort.unsteered for index in range(count)]
                made = [Trial(number, shape, SIGN[pole] * factor * at[pole], scope) for number in numbers if at[pole] > 0]
                known = self._trials.setdefault((pole, scope, shape), [])
                known.extend(trial for trial in made if trial not in known)
                trials += made
        return trials

    def _samples(self, pole: Pole, shape: Shape) -> list[Sample]:
        """Three answers at each of five doses, from the weakest to the strongest one measured."""
        trials = self._trials[pole, "response", shape]
        doses = sorted({abs(trial.dose) for trial in trials})
        spread = np.linspace(0, len(doses) - 1, min(5, len(doses))).round().astype(int)
        laboratory = self.laboratory
        return [
            Sample(
                doses[index],
                tuple(
                    (laboratory.contrast.held_out[laboratory.question_of(trial)], laboratory.text_of(trial))
                    for trial in [one for one in trials if abs(one.dose) == doses[index]][:3]
                ),
            )
            for index in spread
        ]

    # ---- from answers to numbers

    def _tried(self, pole: Pole) -> list[Shape]:
        return [shape for shape in self.shapes if self._trials.get((pole, "response", shape))]

    def _sample(self, pole: Pole, trials: Iterable[Trial]) -> _Sample:
        trials = list(trials)
        outcomes = self.laboratory.measure(trials)
        questions = [self.laboratory.question_of(trial) for trial in trials]
        nll, reading = np.array([self._reference[question] for question in questions]).T
        shift = np.array([outcome.reading for outcome in outcomes]) - reading
        return _Sample(
            np.array([abs(trial.dose) for trial in trials]),
            np.array(questions, np.intp),
            np.array([outcome.nll for outcome in outcomes]) - nll,
            shift * SIGN[pole] / self._unit[pole],
            np.array([outcome.distinct for outcome in outcomes]),
            np.array([outcome.ended for outcome in outcomes], np.float64),
        )

    def _steered(self, pole: Pole, scope: Scope, shape: Shape) -> _Sample:
        return self._sample(pole, self._trials[pole, scope, shape])

    def _curve(self, pole: Pole, scope: Scope, shape: Shape) -> tuple[Point, ...]:
        sample = self._steered(pole, scope, shape)
        return tuple(sample.at(dose).point(float(dose), self.seed) for dose in np.unique(sample.doses))

    def _repeats(self, point: Point) -> bool:
        return point.distinct < self._unsteered_distinct - DISTINCT_MARGIN

    def _laws(self, pole: Pole, sample: _Sample, weights: Values | None = None) -> tuple[PowerLaws, PowerLaws]:
        """Cost and effect against the dose. What was measured at fewer than three doses borrows the default shape's exponents."""
        exponents = [COST_EXPONENTS, EFFECT_EXPONENTS]
        if len(np.unique(sample.doses)) < 3:
            laws = self._laws(pole, self._steered(pole, "response", self.shapes[0]))
            exponents = [(float(law.exponent[0]),) for law in laws]
        cost = fit_power_laws(sample.doses, sample.costs, exponents[0], weights)
        return cost, fit_power_laws(sample.doses, sample.effects, exponents[1], weights)

    def _top(self, pole: Pole, scope: Scope, shape: Shape) -> float:
        """The strongest dose that may be chosen: measured, and below those whose answers repeat themselves."""
        top = 0.0
        for point in self._curve(pole, scope, shape):
            if self._repeats(point):
                break
            top = point.dose
        return top

    def _dose(self, pole: Pole, scope: Scope, shape: Shape) -> float:
        """The strongest dose inside the budget."""
        cost, _ = self._laws(pole, self._steered(pole, scope, shape))
        return min(float(cost.inverse(self.budget)[0]), self._top(pole, scope, shape))

    def effect_at_budget(self, pole: Pole, shape: Shape) -> tuple[float, Values]:
        """The effect at the strongest dose inside the budget, and the same for each of 1,000 bootstrap samples.

        A shape that was tried at one dose is followed along its curve to half as much again, no further.
        """
        sample = self._steered(pole, "response", shape)
        top = max(self._top(pole, "response", shape), 1.5 * float(sample.doses.max()) * (len(np.unique(sample.doses)) < 3))
        results = []
        for weights in (None, resampled_weights(sample.questions, self.seed)):
            cost, effect = self._laws(pole, sample, weights)
            results.append(effect.at(np.minimum(cost.inverse(self.budget), top)))
        return float(results[0][0]), results[1]

    def _result(self, pole: Pole, shape: Shape) -> ShapeResult:
        effect, drawn = self.effect_at_budget(pole, shape)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return ShapeResult(shape, self._dose(pole, "response", shape), Interval(effect, float(low), float(high)))

    def _side(self, pole: Pole, scope: Scope, shape: Shape) -> Side:
        curve = self._curve(pole, scope, shape) if self._trials.get((pole, scope, shape)) else ()
        nothing = Side(shape.layers, shape.profile, (), None, None, None, curve)
        if not curve:
            return nothing
        sample = self._steered(pole, scope, shape)
        dose = self._dose(pole, scope, shape)
        # Judged by the answers inside the budget, and those just past it.
        inside = sample.up_to(1.3 * dose)
        if not mean_interval(inside.effects, inside.questions, self.seed).low > 0:
            return nothing
        cost, effect = self._laws(pole, sample)
        norms = self.laboratory.directions.norms(shape, dose)[list(shape.layers)]
        return Side(
            shape.layers,
            shape.profile,
            tuple(float(norm) for norm in norms),
            dose,
            float(effect.at(dose)[0]),
            float(cost.at(dose)[0]),
            curve,
        )
