from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from localsteer.engine import generate as generation
from localsteer.engine.generate import Generator, generate_many
from localsteer.engine.request import Request
from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.llama.sampling import Sampling
from tests.conftest import (
    LOGIT_NOISE,
    TinyModel,
    TinyPath,
    assert_greedy,
    plan_of,
    random_basis,
    random_edit,
    random_rows,
    random_tokens,
)
from tests.tiny_models import SPECIAL_TOKENS, VOCABULARY, write_tiny_model

GREEDY = Sampling(temperature=0)
LIVELY = Sampling(temperature=1.5, seed=7)
STEM = random_tokens(20, seed=1)
# One goes on from another, one parts from it, one is short, one is of its own.
PROMPTS = ((*STEM, *random_tokens(9, seed=2)), STEM, (*STEM[:7], *random_tokens(15, seed=3)), (65,), random_tokens(40, seed=4))


@pytest.mark.parametrize("prompts", [[STEM] * 4, PROMPTS[:4], PROMPTS[1:]], ids=["one", "shared", "short"])
def test_four_strengths_in_one_batch_answer_as_each_alone(steerable: Model, prompts: list[tuple[int, ...]]) -> None:
    direction = random_rows(steerable, range(1, steerable.n_layer), seed=5)
    edits = [Edit(direction * np.float32(strength)) for strength in (-2.0, -1.0, 1.0, 2.0)]
    # The first ones end first, and the others go on under their own steering.
    lengths = (4, 6, 8, 10)
    requests = [
        Request(prompt, plan_of(edit), GREEDY, length) for prompt, edit, length in zip(prompts, edits, lengths, strict=True)
    ]
    answers = generate_many(steerable, requests)
    assert len({answer.tokens[:4] for answer in answers}) > 2
    for request, edit, answer in zip(requests, edits, answers, strict=True):
        assert len(answer.tokens) == request.max_tokens
        assert_greedy(steerable, request.prompt, answer.tokens, edit)


def test_every_way_of_steering_may_be_in_one_batch(steerable: Model) -> None:
    added = random_edit(steerable, seed=5, norm=6.0)
    removed = Edit(np.zeros_like(added.added), {2: random_basis(steerable, 8, seed=6)})
    requests = [
        Request(prompt, None if edit is None else plan_of(edit, steer_prompt=steer_prompt), GREEDY, 10)
        for prompt in (STEM, PROMPTS[0])
        for edit in (None, added, removed)
        for steer_prompt in (False, True)
    ]
    answers = generate_many(steerable, requests)
    for request, answer in zip(requests, answers, strict=True):
        assert_greedy(
            steerable, request.prompt, answer.tokens, request.response_edit, steer_prompt=request.prompt_edit is not None
        )
    assert len({answer.tokens for answer in answers[:6:2]}) == 3


@pytest.mark.parametrize("steer_prompt", [False, True])
def test_one_steering_for_all_answers_as_each_alone(steerable: Model, steer_prompt: bool) -> None:
    plan = plan_of(random_edit(steerable, seed=5), steer_prompt=steer_prompt)
    requests = [Request(prompt, plan, GREEDY, 10) for prompt in PROMPTS]
    for request, answer in zip(requests, generate_many(steerable, requests), strict=True):
        assert_greedy(steerable, request.prompt, answer.tokens, plan.edit, steer_prompt=steer_prompt)


def test_unsteered_answers_are_those_of_each_alone(steerable: Model) -> None:
    requests = [Request(prompt, None, GREEDY, 10) for prompt in (*PROMPTS, STEM)]
    answers = generate_many(steerable, requests)
    for request, answer in zip(requests, answers, strict=True):
        assert_greedy(steerable, request.prompt, answer.tokens)


def test_where_llama_cpp_ignores_control_vectors_answers_are_steered_all_the_same(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "set_control_vector", lambda self, added: None)
    with Model(tiny_path("llama"), threads=1) as model:
        edit = random_edit(model, seed=5)
        requests = [Request(prompt, plan_of(edit), GREEDY, 10) for prompt in PROMPTS]
        for request, answer in zip(requests, generate_many(model, requests), strict=True):
            assert_greedy(model, request.prompt, answer.tokens, edit)


