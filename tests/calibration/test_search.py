from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from localsteer.calibration import fits
from localsteer.calibration.effort import QUICK, THOROUGH, Effort
from localsteer.calibration.findings import Findings
from localsteer.calibration.laboratory import Laboratory, Outcome, Trial
from localsteer.calibration.search import Search
from localsteer.calibration.shapes import Directions, Shape
from localsteer.vector.calibration import POLES, Pole, Side

BUDGET = 0.25
DEFAULT = Shape((2, 3, 4), "relative")
BETTER = Shape((1, 2, 3, 4), "relative")
SIX = (
    DEFAULT,
    Shape((1, 2, 3), "relative"),
    BETTER,
    Shape((3,), "relative"),
    Shape((2, 3, 4), "difference"),
    Shape((2,), "equal"),
)
THREE = SIX[:3]
HIDDEN = np.arange(1, 7, dtype=np.float32)


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests look at choices, and 100 resamples choose nearly as 1,000 do in a quarter of the time."""
    monkeypatch.setattr(fits, "RESAMPLES", 100)


@dataclass(frozen=True)
class World:
    """How a model answers to steering. A pair has a number for the positive and one for the negative pole.

    Attributes:
        meets: the dose whose cost is the budget; the prompt steered as well, half of it; anchored, twice it.
        exponent: of the dose in the cost.
        gain: of a reading, for each unit of dose.
        better: by shape, how many times further a dose moves a reading than in the other shapes.
        steeper: by shape, the dose as far as its effect and its cost go, as a multiple.
        personas: readings under them.
        repeats_above: dose above which answers repeat themselves.
        empty_above: dose above which answers are empty.
        noise: deviation of an answer's NLL and reading from what is usual for its question.
        seed: of all noise.
    """

    meets: tuple[float, float] = (0.2, 0.2)
    exponent: float = 2.0
    gain: tuple[float, float] = (10.0, 10.0)
    better: tuple[tuple[Shape, float], ...] = ()
    steeper: tuple[tuple[Shape, float], ...] = ()
    personas: tuple[float, float] | None = (2.0, -2.0)
    repeats_above: float = np.inf
    empty_above: float = np.inf
    noise: tuple[float, float] = (0.2, 0.7)
    seed: int = 0


class FakeLaboratory:
    """Answers of which only their numbers exist."""

    def __init__(self, world: World, n_questions: int = 20) -> None:
        self.world = world
        personas = (("You are loud.", "You are quiet."),) if world.personas else ()
        self.contrast = SimpleNamespace(held_out=tuple(f"Question {n}?" for n in range(n_questions)), personas=personas)
        self.directions = Directions.of(np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32), HIDDEN)
        self.outcomes: dict[Trial, Outcome] = {}

    @property
    def measured(self) -> int:
        return len(self.outcomes)

    def question_of(self, trial: Trial) -> int:
        return trial.number % len(self.contrast.held_out)

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
        nll = 1.5 + 0.5 * of_question.standard_normal() + world.noise[0] * chance.standard_normal()
        reading = 0.5 * of_question.standard_normal() + world.noise[1] * chance.standard_normal()
        if trial.persona is not None and world.personas is not None:
            reading += world.personas[POLES.index(trial.persona)]
        if trial.shape is not None:
            side = 0 if trial.dose > 0 else 1
            dose = (
                abs(trial.dose)
                * {"response": 1, "prompt": 2, "anchored": 0.5}[trial.mode]
                * dict(world.steeper).get(trial.shape, 1)
            )
            nll += BUDGET * (dose / world.meets[side]) ** world.exponent
            reading += np.sign(trial.dose) * world.gain[side] * dose * dict(world.better).get(trial.shape, 1)
        if abs(trial.dose) > world.empty_above:
            return Outcome((), True)
        repeats = abs(trial.dose) > world.repeats_above
        return Outcome((1, 2) * 6 if repeats else tuple(range(12)), trial.number % 2 == 0, nll, reading)


@functools.cache
def find(
    world: World,
    shapes: tuple[Shape, ...] = (DEFAULT,),
    effort: Effort = QUICK,
    budget: float = BUDGET,
    n_questions: int = 20,
    by_cost: bool = False,
    anchored: bool = False,
) -> tuple[Findings, FakeLaboratory]:
    """What a search finds in a world, and the laboratory it was found in."""
    laboratory = FakeLaboratory(world, n_questions)
    search = Search(
        cast(Laboratory, laboratory),
        shapes,
        budget=budget,
        effort=effort,
        seed=world.seed,
        by_cost=by_cost,
        anchored=anchored,
    )
    return search.run(), laboratory


def sides(world: World, pole: Pole, seeds: int = 3) -> list[Side]:
    """The response sides of one pole, found with QUICK under the noise of different seeds."""
    return [find(replace(world, seed=seed))[0].sides[pole, "response"] for seed in range(seeds)]


def doses_of(found: Sequence[Side]) -> list[float]:
    doses = [side.dose for side in found if side.dose is not None]
    assert len(doses) == len(found)
    return doses


ASYMMETRIC = World(meets=(0.15, 0.3))


# The dose


@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.0])
def test_the_dose_is_a_standard_error_below_where_the_true_cost_meets_the_budget(exponent: float) -> None:
    # Over 12 seeds at this noise a true dose of 0.2 is found with a deviation of 0.016 to 0.028, and the mean of 2 x 2 of them
    # with 0.012; what is kept is less by that deviation or up to twice as much.
    found = [
        find(World(exponent=exponent, seed=seed), effort=replace(THOROUGH, shapes=0))[0].sides[pole, "response"]
        for seed in range(2)
        for pole in POLES
    ]
    doses = doses_of(found)
    assert 0.135 < np.mean(doses) < 0.2
    assert doses == pytest.approx([0.17] * 4, abs=0.06)


def test_each_pole_gets_a_dose_of_its_own() -> None:
    # With QUICK 0.15 is found with a deviation of 0.022, and 0.3 with 0.042; kept is a standard error less.
    positive, negative = doses_of(sides(ASYMMETRIC, "positive")), doses_of(sides(ASYMMETRIC, "negative"))
    assert 0.09 < np.mean(positive) < 0.15
    assert 0.2 < np.mean(negative) < 0.3
    assert all(one < other for one, other in zip(positive, negative, strict=True))


def test_a_larger_budget_allows_a_larger_dose() -> None:
    # The cost is quadratic: four times the budget, twice the dose.
    found = [find(World(seed=seed), budget=4 * BUDGET)[0].sides[pole, "response"] for seed in range(2) for pole in POLES]
    assert np.mean(doses_of(found)) == pytest.approx(0.4, abs=0.05)


def test_what_is_expected_at_the_dose_is_within_the_budget_and_the_true_effect() -> None:
    # A persona moves readings by 2, and a dose of 0.2 by 10 x 0.2. Over 12 seeds its deviation is 0.2.
    found = sides(World(), "positive")
    for side in found:
        assert side.dose is not None
        assert side.cost is not None
        assert BUDGET / 3 < side.cost < BUDGET
    ratios = [side.effect / (5 * side.dose) for side in found if side.effect is not None and side.dose is not None]
    assert np.mean(ratios) == pytest.approx(1, abs=0.2)


def test_the_curve_shows_what_was_measured() -> None:
    side = sides(World(noise=(0.02, 0.05)), "positive", seeds=1)[0]
    assert side.dose is not None
    doses = [point.dose for point in side.curve]
    assert doses == sorted(set(doses))
    assert doses[0] < side.dose <= doses[-1]
    for point in side.curve:
        assert point.cost.mean == pytest.approx(BUDGET * (point.dose / 0.2) ** 2, abs=0.05)
        assert point.effect.mean == pytest.approx(5 * point.dose, abs=0.15)
        assert point.cost.low <= point.cost.mean <= point.cost.high
        assert (point.distinct, point.answers >= 2) == (1, True)
        assert 0 < point.ended < 1


def test_the_lengths_to_add_make_up_the_dose() -> None:
    for side in (sides(ASYMMETRIC, pole)[0] for pole in POLES):
        assert side.layers == DEFAULT.layers
        assert sum(norm / HIDDEN[layer] for layer, norm in zip(side.layers, side.norms, strict=True)) == pytest.approx(side.dose)


def test_the_prompt_steered_as_well_gets_a_dose_of_its_own() -> None:
    # In these worlds it doubles what a dose does: half the dose costs as much. Deviation 0.012 to 0.03 as measured.
    found = [find(replace(ASYMMETRIC, seed=seed))[0].sides for seed in range(3)]
    positive = [one["positive", "prompt"].dose or np.nan for one in found]
    negative = [one["negative", "prompt"].dose or np.nan for one in found]
    assert np.nanmean(positive) == pytest.approx(0.075, abs=0.025)
    assert np.nanmean(negative) == pytest.approx(0.15, abs=0.04)
    for one in found:
        assert one["positive", "prompt"].layers == one["positive", "response"].layers


# Nothing to find


DEAD = World(gain=(0, 0))


def test_a_vector_without_effect_gets_no_dose() -> None:
    # None of 48 sides, over 24 seeds, seems to do something by chance.
    found = [find(replace(DEAD, seed=seed))[0].sides[pole, "response"] for seed in range(5) for pole in POLES]
    dead = [side for side in found if side.dose is None]
    assert len(dead) >= 8
    for side in dead:
        assert (side.norms, side.effect, side.cost) == ((), None, None)
        assert side.layers == DEFAULT.layers
        assert len(side.curve) >= 3  # what was measured is shown all the same


def test_by_cost_a_vector_without_effect_gets_the_dose_of_one_with_it_and_says_so() -> None:
    alive = [find(replace(World(), seed=seed), by_cost=True)[0].sides[pole, "response"] for seed in range(3) for pole in POLES]
    dead = [find(replace(DEAD, seed=seed), by_cost=True)[0].sides[pole, "response"] for seed in range(5) for pole in POLES]
    assert all(side.shown for side in alive)
    assert sum(side.shown for side in dead) <= 2
    # Both worlds cost the same.
    assert np.mean(doses_of(dead)) == pytest.approx(np.mean(doses_of(alive)), rel=0.15)


def test_a_weak_effect_is_seen() -> None:
    # For 17 of these 24 sides; by the mean over the same answers, which the weak doses drown, for 11.
    weak = [find(replace(World(gain=(3, 3)), seed=seed))[0].sides[pole, "response"] for seed in range(12) for pole in POLES]
    assert sum(side.shown for side in weak) >= 14


def test_a_vector_may_work_toward_one_pole_only() -> None:
    world = World(gain=(0, 10))
    assert sum(side.dose is None for side in sides(world, "positive")) >= 2
    assert 0.12 < np.mean(doses_of(sides(world, "negative"))) < 0.2


def test_a_vector_that_moves_the_wrong_way_gets_no_dose() -> None:
    assert all(side.dose is None for side in sides(World(gain=(-10, -10)), "positive", seeds=2))


# Beyond the usual doses


@pytest.mark.parametrize("meets", [0.03, 0.05, 0.8, 1.5])
def test_a_budget_outside_the_usual_doses_is_looked_for_further(meets: float) -> None:
    # Of little noise: at a fifth of the usual doses an effect is hard to tell from none.
    found, _ = find(World(meets=(meets, meets), gain=(2 / meets, 2 / meets), noise=(0.02, 0.1)))
    for pole in POLES:
        assert found.sides[pole, "response"].dose == pytest.approx(meets, rel=0.2)


def test_a_cost_that_never_reaches_the_budget_ends_the_search_at_some_dose() -> None:
    for pole in POLES:
        side = sides(World(meets=(1e9, 1e9), noise=(0.02, 0.1)), pole, seeds=1)[0]
        assert side.dose is not None
        assert 3 < side.dose < 10
        assert side.dose <= side.curve[-1].dose
        assert side.cost is not None
        assert side.cost < BUDGET


def test_a_cost_above_the_budget_at_once_ends_the_search_without_a_dose() -> None:
    found, laboratory = find(World(meets=(1e-4, 1e-4)))
    assert [side.dose for side in found.sides.values()] == [None] * 4
    assert laboratory.measured < 2 * QUICK.answers(1)


# Answers that the cost does not judge


def test_a_dose_at_which_answers_repeat_themselves_is_not_chosen() -> None:
    # Repetition is easy to predict: the cost alone would allow a dose of 0.5.
    found, _ = find(World(meets=(0.5, 0.5), repeats_above=0.15, noise=(0.05, 0.7)))
    for pole in POLES:
        assert 0.1 <= (found.sides[pole, "response"].dose or 0) <= 0.15


def test_answers_that_repeat_themselves_at_the_weakest_dose_call_for_weaker_ones() -> None:
    found, _ = find(World(meets=(0.5, 0.5), gain=(50, 50), repeats_above=0.06, noise=(0.05, 0.2)))
    for pole in POLES:
        assert 0.02 <= (found.sides[pole, "response"].dose or 0) <= 0.06


@pytest.mark.parametrize("empty_above", [0.15, 0.25])
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_a_dose_at_which_answers_are_empty_is_not_chosen(empty_above: float) -> None:
    found, _ = find(World(meets=(0.5, 0.5), empty_above=empty_above, noise=(0.05, 0.2)))
    for pole in POLES:
        assert 0.09 < (found.sides[pole, "response"].dose or 0) <= empty_above


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_where_every_steered_answer_is_empty_there_is_no_dose() -> None:
    found, _ = find(World(empty_above=0.001))
    assert [side.dose for side in found.sides.values()] == [None] * 4


# The shape


def chosen(world: World, shapes: tuple[Shape, ...], seeds: int) -> Counter[Shape]:
    found = [find(replace(world, seed=seed), shapes, THOROUGH)[0] for seed in range(seeds)]
    return Counter(
        Shape(one.sides[pole, "response"].layers, one.sides[pole, "response"].profile)  # type: ignore[arg-type]
        for one in found
        for pole in POLES
    )


def test_a_shape_that_is_much_better_is_chosen() -> None:
    # Twice as good: chosen by 18 of 24 sides as measured where five others compete; 1.5 times as good: by 9 of 24.
    assert chosen(World(better=((BETTER, 2.0),)), THREE, seeds=2) == {BETTER: 4}


def test_shapes_that_are_worse_are_not_chosen() -> None:
    # By none of 20 sides as measured.
    worse = World(better=tuple((shape, 0.7) for shape in SIX[1:]))
    assert chosen(worse, THREE, seeds=2) == {DEFAULT: 4}


def test_a_shape_that_is_as_good_is_seldom_chosen() -> None:
    # By 1 of 30 sides as measured where five compete.
    assert chosen(World(), SIX[:2], seeds=3)[DEFAULT] >= 4


def test_more_effect_for_more_cost_is_no_better() -> None:
    # At half the dose it does and costs the same.
    world = World(steeper=((BETTER, 2.0),))
    assert chosen(world, (DEFAULT, BETTER), seeds=3)[DEFAULT] >= 4


def test_each_pole_may_get_a_shape_of_its_own() -> None:
    class OneSided(FakeLaboratory):
        """The better shape is better for the negative pole only."""

        def _answer(self, trial: Trial) -> Outcome:
            plain = self.world
            self.world = replace(plain, better=((BETTER, 2.0),)) if trial.dose < 0 else plain
            outcome = super()._answer(trial)
            self.world = plain
            return outcome

    laboratory = OneSided(World(noise=(0.1, 0.3), better=((BETTER, 0.5),)))
    found = Search(cast(Laboratory, laboratory), (DEFAULT, BETTER), budget=BUDGET, effort=THOROUGH, seed=0).run()
    for mode in ("response", "prompt"):
        assert found.sides["positive", mode].layers == DEFAULT.layers
        assert found.sides["negative", mode].layers == BETTER.layers


def test_another_shape_is_only_chosen_where_it_was_measured_at_several_doses() -> None:
    # Six shapes equally good, so that it is chance which of them seems best.
    for seed in range(3):
        found, _ = find(World(seed=seed), SIX, THOROUGH)
        for pole in POLES:
            assert len(found.sides[pole, "response"].curve) >= 3, (seed, pole)


def test_the_shapes_are_reported_with_the_default_one_first() -> None:
    found, _ = find(World(better=((BETTER, 2.0),)), SIX, THOROUGH)
    for pole in POLES:
        results = found.shapes[pole]
        assert [one.shape for one in results] == list(SIX)
        best = max(results, key=lambda one: one.effect.mean)
        assert best.shape == BETTER
        for one in results:
            assert one.effect.low <= one.effect.mean <= one.effect.high
            assert 0.1 < one.dose < 0.4


def test_a_quick_search_keeps_the_default_shape() -> None:
    found, laboratory = find(World(better=((BETTER, 3.0),)), SIX, QUICK)
    assert {trial.shape for trial in laboratory.outcomes} == {None, DEFAULT}
    assert [one.shape for one in found.shapes["positive"]] == [DEFAULT]


def test_without_answers_for_the_prompt_only_the_response_gets_a_dose() -> None:
    found, laboratory = find(World(), effort=replace(QUICK, prompt=0))
    assert {trial.mode for trial in laboratory.outcomes} == {"response"}
    assert [found.sides[pole, "prompt"].dose for pole in POLES] == [None, None]
    assert all(found.sides[pole, "response"].dose for pole in POLES)


# The scale of the effect


@pytest.mark.parametrize(
    ("personas", "scale", "effects"),
    [
        ((3.0, -1.5), ("persona", "persona"), (2 / 3, 4 / 3)),
        ((0.0, -2.0), ("other persona", "persona"), (1.0, 1.0)),
        ((4.0, 0.0), ("persona", "other persona"), (0.5, 0.5)),
        ((0.0, 0.0), ("deviation", "deviation"), (2.0, 2.0)),
        (None, ("deviation", "deviation"), (2.0, 2.0)),
    ],
)
def test_an_effect_of_one_is_as_far_as_a_persona_that_works(
    personas: tuple[float, float] | None, scale: tuple[str, str], effects: tuple[float, float]
) -> None:
    # At its dose of 0.2 the vector moves readings by 2.
    found, _ = find(World(personas=personas, noise=(0.05, 0.3)))
    assert (found.scale["positive"], found.scale["negative"]) == scale
    for pole, effect in zip(POLES, effects, strict=True):
        assert found.sides[pole, "response"].effect == pytest.approx(effect, rel=0.25)


def test_the_personas_are_told_on_the_scale_of_their_pole() -> None:
    found, _ = find(World(personas=(3.0, -1.0), noise=(0.05, 0.2)))
    for pole in POLES:
        assert found.personas[pole].effect.mean == pytest.approx(1)
        assert found.personas[pole].cost.mean == pytest.approx(0, abs=0.1)
    # A persona that does nothing is measured with the other one's unit.
    found, _ = find(World(personas=(3.0, 0.0), noise=(0.05, 0.2)))
    assert found.personas["negative"].effect.mean == pytest.approx(0, abs=0.15)


def test_a_concept_without_personas_has_no_prompt_baseline() -> None:
    assert find(World(personas=None, noise=(0.05, 0.3)))[0].personas == {}


def test_unsteered_answers_are_the_zero_of_both_scales() -> None:
    found, _ = find(World())
    assert found.unsteered.effect.mean == pytest.approx(0, abs=1e-9)
    assert found.unsteered.cost.mean == pytest.approx(0, abs=1e-9)
    assert found.unsteered.answers == QUICK.unsteered


# Samples


def test_samples_go_from_the_weakest_dose_to_the_strongest() -> None:
    found, laboratory = find(World())
    for pole in POLES:
        curve = found.sides[pole, "response"].curve
        samples = found.samples[pole]
        assert len(samples) == 5
        assert (samples[0].dose, samples[-1].dose) == (curve[0].dose, curve[-1].dose)
        assert [sample.dose for sample in samples] == sorted({sample.dose for sample in samples})
        for sample in samples:
            assert 1 <= len(sample.answers) <= 3
            for question, answer in sample.answers:
                assert question in laboratory.contrast.held_out
                assert f"{sample.dose:.5f}" in answer


# What it takes


@pytest.mark.parametrize(("effort", "shapes"), [(THOROUGH, SIX), (THOROUGH, SIX[:1]), (QUICK, SIX[:1])])
def test_a_search_takes_no_more_answers_than_announced(effort: Effort, shapes: tuple[Shape, ...]) -> None:
    # Twice as good a shape: all stages are needed. With little noise, which may make the usual doses seem not to hold the budget.
    for meets in (0.15, 0.35):
        world = World(meets=(meets, meets), noise=(0.02, 0.1), better=((BETTER, 2.0),))
        _, laboratory = find(world, shapes, effort)
        assert laboratory.measured <= effort.answers(len(shapes))


def test_the_announced_number_is_not_far_above_what_it_takes() -> None:
    _, laboratory = find(World(better=((BETTER, 2.0),)), SIX, THOROUGH)
    assert laboratory.measured >= 0.9 * THOROUGH.answers(6)


def test_the_sampled_tokens_stay_within_what_was_promised() -> None:
    assert THOROUGH.answers(6) * THOROUGH.max_tokens <= 12_000
    assert QUICK.answers(1) * QUICK.max_tokens <= 3_000
    assert THOROUGH.answers(1) < THOROUGH.answers(2) < THOROUGH.answers(6)


@pytest.mark.parametrize("n_questions", [4, 60])
def test_any_number_of_questions_will_do(n_questions: int) -> None:
    found, laboratory = find(World(noise=(0.05, 0.3)), n_questions=n_questions)
    assert found.sides["positive", "response"].dose == pytest.approx(0.2, abs=0.06)
    assert laboratory.measured <= QUICK.answers(1)


# Again


def test_the_same_seed_finds_the_same() -> None:
    world = World(better=((BETTER, 2.0),))
    one, _ = find(world, THREE, THOROUGH)
    again, _ = find.__wrapped__(world, THREE, THOROUGH)
    assert again is not one
    assert again == one
    assert find(replace(world, seed=1), THREE, THOROUGH)[0] != one


def test_everything_measured_already_is_not_measured_again() -> None:
    laboratory = FakeLaboratory(World())

    def search() -> Findings:
        return Search(cast(Laboratory, laboratory), (DEFAULT,), budget=BUDGET, effort=QUICK, seed=0).run()

    one, measured = search(), laboratory.measured
    assert search() == one
    assert laboratory.measured == measured


# Anchored answers


def test_anchored_answers_get_the_stronger_dose_that_they_take() -> None:
    found = [find(World(seed=seed), effort=THOROUGH, anchored=True)[0].sides for seed in range(4)]
    doses = doses_of([one["positive", "anchored"] for one in found])
    # Twice 0.2 meets the budget; kept is a standard error less. Over 24 seeds the mean is 0.363 and the deviation 0.048: three
    # standard errors of a mean of four.
    assert 0.29 < np.mean(doses) < 0.44


def test_nothing_is_measured_for_anchored_answers_unless_they_are_asked_for() -> None:
    found, laboratory = find(World())
    assert {mode for _, mode in found.sides} == {"response", "prompt"}
    assert not found.anchored_samples
    assert not any(trial.mode == "anchored" for trial in laboratory.outcomes)


def test_an_earlier_calibration_is_added_to_without_being_measured_again() -> None:
    earlier, _ = find(World())
    laboratory = FakeLaboratory(World())
    search = Search(cast(Laboratory, laboratory), (DEFAULT,), budget=BUDGET, effort=QUICK, seed=0, anchored=True)
    found = search.run_anchored(earlier.sides)
    assert {key: side for key, side in found.sides.items() if key[1] != "anchored"} == earlier.sides
    assert {trial.mode for trial in laboratory.outcomes if trial.shape is not None} == {"anchored"}
    assert laboratory.measured <= QUICK.baselines + QUICK.anchored_answers
    for pole in POLES:
        assert found.sides[pole, "anchored"].layers == earlier.sides[pole, "response"].layers
        assert (found.sides[pole, "anchored"].dose or 0) > (earlier.sides[pole, "response"].dose or 1)
        assert found.anchored_samples[pole]


def test_a_pole_without_a_dose_gets_none_for_anchored_answers() -> None:
    # Toward the negative pole, no dose does anything.
    found, _ = find(World(gain=(10.0, 0.0)), effort=THOROUGH, anchored=True)
    assert found.sides["negative", "response"].dose is None
    assert found.sides["negative", "anchored"].dose is None
    assert found.sides["positive", "anchored"].dose is not None
