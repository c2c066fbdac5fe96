"""A fresh vector's dose, measured: what strength 1 is on this model, toward each pole.

What a model says under a pole's persona (its *own answers*) is read again under the vector instead of the persona. As the dose
grows, what the persona would say first becomes likelier, where the persona changes what is said, or stays as it is, where it
hardly does; at some dose it begins to fall, because the text falls apart. Strength 1 is the strongest dose at which it is within
`TOLERANCE` of the likeliest that the vector makes it. Nothing is sampled for that but the answers themselves, so the curve is
smooth, and a few doses find it. Some answers sampled there confirm that the text holds, or weaken the dose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from localsteer.building.dose_search import LADDER, DoseSearch
from localsteer.building.own_answers import CONFIRMED, READ_OF_OTHER, OwnAnswers, Progress
from localsteer.building.refusal import is_about_refusing, read_refusal
from localsteer.building.voices import Tokens
from localsteer.concepts.contrast import Contrast
from localsteer.errors import CalibrationError
from localsteer.llama.closing import Closing
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.forced import Forced, Reading
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.reading.scoring import Scored, answer_nll
from localsteer.steering.dose import relative_dose
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import OTHER, POLES, SIGN, Interval, Pole
from localsteer.vector.control_vector import ControlVector, Floats
from localsteer.vector.dosing import INCOHERENT, DosedSide, Dosing

# Own answers that are read for the dose of a steered prompt.
_PROMPTED = 2
# Answers a pole below which nothing is called shown: of one, the bootstrap knows no chance.
_ENOUGH = 3

# Nats a token. On Qwen2.5-Coder 1.5B it gives French 0.8 (fluent at 0.5, broken at 1.1), a pirate 0.9 to 1.15 (not heard at 0.6,
# heard at 1.1), happy and sad 0.5 to 0.7 (heard at 0.6 and 0.4); on SmolLM2-135M 0.2 and 0.3 for happy and sad, where 0.2 was the
# dose found by hand.
TOLERANCE = 0.15
# Without own answers (a vector from elsewhere) it is unsteered answers that are read, which lose from the first: at the doses
# above those of happy, sad, English and a pirate had lost 0.2 to 0.5 nats a token on the 1.5B.
PLAIN_TOLERANCE = 0.25

# Of the response's dose, for a prompt that is steered as well: between 0.67 and 1 of it was as strong (happy - sad, both models).
_PROMPT_SHARES = (0.5, 0.75)

# What sampled answers cost beside `INCOHERENT`. Answers differ by 0.9: where the mean of a few is above this, more are asked for.
# What is incoherent is tried weaker, twice, and that must gain as much as chance moves eight answers.
_DOUBTFUL = 1.2
_WEAKER = 0.75
_WEAKENED = 2
_BETTER = 0.3
# By how much likelier a refusal may begin, of 1: mean over some everyday questions. Likelier by some 0.06 and 0.1, formal and sad
# on the 1.5B refused 9 and 6 of 20 questions, of which 3 are refused unsteered. At 0.02 they refuse 5 and 5 of 20; at 0.01, which
# halves their doses, 5 and 6: two more than unsteered are no more than chance.
REFUSED = 0.02
# Where it is more, the shares of a dose between which that is looked for. With three of them it is 0.45 of sad's and 0.37 of
# formal's dose on the 1.5B, with four 0.40 and 0.36, with seven 0.43 and 0.37.
_REFUSED_SHARES = (0.0, 0.5, 1.0)
# A model that refuses at any dose must not leave none at all; nothing that was measured came near it.
_LEAST_SHARE = 0.2
_RESAMPLES = 1000
_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


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
        The same directions at strength 1, with what was measured (`Provenance.dosing`) and without a calibration or a probe.

    Raises:
        CalibrationError: the vector is zero at every layer, or the model gives no answers.
        VectorError: the vector does not fit the model.
        ModelError: the model's residual stream cannot be read.
    """
    with Doser(model, contrast, seed=seed, progress=progress) as doser:
        return doser.dose(vector)


