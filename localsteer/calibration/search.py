"""From trials to doses: the strongest one inside the coherence budget, toward each pole, and the layers that take it furthest.

Four stages, each building on the one before, and a fifth for those who ask for it:

1. *Locate*: the first shape at a few doses far apart, until the budget lies between two of them.
2. *Curve*: the first shape at five doses around that place.
3. *Shapes*: other layer ranges and profiles at the dose that reaches the budget; the best one, if it beats the first
   by more than two standard errors, is measured at four more doses, and taken if it still does.
4. *Prompt*: the chosen shape with the prompt steered as well.
5. *Anchored*: the chosen shape where the unsteered model has a say in every token.

What decides is never one noisy point but a power law through all answers of a shape and pole, each answer compared with the
unsteered ones to its own question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from localsteer.calibration.effort import (
    ANCHORED,
    ANCHORED_FURTHER,
    CURVE,
    LADDER,
    LADDER_LIMITS,
    PROMPT,
    PROMPT_FURTHER,
    REFINE,
    Effort,
)
from localsteer.calibration.findings import Findings, Quoted, Sample, ShapeResult
from localsteer.calibration.fits import (
    COST_EXPONENTS,
    EFFECT_EXPONENTS,
    PowerLaws,
    Values,
    fit_power_laws,
    mean_interval,
    resampled_weights,
    slope_interval,
)
from localsteer.calibration.laboratory import Laboratory, Outcome, Trial
from localsteer.calibration.shapes import Shape, as_profile
from localsteer.vector.calibration import OTHER, POLES, SIGN, Interval, Mode, Pole, Side

# How far the share of distinct 3-grams may fall below that of the unsteered answers: what repeats itself is easy to predict, so
# the coherence cost alone would not see it.
DISTINCT_MARGIN = 0.1
# By how many bootstrap standard errors another shape must beat the first one. In simulations, of five that are as good some
# other passes on 1 of 30 sides, one that is 1.5 times as good on 9 of 24, one twice as good on 18 of 24; with one standard error
# on 9 of 30, 14 and 21 of 24, and on a real model a shape that chance had chosen did 0.5 worse than the first.
_STANDARD_ERRORS = 2.0
# Quantile of the bootstrapped doses that becomes strength 1: one standard error below the middle. The middle itself, measured on
# fresh questions, cost 0.37 nats on the average of five concepts where the budget was 0.25.
_SURE = 0.16
# How sure it must be that a dose does anything at all. The bootstrap over twenty questions is too confident: of 400 vectors that
# do nothing, 20 passed at 95 % (10 were expected), 3 at 99 % (2).
_BEYOND_DOUBT = 0.99


@dataclass(eq=False)
class Search:
    """One calibration.

    Attributes:
        laboratory: measures.
        shapes: what to choose from; another than the first must beat it.
        budget: most coherence cost, nats a token.
        effort: how many answers.
        seed: of the bootstrap.
        by_cost: find a dose also where nothing inside the budget does anything beyond doubt.
        anchored: take the fifth stage.
    """

    laboratory: Laboratory
    shapes: Sequence[Shape]
    _: KW_ONLY
    budget: float
    effort: Effort
    seed: int
    by_cost: bool = False
    anchored: bool = False

    def __post_init__(self) -> None:
        self._trials: dict[tuple[Pole, Mode, Shape], list[Trial]] = {}
        self._unit: dict[Pole, float] = dict.fromkeys(POLES, 1.0)
        self._reference: dict[int, tuple[float, float]] = {}
        self._least_distinct = 0.0

    def run(self) -> Findings:
        """All stages."""
        findings = self._baselines()
        first = self.shapes[0]
        near, steps = self._locate(first)
        self._take("response", dict.fromkeys(POLES, first), near, CURVE, self.effort.curve_after(steps))
        chosen = self._choose(first)
        for pole in POLES:
            findings.sides[pole, "response"] = self._side(pole, "response", chosen[pole])
            findings.shapes[pole] = [self._result(pole, shape) for shape in self._tried(pole)]
            findings.samples[pole] = self._samples(pole, "response", chosen[pole])
        reach = {pole: self._dose(pole, "response", chosen[pole]) for pole in POLES}
        self._follow("prompt", chosen, reach, PROMPT, PROMPT_FURTHER, self.effort.prompt)
        for pole in POLES:
            findings.sides[pole, "prompt"] = self._side(pole, "prompt", chosen[pole])
        if self.anchored:
            self._anchor(findings)
        return findings

    def run_anchored(self, sides: Mapping[tuple[Pole, Mode], Side]) -> Findings:
        """The fifth stage alone, for what an earlier calibration has found."""
        findings = self._baselines()
        findings.sides.update(sides)
        self._anchor(findings)
        return findings

    # ---- stages

    def _anchor(self, findings: Findings) -> None:
        found = {pole: findings.sides[pole, "response"] for pole in POLES}
        chosen = {pole: Shape(side.layers, as_profile(side.profile)) for pole, side in found.items()}
        reach = {pole: side.dose or 0.0 for pole, side in found.items()}
        self._follow("anchored", chosen, reach, ANCHORED, ANCHORED_FURTHER, self.effort.anchored)
        for pole in POLES:
            findings.sides[pole, "anchored"] = self._side(pole, "anchored", chosen[pole])
            if reach[pole]:
                findings.anchored_samples[pole] = self._samples(pole, "anchored", chosen[pole])

    def _follow(
        self,
        mode: Mode,
        chosen: dict[Pole, Shape],
        reach: dict[Pole, float],
        factors: Sequence[float],
        further: float,
        count: int,
    ) -> None:
        """The chosen shapes under another mode, at doses around those that the response takes."""
        if not count:
            return
        self._take(mode, chosen, reach, factors, count)
        on = {pole: shape for pole, shape in chosen.items() if reach[pole] and self._is_capped(pole, mode, shape)}
        self._take(mode, on, reach, (further,), count)

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
        self._least_distinct = float(plain.distinct.mean()) - DISTINCT_MARGIN
        personas: dict[Pole, list[Trial]] = {}
        shifts: dict[Pole, Interval] = {}
        if self.laboratory.contrast.personas:
            for pole in POLES:
                personas[pole] = [Trial(number, persona=pole) for number in range(self.effort.persona)]
                sample = self._sample(pole, personas[pole])
                shifts[pole] = mean_interval(sample.effects, sample.questions, self.seed)
        scale = {pole: self._set_unit(pole, shifts) for pole in POLES}
        points = {pole: self._sample(pole, trials).point(0.0, self.seed) for pole, trials in personas.items()}
        return Findings(plain.point(0.0, self.seed), points, scale)

    def _set_unit(self, pole: Pole, shifts: dict[Pole, Interval]) -> str:
        """A small model may not follow a persona: a scale must not be made of noise."""
        for source, name in ((pole, "persona"), (OTHER[pole], "other persona")):
            if source in shifts and shifts[source].low > 0:
                self._unit[pole] = shifts[source].mean
                return name
        return "deviation"

    def _locate(self, shape: Shape) -> tuple[dict[Pole, float], int]:
        """A dose near the budget for each pole, and how many steps the ladder took beyond its three."""
        self._take("response", dict.fromkeys(POLES, shape), dict.fromkeys(POLES, 1.0), LADDER, self.effort.locate)
        steps = 0
        while True:
            further: dict[Pole, float] = {}
            for pole in POLES:
                sample = self._steered(pole, "response", shape)
                weakest, strongest = float(sample.doses.min()), float(sample.doses.max())
                calm = sample.strongest_with(self._least_distinct)
                if np.nanmean(sample.at(weakest).costs) > self.budget or not calm:
                    if weakest > LADDER_LIMITS[0]:
                        further[pole] = weakest / 2
                elif np.nanmean(sample.at(strongest).costs) < self.budget and calm == strongest < LADDER_LIMITS[1]:
                    further[pole] = strongest * 2
            if not further:
                return {pole: self._dose(pole, "response", shape) for pole in POLES}, steps
            steps += 1
            self._take("response", dict.fromkeys(further, shape), further, (1.0,), self.effort.locate)

    def _choose(self, first: Shape) -> dict[Pole, Shape]:
        """The shape for each pole: the first one, unless another does better."""
        if not self.effort.shapes:
            return dict.fromkeys(POLES, first)
        at = {pole: self._dose(pole, "response", first) for pole in POLES}
        trials = [self._plan("response", dict.fromkeys(POLES, one), at, (1.0,), self.effort.shapes) for one in self.shapes[1:]]
        self.laboratory.measure([trial for part in trials for trial in part])
        candidate = {pole: self._best(pole, [first, *self._tried(pole)]) for pole in POLES}
        better = {pole: shape for pole, shape in candidate.items() if shape != first}
        at = {pole: self._dose(pole, "response", shape) for pole, shape in better.items()}
        self._take("response", better, at, REFINE, self.effort.refine)
        return {pole: self._best(pole, [first, shape]) for pole, shape in candidate.items()}

    def _best(self, pole: Pole, shapes: Sequence[Shape]) -> Shape:
        """The first of them, unless another one does better by more than chance is likely to."""
        base, base_drawn = self.effect_at_budget(pole, shapes[0])
        best, best_gain = shapes[0], 0.0
        for shape in shapes[1:]:
            effect, drawn = self.effect_at_budget(pole, shape)
            gain = effect - base - _STANDARD_ERRORS * float(np.std(drawn - base_drawn))
            if gain > best_gain:
                best, best_gain = shape, gain
        return best

    def _take(self, mode: Mode, shapes: dict[Pole, Shape], at: dict[Pole, float], factors: Sequence[float], count: int) -> None:
        """Measure what `_plan` makes of the same, in shared batches."""
        self.laboratory.measure(self._plan(mode, shapes, at, factors, count))

    def _plan(
        self, mode: Mode, shapes: dict[Pole, Shape], at: dict[Pole, float], factors: Sequence[float], count: int
    ) -> list[Trial]:
        """`count` answers for each pole at each factor times its dose.

        Different factors take different questions, so that a curve sees many; shapes and poles are compared on the same ones.
        """
        trials = []
        for stage, factor in enumerate(factors):
            for pole, shape in shapes.items():
                numbers = [(stage * count + index) % self.effort.unsteered for index in range(count)]
                made = [Trial(number, shape, SIGN[pole] * factor * at[pole], mode) for number in numbers if at[pole] > 0]
                known = self._trials.setdefault((pole, mode, shape), [])
                known.extend(trial for trial in made if trial not in known)
                trials += made
        return trials

    def _samples(self, pole: Pole, mode: Mode, shape: Shape) -> list[Quoted]:
        """Three answers at each of five doses, from the weakest to the strongest one measured."""
        trials = self._trials[pole, mode, shape]
        doses = sorted({abs(trial.dose) for trial in trials})
        spread = np.linspace(0, len(doses) - 1, min(5, len(doses))).round().astype(int)
        laboratory = self.laboratory
        return [
            Quoted(
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

    def _sample(self, pole: Pole, trials: Iterable[Trial]) -> Sample:
        trials = list(trials)
        outcomes = self.laboratory.measure(trials)
        questions = [self.laboratory.question_of(trial) for trial in trials]
        nll, reading = np.array([self._reference[question] for question in questions]).T
        shift = np.array([outcome.reading for outcome in outcomes]) - reading
        return Sample(
            np.array([abs(trial.dose) for trial in trials]),
            np.array(questions, np.intp),
            np.array([outcome.nll for outcome in outcomes]) - nll,
            shift * SIGN[pole] / self._unit[pole],
            np.array([outcome.distinct for outcome in outcomes]),
            np.array([outcome.ended for outcome in outcomes], np.float64),
        )

    def _steered(self, pole: Pole, mode: Mode, shape: Shape) -> Sample:
        return self._sample(pole, self._trials[pole, mode, shape])

    def _laws(self, pole: Pole, sample: Sample, weights: Values | None = None) -> tuple[PowerLaws, PowerLaws]:
        """Cost and effect against the dose. What was measured at fewer than three doses borrows the first shape's exponents."""
        exponents = [COST_EXPONENTS, EFFECT_EXPONENTS]
        if len(np.unique(sample.doses)) < 3:
            laws = self._laws(pole, self._steered(pole, "response", self.shapes[0]))
            exponents = [(float(law.exponent[0]),) for law in laws]
        cost = fit_power_laws(sample.doses, sample.costs, exponents[0], weights)
        return cost, fit_power_laws(sample.doses, sample.effects, exponents[1], weights)

    def _top(self, pole: Pole, mode: Mode, shape: Shape) -> float:
        """The strongest dose that may be chosen: measured, and below those whose answers repeat themselves.

        A shape that was tried at one dose is followed along its curve to half as much again.
        """
        sample = self._steered(pole, mode, shape)
        return sample.strongest_with(self._least_distinct) * (1.5 if len(np.unique(sample.doses)) == 1 else 1.0)

    def _is_capped(self, pole: Pole, mode: Mode, shape: Shape) -> bool:
        """Whether the budget lies beyond the strongest dose measured, and nothing else speaks against going there."""
        sample = self._steered(pole, mode, shape)
        cost, _ = self._laws(pole, sample)
        strongest = float(sample.doses.max())
        return float(cost.inverse(self.budget)[0]) > strongest == sample.strongest_with(self._least_distinct)

    def _dose(self, pole: Pole, mode: Mode, shape: Shape) -> float:
        """The strongest dose inside the budget."""
        cost, _ = self._laws(pole, self._steered(pole, mode, shape))
        return min(float(cost.inverse(self.budget)[0]), self._top(pole, mode, shape))

    def sure_dose(self, pole: Pole, mode: Mode, shape: Shape) -> float:
        """The dose of strength 1: inside the budget beyond a standard error of what was measured."""
        sample = self._steered(pole, mode, shape)
        weights = resampled_weights(sample.questions, self.seed, n_questions=len(self._reference))
        cost, _ = self._laws(pole, sample, weights)
        doses = np.minimum(cost.inverse(self.budget), self._top(pole, mode, shape))
        return float(np.quantile(doses, _SURE))

    def effect_at_budget(self, pole: Pole, shape: Shape) -> tuple[float, Values]:
        """The effect at the strongest dose inside the budget, and the same for each of 1,000 bootstrap samples.

        The samples draw the same questions whatever the shape, so that two shapes can be compared draw by draw.
        """
        sample, top = self._steered(pole, "response", shape), self._top(pole, "response", shape)
        results = []
        for weights in (None, resampled_weights(sample.questions, self.seed, n_questions=len(self._reference))):
            cost, effect = self._laws(pole, sample, weights)
            results.append(effect.at(np.minimum(cost.inverse(self.budget), top)))
        return float(results[0][0]), results[1]

    def _result(self, pole: Pole, shape: Shape) -> ShapeResult:
        effect, drawn = self.effect_at_budget(pole, shape)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return ShapeResult(shape, self._dose(pole, "response", shape), Interval(effect, float(low), float(high)))

    def _side(self, pole: Pole, mode: Mode, shape: Shape) -> Side:
        curve = self._steered(pole, mode, shape).curve(self.seed) if self._trials.get((pole, mode, shape)) else ()
        nothing = Side(shape.layers, shape.profile, (), None, None, None, curve)
        if not curve:
            return nothing
        sample = self._steered(pole, mode, shape)
        dose = self.sure_dose(pole, mode, shape)
        # Judged by the answers up to twice the dose, the strongest of which cost more than the budget: what moves them there
        # moves them here, and a few answers inside the budget alone (ten with --quick) seldom tell anything beyond doubt.
        inside = sample.up_to(2 * dose)
        slope = slope_interval(inside.doses, inside.effects, inside.questions, self.seed, level=_BEYOND_DOUBT)
        shown = dose > 0 and slope.low > 0
        if dose <= 0 or not (shown or self.by_cost):
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
            shown,
        )
