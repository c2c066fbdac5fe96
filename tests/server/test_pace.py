"""What is told of the time to wait, beside what it takes: counted in steps, so that no clock is asked."""

from __future__ import annotations

import numpy as np
import pytest

from localsteer.engine.request import Answer, FinishReason, Timing
from localsteer.server.pace import Pace, Work

STEP, READ = 0.2, 0.01


def answer(length: int, reason: FinishReason = "stop", prompt: int = 100) -> Answer:
    timing = Timing(prompt, 0, prompt * READ, length, length * STEP)
    return Answer("", tuple(range(length)), reason, 0, timing)


def pace_of(*answers: Answer) -> Pace:
    pace = Pace()
    for _ in range(200):
        pace.stepped(STEP)
    for one in answers:
        pace.ended(one)
    return pace


def truth(running: list[Work], waiting: list[Work], parallel: int, wanted: int, lengths: dict[int, int]) -> float:
    """Step by step: every answer in the batch has a token more, or reads its prompt first."""
    left = {id(one): one.prompt * READ + (lengths[id(one)] - one.drawn) * STEP for one in [*running, *waiting]}
    batch, queue, now, joined = list(running), list(waiting), 0.0, 0
    while True:
        while queue and len(batch) < parallel:
            batch.append(queue.pop(0))
            joined += 1
            if joined == wanted:
                return now
        first = min(batch, key=lambda one: left[id(one)])
        passed = left[id(first)]
        now += passed
        for one in batch:
            left[id(one)] -= passed
        batch.remove(first)


@pytest.mark.parametrize("seed", range(20))
def test_the_time_to_wait_is_told_within_a_factor_of_two(seed: int) -> None:
    """Answers of all lengths, prompts of all lengths, in the middle of their way; what ends them is unknown."""
    random = np.random.default_rng(seed)
    usual = int(random.integers(20, 300))
    pace = pace_of(*(answer(int(usual * random.uniform(0.8, 1.2))) for _ in range(30)))
    parallel, wanted = int(random.integers(1, 5)), int(random.integers(1, 6))

    def work(drawn: float = 0.0) -> Work:
        length = min(int(usual * random.uniform(0.8, 1.2)), allowed := int(random.choice([usual // 4, 4 * usual])))
        done = int(drawn * length)
        one = Work(0 if done else int(random.integers(10, 500)), allowed, done)
        lengths[id(one)] = length
        return one

    lengths: dict[int, int] = {}
    running = [work(random.uniform(0, 0.6)) for _ in range(parallel)]
    waiting = [work() for _ in range(6)]
    told = pace.until_free(running, waiting, parallel, wanted)
    actual = truth(running, waiting, parallel, wanted, lengths)
    assert actual / 2 <= told <= actual * 2


def test_before_an_answer_has_ended_it_is_taken_to_be_as_long_as_it_may_or_as_answers_are() -> None:
    assert pace_of().seconds(Work(0, 50)) == pytest.approx(50 * STEP)
    assert pace_of().seconds(Work(0, 32_000)) == pytest.approx(300 * STEP)


def test_an_answer_that_was_cut_off_says_only_that_answers_are_no_shorter() -> None:
    pace = pace_of(*[answer(100)] * 5, *[answer(10, "length")] * 50)
    assert pace.seconds(Work(0, 1000)) == pytest.approx(100 * STEP)
    pace = pace_of(*[answer(100)] * 5, *[answer(300, "length")] * 50)
    assert pace.seconds(Work(0, 1000)) > 280 * STEP


def test_an_answer_that_is_longer_than_most_is_taken_to_go_on_for_as_long_again() -> None:
    pace = pace_of(*[answer(100)] * 5)
    assert pace.seconds(Work(0, 1000, drawn=150)) == pytest.approx(100 * STEP)
    assert pace.seconds(Work(0, 180, drawn=150)) == pytest.approx(30 * STEP)


def test_one_that_takes_two_places_waits_for_two() -> None:
    pace = pace_of()
    running = [Work(0, 10), Work(0, 30)]
    assert pace.until_free(running, [Work(0, 5, places=2)], 2, 1) == pytest.approx(30 * STEP)
    assert pace.until_free(running, [], 2, 1) == pytest.approx(10 * STEP)
