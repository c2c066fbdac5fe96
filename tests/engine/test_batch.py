from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from localsteer.engine import batch as running_batch
from localsteer.engine import checks
from localsteer.engine.batch import RunningBatch, places_for
from localsteer.engine.gate import Verdict
from localsteer.engine.generate import Generator
from localsteer.engine.lane import Lane
from localsteer.engine.request import Answer, Request
from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama.context import Batch, Context
from localsteer.llama.grammar import Grammar, Matcher
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampler, Sampling
from localsteer.llama.steerability import Steerability
from localsteer.steering.plan import Plan
from tests.conftest import (
    LOGIT_NOISE,
    ROW_NOISE,
    Floats,
    TinyModel,
    assert_greedy,
    in_mode,
    plan_of,
    random_basis,
    random_edit,
    random_tokens,
    run_alone,
)
from tests.script import Script
from tests.tiny_models import write_tiny_model

GREEDY = Sampling(temperature=0)
LIVELY = Sampling(temperature=1.5, seed=7)
PROMPT = random_tokens(30, seed=1)
OTHER_PROMPT = random_tokens(25, seed=2)
STEM = random_tokens(20, seed=3)
# What anchors tiny models, whose tokens are all about as likely, enough to be seen.
MIN_P = 0.5
# Three that begin alike, one of a single token, and one of its own.
PROMPTS = ((*STEM, *random_tokens(9, seed=4)), STEM, (*STEM[:7], *random_tokens(15, seed=5)), (65,), PROMPT)


