from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest

from localsteer.calibration import fits
from localsteer.calibration.effort import ANCHORED, FACTORS, QUICK, THOROUGH, Effort
from localsteer.calibration.findings import Findings
from localsteer.calibration.interview import Interview
from localsteer.calibration.outcomes import Outcome, Trial
from localsteer.calibration.search import Search
from localsteer.vector.calibration import POLES, SIGN, Limit, Pole, Side

BUDGET = 0.4
NEAR = 0.2
DOSES = tuple(factor * NEAR for factor in FACTORS)
LAYERS, NORMS = (2, 3, 4), (1.0, 2.0, 3.0)


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests look at choices, and 100 resamples choose nearly as 1,000 do in a quarter of the time."""
    monkeypatch.setattr(fits, "RESAMPLES", 100)


@dataclass(frozen=True)
class World:
    """How a model answers to steering. A pair has a number for the positive and one for the negative pole.

    Attributes:
        meets: the dose whose cost is the budget, read without persona; the prompt steered as well and anchored, see `weights`.
        exponent: of the dose in the cost.
        costs: (dose, cost) between which the cost is linear, instead.
        voiced: of that cost, what it is under the pole's persona.
        weights: what a dose does with the prompt steered as well and anchored, as a multiple.
        gain: of the log ratio of the voices, for each unit of dose.
        personas: log ratios under them.
        distance: how much less likely than unsteered ones a persona's own answers are without it.
        persona_relevance: how much likelier a persona's own answers are after their question; steered and unsteered ones 1.
        above: dose above which answers get bad.
        bad: what they do then: "repeat", "leave" (their questions), "refuse", "slip" (into another script) or "empty".
        prompt_bad: the same for answers whose prompt is steered, at any dose.
        relevance: how much likelier unsteered and steered answers are after their question.
        voice_slips: whether answers under a persona are in another script.
        always: the same for unsteered answers.
        spread: deviation of what is usual for a question.
        noise: deviation of an answer's cost and log ratio from that.
        seed: of all noise.
    """

    meets: tuple[float, float] = (0.2, 0.2)
    exponent: float = 2.0
    costs: tuple[tuple[float, float], ...] = ()
    voiced: float = 1.0
    weights: tuple[float, float] = (2.0, 0.5)
    gain: tuple[float, float] = (10.0, 10.0)
    personas: tuple[float, float] | None = (2.0, -2.0)
    distance: float = 0.0
    persona_relevance: float = 1.0
    above: float = np.inf
    bad: str = ""
    prompt_bad: str = ""
    voice_slips: bool = False
    relevance: float = 1.0
    always: bool = False
    spread: float = 0.5
    noise: tuple[float, float] = (0.2, 0.7)
    seed: int = 0


QUIET = World(spread=0.02, noise=(0.005, 0.05))


class FakeInterview:
    """Answers of which only their numbers exist."""

    def __init__(self, world: World, n_questions: int = 20) -> None:
        self.world = world
        self.questions = tuple(f"Question {n}?" for n in range(n_questions))
        self.has_personas = world.personas is not None
        self.spoken: str | None = ""
        self.outcomes: dict[Trial, Outcome] = {}

    @property
    def measured(self) -> int:
        return len(self.outcomes)

    def question_of(self, trial: Trial) -> int:
        return trial.number % len(self.questions)

    def text_of(self, trial: Trial) -> str:
        assert trial in self.outcomes
        return f"answer {trial.key}"

    def measure(self, trials: Sequence[Trial]) -> list[Outcome]:
        for trial in trials:
            if trial not in self.outcomes:
                self.outcomes[trial] = self._answer(trial)
        return [self.outcomes[trial] for trial in trials]

    def _answer(self, trial: Trial) -> Outcome:
        world = self.world
        chance = np.random.default_rng([world.seed, zlib.crc32(trial.key.encode())])
        of_question = np.random.default_rng([world.seed, self.question_of(trial)])
        usual = 1.5 + world.spread * of_question.standard_normal()
        plain = usual + world.noise[0] * chance.standard_normal()
        voice = usual + world.noise[0] * chance.standard_normal()
        ratio = world.spread * of_question.standard_normal() + world.noise[1] * chance.standard_normal()
        pole: Pole = trial.persona or ("positive" if trial.dose >= 0 else "negative")
        side, relevance = POLES.index(pole), world.relevance
        if trial.persona is not None:
            assert world.personas is not None
            ratio += world.personas[side]
            plain += world.distance
            relevance = world.persona_relevance
        cost = self._cost(trial, side)
        plain += cost
        voice += world.voiced * cost
        ratio += SIGN[pole] * world.gain[side] * self._weight(trial) * abs(trial.dose)
        bad = world.bad if abs(trial.dose) > world.above or (world.always and trial.persona is None) else ""
        bad = world.prompt_bad if trial.mode == "prompt" else bad
        if bad == "empty":
            nan = float("nan")
            return Outcome("", 0, True, nan, nan, nan, nan, distinct=0.0, refused=False)
        relevance = 0.1 if bad == "leave" else relevance
        return Outcome(
            "text 很好很好" if bad == "slip" or (world.voice_slips and trial.persona is not None) else "text",
            12,
            trial.number % 2 == 0,
            plain=plain,
            elsewhere=plain + relevance,
            positive=voice if pole == "positive" else voice - ratio,
            negative=voice if pole == "negative" else voice + ratio,
            distinct=0.2 if bad == "repeat" else 1.0,
            refused=bad == "refuse",
        )

    def _weight(self, trial: Trial) -> float:
        return {"response": 1.0, "prompt": self.world.weights[0], "anchored": self.world.weights[1]}[trial.mode]

    def _cost(self, trial: Trial, side: int) -> float:
        dose, world = abs(trial.dose) * self._weight(trial), self.world
        if world.costs:
            doses, costs = np.array([(0.0, 0.0), *world.costs]).T
            return float(np.interp(dose, doses, costs))
        return float(BUDGET * (dose / world.meets[side]) ** world.exponent)


def search(
    interview: FakeInterview,
    *,
    effort: Effort = QUICK,
    budget: float = BUDGET,
    near: tuple[float, float] = (NEAR, NEAR),
    most: tuple[float, float] = (np.inf, np.inf),
    prompt_share: float = 0.5,
    by_cost: bool = False,
    anchored: bool = False,
) -> Search:
    return Search(
        cast(Interview, interview),
        near=of_poles(near),
        prompt_share=dict.fromkeys(POLES, prompt_share),
        most=of_poles(most),
        budget=budget,
        effort=effort,
        seed=interview.world.seed,
        by_cost=by_cost,
        anchored=anchored,
        layers=LAYERS,
        norms=NORMS,
    )


def of_poles(pair: tuple[float, float]) -> Mapping[Pole, float]:
    return dict(zip(POLES, pair, strict=True))


@functools.cache
def find(
    world: World,
    effort: Effort = QUICK,
    budget: float = BUDGET,
    n_questions: int = 20,
    near: tuple[float, float] = (NEAR, NEAR),
    most: tuple[float, float] = (np.inf, np.inf),
    prompt_share: float = 0.5,
    by_cost: bool = False,
    anchored: bool = False,
) -> tuple[Findings, FakeInterview]:
    """What a search finds in a world, and the interview it was found in."""
    interview = FakeInterview(world, n_questions)
    made = search(
        interview,
        effort=effort,
        budget=budget,
        near=near,
        most=most,
        prompt_share=prompt_share,
        by_cost=by_cost,
        anchored=anchored,
    )
    return made.run(), interview


def sides(world: World, seeds: int = 1, effort: Effort = QUICK, *, by_cost: bool = False) -> list[Side]:
    """Both sides of the response, found under the noise of different seeds."""
    found = [find(replace(world, seed=seed), effort, by_cost=by_cost)[0] for seed in range(seeds)]
    return [one.sides[pole, "response"] for one in found for pole in POLES]


def doses_of(found: Sequence[Side]) -> list[float]:
    doses = [side.dose for side in found if side.dose is not None]
    assert len(doses) == len(found)
    return doses


# The dose


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("meets", [0.15, 0.2, 0.25, 0.3])
def test_the_dose_is_where_the_cost_meets_the_budget(meets: float, exponent: float) -> None:
    # Between the measured doses the curve is taken for straight.
    for side in sides(replace(QUIET, meets=(meets, meets), exponent=exponent)):
        assert side.dose == pytest.approx(meets, rel=0.12)
        assert side.limit == "coherence"
        assert side.shown


def test_the_dose_holds_under_the_noise_of_a_few_answers() -> None:
    # Over 120 sides the mean is 0.215 with a deviation of 0.029; with QUICK 0.229 and 0.035: of two noisy costs the lesser one.
    for effort in (THOROUGH, QUICK):
        doses = doses_of(sides(World(), 6, effort))
        assert np.mean(doses) == pytest.approx(0.22, abs=0.03)
        assert 0.14 < min(doses) <= max(doses) <= max(DOSES)


def test_each_pole_gets_a_dose_of_its_own() -> None:
    positive, negative = sides(replace(QUIET, meets=(0.15, 0.3)))
    assert positive.dose == pytest.approx(0.15, rel=0.1)
    assert negative.dose == pytest.approx(0.3, rel=0.1)


def test_the_neighbourhood_of_each_pole_is_searched() -> None:
    found, _ = find(replace(QUIET, meets=(0.06, 0.6)), near=(0.06, 0.6))
    for pole, near in (("positive", 0.06), ("negative", 0.6)):
        side = found.sides[pole, "response"]  # type: ignore[index]
        assert [point.dose for point in side.curve] == pytest.approx([factor * near for factor in FACTORS])
        assert side.dose == pytest.approx(near, rel=0.1)


def test_a_larger_budget_allows_a_larger_dose() -> None:
    # The cost is quadratic: twice the budget, 1.4 times the dose.
    found, _ = find(QUIET, budget=2 * BUDGET)
    assert doses_of([found.sides[pole, "response"] for pole in POLES]) == pytest.approx([0.283] * 2, rel=0.05)


def test_no_dose_is_stronger_than_what_was_measured() -> None:
    for side in sides(replace(QUIET, meets=(9.0, 9.0))):
        assert side.dose == pytest.approx(max(DOSES))
        assert side.limit == "measured"
        assert side.cost is not None
        assert side.cost < 0.05


def test_where_all_measured_doses_cost_too_much_a_weaker_one_follows_from_their_curve() -> None:
    for side in sides(replace(QUIET, meets=(0.08, 0.08))):
        assert side.dose == pytest.approx(0.08, rel=0.1)
        assert (side.limit, side.shown) == ("coherence", True)


def test_far_below_what_was_measured_there_is_no_dose() -> None:
    # Whether a quarter of the weakest dose does anything was not seen.
    for side in sides(replace(QUIET, meets=(0.03, 0.03))):
        assert (side.dose, side.limit) == (None, "coherence")
        assert [point.dose for point in side.curve] == pytest.approx(DOSES)


def test_a_cost_that_is_higher_half_way_than_beyond_does_not_stop_the_search() -> None:
    # As to another language: half of each is not what either would say.
    for side in sides(replace(QUIET, costs=((0.12, 0.3), (0.2, 1.3), (0.32, 0.3)))):
        assert side.dose == pytest.approx(max(DOSES))
        assert side.limit == "measured"
    for side in sides(replace(QUIET, costs=((0.12, 1.3), (0.2, 0.3), (0.32, 0.7)))):
        assert side.dose == pytest.approx(0.23, abs=0.01)


def test_what_the_persona_adds_to_the_budget_is_a_share_of_its_distance() -> None:
    # 0.35 of a nat makes 0.75 of 0.4, at 1.37 times the dose.
    near, far = sides(QUIET), sides(replace(QUIET, distance=1.0))
    assert doses_of(near) == pytest.approx([0.2] * 2, rel=0.05)
    assert doses_of(far) == pytest.approx([0.274] * 2, rel=0.05)
    # A persona whose answers are likelier than unsteered ones takes nothing away.
    assert doses_of(sides(replace(QUIET, distance=-1.0))) == pytest.approx([0.2] * 2, rel=0.05)


@pytest.mark.parametrize(("voiced", "dose"), [(0.25, 0.32), (0.5, 0.283), (4.0, 0.2)])
def test_of_the_two_costs_the_lesser_one_counts(voiced: float, dose: float) -> None:
    assert doses_of(sides(replace(QUIET, voiced=voiced))) == pytest.approx([dose] * 2, rel=0.06)
    # Where there are no personas, there is only one of them.
    assert doses_of(sides(replace(QUIET, voiced=voiced, personas=None))) == pytest.approx([0.2] * 2, rel=0.05)


def test_what_is_expected_at_the_dose_is_within_the_budget_and_the_true_effect() -> None:
    # A persona moves the log ratio by 2, and a dose by 10 times as much.
    for side in sides(QUIET):
        assert side.dose is not None
        assert side.cost == pytest.approx(BUDGET, rel=0.1)
        assert side.effect == pytest.approx(5 * side.dose, rel=0.1)


def test_the_true_effect_is_as_often_between_as_it_says() -> None:
    # Of 40, 38 are expected, and a percentile bootstrap of few questions falls somewhat short of that. Where a persona moves very
    # far, the scale has no noise to speak of.
    hits = 0
    for side in sides(World(spread=0, personas=(20, -20)), 20, THOROUGH):
        assert side.dose is not None
        assert side.effect is not None
        assert side.between is not None
        low, high = side.between
        assert low <= side.effect <= high
        hits += low <= side.dose / 2 <= high
    assert hits >= 34


def test_the_curve_shows_what_was_measured() -> None:
    side, _ = sides(replace(QUIET, voiced=2.0))
    assert side.dose is not None
    assert [point.dose for point in side.curve] == pytest.approx(DOSES)
    for point in side.curve:
        cost = BUDGET * (point.dose / 0.2) ** 2
        assert point.cost.mean == point.plain == pytest.approx(cost, abs=0.05)
        assert point.voiced == pytest.approx(2 * cost, abs=0.05)
        assert point.effect.mean == pytest.approx(5 * point.dose, rel=0.15)
        assert point.cost.low <= point.cost.mean <= point.cost.high
        assert point.relevance == pytest.approx(1)
        assert (point.distinct, point.refused, point.foreign) == (1, 0, 0)
        assert point.answers == QUICK.curve
        assert 0 < point.ended < 1


def test_the_lengths_to_add_make_up_the_dose() -> None:
    for side in sides(replace(QUIET, meets=(0.15, 0.3))):
        assert side.dose is not None
        assert side.layers == LAYERS
        assert side.norms == pytest.approx([side.dose * norm for norm in NORMS])


# Answers that the cost does not judge

BAD: list[tuple[str, Limit]] = [
    ("repeat", "repetition"),
    ("leave", "relevance"),
    ("refuse", "refusals"),
    ("slip", "script"),
]


@pytest.mark.parametrize(("bad", "limit"), BAD)
def test_a_dose_at_which_answers_get_bad_is_not_chosen(bad: str, limit: Limit) -> None:
    # The cost alone would allow all.
    for side in sides(replace(QUIET, meets=(9.0, 9.0), above=0.25, bad=bad)):
        assert side.dose is not None
        assert 0.2 < side.dose < 0.32
        assert side.limit == limit
    for side in sides(replace(QUIET, meets=(9.0, 9.0), above=0.15, bad=bad)):
        assert side.dose is not None
        assert 0.12 < side.dose < 0.2
        assert side.limit == limit


@pytest.mark.parametrize("by_cost", [False, True])
def test_answers_that_are_half_bad_at_the_weakest_dose_call_for_a_weaker_one(by_cost: bool) -> None:
    # They have lost nine tenths of what they may lose half of.
    for side in sides(replace(QUIET, meets=(9.0, 9.0), above=0.05, bad="leave"), by_cost=by_cost):
        assert side.dose is not None
        assert 0.06 < side.dose < 0.12
        assert (side.limit, side.shown) == ("relevance", True)


@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.parametrize(("bad", "limit"), [one for one in BAD if one[0] != "leave"])
def test_where_all_answers_are_bad_at_any_dose_there_is_none_and_the_reason_is_kept(
    bad: str, limit: Limit, by_cost: bool
) -> None:
    for side in sides(replace(QUIET, meets=(9.0, 9.0), above=0.05, bad=bad), by_cost=by_cost):
        assert (side.dose, side.limit) == (None, limit)


def test_by_cost_no_dose_is_far_below_what_was_measured() -> None:
    for side in sides(replace(QUIET, meets=(0.001, 0.001)), by_cost=True):
        assert (side.dose, side.limit) == (None, "coherence")


@pytest.mark.parametrize("bad", ["repeat", "refuse", "slip"])
def test_what_the_model_does_unsteered_is_not_held_against_a_dose(bad: str) -> None:
    for side in sides(replace(QUIET, meets=(9.0, 9.0), above=0.05, bad=bad, always=True)):
        assert side.limit == "measured"


def test_answers_may_leave_their_questions_as_far_as_those_of_the_persona() -> None:
    world = replace(QUIET, meets=(9.0, 9.0), above=0.25, bad="leave")
    for side in sides(replace(world, persona_relevance=0.15)):
        assert side.limit == "measured"
    for side in sides(replace(world, personas=None)):
        assert side.limit == "relevance"


@pytest.mark.parametrize("relevance", [0.0, -0.2])
def test_a_model_whose_answers_follow_any_question_has_none_to_leave(relevance: float) -> None:
    for side in sides(replace(QUIET, meets=(9.0, 9.0), relevance=relevance)):
        assert side.limit == "measured"


def test_a_script_that_the_persona_or_the_prompts_are_in_is_no_other_one() -> None:
    world = replace(QUIET, meets=(9.0, 9.0), above=0.05, bad="slip")
    for side in sides(replace(world, voice_slips=True)):
        assert side.limit == "measured"
    for spoken, limit in (("你好", "measured"), (None, "measured"), ("hello", "script")):
        interview = FakeInterview(world)
        interview.spoken = spoken
        found = search(interview, near=(NEAR, NEAR), by_cost=True).run()
        assert {found.sides[pole, "response"].limit for pole in POLES} == {limit}


@pytest.mark.parametrize("most", [0.17, 0.3, 0.5])
def test_a_dose_at_which_refusals_begin_to_be_likely_is_not_passed(most: float) -> None:
    found, _ = find(replace(QUIET, meets=(9.0, 9.0)), most=(most, np.inf))
    positive, negative = (found.sides[pole, "response"] for pole in POLES)
    assert positive.dose == pytest.approx(min(most, 0.32))
    assert positive.limit == ("refusals" if most < 0.32 else "measured")
    assert negative.limit == "measured"


def test_the_least_of_all_limits_decides() -> None:
    for side in sides(replace(QUIET, meets=(0.15, 0.15), above=0.25, bad="repeat")):
        assert side.dose == pytest.approx(0.15, rel=0.1)
        assert side.limit == "coherence"
    for side in sides(replace(QUIET, meets=(0.3, 0.3), above=0.15, bad="slip")):
        assert side.dose == pytest.approx(0.123, abs=0.002)
        assert side.limit == "script"


@pytest.mark.parametrize("above", [0.15, 0.25])
@pytest.mark.parametrize("by_cost", [False, True])
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_a_dose_at_which_answers_are_empty_is_not_chosen(above: float, by_cost: bool) -> None:
    for side in sides(replace(QUIET, meets=(9.0, 9.0), above=above, bad="empty"), by_cost=by_cost):
        assert side.dose is not None
        assert 0.1 < side.dose <= above
        assert side.limit in ("coherence", "repetition")


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_where_every_steered_answer_is_empty_there_is_no_dose() -> None:
    for by_cost in (False, True):
        found, _ = find(replace(QUIET, above=0.001, bad="empty"), by_cost=by_cost)
        assert [side.dose for side in found.sides.values()] == [None] * 4


# Nothing to find


DEAD = World(gain=(0, 0))


def test_a_vector_without_effect_gets_no_dose() -> None:
    dead = [side for side in sides(DEAD, seeds=8) if side.dose is None]
    assert len(dead) >= 13
    for side in dead:
        assert (side.norms, side.effect, side.cost, side.between) == ((), None, None, None)
        assert side.layers == LAYERS
        assert len(side.curve) == len(FACTORS)  # what was measured is shown all the same


def test_chance_is_hardly_ever_taken_for_an_effect() -> None:
    # Of 100 sides that do nothing, a half should be beyond a doubt of 99 %.
    assert sum(side.shown for side in sides(DEAD, 50, by_cost=True)) <= 3


def test_by_cost_a_vector_without_effect_gets_the_dose_of_one_with_it_and_says_so() -> None:
    alive, dead = sides(World(), seeds=4, by_cost=True), sides(DEAD, seeds=4, by_cost=True)
    assert all(side.shown for side in alive)
    assert sum(side.shown for side in dead) <= 2
    # Both worlds cost the same.
    assert doses_of(dead) == pytest.approx(doses_of(alive))


def test_an_effect_is_seen_as_the_doses_get_stronger() -> None:
    # A persona moves as far as a dose of 0.33.
    assert all(side.shown for side in sides(replace(World(), gain=(6, 6)), seeds=4))


def test_a_vector_may_work_toward_one_pole_only() -> None:
    found = sides(replace(QUIET, gain=(0, 10), noise=(0.005, 0.5)), seeds=3)
    assert sum(side.dose is None for side in found[::2]) >= 2
    assert np.mean(doses_of(found[1::2])) == pytest.approx(0.2, abs=0.02)


def test_a_vector_that_moves_the_wrong_way_gets_no_dose() -> None:
    assert all(side.dose is None for side in sides(World(gain=(-10, -10)), seeds=2))


# The prompt steered as well


def test_a_steered_prompt_takes_its_share_of_the_dose_where_that_costs_no_more() -> None:
    # Half of the dose does nearly twice as much: nearly as much.
    found, interview = find(replace(QUIET, meets=(0.15, 0.3), weights=(1.9, 0.5)))
    for pole in POLES:
        response, prompt = found.sides[pole, "response"], found.sides[pole, "prompt"]
        assert response.dose is not None
        assert prompt.dose is not None
        assert prompt.dose == pytest.approx(response.dose / 2)
        assert (prompt.limit, prompt.shown, prompt.layers) == ("measured", response.shown, response.layers)
        assert prompt.norms == pytest.approx([prompt.dose * norm for norm in NORMS])
        assert prompt.effect == pytest.approx(response.effect, rel=0.15)
        assert [point.dose for point in prompt.curve] == pytest.approx([prompt.dose])
    counts = [sum(trial.mode == "prompt" and trial.dose * SIGN[pole] > 0 for trial in interview.outcomes) for pole in POLES]
    assert counts == [QUICK.prompt] * 2


def test_a_steered_prompt_whose_answers_cost_too_much_gets_less() -> None:
    # Four times as much at half the dose: half of that again.
    found, _ = find(replace(QUIET, weights=(4.0, 0.5)))
    for pole in POLES:
        prompt = found.sides[pole, "prompt"]
        assert prompt.dose == pytest.approx(0.05, rel=0.1)
        assert prompt.limit == "coherence"
        assert prompt.curve[0].dose == pytest.approx(0.1, rel=0.1)


def test_a_steered_prompt_that_gets_less_is_expected_to_cost_what_it_may() -> None:
    found, _ = find(replace(QUIET, weights=(4.0, 0.5)))
    for pole in POLES:
        assert found.sides[pole, "prompt"].cost == pytest.approx(BUDGET, rel=0.15)


@pytest.mark.parametrize("weight", [2.2, 2.6])
def test_what_a_steered_prompt_costs_is_judged_by_its_mean_however_few_its_answers_are(weight: float) -> None:
    """Four answers differ: the low end of their interval is within the budget at twice the cost."""
    for seed in range(5):
        found, _ = find(replace(QUIET, weights=(weight, 0.5), noise=(0.3, 0.05), seed=seed))
        for pole in POLES:
            prompt = found.sides[pole, "prompt"]
            assert prompt.dose is not None
            point = prompt.curve[0]
            assert (prompt.dose < point.dose) == (point.cost.mean > found.allowed[pole])


@pytest.mark.parametrize(
    ("bad", "limit"), [("repeat", "repetition"), ("leave", "relevance"), ("refuse", "refusals"), ("slip", "script")]
)
def test_a_steered_prompt_whose_answers_are_bad_gets_less(bad: str, limit: str) -> None:
    found, _ = find(replace(QUIET, prompt_bad=bad))
    for pole in POLES:
        prompt = found.sides[pole, "prompt"]
        assert prompt.limit == limit
        assert prompt.dose is not None
        assert 0 < prompt.dose < 0.6 * prompt.curve[0].dose


def test_the_effect_of_a_steered_prompt_is_as_sure_as_its_few_answers() -> None:
    """Two answers of twenty questions: draws among the others say nothing, not that there is no effect."""
    found, _ = find(replace(QUIET, spread=0.0))
    for pole in POLES:
        side = found.sides[pole, "prompt"]
        assert side.effect is not None
        assert side.between is not None
        assert side.between[0] > 0.8 * side.effect


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_a_steered_prompt_after_which_nothing_is_said_has_no_dose() -> None:
    found, _ = find(replace(QUIET, prompt_bad="empty"))
    for pole in POLES:
        assert found.sides[pole, "response"].dose is not None
        assert (found.sides[pole, "prompt"].dose, found.sides[pole, "prompt"].limit) == (None, "coherence")


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_without_a_dose_of_the_response_there_is_none_for_the_prompt() -> None:
    found, interview = find(replace(QUIET, gain=(10, -10)))
    assert found.sides["positive", "prompt"].dose is not None
    assert found.sides["negative", "prompt"].dose is None
    assert found.sides["negative", "prompt"].curve == ()
    assert not any(trial.mode == "prompt" and trial.dose < 0 for trial in interview.outcomes)


# The scale of the effect


@pytest.mark.parametrize(
    ("personas", "scale", "effects"),
    [
        ((3.0, -1.5), ("persona", "persona"), (2 / 3, 4 / 3)),
        ((0.0, -2.0), ("other persona", "persona"), (1.0, 1.0)),
        ((4.0, 0.0), ("persona", "other persona"), (0.5, 0.5)),
        ((-3.0, -2.0), ("other persona", "persona"), (1.0, 1.0)),
    ],
)
def test_an_effect_of_one_is_as_far_as_a_persona_that_works(
    personas: tuple[float, float], scale: tuple[str, str], effects: tuple[float, float]
) -> None:
    # At its dose of 0.2 the vector moves the log ratio by 2. The log ratios of questions differ by half of a nat, and few
    # questions are known from unsteered answers.
    found, _ = find(replace(World(personas=personas), noise=(0.02, 0.1)), effort=THOROUGH)
    assert (found.scale["positive"], found.scale["negative"]) == scale
    for pole, effect in zip(POLES, effects, strict=True):
        side = found.sides[pole, "response"]
        assert side.dose is not None
        assert side.effect == pytest.approx(effect * side.dose / 0.2, rel=0.3)


@pytest.mark.parametrize("personas", [None, (0.0, 0.0)])
def test_without_a_persona_that_works_an_effect_of_one_is_a_standard_deviation_of_unsteered_answers(
    personas: tuple[float, float] | None,
) -> None:
    effort = replace(THOROUGH, unsteered=200, persona=40)
    found, interview = find(World(personas=personas, noise=(0.02, 0.7)), effort=effort)
    assert found.scale == dict.fromkeys(POLES, "deviation")
    for pole in POLES:
        side = found.sides[pole, "response"]
        assert side.dose is not None
        # Beside what is usual for each question.
        assert side.effect == pytest.approx(10 * side.dose / 0.7, rel=0.2)
    assert interview.has_personas == (personas is not None)


def test_a_standard_deviation_is_no_less_where_each_question_has_one_answer() -> None:
    # 12 unsteered answers to 20 questions, with 0.5 between the questions and 0.7 beside: 0.86.
    moved = []
    for seed in range(4):
        found, _ = find(World(personas=None, seed=seed), effort=THOROUGH)
        points = [point for pole in POLES for point in found.sides[pole, "response"].curve]
        moved.append(np.mean([point.effect.mean / (10 * point.dose) for point in points]))
    assert np.mean(moved) == pytest.approx(1 / 0.86, rel=0.35)


def test_the_personas_are_told_on_the_scale_of_their_pole() -> None:
    found, _ = find(replace(QUIET, personas=(3.0, -1.0), distance=0.5))
    for pole in POLES:
        persona = found.personas[pole]
        assert persona.effect.mean == pytest.approx(1)
        # In its own voice nothing is likelier; without it, there is the distance.
        assert persona.cost.mean == pytest.approx(0, abs=0.05)
        assert persona.plain == pytest.approx(0.5, abs=0.4)
        assert persona.answers == QUICK.persona
    # A persona that does nothing is measured with the other one's unit.
    found, _ = find(World(personas=(3.0, 0.0)))
    assert found.personas["negative"].effect.mean == pytest.approx(0, abs=0.3)


def test_a_concept_without_personas_has_no_prompt_baseline() -> None:
    found, interview = find(replace(QUIET, personas=None))
    assert found.personas == {}
    assert not any(trial.persona for trial in interview.outcomes)
    assert np.isnan(found.sides["positive", "response"].curve[0].voiced)


def test_unsteered_answers_are_the_zero_of_both_scales() -> None:
    found, _ = find(World())
    assert found.unsteered.effect.mean == pytest.approx(0, abs=1e-9)
    assert found.unsteered.plain == pytest.approx(0, abs=1e-9)
    assert (found.unsteered.dose, found.unsteered.answers) == (0, QUICK.unsteered)


# Samples


def test_samples_go_from_the_weakest_dose_to_the_strongest() -> None:
    found, interview = find(World(), anchored=True)
    assert set(found.samples) == {(pole, mode) for pole in POLES for mode in ("response", "anchored")}
    for (pole, mode), samples in found.samples.items():
        curve = found.sides[pole, mode].curve
        assert [sample.dose for sample in samples] == [point.dose for point in curve]
        for sample in samples:
            assert len(sample.answers) == 3
            for question, answer in sample.answers:
                assert question in interview.questions
                assert f"{SIGN[pole] * sample.dose:+.5f}|{mode}" in answer


# What it takes


@pytest.mark.parametrize("effort", [THOROUGH, QUICK])
@pytest.mark.parametrize("personas", [None, (2.0, -2.0)])
@pytest.mark.parametrize("anchored", [False, True])
def test_a_search_takes_as_many_answers_as_announced(
    effort: Effort, personas: tuple[float, float] | None, anchored: bool
) -> None:
    _, interview = find(replace(QUIET, personas=personas), effort=effort, anchored=anchored)
    assert interview.measured == effort.answers(personas=personas is not None, anchored=anchored)


def test_a_vector_without_effect_takes_fewer() -> None:
    _, interview = find(World(gain=(-10, -10)), anchored=True)
    assert interview.measured == QUICK.answers(personas=True, anchored=False) - 2 * QUICK.prompt


def test_the_sampled_tokens_stay_within_what_was_promised() -> None:
    assert THOROUGH.answers(personas=True, anchored=False) * THOROUGH.max_tokens <= 2_000
    assert QUICK.answers(personas=True, anchored=False) < THOROUGH.answers(personas=True, anchored=False) / 1.5
    assert THOROUGH.answers(personas=False, anchored=False) < THOROUGH.answers(personas=True, anchored=False)


def test_different_doses_are_tried_on_different_questions_and_both_poles_on_the_same() -> None:
    _, interview = find(QUIET)
    asked = {
        (pole, dose): {
            interview.question_of(trial)
            for trial in interview.outcomes
            if trial.mode == "response" and trial.dose == SIGN[pole] * dose
        }
        for pole in POLES
        for dose in DOSES
    }
    for dose in DOSES:
        assert asked["positive", dose] == asked["negative", dose]
    assert len(set().union(*asked.values())) == len(DOSES) * QUICK.curve


@pytest.mark.parametrize("n_questions", [4, 60])
def test_any_number_of_questions_will_do(n_questions: int) -> None:
    found, interview = find(replace(QUIET, noise=(0.05, 0.3)), n_questions=n_questions)
    assert found.sides["positive", "response"].dose == pytest.approx(0.2, abs=0.06)
    assert interview.measured <= QUICK.answers(personas=True, anchored=False)


# Again


def test_the_same_seed_finds_the_same() -> None:
    one, _ = find(World())
    again, _ = find.__wrapped__(World())
    assert again is not one
    assert again == one
    assert find(World(seed=1))[0] != one


def test_everything_measured_already_is_not_measured_again() -> None:
    interview = FakeInterview(World())
    one, measured = search(interview).run(), interview.measured
    assert search(interview).run() == one
    assert interview.measured == measured


# Anchored answers


def test_anchored_answers_get_the_stronger_dose_that_they_take() -> None:
    # It does half as much there.
    found, interview = find(QUIET, anchored=True)
    for pole in POLES:
        response, anchored = found.sides[pole, "response"], found.sides[pole, "anchored"]
        assert response.dose is not None
        assert response.dose == pytest.approx(0.2, rel=0.05)
        assert [point.dose for point in anchored.curve] == pytest.approx([factor * response.dose for factor in ANCHORED])
        assert anchored.dose == pytest.approx(0.4, rel=0.1)
        assert anchored.limit == "coherence"
        assert anchored.layers == response.layers
    assert sum(trial.mode == "anchored" for trial in interview.outcomes) == 2 * len(ANCHORED) * QUICK.anchored


def test_nothing_is_measured_for_anchored_answers_unless_they_are_asked_for() -> None:
    found, interview = find(World())
    assert {mode for _, mode in found.sides} == {"response", "prompt"}
    assert not any(mode == "anchored" for _, mode in found.samples)
    assert not any(trial.mode == "anchored" for trial in interview.outcomes)


def test_an_earlier_calibration_is_added_to_without_being_measured_again() -> None:
    earlier, _ = find(QUIET)
    interview = FakeInterview(QUIET)
    found = search(interview, anchored=True).run_anchored(earlier.sides)
    assert {key: side for key, side in found.sides.items() if key[1] != "anchored"} == earlier.sides
    assert {trial.mode for trial in interview.outcomes if trial.dose} == {"anchored"}
    assert interview.measured == QUICK.unsteered + 2 * (QUICK.persona + len(ANCHORED) * QUICK.anchored)
    assert set(found.samples) == {(pole, "anchored") for pole in POLES}
    assert found.scale == earlier.scale
    whole, _ = find(QUIET, anchored=True)
    assert found.sides == whole.sides


def test_a_pole_without_a_dose_gets_none_for_anchored_answers() -> None:
    # Toward the negative pole, no dose does anything.
    found, interview = find(replace(QUIET, gain=(10.0, -10.0)), anchored=True)
    assert found.sides["negative", "response"].dose is None
    assert found.sides["negative", "anchored"].dose is None
    assert found.sides["positive", "anchored"].dose is not None
    assert ("negative", "anchored") not in found.samples
    assert not any(trial.mode == "anchored" and trial.dose < 0 for trial in interview.outcomes)