def _hidden_norm(model: Model, vector: ControlVector) -> Floats:
    """(n_layer,) mean norm of this model's hidden states: the vector's own where it was read from this very file."""
    own, made_on = vector.provenance.hidden_norm, vector.provenance.model
    here = made_on is not None and made_on.content == model.fingerprint.content
    if own is not None and here and np.isfinite(own[list(vector.layers)]).all():
        return own
    return read_hidden_norm(model)


@dataclass(frozen=True, eq=False)
class _AtDose:
    """What was read near a pole's dose.

    Attributes:
        own: (n,) gains of the pole's own answers.
        other: (m,) those of some of the other pole.
        kl: KL(steered || unsteered) along some of both.
        prompt_share: of the dose of the response, that of a steered prompt.
    """

    own: NDArray[np.float64]
    other: NDArray[np.float64]
    kl: float
    prompt_share: float


class Doser(Closing):
    """Doses one vector after another by the same own answers. A context manager.

    Args:
        model: the model.
        contrast: what they were built from; None for vectors from elsewhere.
        seed: of the answers.
        progress: told what is going on.
    """

    def __init__(self, model: Model, contrast: Contrast | None, *, seed: int = 0, progress: Progress | None = None) -> None:
        self._model = model
        self._contrast = contrast
        self._seed = seed
        self._progress = progress

    @cached_property
    def own(self) -> OwnAnswers:
        """What the poles say of their own: sampled at first use.

        Raises:
            CalibrationError: the model gives no answers.
        """
        return OwnAnswers(self._model, self._contrast, seed=self._seed, progress=self._progress)

    def close(self) -> None:
        """Free what the own answers hold."""
        if own := self.__dict__.get("own"):
            own.close()

    def dose(self, vector: ControlVector) -> ControlVector:
        """The vector at its measured strength 1: arguments, result and errors are those of `dose`."""
        model = self._model
        vector.check_fits(model.fingerprint)
        hidden = _hidden_norm(model, vector)
        rows = vector.rows(model.n_layer)
        length = relative_dose(rows, hidden)
        if not length > 0:
            raise CalibrationError("The vector is zero at every layer: there is nothing to dose.")
        vector.check_adds(vector.provenance.concept or "The vector")
        unit = rows / np.float32(length)
        own = self.own
        sides = _Sides(own, unit, self._progress).measured()
        dosing = Dosing(model.fingerprint.name, model.fingerprint.content, self._seed, len(own.answers["positive"]), sides)
        directions = {layer: unit[layer] * np.float32(dosing.unit) for layer in vector.layers}
        provenance = replace(vector.provenance, hidden_norm=hidden, dosing=dosing, calibration=None, probe=None)
        return ControlVector(directions, provenance)


