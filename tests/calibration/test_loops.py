"""Doses that long answers bear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from localsteer.calibration.interview import Interview
from localsteer.calibration.loops import ANSWERS, MOST, without_loops
from localsteer.calibration.outcomes import Outcome, Trial
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.calibration import Calibration, Pole
from tests.calibration.made import calibration

MODEL = Fingerprint("Tiny", "llama", 6, 4, "vocabulary", "content")
MADE = calibration(MODEL)


@dataclass
class Loops:
    """A model that gets into a loop above a dose toward each pole, in some of its answers; and unsteered in some."""

    above: dict[Pole, float]
    share: float = 1.0
    unsteered: int = 0
    asked: list[float] = field(default_factory=list)

    def measure(self, trials: Sequence[Trial]) -> list[Outcome]:
        assert all(trial.long and trial.mode == "response" for trial in trials)
        doses = dict.fromkeys(trial.dose for trial in trials)
        assert [trial.number for trial in trials] == [*range(ANSWERS)] * len(doses)
        self.asked += doses
        nan = float("nan")
        return [Outcome("", 192, False, nan, nan, nan, nan, nan, refused=False, loops=self._loops(one)) for one in trials]

    def _loops(self, trial: Trial) -> bool:
        if not trial.dose:
            return trial.number < self.unsteered
        pole: Pole = "positive" if trial.dose > 0 else "negative"
        return abs(trial.dose) > self.above[pole] and trial.number < self.share * ANSWERS


def held(loops: Loops, made: Calibration = MADE) -> Calibration:
    return replace(made, sides=without_loops(cast(Interview, loops), made.sides))


def test_doses_whose_long_answers_do_not_loop_stay_as_they_are() -> None:
    loops = Loops({"positive": 9, "negative": 9})
    assert held(loops) == MADE
    assert loops.asked == pytest.approx([0.3, -0.4])  # and nothing else is asked


def test_a_dose_is_weakened_until_long_answers_hold_and_the_other_pole_is_left_alone() -> None:
    found = held(Loops({"positive": 9, "negative": 0.3}))
    before, after = MADE.sides["negative", "response"], found.sides["negative", "response"]
    assert before.dose is not None
    assert after.dose == pytest.approx(0.4 * 0.8**2)
    assert after.norms == pytest.approx([0.8**2 * norm for norm in before.norms])
    assert after.limit == "repetition"
    assert after.dose is not None
    # What it does there, as it was measured.
    assert after.effect == pytest.approx(before.effect_at(after.dose))
    assert after.cost == pytest.approx(before.cost_at(after.dose))
    assert after.effect is not None
    assert after.between is not None
    assert after.between[0] < after.effect < after.between[1]
    assert after.curve == before.curve
    # With the prompt steered as well and anchored, by as much.
    for mode in ("prompt", "anchored"):
        one, other = MADE.sides["negative", mode], found.sides["negative", mode]
        assert one.dose is not None
        assert other.dose == pytest.approx(one.dose * 0.8**2)
    assert all(found.sides[key] == side for key, side in MADE.sides.items() if key[0] == "positive")


def test_a_single_loop_among_the_answers_is_chance() -> None:
    assert held(Loops({"positive": 0, "negative": 0}, share=1 / ANSWERS)) == MADE


def test_a_model_that_loops_by_itself_is_not_held_against_a_dose() -> None:
    assert held(Loops({"positive": 0, "negative": 0}, share=0.6, unsteered=3)) == MADE
    assert held(Loops({"positive": 0, "negative": 0}, share=0.6)) != MADE


def test_where_any_dose_loops_it_ends_at_a_third_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    loops = Loops({"positive": 0, "negative": 9})
    found = held(loops)
    assert found.sides["positive", "response"].dose == pytest.approx(0.3 * 0.8**5)
    assert min(dose for dose in loops.asked if dose > 0) == pytest.approx(0.3 * 0.8**5)  # that was listened to as well
    assert "at strength +1 end in loops at 33% of the dose, too" in caplog.text
    assert len(loops.asked) * ANSWERS <= MOST + ANSWERS * 5  # the unsteered ones are asked for once


def test_a_dose_that_holds_at_last_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    held(Loops({"positive": 0.3 * 0.8**5, "negative": 9}))
    assert caplog.text == ""


def test_a_pole_without_a_dose_is_not_asked() -> None:
    loops = Loops({"positive": 0.2, "negative": 0})
    made = calibration(MODEL, without=(("negative", "response"), ("negative", "prompt")))
    found = held(loops, made)
    assert all(dose >= 0 for dose in loops.asked)
    assert found.sides["negative", "response"] == made.sides["negative", "response"]
    assert found.sides["positive", "response"].dose == pytest.approx(0.3 * 0.8**2)
