"""From answers to doses: toward each pole the strongest one at which the text holds.

The neighbourhood is known from teacher forcing (`building.dosing`). There answers are sampled at a few doses, and what decides is
never one noisy point but a curve through all of them. Within the neighbourhood, a dose may be as strong as

- the coherence cost stays within the budget,
- answers repeat themselves little more than unsteered ones,
- they stay on their questions,
- they are refused little more often,
- and hold no letters of another script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np

from localsteer.calibration.effort import ANCHORED, FACTORS, Effort
from localsteer.calibration.findings import Findings, Quoted, Sample, mean
from localsteer.calibration.fits import (
    ANCHORED_EFFECT_EXPONENTS,
    COST_EXPONENTS,
    EFFECT_EXPONENTS,
    PowerLaws,
    Values,
    fit_power_laws,
    mean_interval,
    resampled_weights,
    slope_interval,
)
from localsteer.calibration.interview import Interview
from localsteer.calibration.outcomes import Trial
from localsteer.calibration.script import foreign_share
from localsteer.vector.calibration import OTHER, POLES, SIGN, Interval, Limit, Mode, Point, Pole, Side

# How far the share of distinct 3-grams may fall below that of the unsteered answers: what repeats itself is easy to predict, so
# the coherence cost alone would not see it.
DISTINCT_MARGIN = 0.1
# Of how much likelier answers are after their own question than after another one, what must be left: of the unsteered answers or
# of the persona's own, whichever are less on their question. On the demo model broken French and a sadness that is about nothing
# any more had a third to a half of it.
RELEVANCE_SHARE = 0.5
# Share of the answers sampled that may be refused beyond that of unsteered ones: of ten a dose, two. The refusals that can be
# expected are counted before, by their likelihood (`building.refusal`).
REFUSED_MARGIN = 0.2
# Of letters: a word in another script now and then.
FOREIGN_MARGIN = 0.02
# Of the distance between what a persona says and what is said without (the cost of its own answers, read without it), what may
# lie between its own answers and steered ones beyond the budget: it asks for some things that a vector need not say. Fluent
# French of the 1.5B ("Je suis Qwen", where the persona is Camille) costs 0.6 to 1.0, and its own French is 1.9 from its English;
# half English, half French sentences at a weaker dose cost 1.3.
DISTANCE_SHARE = 0.35
# How sure it must be that a dose does anything at all. The bootstrap over some ten questions is too confident: in simulations of
# an earlier search, of 400 vectors that do nothing, 20 passed at 95 % (10 were expected), 3 at 99 % (2).
_BEYOND_DOUBT = 0.99
# Standard errors of a normal distribution.
_NINETY_FIVE, _NINETY_NINE = 1.96, 2.576
# Where a question has few answers to compare with, their mean counts as if the mean of all questions had been one more.
_PRIOR = 1.0


@dataclass(eq=False)
class Search:
    """One calibration.

    Attributes:
        interview: measures.
        near: by pole the dose to search around.
        prompt_share: by pole, of the dose of the response, that of a steered prompt.
        most: by pole, the strongest dose at which a model does not begin to refuse.
        budget: most coherence cost, nats a token.
        effort: how many answers.
        seed: of the bootstrap.
        by_cost: find a dose also where nothing inside the budget does anything beyond doubt.
        anchored: measure the doses of anchored answers, too.
        layers: those that are steered.
        norms: the length of what is added at each of them at a relative dose of 1.
    """

    interview: Interview
    _: KW_ONLY
    near: Mapping[Pole, float]
    prompt_share: Mapping[Pole, float]
    most: Mapping[Pole, float]
    budget: float
    effort: Effort
    seed: int
    by_cost: bool = False
    anchored: bool = False
    layers: tuple[int, ...]
    norms: tuple[float, ...]

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._trials: dict[tuple[Pole, Mode], list[Trial]] = {}
        self._unit: dict[Pole, float] = dict.fromkeys(POLES, 1.0)
        self._plain: Mapping[int, float] = {}
        self._ratio: Mapping[int, float] = {}
        self._ratio_error = 0.0
        self._own: dict[Pole, Mapping[int, float]] = {}
        self._known: dict[Pole, str | None] = {}
        self._reference: Sample | None = None
        self._relevance: dict[Pole, float] = {}
        self._refused: dict[Pole, float] = {}
        self._allowed: dict[Pole, float] = dict.fromkeys(POLES, self.budget)

    def run(self) -> Findings:
        """All that is asked for.

        Raises:
            CalibrationError: the model gives no answers.
        """
        findings = self._baselines()
        self._take("response", {pole: [factor * self.near[pole] for factor in FACTORS] for pole in POLES})
        for pole in POLES:
            findings.sides[pole, "response"] = self._side(pole, "response")
            findings.samples[pole, "response"] = self._samples(pole, "response")
        found = {pole: findings.sides[pole, "response"].dose for pole in POLES}
        shares = self.prompt_share
        self._take("prompt", {pole: [shares[pole] * dose] for pole, dose in found.items() if dose is not None})
        for pole in POLES:
            findings.sides[pole, "prompt"] = self._prompt_side(pole, findings.sides[pole, "response"])
        if self.anchored:
            self._anchor(findings)
        return findings

    def run_anchored(self, sides: Mapping[tuple[Pole, Mode], Side]) -> Findings:
        """The doses of anchored answers alone, for what an earlier calibration has found."""
        findings = self._baselines()
        findings.sides.update(sides)
        self._anchor(findings)
        return findings

    def _anchor(self, findings: Findings) -> None:
        found = {pole: findings.sides[pole, "response"].dose for pole in POLES}
        doses = {pole: [factor * dose for factor in ANCHORED] for pole, dose in found.items() if dose is not None}
        self._take("anchored", doses)
        for pole in POLES:
            findings.sides[pole, "anchored"] = self._side(pole, "anchored")
            if pole in doses:
                findings.samples[pole, "anchored"] = self._samples(pole, "anchored")

    def _baselines(self) -> Findings:
        self._begin()
        interview = self.interview
        unsteered = [Trial(number) for number in range(self.effort.unsteered)]
        outcomes = interview.measure(unsteered)
        self._plain = self._by_question(unsteered, [one.plain for one in outcomes])
        ratios = np.array([one.ratio for one in outcomes])
        self._ratio = self._by_question(unsteered, ratios.tolist())
        deviation = float(np.nanstd(ratios))
        self._ratio_error = deviation / np.sqrt(max(1, int(np.isfinite(ratios).sum())))
        asked = " ".join([*interview.questions, *(one.text for one in outcomes)])
        personas: dict[Pole, list[Trial]] = {}
        told: dict[Pole, str] = dict.fromkeys(POLES, "")
        shifts: dict[Pole, Interval] = {}
        if interview.has_personas:
            personas = {pole: [Trial(number, persona=pole) for number in range(self.effort.persona)] for pole in POLES}
            interview.measure([trial for trials in personas.values() for trial in trials])
            for pole, trials in personas.items():
                own = interview.measure(trials)
                self._own[pole] = self._by_question(trials, [one.under(pole) for one in own])
                told[pole] = " ".join(one.text for one in own)
        # An answer may be in the scripts of what is asked, and of what is said with and without the persona, or in any, where
        # nothing tells what the vector is about.
        spoken = interview.spoken
        self._known = {pole: asked + spoken + told[pole] if spoken is not None else None for pole in POLES}
        plain = self._reference = self._sample("positive", unsteered)
        for pole in POLES:
            voice = self._sample(pole, personas[pole]) if personas else plain
            shifts[pole] = mean_interval(voice.effects, voice.questions, self.seed)
            # A model whose unsteered answers might follow any question has nothing to lose.
            is_relevant = mean_interval(plain.relevance, plain.questions, self.seed).low > 0
            self._relevance[pole] = min(mean(one.relevance) for one in (plain, voice)) if is_relevant else -np.inf
            self._refused[pole] = max(mean(one.refused) for one in (plain, voice))
            self._allowed[pole] += DISTANCE_SHARE * max(0.0, float(np.nanmean(voice.plain))) if personas else 0.0
        scale = {pole: self._set_unit(pole, shifts if personas else {}, deviation) for pole in POLES}
        points = {pole: self._sample(pole, trials).point(0.0, self.seed) for pole, trials in personas.items()}
        unsteered_point = self._sample("positive", unsteered).point(0.0, self.seed)
        return Findings(unsteered_point, points, scale, dict(self._allowed))

    def _by_question(self, trials: Sequence[Trial], values: Sequence[float]) -> Mapping[int, float]:
        """The mean of each question's answers, drawn toward that of all, which one more would not change much."""
        whole = float(np.nanmean(values))
        found: dict[int, list[float]] = {question: [] for question in range(len(self.interview.questions))}
        for trial, value in zip(trials, values, strict=True):
            if np.isfinite(value):
                found[self.interview.question_of(trial)].append(value)
        return {question: (sum(own) + _PRIOR * whole) / (len(own) + _PRIOR) for question, own in found.items()}

    def _set_unit(self, pole: Pole, shifts: Mapping[Pole, Interval], deviation: float) -> str:
        """A small model may not follow a persona: a scale must not be made of noise."""
        for source, name in ((pole, "persona"), (OTHER[pole], "other persona")):
            if source in shifts and shifts[source].low > 0:
                self._unit[pole] = shifts[source].mean
                return name
        self._unit[pole] = max(deviation, float(np.finfo(np.float32).tiny))
        return "deviation"

    def _take(self, mode: Mode, doses: Mapping[Pole, Sequence[float]]) -> None:
        """Measure answers at doses toward each pole, in shared batches.

        Different doses take different questions, so that a curve sees many; both poles are compared on the same ones.
        """
        made, count = [], self.effort.count(mode)
        for pole, wanted in doses.items():
            known = self._trials.setdefault((pole, mode), [])
            for dose in wanted:
                first = len(known)
                known += [Trial((first + index) % self._numbers, SIGN[pole] * dose, mode) for index in range(count)]
            made += known
        self.interview.measure(made)

    @property
    def _numbers(self) -> int:
        """So many times a question and a seed are drawn before they begin again."""
        return 4 * len(self.interview.questions)

    def _samples(self, pole: Pole, mode: Mode) -> list[Quoted]:
        """Three answers at each dose, from the weakest to the strongest one measured."""
        trials, interview = self._trials[pole, mode], self.interview
        doses = sorted({abs(trial.dose) for trial in trials})
        return [
            Quoted(
                dose,
                tuple(
                    (interview.questions[interview.question_of(trial)], interview.text_of(trial))
                    for trial in [one for one in trials if abs(one.dose) == dose][:3]
                ),
            )
            for dose in doses
        ]

    # ---- from answers to numbers

    def _sample(self, pole: Pole, trials: Sequence[Trial]) -> Sample:
        outcomes = self.interview.measure(trials)
        questions = [self.interview.question_of(trial) for trial in trials]

        known = self._known.get(pole)

        def values(take: list[float]) -> Values:
            return np.array(take, np.float64)

        plain = values([one.plain - self._plain[question] for one, question in zip(outcomes, questions, strict=True)])
        voiced = np.full(len(trials), np.nan)
        if own := self._own.get(pole):
            voiced = values([one.under(pole) - own[question] for one, question in zip(outcomes, questions, strict=True)])
        shift = values([one.ratio - self._ratio[question] for one, question in zip(outcomes, questions, strict=True)])
        return Sample(
            doses=values([abs(trial.dose) for trial in trials]),
            questions=np.array(questions, np.intp),
            effects=shift * SIGN[pole] / self._unit[pole],
            costs=np.fmin(plain, voiced),
            voiced=voiced,
            plain=plain,
            relevance=values([one.relevance for one in outcomes]),
            distinct=values([one.distinct for one in outcomes]),
            ended=values([one.ended for one in outcomes]),
            refused=values([one.refused for one in outcomes]),
            foreign=values([0.0 if known is None else foreign_share(one.text, known) for one in outcomes]),
        )

    def _steered(self, pole: Pole, mode: Mode) -> Sample:
        return self._sample(pole, self._trials[pole, mode])

    def _laws(
        self, sample: Sample, weights: Values | None = None, steepness: Sample | None = None, mode: Mode = "response"
    ) -> tuple[PowerLaws, PowerLaws]:
        """Cost and effect against the dose; of what was measured at one dose alone, as steep as for another sample."""
        of_effect: tuple[float, ...] = ANCHORED_EFFECT_EXPONENTS if mode == "anchored" else EFFECT_EXPONENTS
        exponents: list[tuple[float, ...]] = [COST_EXPONENTS, of_effect]
        if steepness is not None:
            exponents = [(float(law.exponent[0]),) for law in self._laws(steepness)]
        cost = fit_power_laws(sample.doses, sample.costs, exponents[0], weights)
        return cost, fit_power_laws(sample.doses, sample.effects, exponents[1], weights)

    def _limits(self, pole: Pole, mode: Mode, sample: Sample) -> dict[Limit, float]:
        """How strong a dose may be by each measure but the cost."""
        plain, relevance = self._reference, self._relevance[pole]
        assert plain is not None
        before = {name: mean(getattr(plain, name)) for name in ("distinct", "refused", "foreign", "relevance")}
        limits: dict[Limit, float] = {
            "repetition": sample.reaches("distinct", before["distinct"] - DISTINCT_MARGIN, before=before["distinct"], falls=True),
            "refusals": sample.reaches("refused", self._refused[pole] + REFUSED_MARGIN, before=before["refused"]),
            "script": sample.reaches("foreign", before["foreign"] + FOREIGN_MARGIN, before=before["foreign"]),
        }
        if relevance > 0:
            limit = RELEVANCE_SHARE * relevance
            limits["relevance"] = sample.reaches("relevance", limit, before=before["relevance"], falls=True)
        if mode == "response":
            limits["refusals"] = min(self.most[pole], limits["refusals"])
        return limits

    def _coherent(self, pole: Pole, sample: Sample) -> float:
        """The strongest dose whose cost is allowed, linear between those measured.

        The cost need not rise with the dose: half-way to another language it is greater than beyond.
        """
        allowed, doses = self._allowed[pole], np.unique(sample.doses)
        costs = np.array([mean(sample.at(dose).costs) for dose in doses])
        costs[np.isnan(costs)] = np.inf  # nothing is said there
        within = np.flatnonzero(costs <= allowed)
        if not np.isfinite(costs).any():
            return 0.0
        if not len(within):
            return float(self._laws(sample)[0].inverse(allowed)[0])
        last = int(within[-1])
        if last + 1 == len(doses):
            return float("inf")
        share = (allowed - costs[last]) / (costs[last + 1] - costs[last]) if np.isfinite(costs[last + 1]) else 0.0
        return float(doses[last] + share * (doses[last + 1] - doses[last]))

    def _dose(self, pole: Pole, mode: Mode) -> tuple[float, Limit]:
        """The dose of strength 1, and what keeps it from being stronger."""
        sample = self._steered(pole, mode)
        limits: dict[Limit, float] = {"coherence": self._coherent(pole, sample), **self._limits(pole, mode, sample)}
        limits["measured"] = float(sample.doses.max())
        name = min(limits, key=limits.__getitem__)
        return limits[name], name

    def _side(self, pole: Pole, mode: Mode) -> Side:
        nothing = Side(self.layers, (), None, None, None, ())
        if not self._trials.get((pole, mode)):
            return nothing
        sample = self._steered(pole, mode)
        curve = sample.curve(self.seed)
        dose, limit = self._dose(pole, mode)
        # Judged by the answers up to twice the dose, the strongest of which cost more than the budget: what moves them there
        # moves them here, and a few answers inside the budget alone seldom tell anything beyond doubt.
        near = sample.up_to(2 * dose)
        if not len(near.doses):
            return Side(self.layers, (), None, None, None, curve, limit=limit, allowed=self._allowed[pole])
        shown = self._is_shown(pole, near)
        if not (shown or self.by_cost):
            return Side(self.layers, (), None, None, None, curve, limit="measured", allowed=self._allowed[pole])
        return self._found(pole, dose, sample, curve, shown=shown, limit=limit, mode=mode)

    def _is_shown(self, pole: Pole, inside: Sample) -> bool:
        """Whether answers go toward a pole beyond doubt."""
        slope = slope_interval(inside.doses, inside.effects, inside.questions, self.seed, level=_BEYOND_DOUBT)
        # What all answers are compared with was measured, too: an error that they share, and 99 % of it.
        shared = _NINETY_NINE * self._ratio_error / self._unit[pole] * float(inside.doses.sum() / (inside.doses**2).sum())
        return bool(slope.mean - np.hypot(slope.mean - slope.low, shared) > 0)

    def _found(
        self,
        pole: Pole,
        dose: float,
        sample: Sample,
        curve: tuple[Point, ...],
        *,
        shown: bool,
        limit: Limit,
        steepness: Sample | None = None,
        mode: Mode = "response",
    ) -> Side:
        weights = resampled_weights(sample.questions, self.seed)
        cost, effect = (law.at(dose) for law in self._laws(sample, None, steepness, mode))
        low, high = np.quantile(self._laws(sample, weights, steepness, mode)[1].at(dose), (0.025, 0.975))
        shared = _NINETY_FIVE * self._ratio_error / self._unit[pole]
        low, high = effect[0] - np.hypot(effect[0] - low, shared), effect[0] + np.hypot(high - effect[0], shared)
        return Side(
            layers=self.layers,
            norms=tuple(float(norm * dose) for norm in self.norms),
            dose=dose,
            effect=float(effect[0]),
            cost=float(cost[0]),
            curve=curve,
            shown=shown,
            limit=limit,
            between=(float(low), float(high)),
            allowed=self._allowed[pole],
        )

    def _prompt_side(self, pole: Pole, response: Side) -> Side:
        """With the prompt steered: the share of the dose that teacher forcing found as strong, less where answers do not hold."""
        nothing = Side(self.layers, (), None, None, None, ())
        if response.dose is None or not self._trials.get((pole, "prompt")):
            return nothing
        sample, steepness = self._steered(pole, "prompt"), self._steered(pole, "response")
        (point,) = sample.curve(self.seed)
        allowed = self._allowed[pole]
        affordable = point.dose if point.cost.mean <= allowed else 0.0
        if point.cost.mean > allowed:
            exponent = float(self._laws(steepness)[0].exponent[0])
            affordable = point.dose * (allowed / point.cost.mean) ** (1 / exponent)
        limits: dict[Limit, float] = {"measured": point.dose, "coherence": affordable, **self._limits(pole, "prompt", sample)}
        name = min(limits, key=limits.__getitem__)
        if limits[name] <= 0:
            return replace(nothing, curve=(point,), limit=name, allowed=allowed)
        return self._found(pole, limits[name], sample, (point,), shown=response.shown, limit=name, steepness=steepness)