@pytest.fixture(params=["llama", "gemma3", "mamba"])
def kind(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    """One of each kind of memory: everything is kept, also what a sliding window no longer shows, or one state."""
    return tiny_model(request.param)


@pytest.fixture(params=["llama", "gemma3"])
def keeping(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    """The kinds of which prompts can share a beginning."""
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """It takes prompts that no single decode can hold."""
    path = write_tiny_model(tmp_path_factory.mktemp("long") / "long.gguf", n_layer=2, n_ctx_train=1024)
    with Model(path, threads=1) as model:
        yield model


@pytest.fixture
def margins(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For each token in the order of drawing how far logits would have to change until another one is the likeliest."""
    found: list[float] = []
    sample = Sampler.sample

    def remember(self: Sampler, context: Context, row: int, *, unsteered: int | None = None) -> int:
        token = sample(self, context, row, unsteered=unsteered)
        logits = context.logits(row)
        rivals = np.full(len(logits), True)
        if unsteered is not None:
            room = room_above(context.logits(unsteered), MIN_P)
            found.append(float(room[token]))
            rivals = room > -LOGIT_NOISE
        rivals[token] = False
        found.append(float(logits[token] - logits[rivals].max(initial=-np.inf)))
        return token

    monkeypatch.setattr(Sampler, "sample", remember)
    return found


def room_above(unsteered: Floats, min_p: float) -> Floats:
    """How far each token is above what the unsteered model finds implausible."""
    room: Floats = unsteered - (unsteered.max(axis=-1, keepdims=True) + np.float32(np.log(min_p)))
    return room


def finish(batch: RunningBatch, *lanes: Lane) -> list[Answer]:
    """The answers of these lanes; others go on as long as that takes."""
    missing = set(lanes)
    for _ in range(1000):
        if not missing:
            break
        missing.difference_update(batch.step())
    assert not missing
    return [lane.end() for lane in lanes]


def finish_all(batch: RunningBatch) -> None:
    for _ in range(1000):
        if batch.places == batch.parallel:
            return
        batch.step()
    raise AssertionError("answers have no end")


def answered(batch: RunningBatch, request: Request) -> Answer:
    return finish(batch, batch.join(request))[0]


def steps(batch: RunningBatch, count: int) -> None:
    """Take steps in which no answer ends."""
    for _ in range(count):
        assert batch.step() == []


def assert_answers(model: Model, request: Request, answer: Answer) -> None:
    """It is as long as it was asked to be, and greedy under its steering alone."""
    assert (len(answer.tokens), answer.finish_reason) == (request.max_tokens, "length")
    assert_greedy(model, request.prompt, answer.tokens, request.response_edit, steer_prompt=request.prompt_edit is not None)


def assert_anchored(model: Model, request: Request, answer: Sequence[int], edits: Sequence[Edit | None] | None = None) -> None:
    """Every token is the most likely one among those that the unsteered model, run alone, finds plausible.

    `edits` holds one for each token; by default the request's steering from the last token of the prompt on.
    """
    tokens, first = (*request.prompt, *answer), len(request.prompt) - 1
    if edits is None:
        edits = [request.response_edit if place >= first else None for place in range(len(tokens))]
    steered = run_alone(model, tokens, edits, read=False).logits[first:-1]
    room = room_above(run_alone(model, tokens, read=False).logits[first:-1], request.sampling.min_p)
    drawn = np.arange(len(answer)), list(answer)
    assert room[drawn].min() > -LOGIT_NOISE
    best = np.where(room > LOGIT_NOISE, steered, -np.inf).max(axis=1)
    assert (best - steered[drawn]).max() < LOGIT_NOISE


def assert_greedy_under(model: Model, prompt: Sequence[int], answer: Sequence[int], edits: Sequence[Edit | None]) -> None:
    """Every token of an answer is the most likely one, where each token before it was run under its own steering."""
    logits = run_alone(model, (*prompt, *answer), edits, read=False).logits[len(prompt) - 1 : -1]
    shortfall = logits.max(axis=1) - logits[np.arange(len(answer)), list(answer)]
    assert shortfall.max() < LOGIT_NOISE


# Side by side


def eight_plans(model: Model) -> list[Plan | None]:
    """Added, turned round, removed, both at once, and in the prompt as well."""
    added, other = random_edit(model, seed=5, norm=6.0), random_edit(model, seed=6, norm=6.0)
    basis = {layer: random_basis(model, 8, seed=layer) for layer in range(1, model.n_layer)}
    removed = Edit(np.zeros_like(added.added), basis)
    in_response = [plan_of(edit) for edit in (added, Edit(-added.added), other, removed, Edit(other.added, basis))]
    return [None, *in_response, plan_of(added, steer_prompt=True), plan_of(removed, steer_prompt=True)]


@pytest.mark.parametrize("prompts", [(PROMPT,), PROMPTS], ids=["one", "several"])
def test_eight_answers_under_eight_steerings_are_those_of_each_alone(
    steerable: Model, prompts: Sequence[tuple[int, ...]]
) -> None:
    requests = [
        Request(prompts[number % len(prompts)], plan, GREEDY, max_tokens=16 + number % 3)
        for number, plan in enumerate(eight_plans(steerable))
    ]
    with RunningBatch(steerable, parallel=8, n_ctx=64) as batch:
        lanes = []
        for request in requests:
            lanes.append(batch.join(request))
            steps(batch, 2)
        assert batch.places == 0
        answers = finish(batch, *lanes)
        assert batch.places == 8
    for request, answer in zip(requests, answers, strict=True):
        assert_answers(steerable, request, answer)
    if len(prompts) == 1:
        assert len({answer.tokens[:16] for answer in answers}) == 8


def test_answers_that_begin_at_once_are_those_of_each_alone(kind: Model) -> None:
    requests = [Request(prompt, plan, GREEDY, 8) for prompt, plan in zip(PROMPTS, eight_plans(kind)[3:], strict=True)]
    with RunningBatch(kind, parallel=5, n_ctx=64) as batch:
        answers = finish(batch, *[batch.join(request) for request in requests])
    for request, answer in zip(requests, answers, strict=True):
        assert_answers(kind, request, answer)


def test_the_same_seeds_in_the_same_company_give_the_same_texts(kind: Model) -> None:
    plan = plan_of(random_edit(kind, seed=5))
    requests = [Request(PROMPT, each, replace(LIVELY, seed=seed), 12) for each in (None, plan) for seed in (1, 2)]
    found = []
    for _ in range(2):
        with RunningBatch(kind, parallel=4, n_ctx=64) as batch:
            found.append([(one.tokens, one.text, one.seed) for one in finish(batch, *map(batch.join, requests))])
    assert found[0] == found[1]
    assert len({tokens for tokens, _, _ in found[0]}) == 4


def test_a_drawn_seed_is_reported(tiny: Model) -> None:
    request = Request(PROMPT, None, replace(LIVELY, seed=None), 4)
    with RunningBatch(tiny, parallel=2, n_ctx=64) as batch:
        first, second = finish(batch, batch.join(request), batch.join(request))
    assert first.seed != second.seed


def test_each_answer_ends_by_its_own_rules_and_is_told_as_it_comes(tiny: Model) -> None:
    request = Request(PROMPT, None, LIVELY, max_tokens=40)
    with RunningBatch(tiny, parallel=4, n_ctx=128) as batch:
        letters = tuple(map(chr, range(33, 127)))
        requests = [request, replace(request, stop=("never there", *letters)), *(replace(request, max_tokens=n) for n in (1, 0))]
        pieces: list[list[str]] = [[] for _ in requests]
        lanes = [batch.join(one, on_text=heard.append) for one, heard in zip(requests, pieces, strict=True)]
        full, stopped, single, empty = answers = finish(batch, *lanes)
    assert [answer.finish_reason for answer in answers] == ["length", "stop", "length", "length"]
    assert [answer.text for answer in answers] == ["".join(heard) for heard in pieces]
    assert full.text == tiny.detokenize(list(full.tokens))
    assert len(pieces[0]) > 5
    assert not set(letters) & set(stopped.text)
    assert chr(stopped.tokens[-1]) in letters
    assert (len(full.tokens), len(single.tokens), len(empty.tokens)) == (40, 1, 0)


def test_timing_counts_what_was_done(tiny: Model) -> None:
    with RunningBatch(tiny, parallel=2, n_ctx=64) as batch:
        batch.join(Request(OTHER_PROMPT, None, GREEDY, 30))
        timing = answered(batch, Request(PROMPT, None, GREEDY, 12)).timing
    assert (timing.prompt_tokens, timing.reused_tokens, timing.answer_tokens) == (len(PROMPT), 0, 12)
    assert timing.prompt_seconds > 0
    assert timing.answer_seconds > 0


def test_grammars_are_followed_each_in_its_own_lane(tiny: Model) -> None:
    grammars = [Grammar(tiny, 'start: "yes" | "no"'), Grammar(tiny, "start: /[0-9]{4}/"), None]
    with RunningBatch(tiny, parallel=3, n_ctx=64) as batch:
        lanes = [batch.join(Request(PROMPT, None, replace(LIVELY, temperature=3.0), 8, grammar=grammar)) for grammar in grammars]
        word, number, free = finish(batch, *lanes)
    assert (word.text in ("yes", "no"), word.finish_reason) == (True, "stop")
    assert (bool(re.fullmatch("[0-9]{4}", number.text)), number.finish_reason) == (True, "stop")
    assert (len(free.tokens), free.finish_reason) == (8, "length")


# Coming and going


def test_an_answer_that_is_given_up_frees_its_place_at_once(kind: Model) -> None:
    plan, other = plan_of(random_edit(kind, seed=5)), plan_of(random_edit(kind, seed=6))
    staying = Request(OTHER_PROMPT, plan, GREEDY, 20)
    leaving = Request(PROMPT, other, GREEDY, 20)
    coming = Request(PROMPTS[0], None, GREEDY, 12)
    with RunningBatch(kind, parallel=2, n_ctx=64) as batch:
        stays, leaves = batch.join(staying), batch.join(leaving)
        steps(batch, 8)
        assert batch.places == 0
        with pytest.raises(ValueError, match="no place"):
            batch.join(coming)
        batch.leave(leaves)
        assert batch.places == 1
        comes = batch.join(coming)
        answers = finish(batch, stays, comes)
        assert batch.kept_tokens <= 2 * 64
    assert_answers(kind, staying, answers[0])
    assert_answers(kind, coming, answers[1])
    given_up = leaves.end()
    assert given_up.finish_reason == "interrupted"
    assert 0 < len(given_up.tokens) < 20
    assert given_up.text == kind.detokenize(list(given_up.tokens))
    assert_greedy(kind, PROMPT, given_up.tokens, other.edit)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_answer_may_be_given_up_before_it_has_begun(kind: Model, before: int) -> None:
    staying = Request(OTHER_PROMPT, None, GREEDY, 12)
    with RunningBatch(kind, parallel=2, n_ctx=512) as batch:
        stays = batch.join(staying)
        steps(batch, 2)
        leaves = batch.join(Request(random_tokens(400, seed=7), None, GREEDY, 12))
        steps(batch, before)
        batch.leave(leaves)
        answer = leaves.end()
        assert (answer.text, answer.tokens, answer.finish_reason) == ("", (), "interrupted")
        again = Request(random_tokens(400, seed=7)[:150], None, GREEDY, 5)
        comes = batch.join(again)
        answers = finish(batch, stays, comes)
    for request, found in zip((staying, again), answers, strict=True):
        assert_answers(kind, request, found)


def test_what_was_read_of_a_prompt_that_is_given_up_is_not_read_again(keeping: Model) -> None:
    request = Request(random_tokens(400, seed=7), None, GREEDY, 4)
    with RunningBatch(keeping, parallel=2, n_ctx=512) as batch:
        batch.join(Request(OTHER_PROMPT, None, GREEDY, 40))
        steps(batch, 1)
        leaves = batch.join(request)
        steps(batch, 3)
        read = batch.kept_tokens - (len(OTHER_PROMPT) + 2)
        batch.leave(leaves)
        answer = answered(batch, request)
    assert 0 < read < 399
    assert answer.timing.reused_tokens == read
    assert_answers(keeping, request, answer)


def test_many_answers_come_and_go_in_a_few_places(kind: Model) -> None:
    plans = eight_plans(kind)
    requests = [Request(PROMPTS[number % 5], plans[number % 8], GREEDY, max_tokens=2 + number * 5 % 7) for number in range(16)]
    waiting, lanes = list(requests), []
    with RunningBatch(kind, parallel=3, n_ctx=64) as batch:
        while waiting or batch.places < 3:
            while waiting and batch.places:
                lanes.append(batch.join(waiting.pop(0)))
            batch.step()
        assert batch.step() == []
    for request, lane in zip(requests, lanes, strict=True):
        assert_answers(kind, request, lane.end())


def test_closing_ends_all_answers(tiny: Model) -> None:
    with RunningBatch(tiny, parallel=2, n_ctx=64) as batch:
        lanes = [batch.join(Request(prompt, None, GREEDY, 20)) for prompt in (PROMPT, OTHER_PROMPT)]
        steps(batch, 5)
        assert batch.places == 0
    assert batch.places == 2
    for lane, prompt in zip(lanes, (PROMPT, OTHER_PROMPT), strict=True):
        assert lane.end().finish_reason == "interrupted"
        assert_greedy(tiny, prompt, lane.end().tokens)


# What prompts share


def test_a_prompt_that_begins_as_one_before_reuses_what_they_share(keeping: Model) -> None:
    request = Request(PROMPT, None, GREEDY, 8)
    parting = replace(request, prompt=(*PROMPT[:20], *OTHER_PROMPT))
    with RunningBatch(keeping, parallel=2, n_ctx=64) as batch:
        first = answered(batch, request)
        again = answered(batch, request)
        other = answered(batch, parting)
    assert first.timing.reused_tokens == 0
    # The last token is always run: it predicts the answer.
    assert (again.timing.reused_tokens, again.timing.prompt_tokens) == (len(PROMPT) - 1, 1)
    assert (other.timing.reused_tokens, other.timing.prompt_tokens) == (20, len(parting.prompt) - 20)
    for asked, answer in ((request, first), (request, again), (parting, other)):
        assert_answers(keeping, asked, answer)


def test_what_was_computed_under_other_steering_is_not_reused(keeping: Model) -> None:
    plan, other = (plan_of(random_edit(keeping, seed=seed), steer_prompt=True) for seed in (5, 6))
    in_response = replace(plan, mode="response")
    with RunningBatch(keeping, parallel=4, n_ctx=128, cache_ram=0) as batch:

        def reused_and_said(plan: Plan | None, prompt: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
            request = Request(prompt, plan, GREEDY, 8)
            answer = answered(batch, request)
            assert_answers(keeping, request, answer)
            return answer.timing.reused_tokens, answer.tokens

        reused, said = reused_and_said(plan, PROMPT)
        assert reused == 0
        assert reused_and_said(None, PROMPT)[0] == 0
        assert reused_and_said(other, PROMPT)[0] == 0
        # An answer that was written under the prompt's steering is part of the next prompt, but for its last token.
        assert reused_and_said(plan, (*PROMPT, *said, *OTHER_PROMPT))[0] == len(PROMPT) + 7
        # Where only answers are steered prompts are all alike, but answers are no part of them.
        reused, said = reused_and_said(in_response, PROMPT)
        assert reused == len(PROMPT) - 1
        follow_up = (*PROMPT, *said, *OTHER_PROMPT)
        assert reused_and_said(in_response, follow_up)[0] == len(PROMPT) - 1
        assert reused_and_said(None, follow_up)[0] == len(follow_up) - 1


def test_an_answer_shares_what_one_that_is_being_written_holds(keeping: Model) -> None:
    edit = random_edit(keeping, seed=5)
    running = Request(PROMPT, None, GREEDY, 20)
    with RunningBatch(keeping, parallel=3, n_ctx=128) as batch:
        lane = batch.join(running)
        steps(batch, 8)
        written = tuple(lane.answering.draft.tokens)
        assert len(written) > 3
        going_on = Request((*PROMPT, *written, *OTHER_PROMPT), plan_of(edit), GREEDY, 8)
        parting = Request((*PROMPT[:25], *OTHER_PROMPT), plan_of(edit, steer_prompt=True), GREEDY, 8)
        lanes = [batch.join(going_on), batch.join(parting)]
        answers = finish(batch, lane, *lanes)
    for request, answer in zip((running, going_on, parting), answers, strict=True):
        assert_answers(keeping, request, answer)
    # The newest token was drawn, and not run yet.
    assert [answer.timing.reused_tokens for answer in answers] == [0, len(PROMPT) + len(written) - 1, 0]


def test_a_beginning_that_several_prompts_share_is_computed_once(keeping: Model, decoded: list[int]) -> None:
    stem = random_tokens(100, seed=6)
    plan = plan_of(random_edit(keeping, seed=5), steer_prompt=True)
    requests = [Request((*stem, *random_tokens(10, seed=seed)), plan, GREEDY, 6) for seed in range(4)]
    with RunningBatch(keeping, parallel=4, n_ctx=128) as batch:
        decoded.clear()
        answers = finish(batch, *map(batch.join, requests))
    assert [answer.timing.reused_tokens for answer in answers] == [0, 100, 100, 100]
    # The common part, and of each prompt nine tokens, its last one, and all but one of its answer's.
    assert sum(decoded) == 100 + 4 * (9 + 1 + 5)
    for request, answer in zip(requests, answers, strict=True):
        assert_answers(keeping, request, answer)


def test_a_beginning_is_read_in_parts_before_it_is_shared(keeping: Model, decoded: list[int]) -> None:
    stem = random_tokens(300, seed=6)
    requests = [Request((*stem, *random_tokens(10, seed=seed)), None, GREEDY, 4) for seed in range(3)]
    with RunningBatch(keeping, parallel=4, n_ctx=512) as batch:
        writer = batch.join(Request(OTHER_PROMPT, None, GREEDY, 40))
        steps(batch, 2)
        decoded.clear()
        lanes = [*map(batch.join, requests), writer]
        answers = finish(batch, *lanes)
    assert [answer.timing.reused_tokens for answer in answers[:3]] == [0, 300, 300]
    # What the writer draws is run but for its last token.
    assert sum(decoded) == 300 + 3 * (9 + 1 + 3) + 39
    for request, answer in zip(requests, answers[:3], strict=True):
        assert_answers(keeping, request, answer)


def test_prompts_under_different_steering_do_not_wait_for_each_other(keeping: Model, decoded: list[int]) -> None:
    plans = [None, *(plan_of(random_edit(keeping, seed=seed), steer_prompt=True) for seed in (5, 6))]
    requests = [Request(random_tokens(80, seed=6), plan, GREEDY, 6) for plan in plans]
    with RunningBatch(keeping, parallel=3, n_ctx=128) as batch:
        decoded.clear()
        answers = finish(batch, *map(batch.join, requests))
    assert decoded == [3 * 79, *[3] * 6]
    for request, answer in zip(requests, answers, strict=True):
        assert_answers(keeping, request, answer)
        assert answer.timing.reused_tokens == 0


@pytest.mark.parametrize("common", [31, 32])
def test_a_prompt_waits_only_where_that_saves_much(tiny: Model, decoded: list[int], common: int) -> None:
    stem = random_tokens(common, seed=6)
    requests = [Request((*stem, *random_tokens(10, seed=seed)), None, GREEDY, 6) for seed in range(2)]
    with RunningBatch(tiny, parallel=2, n_ctx=128) as batch:
        decoded.clear()
        answers = finish(batch, *map(batch.join, requests))
    waited = common == 32
    assert decoded[0] == (common + 9) * (1 if waited else 2)
    assert answers[1].timing.reused_tokens == (common if waited else 0)
    for request, answer in zip(requests, answers, strict=True):
        assert_answers(tiny, request, answer)


def test_one_that_waits_goes_on_where_the_one_it_waits_for_is_given_up(keeping: Model) -> None:
    stem = random_tokens(300, seed=6)
    requests = [Request((*stem, *random_tokens(10, seed=seed)), None, GREEDY, 4) for seed in range(3)]
    with RunningBatch(keeping, parallel=4, n_ctx=512) as batch:
        batch.join(Request(OTHER_PROMPT, None, GREEDY, 40))
        steps(batch, 2)
        first, second, third = map(batch.join, requests)
        steps(batch, 1)
        batch.leave(first)
        batch.leave(second)  # one that waits may be given up as well
        answer = finish(batch, third)[0]
    assert first.end().tokens == second.end().tokens == ()
    assert 0 < answer.timing.reused_tokens < 300
    assert_answers(keeping, requests[2], answer)


def test_a_conversation_goes_on_where_it_is(keeping: Model) -> None:
    with RunningBatch(keeping, parallel=3, n_ctx=128) as batch:
        prompt = PROMPT
        for _ in range(3):
            request = Request(prompt, None, GREEDY, 8)
            answer = answered(batch, request)
            assert_answers(keeping, request, answer)
            # All of it, and nothing of it twice.
            assert batch.kept_tokens == len(prompt) + 7
            assert answer.timing.reused_tokens == (0 if prompt == PROMPT else len(prompt) - len(OTHER_PROMPT) - 1)
            prompt = (*prompt, *answer.tokens, *OTHER_PROMPT)


def test_one_that_merely_begins_alike_takes_nothing_from_a_conversation(keeping: Model) -> None:
    talk = Request(random_tokens(60, seed=6), None, GREEDY, 8)
    alike = Request((*talk.prompt[:20], *OTHER_PROMPT), None, GREEDY, 8)
    with RunningBatch(keeping, parallel=2, n_ctx=128) as batch:
        said = answered(batch, talk).tokens
        answer = answered(batch, alike)
        assert answer.timing.reused_tokens == 20
        assert_answers(keeping, alike, answer)
        for first, prompt in ((said, talk.prompt), (answer.tokens, alike.prompt)):
            follow_up = Request((*prompt, *first, *PROMPT), None, GREEDY, 8)
            second = answered(batch, follow_up)
            assert second.timing.reused_tokens == len(prompt) + 7
            assert_answers(keeping, follow_up, second)


def test_the_conversation_that_rested_longest_makes_room(tiny: Model) -> None:
    prompts = [random_tokens(40, seed=seed) for seed in range(4)]
    with RunningBatch(tiny, parallel=3, n_ctx=64, cache_ram=0) as batch:
        for number in (0, 1, 2, 0, 3):
            answered(batch, Request(prompts[number], None, GREEDY, 4))
        reused = [answered(batch, Request(prompts[number], None, GREEDY, 1)).timing.reused_tokens for number in (0, 2, 3, 1)]
    assert reused == [39, 39, 39, 0]


def test_nothing_of_a_rewound_answer_is_reused(keeping: Model) -> None:
    edit = random_edit(keeping, seed=5)
    request = Request(PROMPT, None, GREEDY, 12)
    with RunningBatch(keeping, parallel=2, n_ctx=128) as batch:
        first = finish(batch, batch.join(request, gate=Script(tokens={10: Verdict(edit, rewind=6)})))[0]
        follow_up = replace(request, prompt=(*PROMPT, *first.tokens, *OTHER_PROMPT))
        second = answered(batch, follow_up)
    # Three of the four tokens that were kept: the pass over the fourth was steered.
    assert second.timing.reused_tokens == len(PROMPT) + 3
    assert_answers(keeping, follow_up, second)


def test_a_recurrent_model_goes_on_only_from_where_it_is(tiny_model: TinyModel, decoded: list[int]) -> None:
    model = tiny_model("mamba")
    request, other = Request(PROMPT, None, GREEDY, 8), Request(OTHER_PROMPT, None, GREEDY, 8)
    with RunningBatch(model, parallel=2, n_ctx=128) as batch:
        first, second = finish(batch, batch.join(request), batch.join(other))
        decoded.clear()
        follow_ups = [
            replace(request, prompt=(*OTHER_PROMPT, *second.tokens, *PROMPT)),
            replace(request, prompt=(*PROMPT, *first.tokens, *OTHER_PROMPT)),
        ]
        answers = finish(batch, *map(batch.join, follow_ups))
        assert [answer.timing.reused_tokens for answer in answers] == [len(OTHER_PROMPT) + 7, len(PROMPT) + 7]
        assert sum(decoded) == sum(answer.timing.prompt_tokens for answer in answers) + 2 * 7
        again = answered(batch, request)
        assert again.timing.reused_tokens == 0
    for asked, answer in zip([request, other, *follow_ups, request], [first, second, *answers, again], strict=True):
        assert_answers(model, asked, answer)


# Gates


SCRIPTS: dict[str, Callable[[Edit, Edit], Script]] = {
    "reads the prompt": lambda a, b: Script(prompt_layers=(1,)),
    "steers after the prompt": lambda a, b: Script(a, prompt_layers=(0, 2)),
    "steers after a token": lambda a, b: Script(a, tokens={3: Verdict(b), 6: Verdict(None)}),
    "reads every block": lambda a, b: Script(output_layers=(0, 1, 2, 3), runs={5: Verdict(a)}),
    "runs a token again": lambda a, b: Script(output_layers=(3,), runs={2: Verdict(a, again=True), 5: Verdict(b, again=True)}),
    "takes tokens back": lambda a, b: Script(tokens={2: Verdict(a), 7: Verdict(b, rewind=4)}),
    "takes tokens back twice": lambda a, b: Script(b, tokens={6: Verdict(a, rewind=3), 5: Verdict(None, rewind=1)}),
    "takes run tokens back": lambda a, b: Script(output_layers=(1,), runs={7: Verdict(a, rewind=5)}, prompt_layers=(1,)),
    "takes everything back": lambda a, b: Script(tokens={5: Verdict(a, rewind=5)}),
    "takes the end back": lambda a, b: Script(a, ends=[Verdict(b, rewind=4)]),
    "stops after the prompt": lambda a, b: Script(prompt=Verdict(a, stop=True), prompt_layers=(1,)),
    "stops after a token": lambda a, b: Script(tokens={4: Verdict(a, stop=True)}, hold_back=2),
    "stops after a run": lambda a, b: Script(output_layers=(2,), runs={5: Verdict(a, stop=True)}),
    "takes back and stops": lambda a, b: Script(tokens={6: Verdict(a, stop=True, rewind=3)}),
}


def clearly_answered(
    model: Model, gate: Callable[[], Script], margins: list[float], *, anchored: bool
) -> tuple[Request, Script, Answer]:
    """A request whose every token is drawn so clearly that no rounding changes it, and what the Generator makes of it."""
    for seed in range(60):
        sampling = replace(GREEDY, top_k=0, top_p=1.0, min_p=MIN_P) if anchored else GREEDY
        request = Request(random_tokens(20, seed=seed), None, sampling, 8, mode="anchored" if anchored else "response")
        margins.clear()
        script = gate()
        with Generator(model) as generator:
            answer = generator.generate(request, gate=script)
        if min(margins, default=1) > LOGIT_NOISE:
            return request, script, answer
    raise AssertionError("no prompt is answered clearly")


def test_every_gate_does_in_company_what_it_does_alone(kind: Model, margins: list[float]) -> None:
    assert_each_gate_does_what_it_does_alone(kind, margins, anchored=False)


def test_every_gate_does_in_an_anchored_answer_what_it_does_alone(keeping: Model, margins: list[float]) -> None:
    assert_each_gate_does_what_it_does_alone(keeping, margins, anchored=True)


def assert_each_gate_does_what_it_does_alone(kind: Model, margins: list[float], *, anchored: bool) -> None:
    a, b = random_edit(kind, seed=5), random_edit(kind, seed=6)
    removing = Edit(np.zeros_like(a.added), {2: random_basis(kind, 8, seed=7)})
    expected = {name: clearly_answered(kind, partial(make, a, b), margins, anchored=anchored) for name, make in SCRIPTS.items()}
    neighbours = [Request(PROMPT, plan, GREEDY, 24) for plan in (None, plan_of(removing))]
    gates = {name: make(a, b) for name, make in SCRIPTS.items()}
    pieces: dict[str, list[str]] = {name: [] for name in SCRIPTS}
    with RunningBatch(kind, parallel=len(SCRIPTS) * (2 if anchored else 1) + 2, n_ctx=64) as batch:
        others = [batch.join(request) for request in neighbours]
        lanes = []
        for name, (request, _, _) in expected.items():
            lanes.append(batch.join(request, gate=gates[name], on_text=pieces[name].append))
            # Each is somewhere else in its answer.
            batch.step()
        finish_all(batch)
    for lane, (name, (_, script, answer)) in zip(lanes, expected.items(), strict=True):
        gate, found = gates[name], lane.end()
        assert (found.tokens, found.text, found.finish_reason) == (answer.tokens, answer.text, answer.finish_reason), name
        assert found.timing.answer_tokens == answer.timing.answer_tokens, name
        assert "".join(pieces[name]) == found.text, name
        assert (gate.drafts, gate.ends_seen) == (script.drafts, script.ends_seen), name
        assert gate.prompt_rows.keys() == script.prompt_rows.keys(), name
        for layer, row in gate.prompt_rows.items():
            np.testing.assert_allclose(row, script.prompt_rows[layer], atol=ROW_NOISE, err_msg=name)
        assert gate.rows.keys() == script.rows.keys(), name
        for position, rows in gate.rows.items():
            assert rows.keys() == script.rows[position].keys(), name
            for layer, row in rows.items():
                np.testing.assert_allclose(row, script.rows[position][layer], atol=ROW_NOISE, err_msg=name)
    for request, lane in zip(neighbours, others, strict=True):
        assert_answers(kind, request, lane.end())


def test_a_gate_reads_its_own_tokens_whatever_else_is_in_the_batch(steerable: Model) -> None:
    edit, layers = random_edit(steerable, seed=5), range(steerable.n_layer)
    reader = Script(edit, output_layers=layers, prompt_layers=(1,))
    other = Script(None, output_layers=(2, 3))
    with RunningBatch(steerable, parallel=4, n_ctx=512) as batch:
        lanes = [
            batch.join(Request(PROMPT, None, LIVELY, 12), gate=reader),
            batch.join(Request(OTHER_PROMPT, plan_of(random_edit(steerable, seed=6), steer_prompt=True), LIVELY, 12), gate=other),
        ]
        steps(batch, 6)
        # Read in parts while the others write, of the last block only the end of each part.
        batch.join(Request(random_tokens(400, seed=7), None, GREEDY, 12))
        answers = finish(batch, *lanes)
    first = len(PROMPT) - 1
    tokens = (*PROMPT, *answers[0].tokens)
    alone = run_alone(steerable, tokens, [edit if place >= first else None for place in range(len(tokens))])
    assert list(reader.rows) == list(range(1, 12))
    for position, rows in reader.rows.items():
        assert rows.keys() == set(layers)
        for layer, row in rows.items():
            np.testing.assert_allclose(row, alone.rows[layer][first + position], atol=ROW_NOISE)
    # Not even the last token of the prompt is steered when it is read.
    np.testing.assert_allclose(reader.prompt_rows[1], run_alone(steerable, PROMPT).rows[1][first], atol=ROW_NOISE)
    assert [rows.keys() for rows in other.rows.values()] == [{2, 3}] * 11


def test_each_gate_is_shown_the_mean_over_its_own_message(kind: Model) -> None:
    stem = random_tokens(150, seed=7)
    plan = plan_of(random_edit(kind, seed=5), steer_prompt=True)
    # Within the part that is shared, across parts, up to the last token, the last token only, and under steering.
    asked: list[tuple[tuple[int, ...], tuple[int, int] | None, Plan | None]] = [
        ((*stem, *PROMPT), (10, 20), None),
        ((*stem, *OTHER_PROMPT), (100, 160), None),
        ((*stem, *STEM), (155, 170), None),
        (PROMPT, None, None),
        ((*stem, *random_tokens(100, seed=8)), (5, 240), plan),
    ]
    requests = [Request(prompt, plan, GREEDY, 3, message=message) for prompt, message, plan in asked]
    gates = [Script(request.response_edit, prompt_layers=(number % 3,)) for number, request in enumerate(requests)]
    with RunningBatch(kind, parallel=6, n_ctx=512, cache_ram=0) as batch:
        answered(batch, Request((*stem, 65), None, GREEDY, 1))
        batch.join(Request(OTHER_PROMPT, None, GREEDY, 60))
        steps(batch, 2)
        answers = finish(batch, *[batch.join(request, gate=gate) for request, gate in zip(requests, gates, strict=True)])
    for number, (request, gate, answer) in enumerate(zip(requests, gates, answers, strict=True)):
        alone = run_alone(kind, request.prompt, [request.prompt_edit] * len(request.prompt))
        assert gate.prompt_rows.keys() == {number % 3}
        expected = alone.rows[number % 3][slice(*request.read)].mean(axis=0)
        np.testing.assert_allclose(gate.prompt_rows[number % 3], expected, atol=ROW_NOISE)
        assert_answers(kind, request, answer)
        # What a gate reads is run anew each time.
        assert answer.timing.reused_tokens <= request.read[0]
    if kind.sequences_share_tokens:
        assert [answer.timing.reused_tokens for answer in answers[:2]] == [10, 100]
        assert answers[2].timing.reused_tokens > 100


def test_a_recurrent_model_takes_tokens_back_by_running_what_is_kept_again(tiny_model: TinyModel) -> None:
    model = tiny_model("mamba")
    a, b, c = (random_edit(model, seed=seed, norm=6.0) for seed in (5, 6, 7))
    staying = Request(OTHER_PROMPT, plan_of(c), GREEDY, 40)
    request = Request(PROMPT, plan_of(a, steer_prompt=True), GREEDY, 14)
    gate = Script(a, tokens={3: Verdict(b), 6: Verdict(None), 9: Verdict(c, rewind=2)})
    with RunningBatch(model, parallel=2, n_ctx=128) as batch:
        lane = batch.join(staying)
        steps(batch, 4)
        taken = batch.join(request, gate=gate)
        staid, answer = finish(batch, lane, taken)
    assert gate.drafts[8][:7] == answer.tokens[:7]
    assert (len(answer.tokens), answer.timing.answer_tokens) == (14, 16)
    # What is kept was under three steerings, and is so again; its last token, the seventh, is run under the fourth.
    edits = [*[a] * (len(PROMPT) + 2), *[b] * 3, None, *[c] * 8]
    assert_greedy_under(model, PROMPT, answer.tokens, edits)
    assert_answers(model, staying, staid)


# Anchored


def anchored_request(model: Model, prompt: tuple[int, ...] = PROMPT, max_tokens: int = 12, *, seed: int = 5) -> Request:
    sampling = replace(GREEDY, top_k=0, top_p=1.0, min_p=MIN_P)
    return Request(prompt, plan_of(random_edit(model, seed=seed, norm=8.0), mode="anchored"), sampling, max_tokens)


def test_anchored_answers_are_those_of_each_alone_also_among_others(keeping: Model, margins: list[float]) -> None:
    requests = [
        anchored_request(keeping, prompt, seed=5 + number) for number, prompt in enumerate((PROMPT, PROMPT, OTHER_PROMPT))
    ]
    plain = [in_mode(request, "response") for request in requests]
    clear = set()
    with Generator(keeping) as generator:
        alone = []
        for number, request in enumerate(requests):
            margins.clear()
            alone.append(generator.generate(request))
            if min(margins) > LOGIT_NOISE:
                clear.add(number)
    assert clear, "rounding may change every answer"
    with RunningBatch(keeping, parallel=9, n_ctx=64) as batch:
        lanes = []
        for pair in zip(requests, plain, strict=True):
            lanes += [batch.join(request) for request in pair]
            steps(batch, 2)
        assert batch.places == 0
        answers = finish(batch, *lanes)
        assert batch.places == 9
    for number, (request, answer, other) in enumerate(zip(requests, answers[::2], answers[1::2], strict=True)):
        assert len(answer.tokens) == request.max_tokens
        assert_anchored(keeping, request, answer.tokens)
        assert_answers(keeping, plain[number], other)
        # The unsteered model's word counts.
        assert answer.tokens != other.tokens
        if number in clear:
            assert answer.tokens == alone[number].tokens


def test_an_anchored_answer_takes_a_second_place_where_it_may_be_steered(tiny: Model) -> None:
    request = anchored_request(tiny)
    edit = random_edit(tiny, seed=6)
    unsteered = replace(request, plan=None)
    with RunningBatch(tiny, parallel=4, n_ctx=64) as batch:
        assert places_for(request) == places_for(unsteered, Script(tokens={3: Verdict(edit)})) == 2
        assert places_for(unsteered) == places_for(request, Script()) == places_for(in_mode(request, "response")) == 1
        first = batch.join(request)
        assert batch.places == 2
        steps(batch, 3)
        second, third = batch.join(unsteered), batch.join(in_mode(request, "response"))
        assert batch.places == 0
        batch.leave(second)
        assert batch.places == 1
        with pytest.raises(ValueError, match="no place"):
            batch.join(request)
        batch.leave(first)
        assert batch.places == 3
        fourth = batch.join(replace(request, prompt=OTHER_PROMPT))
        answers = finish(batch, third, fourth)
        assert batch.places == 4
    assert_answers(tiny, in_mode(request, "response"), answers[0])
    assert_anchored(tiny, replace(request, prompt=OTHER_PROMPT), answers[1].tokens)


def test_the_unsteered_model_reads_nothing_twice(keeping: Model, decoded: list[int]) -> None:
    request = anchored_request(keeping, max_tokens=8)
    late = replace(request, plan=None)
    with RunningBatch(keeping, parallel=2, n_ctx=128) as batch:
        decoded.clear()
        answered(batch, request)
        assert decoded == [len(PROMPT) - 1, *[2] * 8]
        decoded.clear()
        # Until something is steered there is nothing to read along.
        finish(
            batch, batch.join(replace(late, prompt=OTHER_PROMPT), gate=Script(tokens={4: Verdict(random_edit(keeping, seed=6))}))
        )
        assert decoded == [len(OTHER_PROMPT) - 1, *[1] * 4, *[2] * 4]


def test_the_next_turn_goes_on_where_the_unsteered_model_read(keeping: Model) -> None:
    request = anchored_request(keeping, max_tokens=8)
    with RunningBatch(keeping, parallel=2, n_ctx=128) as batch:
        said = answered(batch, request).tokens
        assert batch.kept_tokens == 2 * (len(PROMPT) + 7)
        follow_up = replace(request, prompt=(*PROMPT, *said, *OTHER_PROMPT))
        answer = answered(batch, follow_up)
    assert answer.timing.reused_tokens == len(PROMPT) + 7
    assert_anchored(keeping, follow_up, answer.tokens)


def test_what_is_taken_back_is_taken_from_the_unsteered_model_too(keeping: Model) -> None:
    a, b = random_edit(keeping, seed=5), random_edit(keeping, seed=6)
    request = replace(anchored_request(keeping), plan=None)
    staying = anchored_request(keeping, OTHER_PROMPT, 20, seed=7)
    # Steered from the third token on; from the ninth back to the sixth; and once more before anything was steered.
    scripts = [
        (Script(tokens={3: Verdict(a), 9: Verdict(b, rewind=3)}), [*[None] * 3, *[a] * 3, *[b] * 7]),
        (Script(tokens={3: Verdict(a), 6: Verdict(b, rewind=5)}), [*[None] * 1, *[b] * 12]),
    ]
    for script, of_answer in scripts:
        with RunningBatch(keeping, parallel=4, n_ctx=64) as batch:
            answers = finish(batch, batch.join(staying), batch.join(request, gate=script))
        assert_anchored(keeping, staying, answers[0].tokens)
        assert len(answers[1].tokens) == 12
        assert_anchored(keeping, request, answers[1].tokens, [*[None] * (len(PROMPT) - 1), *of_answer])


def test_an_anchored_answer_fills_its_context(keeping: Model) -> None:
    with RunningBatch(keeping, parallel=4, n_ctx=64) as batch:
        for seed in range(3):
            requests = [anchored_request(keeping, random_tokens(50, seed=10 * seed + number), 1000) for number in range(2)]
            for request, answer in zip(requests, finish(batch, *map(batch.join, requests)), strict=True):
                assert (len(answer.tokens), answer.finish_reason) == (64 - 50 + 1, "length")
                assert_anchored(keeping, request, answer.tokens)
        assert batch.kept_tokens == 4 * 64


def test_an_anchored_answer_that_cannot_be_had_is_refused(
    tiny: Model, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(model: Model, parallel: int, message: str) -> None:
        request = anchored_request(model)
        with RunningBatch(model, parallel=parallel, n_ctx=64) as batch:
            for refuse in (batch.check, batch.join):
                with pytest.raises(LocalsteerError, match=message):
                    refuse(request)
            assert batch.places == parallel
            # Where nothing is steered there is nothing to anchor.
            unsteered = replace(request, plan=None)
            assert_answers(model, unsteered, answered(batch, unsteered))

    refused(tiny, 1, "takes two places.*--parallel 2")
    refused(tiny_model("mamba"), 2, "is recurrent, and cannot anchor")
    monkeypatch.setattr(checks, "steerability", lambda model: Steerability(False, True, "its blocks are hidden"))
    refused(tiny, 2, "its blocks are hidden")


# Long prompts


def test_a_prompt_is_read_in_small_parts_while_others_write(long_model: Model, decoded: list[int]) -> None:
    edit = random_edit(long_model, seed=5)
    writing = [Request(prompt, plan_of(edit), GREEDY, 40) for prompt in (PROMPT, OTHER_PROMPT)]
    reading = [Request(random_tokens(600, seed=seed), plan_of(edit, steer_prompt=True), GREEDY, 12) for seed in (6, 7)]
    with RunningBatch(long_model, parallel=4, n_ctx=1024) as batch:
        writers = [batch.join(request) for request in writing]
        steps(batch, 3)
        decoded.clear()
        readers = [batch.join(request) for request in reading]
        while not all(reader.answering.draft.tokens for reader in readers):
            before = [len(lane.answering.draft.tokens) for lane in writers]
            steps(batch, 1)
            # Nobody misses a step.
            assert [len(lane.answering.draft.tokens) for lane in writers] == [count + 1 for count in before]
        assert max(decoded) <= 3 + 128
        # And none of what there is room for is wasted.
        assert len(decoded) <= 2 * 600 // 128 + 3
        answers = finish(batch, *readers, *writers)
    for request, answer in zip([*reading, *writing], answers, strict=True):
        assert_answers(long_model, request, answer)


def test_a_prompt_is_read_in_large_parts_where_nobody_waits(long_model: Model, decoded: list[int]) -> None:
    edit = random_edit(long_model, seed=5)
    requests = [Request(random_tokens(600, seed=seed), plan_of(edit), GREEDY, 4) for seed in (6, 7)]
    with RunningBatch(long_model, parallel=2, n_ctx=1024) as batch:
        decoded.clear()
        alone = answered(batch, requests[0])
        assert decoded == [512, 87, *[1] * 4]
        decoded.clear()
        lanes = [batch.join(replace(request, prompt=request.prompt[::-1])) for request in requests]
        together = finish(batch, *lanes)
        assert decoded[0] == 512
        assert sum(decoded) == 2 * (600 + 3)
    assert_answers(long_model, requests[0], alone)
    for request, answer in zip(requests, together, strict=True):
        assert_answers(long_model, replace(request, prompt=request.prompt[::-1]), answer)


def test_a_recurrent_model_reads_and_writes_in_turns(tiny_model: TinyModel, decoded: list[int]) -> None:
    model = tiny_model("mamba")
    writing = Request(PROMPT, plan_of(random_edit(model, seed=5)), GREEDY, 40)
    reading = [Request(random_tokens(400, seed=seed), None, GREEDY, 12) for seed in (6, 7)]
    with RunningBatch(model, parallel=3, n_ctx=512) as batch:
        writer = batch.join(writing)
        steps(batch, 3)
        decoded.clear()
        readers = [batch.join(request) for request in reading]
        while not all(reader.answering.draft.tokens for reader in readers):
            before = len(writer.answering.draft.tokens)
            steps(batch, 2)
            # Nobody waits for more than one part.
            assert len(writer.answering.draft.tokens) > before
        assert max(decoded) <= 128
        answers = finish(batch, *readers, writer)
        decoded.clear()
        assert_answers(model, reading[0], answered(batch, reading[0]))
        assert decoded[0] == 399
    for request, answer in zip([*reading, writing], answers, strict=True):
        assert_answers(model, request, answer)


# What fails


class MistakeError(Exception):
    """Made for a test."""


def make_a_mistake(*_: object, **__: object) -> None:
    raise MistakeError("a mistake")


@pytest.mark.parametrize("where", ["after_prompt", "after_token", "after_run", "on_text"])
def test_a_mistake_in_one_lane_ends_that_answer_only(tiny: Model, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(random_edit(tiny, seed=5))
    staying = [Request(prompt, each, GREEDY, 20) for prompt, each in ((PROMPT, plan), (OTHER_PROMPT, None))]
    failing = Request(STEM, None, GREEDY, 20)
    gate = Script(prompt_layers=(1,), output_layers=(1,))
    if where != "on_text":
        monkeypatch.setattr(gate, where, make_a_mistake)
    with RunningBatch(tiny, parallel=3, n_ctx=64) as batch:
        first = batch.join(staying[0])
        steps(batch, 3)
        lane = batch.join(failing, gate=gate, on_text=make_a_mistake if where == "on_text" else None)
        second = batch.join(staying[1])
        with pytest.raises(MistakeError):
            finish(batch, lane)
        assert isinstance(lane.error, MistakeError)
        assert batch.places == 1
        # Its place is as good as any other.
        again = batch.join(failing)
        answers = finish(batch, first, second, again)
    for request, answer in zip((*staying, failing), answers, strict=True):
        assert_answers(tiny, request, answer)


def test_a_grammar_that_becomes_too_much_ends_its_answer_only(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, accepted = Matcher.accept, itertools.count()

    def accept_three(matcher: Matcher, token: int) -> None:
        if next(accepted) == 3:
            raise ModelError("The grammar is too much.")
        accept(matcher, token)

    request = Request(PROMPT, None, GREEDY, 12)
    failing = Request(OTHER_PROMPT, None, GREEDY, 12, grammar=Grammar(tiny, "start: /[a-z]{9}/"))
    monkeypatch.setattr(Matcher, "accept", accept_three)
    with RunningBatch(tiny, parallel=2, n_ctx=64) as batch:
        lane, failed = batch.join(request), batch.join(failing)
        with pytest.raises(ModelError, match="too much"):
            finish(batch, failed)
        assert_answers(tiny, request, finish(batch, lane)[0])


FAILURES = [(ModelError("out of luck"), False), (ValueError("out of luck"), True)]
"""What a decode fails with, and whether its tokens are in the KV cache then."""


def failing_while(monkeypatch: pytest.MonkeyPatch, error: Exception, run: bool, fails: Callable[[Batch], bool]) -> None:
    decode = Context.decode

    def decode_or_fail(self: Context, batch: Batch) -> None:
        failing = fails(batch)
        if run or not failing:
            decode(self, batch)
        if failing:
            raise error

    monkeypatch.setattr(Context, "decode", decode_or_fail)


@pytest.mark.parametrize(("error", "run"), FAILURES)
def test_a_decode_that_fails_once_is_tried_again_answer_by_answer(
    kind: Model, error: Exception, run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(random_edit(kind, seed=5))
    requests = [Request(PROMPT, plan, GREEDY, 12), Request(OTHER_PROMPT, None, GREEDY, 12)]
    with RunningBatch(kind, parallel=2, n_ctx=64) as batch:
        lanes = [batch.join(request) for request in requests]
        steps(batch, 6)
        left = iter([True])
        failing_while(monkeypatch, error, run, lambda _batch: next(left, False))
        answers = finish(batch, *lanes)
    for request, answer in zip(requests, answers, strict=True):
        assert_answers(kind, request, answer)


@pytest.mark.parametrize(("error", "run"), FAILURES)
def test_an_answer_whose_decode_fails_ends_alone_and_nothing_of_it_is_used_again(
    kind: Model, error: Exception, run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, going = Request(PROMPT, None, GREEDY, 12), Request(OTHER_PROMPT, None, GREEDY, 12)
    with RunningBatch(kind, parallel=2, n_ctx=64) as batch:
        lane, other = batch.join(failing), batch.join(going)
        steps(batch, 6)
        with monkeypatch.context() as patch:
            failing_while(patch, error, run, lambda one: lane.begun.sequence in one.sequence_ids)
            while lane not in batch.step():
                pass
        with pytest.raises(type(error), match="out of luck"):
            lane.end()
        assert batch.places == 1
        assert_answers(kind, going, finish(batch, other)[0])
        again = answered(batch, failing)
    assert again.timing.reused_tokens == 0
    assert_answers(kind, failing, again)


# What is refused


def test_a_prompt_that_cannot_be_answered_is_refused(tiny: Model) -> None:
    with RunningBatch(tiny, parallel=2, n_ctx=100) as batch:
        for prompt, message in (
            ((), "prompt is empty"),
            (random_tokens(100, seed=6), r"prompt has 100 tokens, and the context holds 100\..*--context"),
        ):
            for refuse in (batch.check, batch.join):
                with pytest.raises(LocalsteerError, match=message):
                    refuse(Request(prompt))
        assert batch.places == 2
        assert len(answered(batch, Request(random_tokens(99, seed=6), None, GREEDY, 10)).tokens) == 2


def test_answers_have_as_much_context_as_a_generator_gives_them(tiny: Model) -> None:
    with RunningBatch(tiny, parallel=2) as batch, Generator(tiny) as generator:
        assert batch.n_ctx == generator.n_ctx == 512
    with RunningBatch(tiny, parallel=1, n_ctx=64) as batch:
        assert batch.n_ctx == 64


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model shows its blocks; llama.cpp's own control vector works."""
    for module in (checks, running_batch):
        monkeypatch.setattr(module, "steerability", lambda _model: Steerability(False, True, "its blocks are hidden"))


@pytest.mark.usefixtures("hidden")
def test_steering_that_a_model_does_not_allow_is_refused(tiny: Model) -> None:
    edit = random_edit(tiny, seed=5)
    removal = Edit(np.zeros_like(edit.rows), {1: random_basis(tiny, 8, seed=1)})
    plain = Request(PROMPT, None, GREEDY, 8)
    refused: list[tuple[Request, Script | None]] = [
        (replace(plain, plan=plan_of(removal)), None),
        (plain, Script(prompt_layers=(1,))),
        (plain, Script(output_layers=(1,))),
        (plain, Script(tokens={7: Verdict(removal)})),
        (in_mode(replace(plain, plan=plan_of(edit), sampling=LIVELY), "anchored"), None),
    ]
    with RunningBatch(tiny, parallel=2, n_ctx=64) as batch:
        for request, gate in refused:
            for refuse in (batch.check, batch.join):
                with pytest.raises(ModelError, match=r"tiny \(architecture llama\).*its blocks are hidden.*localsteer doctor"):
                    refuse(request, gate=gate)
        assert batch.places == 2


@pytest.mark.usefixtures("hidden")
def test_a_model_that_takes_one_steering_a_decode_answers_each_under_its_own(tiny: Model) -> None:
    plans = [None, *(plan_of(random_edit(tiny, seed=seed, norm=6.0), steer_prompt=seed == 6) for seed in (5, 6))]
    requests = [Request(prompt, plan, GREEDY, 8) for prompt, plan in zip(PROMPTS[:3], plans, strict=True)]
    with RunningBatch(tiny, parallel=3, n_ctx=64) as batch:
        for request, answer in zip(requests, finish(batch, *map(batch.join, requests)), strict=True):
            assert_answers(tiny, request, answer)


def test_a_model_that_cannot_be_steered_answers_without(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    # The first one ends first: llama.cpp cannot run the two that are left together.
    requests = [Request(prompt, None, GREEDY, max_tokens) for prompt, max_tokens in zip(PROMPTS, (4, 9, 8, 7, 6), strict=True)]
    with RunningBatch(model, parallel=3, n_ctx=128) as batch:
        with pytest.raises(ModelError, match=r"architecture plamo2\) cannot be steered"):
            batch.join(replace(requests[0], plan=plan_of(random_edit(model, seed=5))))
        answers = finish(batch, *map(batch.join, requests[:3]))
        answers += finish(batch, *map(batch.join, requests[3:]))
    for request, answer in zip(requests, answers, strict=True):
        assert_answers(model, request, answer)


# A context that is full


def test_an_answer_ends_where_its_context_is_full(kind: Model) -> None:
    with RunningBatch(kind, parallel=3, n_ctx=90) as batch:
        # What was kept of earlier answers makes room for later ones, also what they share.
        for seed in range(3):
            stem = random_tokens(60, seed=seed)
            requests = [Request((*stem, *random_tokens(20, seed=10 + number)), None, GREEDY, 1000) for number in range(2)]
            requests.append(Request(random_tokens(80, seed=20 + seed), plan_of(random_edit(kind, seed=5)), GREEDY, 1000))
            answers = finish(batch, *map(batch.join, requests))
            for request, answer in zip(requests, answers, strict=True):
                # The last token is drawn from a full cache.
                assert (len(answer.tokens), answer.finish_reason) == (90 - 80 + 1, "length")
                assert_greedy(kind, request.prompt, answer.tokens, request.response_edit)
            assert batch.kept_tokens == 3 * 90


def test_what_is_taken_back_from_a_full_context_is_written_anew(tiny: Model) -> None:
    edit = random_edit(tiny, seed=5)
    gate = Script(ends=[Verdict(edit, rewind=9)])
    with RunningBatch(tiny, parallel=1, n_ctx=64) as batch:
        answer = finish(batch, batch.join(Request(PROMPT, None, GREEDY, 1000), gate=gate))[0]
    assert (len(answer.tokens), answer.finish_reason, gate.ends_seen) == (64 - 30 + 1, "length", 2)
    edits = [*[None] * (30 - 1 + 35 - 9), *[edit] * 10]
    assert_greedy_under(tiny, PROMPT, answer.tokens, edits)
