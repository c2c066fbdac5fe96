from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, ModelError
from localsteer.generation import Generator, Request, prompt_tokens
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from tests.conftest import TinyModel, TinyPath, assert_greedy, plan_of, random_basis, random_edit, random_tokens
from tests.tiny_models import SPECIAL_TOKENS, VOCABULARY, write_tiny_model

GREEDY = Sampling(temperature=0)
LIVELY = Sampling(temperature=1.5, seed=7)
PROMPT = random_tokens(30, seed=1)
OTHER_PROMPT = random_tokens(25, seed=2)
END = VOCABULARY.index(SPECIAL_TOKENS[-1])


@pytest.fixture
def generator(tiny: Model) -> Iterator[Generator]:
    with Generator(tiny) as generator:
        yield generator


@pytest.fixture
def steered(tiny: Model) -> Request:
    """Steering that changes the answer from its first token on."""
    return Request(PROMPT, plan_of(random_edit(tiny, seed=3)), GREEDY, max_tokens=12)


def tensors_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of a model file, to be changed in place."""
    return {tensor.name: tensor.data for tensor in GGUFReader(path, "r+").tensors}


def unsteered(request: Request) -> Request:
    return replace(request, plan=None)


# What steering acts on


def test_an_answer_is_greedy_under_its_steering(steerable: Model) -> None:
    # Found to change the answers of all these models, even mamba's, which soon forgets how its prompt was steered.
    edit = random_edit(steerable, seed=5, norm=6.0)
    request = Request(PROMPT, plan_of(edit), GREEDY, max_tokens=12)
    with Generator(steerable) as generator:
        response = generator.generate(request).tokens
        both = generator.generate(replace(request, plan=plan_of(edit, steer_prompt=True))).tokens
        plain = generator.generate(unsteered(request)).tokens
    assert len(response) == len(both) == len(plain) == 12
    assert_greedy(steerable, PROMPT, response, edit)
    assert_greedy(steerable, PROMPT, both, edit, steer_prompt=True)
    assert_greedy(steerable, PROMPT, plain)
    assert len({response, both, plain}) == 3


def test_removal_reaches_the_answer(steerable: Model) -> None:
    removed = {layer: random_basis(steerable, 8, seed=layer) for layer in range(1, steerable.n_layer)}
    edit = Edit(np.zeros((steerable.n_layer, steerable.n_embd), np.float32), removed)
    request = Request(PROMPT, plan_of(edit), GREEDY, max_tokens=12)
    with Generator(steerable) as generator:
        tokens = generator.generate(request).tokens
        assert_greedy(steerable, PROMPT, tokens, edit)
        assert generator.generate(unsteered(request)).tokens != tokens


def test_where_llama_cpp_ignores_control_vectors_the_answer_is_steered_all_the_same(
    tiny: Model, tiny_path: TinyPath, steered: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Generator(tiny) as generator:
        native = generator.generate(steered).tokens
    monkeypatch.setattr(Context, "set_control_vector", lambda self, added: None)
    with Model(tiny_path("llama"), threads=1) as model, Generator(model) as generator:
        assert generator.generate(steered).tokens == native


def test_a_plan_that_adds_nothing_is_no_steering(generator: Generator, tiny: Model) -> None:
    nothing = plan_of(Edit(np.zeros((tiny.n_layer, tiny.n_embd), np.float32)))
    generator.generate(Request(PROMPT, None, GREEDY, max_tokens=12))
    again = generator.generate(Request(PROMPT, nothing, GREEDY, max_tokens=12))
    assert again.timing.reused_tokens == len(PROMPT) - 1
    assert_greedy(tiny, PROMPT, again.tokens)


def test_a_model_that_cannot_be_steered_says_so_and_answers_without(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    with Generator(model) as generator:
        before = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=8)).tokens
        for edit in (random_edit(model, seed=3), Edit(np.zeros((4, 64), np.float32), {2: random_basis(model, 1, seed=4)})):
            with pytest.raises(ModelError, match=r"tiny \(architecture plamo2\) cannot be steered.*localsteer doctor"):
                generator.generate(Request(PROMPT, plan_of(edit), GREEDY, max_tokens=8))
        assert generator.generate(Request(PROMPT, None, GREEDY, max_tokens=8)).tokens == before
    assert len(before) == 8


# The same answer again


def test_the_same_seed_gives_the_same_text(tiny: Model, steered: Request) -> None:
    for request in (replace(steered, sampling=LIVELY), Request(PROMPT, sampling=LIVELY, max_tokens=12)):
        answers = []
        for _ in range(2):
            with Generator(tiny) as generator:
                answers.append(generator.generate(request))
        assert (answers[0].text, answers[0].tokens) == (answers[1].text, answers[1].tokens)
        with Generator(tiny) as generator:
            assert generator.generate(replace(request, sampling=replace(LIVELY, seed=8))).tokens != answers[0].tokens


def test_a_drawn_seed_is_reported_and_gives_the_answer_again(generator: Generator) -> None:
    request = Request(PROMPT, sampling=replace(LIVELY, seed=None), max_tokens=12)
    first, second = generator.generate(request), generator.generate(request)
    assert first.seed != second.seed
    again = generator.generate(replace(request, sampling=replace(LIVELY, seed=second.seed)))
    assert again.tokens == second.tokens
    assert again.seed == second.seed


def test_steering_leaves_no_trace_in_later_answers(steerable: Model) -> None:
    plain = Request(PROMPT, None, LIVELY, max_tokens=12)
    with Generator(steerable) as generator:
        fresh = generator.generate(plain).tokens
    removed = {2: random_basis(steerable, 8, seed=4)}
    zero = np.zeros((steerable.n_layer, steerable.n_embd), np.float32)
    for edit in (random_edit(steerable, seed=3), Edit(zero, removed)):
        with Generator(steerable) as generator:
            generator.generate(Request(OTHER_PROMPT, plan_of(edit), GREEDY, max_tokens=12))
            generator.generate(Request(OTHER_PROMPT, plan_of(edit, steer_prompt=True), GREEDY, max_tokens=12))
            assert generator.generate(plain).tokens == fresh


# The KV cache


def test_a_second_turn_reuses_the_first(transformer: Model) -> None:
    with Generator(transformer) as generator:
        first = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=12))
        follow_up = (*PROMPT, *first.tokens, *OTHER_PROMPT)
        second = generator.generate(Request(follow_up, None, GREEDY, max_tokens=12))
    # The last token of an answer was drawn, but nothing was computed from it yet.
    assert second.timing.reused_tokens == len(PROMPT) + 11
    assert second.timing.prompt_tokens == len(follow_up) - second.timing.reused_tokens
    assert first.timing.reused_tokens == 0
    assert_greedy(transformer, follow_up, second.tokens)


def test_a_prompt_that_parts_from_the_last_one_reuses_what_they_share(transformer: Model) -> None:
    other = (*PROMPT[:20], *OTHER_PROMPT)
    with Generator(transformer) as generator:
        generator.generate(Request(PROMPT, None, GREEDY, max_tokens=12))
        answer = generator.generate(Request(other, None, GREEDY, max_tokens=12))
    assert answer.timing.reused_tokens == 20
    assert_greedy(transformer, other, answer.tokens)


def test_the_same_prompt_again_computes_its_last_token_only(generator: Generator, tiny: Model) -> None:
    request = Request(PROMPT, None, GREEDY, max_tokens=12)
    generator.generate(request)
    again = generator.generate(request)
    assert (again.timing.reused_tokens, again.timing.prompt_tokens) == (len(PROMPT) - 1, 1)
    assert_greedy(tiny, PROMPT, again.tokens)


def test_steering_the_response_leaves_the_prompt_to_be_reused(transformer: Model) -> None:
    request = Request(PROMPT, plan_of(random_edit(transformer, seed=3)), GREEDY, max_tokens=12)
    with Generator(transformer) as generator:
        generator.generate(request)
        plain = generator.generate(unsteered(request))
    # All but the last token of the prompt, which predicts the first one of the answer.
    assert plain.timing.reused_tokens == len(PROMPT) - 1
    assert_greedy(transformer, PROMPT, plain.tokens)


def test_a_prefix_computed_under_other_steering_is_not_reused(transformer: Model) -> None:
    plan, other_plan = (plan_of(random_edit(transformer, seed=seed)) for seed in (3, 4))
    with Generator(transformer) as generator:
        first = generator.generate(Request(PROMPT, plan, GREEDY, max_tokens=12))
        follow_up = (*PROMPT, *first.tokens, *OTHER_PROMPT)
        # The answer was computed under steering, and is now part of an unsteered prompt.
        second = generator.generate(Request(follow_up, plan, GREEDY, max_tokens=12))
        assert second.timing.reused_tokens == len(PROMPT) - 1
        assert_greedy(transformer, follow_up, second.tokens, plan.edit)
        both = Request(follow_up, replace(plan, scope="prompt"), GREEDY, max_tokens=12)
        assert generator.generate(both).timing.reused_tokens == 0
        third = generator.generate(replace(both, prompt=(*follow_up, *PROMPT)))
        assert third.timing.reused_tokens == len(follow_up)
        assert_greedy(transformer, (*follow_up, *PROMPT), third.tokens, plan.edit, steer_prompt=True)
        fourth = generator.generate(replace(both, plan=replace(other_plan, scope="prompt")))
        assert fourth.timing.reused_tokens == 0
        assert_greedy(transformer, follow_up, fourth.tokens, other_plan.edit, steer_prompt=True)
        assert generator.generate(unsteered(both)).timing.reused_tokens == 0


def test_a_recurrent_model_begins_anew_where_it_cannot_go_back(tiny_model: TinyModel) -> None:
    model = tiny_model("mamba")
    request = Request(PROMPT, None, GREEDY, max_tokens=12)
    with Generator(model) as generator:
        first = generator.generate(request)
        second = generator.generate(request)
        assert second.timing.reused_tokens == 0
        assert second.tokens == first.tokens
        follow_up = (*PROMPT, *first.tokens, *OTHER_PROMPT)
        third = generator.generate(replace(request, prompt=follow_up))
    assert_greedy(model, PROMPT, first.tokens)
    assert_greedy(model, follow_up, third.tokens)


def test_a_failure_in_between_does_not_spoil_the_cache(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(PROMPT, None, GREEDY, max_tokens=12)
    with Generator(tiny) as generator:
        fresh = generator.generate(request).tokens
        with pytest.raises(ModelError, match="invalid token"):
            generator.generate(replace(request, prompt=(*PROMPT[:10], tiny.n_vocab, 65)))
        again = generator.generate(request)
    assert again.timing.reused_tokens == 0
    assert again.tokens == fresh


def test_a_prompt_longer_than_a_ubatch_is_read_in_parts(tmp_path: Path) -> None:
    prompt = random_tokens(700, seed=5)
    path = write_tiny_model(tmp_path / "long.gguf", n_layer=2, n_ctx_train=1024)
    with Model(path, threads=1) as model, Generator(model) as generator:
        edit = random_edit(model, seed=3)
        for steer_prompt in (False, True):
            request = Request(prompt, plan_of(edit, steer_prompt=steer_prompt), GREEDY, max_tokens=8)
            assert_greedy(model, prompt, generator.generate(request).tokens, edit, steer_prompt=steer_prompt)
            follow_up = replace(request, prompt=(*prompt[:600], *PROMPT))
            answer = generator.generate(follow_up)
            assert answer.timing.reused_tokens == 600
            assert_greedy(model, follow_up.prompt, answer.tokens, edit, steer_prompt=steer_prompt)


# The end of an answer


def test_an_answer_ends_at_max_tokens(generator: Generator) -> None:
    for count in (0, 1, 5):
        answer = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=count))
        assert (len(answer.tokens), answer.finish_reason) == (count, "length")
        assert answer.timing.answer_tokens == count


def test_an_answer_ends_at_the_first_stop_string(generator: Generator) -> None:
    request = Request(PROMPT, None, GREEDY, max_tokens=40)
    # The second of two: from then on the same tokens are in the cache, and every answer is rounded alike.
    whole = [generator.generate(request) for _ in range(2)][1]
    letters = [number for number, token in enumerate(whole.tokens) if 32 <= token < 127]
    at = next(number for number in letters if number >= 5 and number + 1 in letters)
    stop = chr(whole.tokens[at]) + chr(whole.tokens[at + 1])
    pieces: list[str] = []
    answer = generator.generate(replace(request, stop=("never there", stop)), on_text=pieces.append)
    assert answer.finish_reason == "stop"
    assert answer.text == "".join(pieces) == whole.text.partition(stop)[0]
    assert answer.tokens == whole.tokens[: at + 2]


def test_an_answer_ends_where_the_model_ends_it(tmp_path: Path) -> None:
    # One number of the stream decides about the end-of-turn token, and steering sets it.
    path = write_tiny_model(tmp_path / "ending.gguf")
    tensors_of(path)["output.weight"][END, 5] = 4.0
    added = np.zeros((4, 64), np.float32)
    added[3, 5] = 1000.0
    with Model(path, threads=1) as model, Generator(model) as generator:
        plain = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=12))
        assert (len(plain.tokens), plain.finish_reason) == (12, "length")
        ended = generator.generate(Request(PROMPT, plan_of(Edit(added)), GREEDY, max_tokens=12))
        assert (ended.text, ended.tokens, ended.finish_reason) == ("", (), "stop")


def test_an_answer_ends_where_the_context_is_full(tiny: Model) -> None:
    prompt = random_tokens(230, seed=5)
    with Generator(tiny, n_ctx=256) as generator:
        answer = generator.generate(Request(prompt, None, GREEDY, max_tokens=1000))
        assert answer.finish_reason == "length"
        # The last token is drawn from a full cache.
        assert len(answer.tokens) == 256 - 230 + 1
        again = generator.generate(Request(prompt, None, GREEDY, max_tokens=10))
    assert_greedy(tiny, prompt, answer.tokens)
    assert_greedy(tiny, prompt, again.tokens)


def test_a_prompt_that_fills_the_context_is_an_error(tiny: Model) -> None:
    with Generator(tiny, n_ctx=256) as generator:
        with pytest.raises(LocalsteerError, match=r"prompt has 256 tokens, and the context holds 256\..*--context"):
            generator.generate(Request(random_tokens(256, seed=6)))
        assert len(generator.generate(Request(random_tokens(255, seed=6), max_tokens=10)).tokens) == 2


def test_the_context_is_no_longer_than_the_model_was_trained_for(tiny: Model) -> None:
    with Generator(tiny) as generator, pytest.raises(LocalsteerError, match="prompt has 512 tokens, and the context holds 512"):
        generator.generate(Request(random_tokens(512, seed=6)))


def test_an_answer_can_be_interrupted(generator: Generator, tiny: Model) -> None:
    shown: list[str] = []
    answer = generator.generate(
        Request(PROMPT, None, GREEDY, max_tokens=12), on_text=shown.append, should_stop=lambda: len("".join(shown)) >= 4
    )
    assert answer.finish_reason == "interrupted"
    assert 0 < len(answer.tokens) < 12
    assert_greedy(tiny, PROMPT, answer.tokens)
    assert answer.text == "".join(shown) == tiny.detokenize(list(answer.tokens))
    assert_greedy(tiny, PROMPT, generator.generate(Request(PROMPT, None, GREEDY, max_tokens=12)).tokens)


def test_an_interrupted_prompt_gives_no_text_and_no_harm(tiny: Model) -> None:
    request = Request(PROMPT, plan_of(random_edit(tiny, seed=3)), GREEDY, max_tokens=12)
    with Generator(tiny) as generator:
        fresh = generator.generate(request).tokens
    with Generator(tiny) as generator:
        # Once before the prompt, and once between it and its last token.
        for asked_before in (0, 1):
            answer = generator.generate(request, should_stop=iter([False] * asked_before + [True]).__next__)
            assert (answer.text, answer.tokens, answer.finish_reason) == ("", (), "interrupted")
        assert generator.generate(request).tokens == fresh


# Text as it comes


def test_pieces_of_text_join_to_the_answer(generator: Generator, tiny: Model) -> None:
    pieces: list[str] = []
    answer = generator.generate(Request(PROMPT, None, LIVELY, max_tokens=100), on_text=pieces.append)
    assert "".join(pieces) == answer.text
    assert answer.text == tiny.detokenize(list(answer.tokens))
    assert len(pieces) > 10
    assert all(pieces)


def test_characters_of_several_tokens_arrive_whole(tmp_path: Path) -> None:
    # Every byte of "é🙂" calls for the next one: its embedding outweighs all that the blocks add, and an output row looks for it.
    path = write_tiny_model(tmp_path / "chain.gguf")
    tensors = tensors_of(path)
    circle = list("é🙂".encode())
    tensors["token_embd.weight"][circle] *= 1000
    tensors["output.weight"][circle[1:] + circle[:1]] = tensors["token_embd.weight"][circle]
    pieces: list[str] = []
    with Model(path, threads=1) as model, Generator(model) as generator:
        request = Request(tuple(circle), None, GREEDY, max_tokens=12)
        assert generator.generate(request, on_text=pieces.append).text == "é🙂é🙂"
        assert pieces == ["é", "🙂", "é", "🙂"]
        pieces.clear()
        assert generator.generate(replace(request, max_tokens=4), on_text=pieces.append).text == "é�"
        assert pieces == ["é", "�"]


# Prompts


def test_a_conversation_goes_through_the_models_template(tiny: Model) -> None:
    tokens = prompt_tokens(tiny, [Message("system", "S"), Message("user", "U")])
    assert tokens == tuple(
        tiny.tokenize("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n")
    )


def test_raw_prompts_and_base_models_get_paragraphs(tiny: Model, tmp_path: Path) -> None:
    messages = [Message("system", "S"), Message("user", "U")]
    assert prompt_tokens(tiny, messages, raw=True) == tuple(tiny.tokenize("S\n\nU"))
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as base:
        assert prompt_tokens(base, messages) == tuple(base.tokenize("S\n\nU"))


def test_a_conversation_without_text_is_an_error(tiny: Model) -> None:
    for messages in ([], [Message("user", "")]):
        with pytest.raises(LocalsteerError, match="prompt is empty"):
            prompt_tokens(tiny, messages)


def test_a_prompt_without_tokens_is_an_error(generator: Generator) -> None:
    generator.generate(Request(PROMPT, max_tokens=2))
    with pytest.raises(LocalsteerError, match="prompt is empty"):
        generator.generate(Request((), max_tokens=2))


def test_timing_counts_what_was_done(generator: Generator) -> None:
    timing = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=12)).timing
    assert (timing.prompt_tokens, timing.reused_tokens, timing.answer_tokens) == (len(PROMPT), 0, 12)
    assert timing.prompt_tokens_per_second == pytest.approx(len(PROMPT) / timing.prompt_seconds)
    assert timing.tokens_per_second == pytest.approx(12 / timing.answer_seconds)
    assert timing.seconds == timing.prompt_seconds + timing.answer_seconds > 0
