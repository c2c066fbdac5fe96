from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from localsteer.engine.batch import RunningBatch
from localsteer.engine.prefix_cache import PrefixCache, Written
from localsteer.engine.request import Answer, Request
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from tests.conftest import LOGIT_NOISE, TinyModel, assert_greedy, plan_of, random_edit, random_tokens

GREEDY = Sampling(temperature=0)
LIVELY = Sampling(temperature=1.5, seed=7)
TALKS = [random_tokens(60, seed=seed) for seed in range(8)]
EDIT = Edit(np.ones((2, 4), np.float32))


def written(*parts: tuple[int, Edit | None]) -> Written:
    """Tokens 0, 1, 2 ..., so many under each steering."""
    made = Written()
    for count, edit in parts:
        made.add(range(len(made), len(made) + count), edit)
    return made


def state(size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.zeros(size, np.uint8)


# What was written


def test_what_is_common_ends_where_the_tokens_or_the_steering_part() -> None:
    made = written((10, None), (5, EDIT))
    assert made.common(range(20), None) == 10
    assert made.common([*range(4), 99], None) == 4
    assert made.common(range(20), EDIT) == 0
    assert written((15, EDIT)).common(range(20), Edit(EDIT.rows.copy())) == 15


def test_steering_that_does_the_same_goes_on() -> None:
    made = written((3, None), (1, None), (2, EDIT), (2, Edit(EDIT.rows.copy())), (1, EDIT.scaled(0.5)))
    assert [(end, edit is None) for end, edit in made.spans()] == [(4, True), (8, False), (9, False)]


@pytest.mark.parametrize(("start", "spans"), [(0, []), (2, [2]), (3, [3]), (4, [3, 4]), (5, [3, 5]), (9, [3, 5])])
def test_what_is_cut_is_gone(start: int, spans: list[int]) -> None:
    made = written((3, None), (2, EDIT))
    kept = made.copy()
    made.cut(start)
    assert made.tokens == list(range(min(start, 5)))
    assert [end for end, _ in made.spans()] == spans
    assert len(kept) == 5


# Main memory


def test_the_one_that_goes_on_longest_is_found() -> None:
    cache = PrefixCache(100)
    for count in (5, 9, 7):
        cache.put(written((count, None)), state(10))
    kept, length = cache.best(range(8), None, whole=False)
    assert kept is not None
    assert (len(kept.written), length) == (9, 8)
    kept, length = cache.best(range(8), None, whole=True)
    assert kept is not None
    assert (len(kept.written), length) == (7, 7)
    assert cache.best(range(8), EDIT, whole=False) == (None, 0)
    assert cache.best([99], None, whole=False) == (None, 0)


def test_those_that_were_not_used_for_longest_are_forgotten() -> None:
    cache = PrefixCache(25)
    first, second = written((40, None)), written((40, EDIT))
    cache.put(first, state(10))
    cache.put(second, state(10))
    kept, _ = cache.best(range(3), None, whole=False)
    assert kept is not None
    cache.take(kept, 3)  # it goes on beyond that, and stays
    cache.put(written((30, EDIT.scaled(2))), state(10))
    assert cache.bytes == 20
    assert cache.best(range(3), EDIT, whole=False) == (None, 0)
    assert cache.best(range(3), None, whole=False)[1] == 3


def test_what_is_too_large_is_not_kept_and_drives_nothing_out() -> None:
    cache = PrefixCache(25)
    cache.put(written((5, None)), state(10))
    cache.put(written((9, None)), state(26))
    assert (len(cache), cache.bytes) == (1, 10)


def test_what_got_its_place_back_whole_is_there_no_more() -> None:
    cache = PrefixCache(25)
    cache.put(written((40, None)), state(10))
    kept, length = cache.best(range(40), None, whole=True)
    assert kept is not None
    cache.take(kept, length)
    assert len(cache) == 0


def test_what_another_one_goes_on_from_is_kept_where_a_sequence_cannot_be_cut() -> None:
    """As a recurrent state cannot: a longer one is of no use to a prompt that parts from it."""
    for whole, lengths in ((False, [40]), (True, [30, 40])):
        cache = PrefixCache(100)
        for count in (30, 40, 40):
            cache.put(written((count, None)), state(10), whole=whole)
        assert len(cache) == len(lengths)
        assert cache.best(range(35), None, whole=True)[1] == (30 if whole else 0)


def test_one_that_was_steered_later_on_is_held_by_one_that_goes_on_unsteered() -> None:
    # No prompt begins with more of it than what was written before the steering.
    cache = PrefixCache(100)
    cache.put(written((40, None), (5, EDIT)), state(10))
    cache.put(written((50, None)), state(10))
    assert len(cache) == 1


# In a batch


@pytest.fixture(params=["llama", "gemma3", "mamba"])
def kind(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    return tiny_model(request.param)


def answered(batch: RunningBatch, request: Request) -> Answer:
    lane = batch.join(request)
    while lane not in batch.step():
        pass
    return lane.end()


@pytest.fixture
def batch(kind: Model) -> Iterator[RunningBatch]:
    with RunningBatch(kind, parallel=2, n_ctx=256, cache_ram=64) as batch:
        yield batch


def test_going_back_to_a_conversation_reads_its_new_tokens_only(batch: RunningBatch) -> None:
    plan = plan_of(random_edit(batch.model, seed=3), steer_prompt=True)
    plans = [plan if number % 2 else None for number in range(len(TALKS))]
    talks: list[Sequence[int]] = list(TALKS)
    for turn in range(3):
        for number, one in enumerate(plans):
            request = Request((*talks[number], *random_tokens(5, seed=90 + turn)), one, GREEDY, 4)
            answer = answered(batch, request)
            assert_greedy(batch.model, request.prompt, answer.tokens, request.response_edit, steer_prompt=one is not None)
            if turn:
                # All but the last token of an answer was run; a steered one only counts where the prompt is steered as well.
                assert answer.timing.prompt_tokens <= 5 + 2
            talks[number] = (*request.prompt, *answer.tokens)


def test_without_main_memory_what_lost_its_place_is_read_anew(kind: Model) -> None:
    with RunningBatch(kind, parallel=2, n_ctx=256, cache_ram=0) as batch:
        for _ in range(2):
            reused = [answered(batch, Request(talk, None, GREEDY, 4)).timing.reused_tokens for talk in TALKS]
    assert reused == [0] * len(TALKS)


def test_what_the_context_has_no_room_to_take_back_is_read_anew(batch: RunningBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [(*talk, *answered(batch, Request(talk, None, GREEDY, 4)).tokens, 65) for talk in TALKS[:4]]
    refused: list[int] = []

    def refuse(_context: Context, sequence: int, _state: object) -> bool:
        refused.append(sequence)
        return False

    monkeypatch.setattr(Context, "restore_sequence", refuse)
    again = Request(talks[0], None, GREEDY, 4)
    answer = answered(batch, again)
    assert len(refused) == 1
    assert answer.timing.reused_tokens == 0
    assert_greedy(batch.model, again.prompt, answer.tokens)


def test_what_was_kept_is_not_found_under_another_steering(batch: RunningBatch) -> None:
    plan = plan_of(random_edit(batch.model, seed=3), steer_prompt=True)
    for talk in TALKS[:4]:
        answered(batch, Request(talk, plan, GREEDY, 4))
    assert answered(batch, Request(TALKS[0], None, GREEDY, 4)).timing.reused_tokens == 0
    same = plan_of(random_edit(batch.model, seed=3), steer_prompt=True)
    assert same.edit is not plan.edit
    if batch.model.sequences_share_tokens:
        assert answered(batch, Request(TALKS[0], same, GREEDY, 4)).timing.reused_tokens == len(TALKS[0]) - 1


def logprobs_of(answer: Answer) -> list[float]:
    return [one.logprob for one in answer.logprobs]


@pytest.mark.parametrize("beside", [False, True])
def test_the_same_seed_gives_the_same_answer_after_others(kind: Model, beside: bool) -> None:
    request = Request(TALKS[0], plan_of(random_edit(kind, seed=5)), LIVELY, 12, logprobs=1)
    others = [Request(talk, plan_of(random_edit(kind, seed=9), steer_prompt=True), GREEDY, 20) for talk in TALKS[1:4]]
    with RunningBatch(kind, parallel=3, n_ctx=256, cache_ram=64) as batch:
        alone = answered(batch, request)
    with RunningBatch(kind, parallel=3, n_ctx=256, cache_ram=64) as batch:
        if beside:
            running = {batch.join(other) for other in others}
            while running:
                running.difference_update(batch.step())
        for other in others:
            answered(batch, other)
        after = answered(batch, request)
        again = answered(batch, request)
    assert after.tokens == alone.tokens == again.tokens
    # To the last bit: no seed tells them apart.
    assert logprobs_of(after) == logprobs_of(alone) == logprobs_of(again)


def test_after_one_that_begins_alike_only_rounding_differs(kind: Model) -> None:
    # What they share was computed in a batch of another size.
    request = Request(TALKS[0], None, GREEDY, 12, logprobs=1)
    alike = Request((*TALKS[0][:40], *TALKS[5]), None, GREEDY, 9)
    with RunningBatch(kind, parallel=2, n_ctx=256, cache_ram=64) as batch:
        alone = answered(batch, request)
    with RunningBatch(kind, parallel=2, n_ctx=256, cache_ram=64) as batch:
        answered(batch, alike)
        after = answered(batch, request)
    assert after.timing.reused_tokens == (40 if kind.sequences_share_tokens else 0)
    np.testing.assert_allclose(logprobs_of(after)[:1], logprobs_of(alone)[:1], atol=LOGIT_NOISE)


def test_a_context_that_gets_a_tap_goes_on_where_it_was(kind: Model) -> None:
    first = Request(TALKS[0], plan_of(random_edit(kind, seed=5)), GREEDY, 24)
    second = Request(TALKS[1], plan_of(random_edit(kind, seed=6)), GREEDY, 12)
    with RunningBatch(kind, parallel=2, n_ctx=256) as batch:
        lane = batch.join(first)
        for _ in range(6):
            assert batch.step() == []
        other = batch.join(second)
        running = {lane, other}
        while running:
            running.difference_update(batch.step())
        answers = lane.end(), other.end()
        follow_up = Request((*TALKS[0], *answers[0].tokens, 65), None, GREEDY, 2)
        reused = answered(batch, follow_up).timing.reused_tokens
    for request, answer in zip((first, second), answers, strict=True):
        assert_greedy(kind, request.prompt, answer.tokens, request.response_edit)
    if kind.sequences_share_tokens:
        assert reused == len(TALKS[0]) - 1  # read before there was a tap
