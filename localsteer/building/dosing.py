"""A fresh vector's dose, measured: what strength 1 is on this model, toward each pole.

What a model says under a pole's persona (its *own answers*) is read again under the vector instead of the persona. As the dose
grows, what the persona would say first becomes likelier, where the persona changes what is said, or stays as it is, where it
hardly does; at some dose it begins to fall, because the text falls apart. Strength 1 is the strongest dose at which it is within
`TOLERANCE` of the likeliest that the vector makes it. Nothing is sampled for that but the answers themselves, so the curve is
smooth, and a few doses find it. Some answers sampled there confirm that the text holds, or weaken the dose.
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
"""Called with what is going on ("answering", "reading", "dosing", ...), what is done and what there is to do."""

# Own answers of each pole, and how many tokens of each. With 10, three seeds gave doses within 12 % of each other's middle for
# five of six sides of happy, French and pirate (SmolLM2-135M; French 0.29 to 0.45); with 6, and the token that was drawn
# instead of all that may be said, happy came out at 0.18, 0.24 and 0.31.
ANSWERS = 8
TOKENS = 12
# Of each pole's those along which steered and unsteered are compared, that are read for the ratio, and that are read for the dose
# of a steered prompt; and how many answers are sampled to confirm a dose: what a few seconds on a small model allow.
_COMPARED = 2
_READ_AT_LAST = 5
_PROMPTED = 4
_CONFIRMED = 4
# Answers a pole below which nothing is called shown: of one, the bootstrap knows no chance.
_ENOUGH = 3

# Nats a token. On Qwen2.5-Coder 1.5B it gives French 0.8 (fluent at 0.5, broken at 1.1), a pirate 1.0 to 1.3 (not heard at 0.6,
# heard at 1.1), happy and sad 0.5 to 0.7 (heard at 0.6 and 0.4); on SmolLM2-135M 0.2 and 0.3 for happy and sad, where 0.2 was the
# dose found by hand.
TOLERANCE = 0.15
# Without own answers (a vector from elsewhere) it is unsteered answers that are read, which lose from the first: at the doses
# above those of happy, sad, English and a pirate had lost 0.2 to 0.5 nats a token on the 1.5B.
PLAIN_TOLERANCE = 0.25

# The doses so far are between 0.12 (news reader, SmolLM2-135M; happy, Gemma 3 270M) and 1.3 (pirate, 1.5B), but for one of
# 0.06 that shows nothing (French, Gemma).
LADDER = (0.2, 0.5, 1.2)
_LEAST_DOSE, _MAX_DOSE = 0.02, 4.0
# A dose is known well enough where a measured one is as near as this to the level, in nats a token; otherwise more are read. One
# is mostly enough, two where what the persona says comes and goes within one step of the ladder (French on the 1.5B).
_NEAR_ENOUGH = 0.03
_REFINEMENTS = 2
# Nats a token that stand for a model whose logits are not numbers any more.
_LOST = -100.0
# Of the response's dose, for a prompt that is steered as well: between 0.67 and 1 of it was as strong (happy - sad, both models).
_PROMPT_SHARES = (0.5, 0.75)

# Nats a token that the sampled answers may be less likely under their pole's persona than its own answers: a pirate and French
# that read well had 0.4 to 1.1 on the 1.5B, broken ones 1.4 and more. What is above is tried weaker, twice, and that must gain as
# much as chance moves four answers.
INCOHERENT = 1.2
_WEAKER = 0.75
_WEAKENED = 2
_BETTER = 0.3
_RESAMPLES = 1000
_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


@dataclass
class _Search:
    """The strongest dose at which given answers are within a tolerance of the likeliest that they become."""

    tolerance: float
    next: list[float]
    points: dict[float, float] = field(default_factory=lambda: {0.0: 0.0})
    refinements: int = 0

    def add(self, found: Sequence[float]) -> None:
        """Take down what was measured at the doses asked for, and ask for others or none."""
        self.points |= {dose: own if np.isfinite(own) else _LOST for dose, own in zip(self.next, found, strict=True)}
        self.next = []
        low, high = self._bracket()
        if high is None:
            if low < _MAX_DOSE:
                self.next = [min(_MAX_DOSE, 2 * low)]
        elif self._may_be_below(low, high):
            self.next = [sorted(self.points)[1] / 2]
        elif self.refinements < _REFINEMENTS and min(self._off(low), self._off(high)) > _NEAR_ENOUGH:
            self.refinements += 1
            self.next = [self.dose]

    def _may_be_below(self, low: float, high: float) -> bool:
        """Whether the best dose may be below all that were measured: nothing good was, or the first is the best of few."""
        _, least, *_ = sorted(self.points)
        best = max(self.points, key=self.points.__getitem__)
        return least > _LEAST_DOSE and (low == 0 or (best <= least and least == LADDER[0] and high <= LADDER[1]))

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

    def _off(self, dose: float) -> float:
        return abs(self.points[dose] - self._level())

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
        The same directions at strength 1, with what was measured (`Provenance.dosing`) and without a calibration or a probe.

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
    dosing = Dosing(model.fingerprint.name, model.fingerprint.content, seed, len(found.own["positive"]), sides)
    directions = {layer: unit[layer] * np.float32(dosing.unit) for layer in vector.layers}
    return ControlVector(directions, replace(vector.provenance, hidden_norm=hidden, dosing=dosing, calibration=None, probe=None))


def _hidden_norm(model: Model, vector: ControlVector) -> Floats:
    """(n_layer,) mean norm of this model's hidden states: the vector's own where it was read from this very file."""
    own, made_on = vector.provenance.hidden_norm, vector.provenance.model
    here = made_on is not None and made_on.content == model.fingerprint.content
    if own is not None and here and np.isfinite(own[list(vector.layers)]).all():
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
        own, found = self._answers(), self._voices
        texts: list[Scored] = []
        personas: list[Scored] = []
        mine: dict[Pole, list[int]] = {"positive": [], "negative": []}
        for pole in POLES:
            for start, persona, answer in zip(found.start[pole], found.own[pole], own[pole], strict=True):
                if answer.tokens:
                    mine[pole].append(len(texts))
                    texts.append(Scored(start, answer.tokens))
                    personas.append(Scored(persona, answer.tokens))
        self._tell("dosing", 0, 4)
        reader = ForcedReader(self._model, texts, personas, {text for pole in POLES for text in mine[pole][:_COMPARED]})
        searches = self._search(reader, mine)
        self._tell("dosing", 1, 4)
        doses, coherence = self._confirm({pole: searches[pole].dose for pole in POLES}, own)
        self._tell("dosing", 2, 4)
        at_last = {pole: mine[pole][:_READ_AT_LAST] for pole in POLES}
        forced = reader.under([(self._edit(pole, doses[pole]), [*at_last[pole], *at_last[OTHER[pole]]]) for pole in POLES])
        self._tell("dosing", 3, 4)
        prompted = self._prompted(reader, mine, doses)
        self._tell("dosing", 4, 4)
        sides: dict[Pole, DosedSide] = {}
        for pole, one in zip(POLES, forced, strict=True):
            ratio = _interval(*np.split(one.gain, [len(at_last[pole])])) if found.spoken else _UNKNOWN
            sides[pole] = DosedSide(
                dose={"response": doses[pole], "prompt": prompted[pole]},
                tried=searches[pole].tried,
                ratio=ratio,
                kl=one.kl,
                coherence=coherence[pole],
                shown=ratio.low > 0 and min(map(len, at_last.values())) >= _ENOUGH,
            )
        return sides

    def _edit(self, pole: Pole, dose: float) -> Edit:
        return Edit(self._unit, scale=SIGN[pole] * dose * self._voices.reach)

    def _sample(self, prompts: Sequence[tuple[Tokens, Plan | None]]) -> list[Answer]:
        """Answers to prompts, each with a seed of its own."""
        requests = [
            Request(prompt, plan, Sampling(seed=(self._seed * 1009 + number) % 2**31), TOKENS, logprobs=0)
            for number, (prompt, plan) in enumerate(prompts)
        ]
        return generate_many(self._model, requests)

    def _answers(self) -> dict[Pole, list[Answer]]:
        """The poles' own answers."""
        prompts = [(prompt, None) for pole in POLES for prompt in self._voices.own[pole]]
        self._tell("answering as each persona", 0, len(prompts))
        answers = self._sample(prompts)
        self._tell("answering as each persona", len(prompts), len(prompts))
        own: dict[Pole, list[Answer]] = {"positive": answers[: len(answers) // 2], "negative": answers[len(answers) // 2 :]}
        if not all(any(answer.tokens for answer in own[pole]) for pole in POLES):
            raise CalibrationError(
                f"{self._model.name} gives no answers, so no dose can be measured.",
                hint="Is it a language model that answers? `localsteer generate` shows; --no-dose leaves the dose out.",
            )
        return own

    def _search(self, reader: ForcedReader, mine: Mapping[Pole, Sequence[int]]) -> dict[Pole, _Search]:
        """Both poles at once: they share a pass."""
        searches = {pole: _Search(self._tolerance, list(LADDER)) for pole in POLES}
        while asked := [(pole, dose) for pole in POLES for dose in searches[pole].next]:
            forced = reader.under([(self._edit(pole, dose), mine[pole]) for pole, dose in asked])
            for pole in {pole for pole, _ in asked}:
                gains = [one.gain for (other, _), one in zip(asked, forced, strict=True) if other == pole]
                searches[pole].add([float(np.mean(gain)) for gain in gains])
        return searches

    def _confirm(
        self, doses: Mapping[Pole, float], own: Mapping[Pole, Sequence[Answer]]
    ) -> tuple[dict[Pole, float], dict[Pole, float]]:
        """Sample at the doses; where the text has fallen apart, try weaker ones, and keep those that are better by far.

        A weaker dose that is no better is not what was missing: too weak for French is English.
        """
        found, coherence = self._voices, dict.fromkeys(POLES, float("inf"))
        kept, trying = dict(doses), dict(doses)
        for _ in range(1 + _WEAKENED):
            prompts = []
            for pole, tried in trying.items():
                plan = Plan(Steering(), self._edit(pole, tried), tried * found.reach)
                prompts += [(prompt, plan) for prompt in found.start[pole][:_CONFIRMED]]
            answers = self._sample(prompts)
            under = [prompt for pole in trying for prompt in found.own[pole][:_CONFIRMED]]
            nll = answer_nll(self._model, [Scored(*pair) for pair in zip(under, (one.tokens for one in answers), strict=True)])
            for (pole, tried), values in zip(trying.items(), np.split(nll, len(trying)), strict=True):
                before = np.mean([-entry.logprob for answer in own[pole] for entry in answer.logprobs])
                cost = float(np.nanmean(values) - before) if np.isfinite(values).any() else float("inf")
                if cost < coherence[pole] - _BETTER:
                    coherence[pole], kept[pole] = cost, tried
            trying = {pole: _WEAKER * tried for pole, tried in trying.items() if coherence[pole] > INCOHERENT}
            if not trying:
                break
        return kept, coherence

    def _prompted(
        self, reader: ForcedReader, mine: Mapping[Pole, Sequence[int]], doses: Mapping[Pole, float]
    ) -> dict[Pole, float]:
        """The doses for a steered prompt: a share of those of the response, less where that weighs too much."""
        asked = [(pole, share * doses[pole]) for pole in POLES for share in _PROMPT_SHARES]
        forced = reader.under([(self._edit(pole, dose), mine[pole][:_PROMPTED]) for pole, dose in asked], steer_prompt=True)
        found: dict[Pole, float] = {}
        for pole, gains in zip(POLES, np.split(np.array([one.gain.mean() for one in forced]), len(POLES)), strict=True):
            search = _Search(self._tolerance, [share * doses[pole] for share in _PROMPT_SHARES])
            search.add(gains.tolist())
            found[pole] = search.dose
        return found


def _interval(one: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """The difference of two means with its 95 % bootstrap interval over the answers."""
    if not np.isfinite([*one, *other]).all():
        return _UNKNOWN
    generator = np.random.default_rng(0)
    drawn = [values[generator.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1) for values in (one, other)]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    return Interval(float(one.mean() - other.mean()), float(low), float(high))