class _Sides:
    """Both sides of one vector."""

    def __init__(self, own: OwnAnswers, unit: Floats, progress: Progress | None) -> None:
        self._own = own
        self._unit = unit
        self._tolerance = TOLERANCE if own.voices.spoken else PLAIN_TOLERANCE
        self._tell = progress if progress is not None else lambda *_: None

    def measured(self) -> dict[Pole, DosedSide]:
        self._tell("dosing", 0, 3)
        searches, found = self._search()
        self._tell("dosing", 1, 3)
        most = self._unrefused({pole: searches[pole].dose for pole in POLES})
        if limited := {pole: dose for pole, dose in most.items() if dose < searches[pole].dose}:
            found |= self._near(limited, found)
        self._tell("dosing", 2, 3)
        asked = {pole: min(searches[pole].dose, most[pole]) for pole in POLES}
        doses, coherence = self._confirm(asked)
        if weakened := {pole: dose for pole, dose in doses.items() if dose < asked[pole]}:
            found |= self._near(weakened, found)
        self._tell("dosing", 3, 3)
        sides: dict[Pole, DosedSide] = {}
        for pole in POLES:
            at_dose = found[pole]
            ratio = _interval(at_dose.own, at_dose.other) if self._own.voices.spoken else _UNKNOWN
            sides[pole] = DosedSide(
                dose={"response": doses[pole], "prompt": at_dose.prompt_share * doses[pole]},
                tried=searches[pole].tried,
                ratio=ratio,
                kl=at_dose.kl,
                coherence=coherence[pole],
                shown=ratio.low > 0 and min(len(at_dose.own), len(at_dose.other)) >= _ENOUGH,
                most=most[pole] if np.isfinite(most[pole]) else math.nan,
                asked=self._own.asked[pole],
            )
        return sides

    def _edit(self, pole: Pole, dose: float) -> Edit:
        return Edit(self._unit, scale=SIGN[pole] * dose * self._own.voices.reach)

    def _search(self) -> tuple[dict[Pole, DoseSearch], dict[Pole, _AtDose]]:
        """Both poles at once: they share passes. What else is to be known near a pole's dose is read along with the first one."""
        mine, reader = self._own.read, self._own.reader
        searches = {pole: DoseSearch(self._tolerance, list(LADDER)) for pole in POLES}
        found: dict[Pole, _AtDose] = {}
        while asked := [(pole, dose) for pole in POLES for dose in searches[pole].next]:
            readings = [Reading(self._edit(pole, dose), mine[pole]) for pole, dose in asked]
            near = [pole for pole, _ in asked if searches[pole].refinements and pole not in found]
            for pole in near:
                dose = searches[pole].dose
                readings.append(Reading(self._edit(pole, dose), mine[OTHER[pole]][:READ_OF_OTHER]))
                readings += [
                    Reading(self._edit(pole, share * dose), mine[pole][:_PROMPTED], steer_prompt=True) for share in _PROMPT_SHARES
                ]
            forced = iter(reader.under(readings))
            at: dict[Pole, list[Forced]] = {pole: [] for pole, _ in asked}
            for pole, _ in asked:
                at[pole].append(next(forced))
            for pole in near:
                (own,), other = at[pole], next(forced)
                share = self._prompt_share([next(forced) for _ in _PROMPT_SHARES])
                found[pole] = _AtDose(own.gain, other.gain, float(np.nanmean([own.kl, other.kl])), share)
            for pole, read in at.items():
                searches[pole].add([float(np.mean(one.gain)) for one in read])
        if any(search.is_lost for search in searches.values()):
            raise CalibrationError(
                f"What {self._own.model.name} computes under the vector is no number at any dose, so there is nothing to dose.",
                hint="Is the vector of this model? `localsteer vectors show` tells how long its directions are.",
            )
        return searches, found

    def _unrefused(self, doses: Mapping[Pole, float]) -> dict[Pole, float]:
        """For each pole the strongest dose at which everyday questions are hardly refused more often; infinite above its own.

        Where they are at a fifth of its own already, it is that. A vector that is about refusing may refuse.
        """
        refusals, most = self._own.refusals, dict.fromkeys(POLES, float("inf"))
        if not refusals.openings:
            return most
        allowed = refusals.unsteered + REFUSED
        at_dose = refusals.under([Edit(self._unit, scale=SIGN[pole] * dose) for pole, dose in doses.items()])
        layers = np.flatnonzero(self._unit.any(axis=1)).tolist()
        if max(at_dose) > allowed and is_about_refusing(self._unit[layers], read_refusal(self._own.model, layers)):
            return most
        for (pole, dose), chance in zip(doses.items(), at_dose, strict=True):
            if chance > allowed:
                shares = np.array(_REFUSED_SHARES)
                at = refusals.under([Edit(self._unit, scale=SIGN[pole] * dose * share) for share in shares[1:-1]])
                curve = np.maximum.accumulate([refusals.unsteered, *at, chance])
                most[pole] = dose * max(float(np.interp(allowed, curve, shares)), _LEAST_SHARE)
        return most

    def _near(self, doses: Mapping[Pole, float], found: Mapping[Pole, _AtDose]) -> dict[Pole, _AtDose]:
        """What is to be known at weaker doses than those that were found."""
        mine, readings = self._own.read, []
        for pole, dose in doses.items():
            edit = self._edit(pole, dose)
            readings += [Reading(edit, mine[pole]), Reading(edit, mine[OTHER[pole]][:READ_OF_OTHER])]
        forced = iter(self._own.reader.under(readings))
        made = {}
        for pole in doses:
            own, other = next(forced), next(forced)
            made[pole] = _AtDose(own.gain, other.gain, float(np.nanmean([own.kl, other.kl])), found[pole].prompt_share)
        return made

    def _prompt_share(self, forced: Sequence[Forced]) -> float:
        """For a steered prompt: a share of the dose of the response, less where that weighs too much."""
        search = DoseSearch(self._tolerance, list(_PROMPT_SHARES))
        search.add([float(np.mean(one.gain)) for one in forced])
        return search.dose

    def _confirm(self, doses: Mapping[Pole, float]) -> tuple[dict[Pole, float], dict[Pole, float]]:
        """Sample at the doses; where the text has fallen apart, try weaker ones, and keep those that are better by far.

        A weaker dose that is no better is not what was missing: too weak for French is English.
        """
        coherence = dict.fromkeys(POLES, float("inf"))
        kept, trying = dict(doses), dict(doses)
        for weakened in range(1 + _WEAKENED):
            costs = self._costs(trying, slice(None) if weakened else slice(CONFIRMED))
            doubtful = {} if weakened else {pole: dose for pole, dose in trying.items() if _mean_cost(costs[pole]) > _DOUBTFUL}
            for pole, others in self._costs(doubtful, slice(CONFIRMED, None)).items():
                costs[pole] = np.concatenate([costs[pole], others])
            for pole, tried in trying.items():
                cost = _mean_cost(costs[pole])
                if cost < coherence[pole] - _BETTER:
                    coherence[pole], kept[pole] = cost, tried
            trying = {pole: _WEAKER * tried for pole, tried in trying.items() if coherence[pole] > INCOHERENT}
            if not trying:
                break
        return kept, coherence

    def _costs(self, doses: Mapping[Pole, float], prompts: slice) -> dict[Pole, NDArray[np.float64]]:
        """By how much sampled answers to some prompts are less likely under their pole's persona than its own: nats a token."""
        own, asked = self._own, []
        under: list[Tokens] = []
        seeds: list[int] = []
        for pole, dose in doses.items():
            plan, every = Plan(Steering(), self._edit(pole, dose), dose * own.voices.reach), own.voices.start[pole]
            asked += [(prompt, plan) for prompt in every[prompts]]
            under += own.voices.own[pole][prompts]
            # The same for a prompt at each dose, whatever else is asked.
            seeds += [POLES.index(pole) * len(every) + place for place in range(len(every))[prompts]]
        answers = own.sample(asked, seeds)
        said = [Scored(prompt, answer.tokens) for prompt, answer in zip(under, answers, strict=True)]
        nll = np.split(answer_nll(own.model, said, own.kept), len(doses)) if doses else []
        costs = {}
        for pole, values in zip(doses, nll, strict=True):
            costs[pole] = values - np.mean([-entry.logprob for answer in own.answers[pole] for entry in answer.logprobs])
        return costs


def _mean_cost(costs: NDArray[np.float64]) -> float:
    """Nats a token; infinite where nothing is said."""
    return float(np.nanmean(costs)) if np.isfinite(costs).any() else float("inf")


def _interval(one: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """The difference of two means with its 95 % bootstrap interval over the answers."""
    if not np.isfinite([*one, *other]).all():
        return _UNKNOWN
    generator = np.random.default_rng(0)
    drawn = [values[generator.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1) for values in (one, other)]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    return Interval(float(one.mean() - other.mean()), float(low), float(high))
