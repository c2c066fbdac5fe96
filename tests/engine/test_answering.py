"""What is the same whether an answer is written by itself or next to others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from localsteer.engine.answering import Answering
from localsteer.engine.batch import RunningBatch
from localsteer.engine.gate import Gate, Verdict
from localsteer.engine.generate import Generator
from localsteer.engine.request import Answer, Request
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from tests.conftest import LOGIT_NOISE, TinyModel, plan_of, random_basis, random_edit, random_tokens, run_alone
from tests.script import Script
from tests.tiny_models import SPECIAL_TOKENS, VOCABULARY, write_tiny_model

GREEDY = Sampling(temperature=0)
LIVELY = Sampling(temperature=1.5, seed=7)
PROMPT = random_tokens(30, seed=1)
OTHER_PROMPT = random_tokens(25, seed=2)
END = VOCABULARY.index(SPECIAL_TOKENS[-1])

Way = Callable[[Model, Request, Gate | None], Answer]


def by_itself(model: Model, request: Request, gate: Gate | None = None) -> Answer:
    with Generator(model) as generator:
        return generator.generate(request, gate=gate)


def next_to_others(model: Model, request: Request, gate: Gate | None = None) -> Answer:
    others = [Request(OTHER_PROMPT, plan, GREEDY, 100) for plan in (None, plan_of(random_edit(model, seed=9)))]
    with RunningBatch(model, parallel=3, n_ctx=256) as batch:
        for other in others:
            batch.join(other)
            batch.step()
        lane = batch.join(request, gate=gate)
        for _ in range(100):
            if lane in batch.step():
                return lane.end()
    raise AssertionError("it has no end")


@pytest.fixture(params=[by_itself, next_to_others])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture(params=["llama", "gemma3", "mamba"])
def kind(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    return tiny_model(request.param)


def assert_logprobs(model: Model, request: Request, answer: Answer, edits: Sequence[Edit | None]) -> None:
    """They are those of a context that runs the prompt and the answer at once, each token under its own steering."""
    tokens = (*request.prompt, *answer.tokens)
    logits = run_alone(model, tokens, edits, read=False).logits[len(request.prompt) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert request.logprobs is not None
    assert [one.token for one in answer.logprobs] == list(answer.tokens)
    for row, one in zip(expected, answer.logprobs, strict=True):
        assert one.logprob == pytest.approx(row[one.token], abs=LOGIT_NOISE)
        assert len({token for token, _ in one.likeliest}) == request.logprobs
        values = [value for _, value in one.likeliest]
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(values, np.sort(row)[::-1][: request.logprobs], atol=LOGIT_NOISE)
        np.testing.assert_allclose(values, row[[token for token, _ in one.likeliest]], atol=LOGIT_NOISE)
        # The drawn one is told twice where it is among them.
        assert dict(one.likeliest).get(one.token, one.logprob) == one.logprob


# Log probabilities


@pytest.mark.parametrize("steer", ["nothing", "response", "prompt", "removal"])
def test_log_probabilities_are_those_of_a_context_of_its_own(kind: Model, way: Way, steer: str) -> None:
    edit = random_edit(kind, seed=5)
    if steer == "removal":
        edit = Edit(np.zeros_like(edit.added), {2: random_basis(kind, 8, seed=6)})
    plan = None if steer == "nothing" else plan_of(edit, steer_prompt=steer == "prompt")
    # However they are sampled, they are told before that.
    sampling = replace(LIVELY, top_k=3, repeat_penalty=1.3, presence_penalty=1.0)
    request = Request(PROMPT, plan, sampling, max_tokens=10, logprobs=5)
    answer = way(kind, request, None)
    edits = [*[request.prompt_edit] * (len(PROMPT) - 1), *[request.response_edit] * 11]
    assert len(answer.logprobs) == 10
    assert_logprobs(kind, request, answer, edits)


def test_as_many_log_probabilities_are_told_as_were_asked_for(tiny: Model, way: Way) -> None:
    request = Request(PROMPT, None, LIVELY, max_tokens=5)
    assert way(tiny, request, None).logprobs == ()
    for count in (0, 1, tiny.n_vocab):
        asked = replace(request, logprobs=count)
        answer = way(tiny, asked, None)
        assert [len(one.likeliest) for one in answer.logprobs] == [count] * 5
        assert_logprobs(tiny, asked, answer, [None] * (len(PROMPT) + 5))
    assert sum(np.exp(value) for _, value in answer.logprobs[0].likeliest) == pytest.approx(1)


@pytest.mark.parametrize("after_run", [False, True])
def test_log_probabilities_are_taken_back_with_their_tokens(kind: Model, way: Way, after_run: bool) -> None:
    before, after = random_edit(kind, seed=3), random_edit(kind, seed=4)
    verdict = {8: Verdict(after, rewind=5)}
    gate = Script(
        tokens={2: Verdict(before)} | ({} if after_run else verdict),
        runs=verdict if after_run else None,
        output_layers=(1,) if after_run else (),
        ends=[Verdict(after, rewind=2)],
    )
    request = Request(PROMPT, None, LIVELY, max_tokens=12, logprobs=3)
    answer = way(kind, request, gate)
    assert (len(answer.tokens), answer.timing.answer_tokens, gate.ends_seen) == (12, 12 + 5 + 2, 2)
    edits = [*[None] * (len(PROMPT) + 1), before, *[after] * 10]
    assert_logprobs(kind, request, answer, edits)


def test_what_is_held_back_and_dropped_has_no_log_probabilities(tiny: Model, way: Way) -> None:
    request = Request(PROMPT, None, LIVELY, max_tokens=12, logprobs=3)
    for gate, count in (
        (Script(tokens={9: Verdict(None, stop=True)}, hold_back=4), 5),
        (Script(tokens={9: Verdict(None, stop=True, rewind=6)}), 2),
    ):
        answer = way(tiny, request, gate)
        assert (answer.finish_reason, len(answer.tokens)) == ("policy", count)
        assert_logprobs(tiny, request, answer, [None] * (len(PROMPT) + len(answer.tokens)))


def test_a_stop_string_has_log_probabilities_and_an_end_of_turn_has_none(tmp_path: Path, way: Way) -> None:
    # One number of the stream decides about the end-of-turn token, and steering sets it.
    path = write_tiny_model(tmp_path / "ending.gguf")
    output = next(tensor.data for tensor in GGUFReader(path, "r+").tensors if tensor.name == "output.weight")
    output[END, 5] = 4.0
    added = np.zeros((4, 64), np.float32)
    added[3, 5] = 1000.0
    request = Request(PROMPT, None, GREEDY, max_tokens=20, logprobs=1)
    with Model(path, threads=1) as model:
        ended = way(model, request, Script(tokens={4: Verdict(Edit(added))}))
        assert (len(ended.tokens), ended.finish_reason) == (4, "stop")
        assert_logprobs(model, request, ended, [None] * (len(PROMPT) + 4))
        stopped = way(model, replace(request, stop=tuple(map(chr, range(33, 127)))), None)
        assert (stopped.finish_reason, chr(stopped.tokens[-1]).isprintable()) == ("stop", True)
        assert_logprobs(model, request, stopped, [None] * (len(PROMPT) + len(stopped.tokens)))


# Grammars


def test_a_rewound_answer_follows_its_grammar_on(kind: Model, way: Way) -> None:
    edit = random_edit(kind, seed=3)
    grammar = Grammar(kind, "start: /[ab]{8}[xyz]{8}/")
    request = Request(PROMPT, None, replace(LIVELY, temperature=3.0), max_tokens=40, grammar=grammar)
    gates = (
        Script(tokens={11: Verdict(edit, rewind=6)}),
        Script(tokens={5: Verdict(edit, rewind=5), 12: Verdict(None, rewind=1)}),
        Script(ends=[Verdict(edit, rewind=10)]),
    )
    for gate in gates:
        answer = way(kind, request, gate)
        assert answer.timing.answer_tokens > len(answer.tokens) == 16
        assert re.fullmatch("[ab]{8}[xyz]{8}", answer.text)
        assert answer.finish_reason == "stop"


# Steering


def test_the_prompt_is_steered_as_its_plan_says_whatever_a_gate_does_to_the_answer(kind: Model, way: Way) -> None:
    edit = Edit(random_edit(kind, seed=5).added, {2: random_basis(kind, 8, seed=6)})
    request = Request(PROMPT, plan_of(edit, steer_prompt=True), LIVELY, max_tokens=8, logprobs=3)
    answer = way(kind, request, Script())
    assert_logprobs(kind, request, answer, [*[edit] * (len(PROMPT) - 1), *[None] * 9])


def test_what_a_gate_reads_of_the_prompt_is_not_taken_from_what_is_kept(tiny: Model) -> None:
    request = Request(PROMPT, None, GREEDY, 2, message=(10, 20)).seeded()
    for gate, length in ((None, 29), (Script(prompt_layers=(1,)), 10)):
        assert Answering(tiny, request, gate=gate, n_ctx=64).reusable == PROMPT[:length]