def test_long_prompts_are_read_in_parts(tiny: Model) -> None:
    stem = random_tokens(300, seed=6)
    edit = random_edit(tiny, seed=5)
    for steer_prompt in (False, True):
        requests = [
            Request((*stem, *random_tokens(150, seed=seed)), plan_of(edit, steer_prompt=steer_prompt), GREEDY, 5)
            for seed in range(2)
        ]
        answers = generate_many(tiny, [*requests, Request(STEM, None, GREEDY, 5)])
        for request, answer in zip(requests, answers[:2], strict=True):
            assert_greedy(tiny, request.prompt, answer.tokens, edit, steer_prompt=steer_prompt)
        assert_greedy(tiny, STEM, answers[2].tokens)
        # What the second one shares with the first is not read again.
        timings = [(answer.timing.reused_tokens, answer.timing.prompt_tokens) for answer in answers]
        assert timings == [(0, 450), (300, 150), (0, len(STEM))]


def test_more_requests_than_fit_one_batch_keep_their_order(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MAX_PARALLEL", 3)
    told: list[tuple[int, int]] = []
    requests = [Request(random_tokens(10, seed=seed), None, GREEDY, max_tokens=2 + seed % 3) for seed in range(7)]
    answers = generate_many(tiny, requests, on_progress=lambda done, total: told.append((done, total)))
    for request, answer in zip(requests, answers, strict=True):
        assert len(answer.tokens) == request.max_tokens
        assert_greedy(tiny, request.prompt, answer.tokens)
    assert told == [(done, 7) for done in range(1, 8)]


def test_no_requests_have_no_answers(tiny: Model) -> None:
    assert generate_many(tiny, []) == []


# Seeds


def test_the_same_seeds_give_the_same_texts(tiny: Model) -> None:
    requests = [Request(STEM, None, replace(LIVELY, seed=seed), 12) for seed in (1, 2, 1, None)]
    first = generate_many(tiny, requests)
    assert first[0].tokens == first[2].tokens
    assert len({answer.tokens for answer in first}) == 3
    assert [answer.seed for answer in first[:3]] == [1, 2, 1]
    again = generate_many(
        tiny,
        [replace(request, sampling=replace(LIVELY, seed=answer.seed)) for request, answer in zip(requests, first, strict=True)],
    )
    assert [answer.tokens for answer in again] == [answer.tokens for answer in first]


# The end of an answer


def test_each_answer_ends_by_its_own_rules(tiny: Model) -> None:
    whole = generate_many(tiny, [Request(STEM, None, GREEDY, 30)] * 3)[1]
    letters = [number for number, token in enumerate(whole.tokens) if 32 <= token < 127]
    at = next(number for number in letters if number >= 3)
    stop = chr(whole.tokens[at])
    requests = [
        Request(STEM, None, GREEDY, 30),
        Request(STEM, None, GREEDY, 30, stop=(stop,)),
        Request(STEM, None, GREEDY, 1),
    ]
    full, stopped, single = generate_many(tiny, requests)
    assert (full.finish_reason, full.tokens, full.text) == ("length", whole.tokens, tiny.detokenize(list(whole.tokens)))
    assert (stopped.finish_reason, stopped.tokens) == ("stop", whole.tokens[: whole.tokens.index(ord(stop)) + 1])
    assert stopped.text == whole.text.partition(stop)[0]
    assert (single.finish_reason, single.tokens) == ("length", whole.tokens[:1])


def test_an_answer_ends_where_the_model_ends_it(tmp_path: Path) -> None:
    # One number of the stream decides about the end-of-turn token, and steering sets it.
    path = write_tiny_model(tmp_path / "ending.gguf")
    output = next(tensor.data for tensor in GGUFReader(path, "r+").tensors if tensor.name == "output.weight")
    output[VOCABULARY.index(SPECIAL_TOKENS[-1]), 5] = 4.0
    added = np.zeros((4, 64), np.float32)
    added[3, 5] = 1000.0
    with Model(path, threads=1) as model:
        requests = [Request(STEM, None, GREEDY, 12), Request(STEM, plan_of(Edit(added)), GREEDY, 12)]
        going, ended = generate_many(model, requests)
    assert (len(going.tokens), going.finish_reason) == (12, "length")
    assert (ended.text, ended.tokens, ended.finish_reason) == ("", (), "stop")


def test_no_tokens_are_drawn_where_none_are_wanted(tiny: Model) -> None:
    request = Request(STEM, None, GREEDY, max_tokens=0)
    with Generator(tiny) as generator:
        assert generate_many(tiny, [request])[0].tokens == generator.generate(request).tokens == ()


# What cannot be done


def test_an_empty_prompt_is_an_error(tiny: Model) -> None:
    with pytest.raises(LocalsteerError, match="prompt is empty"):
        generate_many(tiny, [Request(STEM), Request(())])


def test_a_model_that_cannot_be_steered_says_so_and_answers_without(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    plain = [Request(prompt, None, GREEDY, 8) for prompt in PROMPTS]
    for request, answer in zip(plain, generate_many(model, plain), strict=True):
        assert_greedy(model, request.prompt, answer.tokens)
    with pytest.raises(ModelError, match=r"architecture plamo2\) cannot be steered"):
        generate_many(model, [plain[0], Request(STEM, plan_of(random_edit(model, seed=5)))])


def test_answers_in_the_middle_of_a_batch_may_end_first(steerable: Model) -> None:
    direction = random_rows(steerable, range(1, steerable.n_layer), seed=5)
    edits = [Edit(direction * np.float32(strength)) for strength in (-2.0, -1.0, 1.0, 2.0)]
    lengths = (10, 3, 5, 9)
    requests = [Request(STEM, plan_of(edit), GREEDY, length) for edit, length in zip(edits, lengths, strict=True)]
    for request, edit, answer in zip(requests, edits, generate_many(steerable, requests), strict=True):
        assert len(answer.tokens) == request.max_tokens
        assert_greedy(steerable, request.prompt, answer.tokens, edit)


def test_log_probabilities_are_those_of_each_alone(tiny: Model) -> None:
    requests = [Request(prompt, None, GREEDY, 6, logprobs=2) for prompt in PROMPTS[:3]]
    for request, answer in zip(requests, generate_many(tiny, requests), strict=True):
        with Generator(tiny) as generator:
            alone = generator.generate(request)
        assert [one.token for one in answer.logprobs] == list(answer.tokens)
        assert answer.tokens == alone.tokens
        for one, other in zip(answer.logprobs, alone.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=LOGIT_NOISE)
            assert len(one.likeliest) == 2
            assert one.likeliest[0] == (one.token, one.logprob)  # greedy


def test_anchored_answers_beside_others_are_those_of_each_alone(tiny: Model) -> None:
    lively = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.2)
    edits = [random_edit(tiny, seed=5, norm=3.0), None, random_edit(tiny, seed=6, norm=3.0)]
    requests = [
        Request(
            PROMPTS[number % 3],
            None if edit is None else plan_of(edit, mode="anchored" if anchored else "response"),
            replace(lively, seed=number),
            8 + number,
            mode="anchored" if anchored else "response",
        )
        for number, (edit, anchored) in enumerate((edit, anchored) for edit in edits for anchored in (True, False))
    ]
    answers = generate_many(tiny, requests)
    with Generator(tiny) as generator:
        for request, answer in zip(requests, answers, strict=True):
            assert answer.tokens == generator.generate(request).tokens
    assert answers[0].tokens != answers[1].tokens


def test_a_context_is_tapped_only_where_something_is_steered(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tapped one is asked about every node of the graph, at every token."""
    taps, make = list[bool](), Context.__init__

    def remember(self: Context, model: Model, *, tap: ResidualTap | None = None, **settings: int) -> None:
        taps.append(tap is not None)
        make(self, model, tap=tap, **settings)

    monkeypatch.setattr(Context, "__init__", remember)
    for plan, is_tapped in ((None, False), (plan_of(random_edit(tiny, seed=5)), True)):
        taps.clear()
        generate_many(tiny, [Request(prompt, plan, GREEDY, 2) for prompt in PROMPTS[:2]])
        assert any(taps) is is_tapped
