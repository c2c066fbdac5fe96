from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from localsteer.engine import batch as running_batch
from localsteer.engine.gate import Verdict
from localsteer.engine.generate import Generator, generate_many
from localsteer.engine.request import Answer, Request
from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampler, Sampling
from localsteer.reading.prompt import latest_message, prompt_tokens
from tests.conftest import (
    LOGIT_NOISE,
    ROUNDING,
    ROW_NOISE,
    Floats,
    TinyModel,
    TinyPath,
    assert_greedy,
    in_mode,
    plan_of,
    random_basis,
    random_edit,
    random_tokens,
    run_alone,
)
from tests.script import Script
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
        both = generator.generate(in_mode(request, "prompt")).tokens
        plain = generator.generate(unsteered(request)).tokens
    assert len(response) == len(both) == len(plain) == 12
    assert_greedy(steerable, PROMPT, response, edit)
    assert_greedy(steerable, PROMPT, both, edit, steer_prompt=True)
    assert_greedy(steerable, PROMPT, plain)
    assert len({response, both, plain}) == 3


def test_side_by_side_each_answer_is_what_it_is_alone(tiny: Model) -> None:
    requests = [Request(PROMPT, plan, GREEDY, 6) for plan in (None, plan_of(random_edit(tiny, seed=3, norm=8.0)))]
    shown: list[list[str]] = [[], []]
    with Generator(tiny) as generator:
        answers = generator.side_by_side(requests, on_text=lambda number, text: shown[number].append(text))
        stopped = generator.side_by_side(requests, should_stop=iter([False] * 2 + [True]).__next__)
    for request, answer in zip(requests, answers, strict=True):
        assert_greedy(tiny, PROMPT, answer.tokens, request.response_edit)
    assert answers[0].tokens != answers[1].tokens
    assert ["".join(texts) for texts in shown] == [answer.text for answer in answers]
    assert {answer.finish_reason for answer in stopped} == {"interrupted"}
    assert all(len(answer.tokens) < 6 for answer in stopped)


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
        both = Request(follow_up, replace(plan, mode="prompt"), GREEDY, max_tokens=12)
        assert generator.generate(both).timing.reused_tokens == 0
        third = generator.generate(replace(both, prompt=(*follow_up, *PROMPT)))
        assert third.timing.reused_tokens == len(follow_up)
        assert_greedy(transformer, (*follow_up, *PROMPT), third.tokens, plan.edit, steer_prompt=True)
        fourth = generator.generate(replace(both, plan=replace(other_plan, mode="prompt")))
        assert fourth.timing.reused_tokens == 0
        assert_greedy(transformer, follow_up, fourth.tokens, other_plan.edit, steer_prompt=True)
        # It was read unsteered before, and waits in main memory.
        assert generator.generate(unsteered(both)).timing.reused_tokens == len(follow_up) - 1


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


# Where the message stands


MESSAGES = (
    "Hello, hens",
    "x",
    "~",
    "7",
    "~x",
    "x~",
    "7x7",
    "~ and ~",
    "7~",
    "~7",
    "77~~",
    " the hen ",
    "\nhe\n\n",
    " ",
    " \n\t",
    "user\nuser",
    "assistant\n",
    "a<|im_end|>\n",
    "<|im_start|>assistant\n",
    "é🙂",
)
BEFORE: tuple[tuple[Message, ...], ...] = (
    (),
    (Message("system", "Speak of ~ and 7."),),
    (Message("system", "S"), Message("user", "Hello, hens"), Message("assistant", "7"), Message("user", "~")),
    (Message("user", "x"), Message("assistant", "x")),
)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("content", MESSAGES)
def test_a_message_is_found_in_the_models_template(tiny: Model, before: tuple[Message, ...], content: str) -> None:
    messages = [*before, Message("user", content)]
    tokens = prompt_tokens(tiny, messages)
    start, stop = latest_message(tiny, messages)
    head = "".join(f"<|im_start|>{one.role}\n{one.content}<|im_end|>\n" for one in before) + "<|im_start|>user\n"
    assert tokens[:start] == tuple(tiny.tokenize(head))
    assert tokens[start:stop] == tuple(tiny.tokenize(content, special=False))
    assert tokens[stop:] == tuple(tiny.tokenize("<|im_end|>\n<|im_start|>assistant\n"))


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("content", MESSAGES)
def test_a_message_is_found_in_plain_text(tiny: Model, base: Model, before: tuple[Message, ...], content: str) -> None:
    messages = [*before, Message("user", content)]
    head = "".join(f"{one.content}\n\n" for one in before)
    for model, raw in ((tiny, True), (base, False), (base, True)):
        tokens = prompt_tokens(model, messages, raw=raw)
        assert latest_message(model, messages, raw=raw) == (len(model.tokenize(head)), len(tokens))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model without a chat template."""
    path = write_tiny_model(tmp_path_factory.mktemp("base") / "base.gguf", chat_template=None)
    with Model(path, threads=1) as model:
        yield model


def test_where_there_is_no_message_the_last_token_stands_for_it(tiny: Model, base: Model) -> None:
    for before in BEFORE[1:]:
        messages = [*before, Message("user", "")]
        for model, raw in ((tiny, False), (tiny, True), (base, False)):
            count = len(prompt_tokens(model, messages, raw=raw))
            assert latest_message(model, messages, raw=raw) == (count - 1, count)


def test_a_message_is_found_where_the_template_changes_it(tmp_path: Path) -> None:
    # It drops spaces around a message, and knows no system messages: that goes before the first message of the user.
    template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
        "{{ '<|im_start|>assistant\\n' }}"
    )
    foot = "<|im_end|>\n<|im_start|>assistant\n"
    with Model(write_tiny_model(tmp_path / "trim.gguf", chat_template=template), threads=1) as model:
        for system in ([], [Message("system", "Speak of 7.")]):
            head = "<|im_start|>user\n" + "".join(f"{one.content}\n\n" for one in system)
            for content in ("pig", " 7 pigs~\n"):
                messages = [*system, Message("user", content)]
                tokens = prompt_tokens(model, messages)
                start, stop = latest_message(model, messages)
                assert tokens[:start] == tuple(model.tokenize(head))
                shown = content.rstrip() if system else content.strip()
                assert tokens[start:stop] == tuple(model.tokenize(shown))
                assert tokens[stop:] == tuple(model.tokenize(foot))
        nothing = [Message("user", " \n ")]
        count = len(prompt_tokens(model, nothing))
        assert latest_message(model, nothing) == (count - 1, count)


# Gates


def answer_of(model: Model, request: Request, gate: Script | None = None) -> Answer:
    """From a generator of its own: nothing is in its cache."""
    with Generator(model) as generator:
        return generator.generate(request, gate=gate)


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[Floats]:
    """The logits (n_vocab,) that each token is drawn from, in the order of drawing."""
    logits: list[Floats] = []
    sample = Sampler.sample

    def remember(self: Sampler, context: Context, row: int, *, unsteered: int | None = None) -> int:
        logits.append(context.logits(row).copy())
        return sample(self, context, row, unsteered=unsteered)

    monkeypatch.setattr(Sampler, "sample", remember)
    return logits


def logits_after(model: Model, tokens: Sequence[int], edits: Sequence[Edit | None]) -> Floats:
    """Those of a cache that has never held anything else: the prompt at once, and then token by token."""
    first = len(PROMPT) - 1
    assert tuple(tokens[: len(PROMPT)]) == PROMPT
    assert not any(edits[:first])
    with Context(model, n_ctx=512) as context:
        context.decode(Batch.of_one_sequence(tokens[:first], start=0))
        for place, (token, edit) in enumerate(zip(tokens[first:], edits[first:], strict=True), first):
            context.set_control_vector(edit.added if edit is not None else None)
            context.decode(Batch.of_one_sequence([token], start=place))
        logits: Floats = context.logits(0).copy()
        return logits


@pytest.mark.parametrize("output_layers", [(), (2, 3)])
@pytest.mark.parametrize("prompt_layers", [(), (1,)])
def test_a_gate_that_never_steers_changes_no_token(
    steerable: Model, prompt_layers: tuple[int, ...], output_layers: tuple[int, ...], drawn_from: list[Floats]
) -> None:
    requests = [Request(PROMPT, sampling=replace(LIVELY, seed=seed), max_tokens=24) for seed in range(4)]
    # A second turn, which begins with what is in the cache already, and a prompt that parts from it.
    requests += [replace(requests[0], prompt=(*PROMPT, *OTHER_PROMPT)), replace(requests[0], prompt=(*PROMPT[:9], *OTHER_PROMPT))]
    with Generator(steerable) as plain, Generator(steerable) as gated:
        for request in requests:
            gate = Script(prompt_layers=prompt_layers, output_layers=output_layers)
            expected, answer = plain.generate(request), gated.generate(request, gate=gate)
            assert (answer.tokens, answer.text) == (expected.tokens, expected.text)
            # To the last bit, so that no seed can tell them apart.
            np.testing.assert_array_equal(drawn_from[24:], drawn_from[:24])
            drawn_from.clear()
            assert set(gate.prompt_rows) == set(prompt_layers)
            assert bool(gate.rows) == bool(output_layers)


def test_a_prompt_is_read_without_another_forward_pass(transformer: Model, decoded: list[int]) -> None:
    request = Request(PROMPT, None, GREEDY, max_tokens=5)
    # What a model allows is measured at the first question about it; that is no part of an answer.
    answer_of(transformer, request, Script(random_edit(transformer, seed=3)))
    sizes = []
    for gate in (None, Script(prompt_layers=(1, 2)), Script(prompt_layers=(1, 2), output_layers=(2,))):
        decoded.clear()
        answer_of(transformer, request, gate)
        sizes.append(list(decoded))
    assert sizes == [[len(PROMPT) - 1, 1, 1, 1, 1, 1]] * 3


SPANS = [(12, 22), (0, 29), (3, 4), (0, 1), (28, 29), (0, 30), (17, 30), (29, 30)]
"""Messages in PROMPT; the last three include its last token."""


def split_into(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Prompts are run in parts of this many tokens."""
    monkeypatch.setattr(running_batch, "Context", functools.partial(Context, n_ubatch=size))


@pytest.mark.parametrize("size", [512, 7])
@pytest.mark.parametrize("steer", ["nothing", "response", "prompt"])
def test_a_gate_is_shown_the_mean_over_the_message(
    steerable: Model, steer: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    split_into(monkeypatch, size)
    edit = random_edit(steerable, seed=3)
    plan = None if steer == "nothing" else plan_of(edit, steer_prompt=steer == "prompt")
    request = Request(PROMPT, plan, GREEDY, max_tokens=3)
    alone = run_alone(steerable, PROMPT, [request.prompt_edit] * len(PROMPT))
    layers = range(steerable.n_layer - 1)
    for start, stop in SPANS:
        with Generator(steerable) as generator:
            # Also where the cache holds the prompt already, and where it holds the answer to another one.
            for prompt in (PROMPT, PROMPT, (*PROMPT[:9], *OTHER_PROMPT), PROMPT):
                message = (start, min(stop, len(prompt)))
                gate = Script(request.response_edit, prompt_layers=layers)
                generator.generate(replace(request, prompt=prompt, message=message), gate=gate)
                assert set(gate.prompt_rows) == set(layers)
                if prompt == PROMPT:
                    for layer in layers:
                        expected = alone.rows[layer][start:stop].mean(axis=0)
                        np.testing.assert_allclose(gate.prompt_rows[layer], expected, atol=ROW_NOISE)


def test_a_message_longer_than_a_ubatch_is_read_in_parts(tmp_path: Path) -> None:
    prompt = random_tokens(1200, seed=5)
    path = write_tiny_model(tmp_path / "long.gguf", n_layer=3, n_ctx_train=2048)
    with Model(path, threads=1) as model:
        alone = run_alone(model, prompt)
        for message in ((500, 530), (10, 1150), (512, 1024), (600, 1200)):
            gate = Script(prompt_layers=(0, 1))
            answer_of(model, Request(prompt, None, GREEDY, max_tokens=2, message=message), gate)
            for layer in (0, 1):
                expected = alone.rows[layer][slice(*message)].mean(axis=0)
                np.testing.assert_allclose(gate.prompt_rows[layer], expected, atol=ROW_NOISE)


@pytest.mark.parametrize("message", SPANS)
@pytest.mark.parametrize("output_layers", [(), (2,)])
def test_a_message_is_read_without_another_forward_pass(
    steerable: Model, message: tuple[int, int], output_layers: tuple[int, ...], decoded: list[int]
) -> None:
    edit = random_edit(steerable, seed=3)
    answer_of(steerable, Request(PROMPT, None, GREEDY, max_tokens=1), Script(edit))  # what it allows is measured once
    earlier = Request(random_tokens(40, seed=9), None, GREEDY, max_tokens=0)
    request = Request((*earlier.prompt, *PROMPT), None, GREEDY, max_tokens=5, message=(40 + message[0], 40 + message[1]))
    for fired in (None, edit):
        found = []
        for plan, gated in ((plan_of(edit) if fired else None, False), (None, True)):
            with Generator(steerable) as generator:
                generator.generate(earlier, gate=Script(prompt_layers=(1,), output_layers=output_layers) if gated else None)
                decoded.clear()
                gate = Script(fired, prompt_layers=(1, 2), output_layers=output_layers) if gated else None
                found.append((generator.generate(replace(request, plan=plan), gate=gate).tokens, sum(decoded)))
        (expected, count), (tokens, gated_count) = found
        assert tokens == expected
        assert count == len(PROMPT) + 4
        # A message that ends the prompt is read before it is known that its last token is steered. That one is run again then;
        # a recurrent model must run all of them.
        again = fired is not None and message[1] == len(PROMPT)
        assert gated_count - count == again * (1 if steerable.sequences_share_tokens else len(request.prompt))


def test_a_gate_that_reads_a_message_and_never_steers_changes_no_token(steerable: Model, drawn_from: list[Floats]) -> None:
    first = Request(PROMPT, sampling=LIVELY, max_tokens=24, message=(12, 22))
    with Generator(steerable) as plain, Generator(steerable) as gated:
        said = answer_of(steerable, first).tokens
        drawn_from.clear()
        prompt = (*PROMPT, *said, *OTHER_PROMPT)
        second = replace(first, prompt=prompt, message=(len(prompt) - 20, len(prompt) - 6))
        other = replace(first, prompt=(*PROMPT[:9], *OTHER_PROMPT), message=(11, 20))
        # A conversation, its second answer drawn twice more, another message instead, and the first question anew.
        for request in (first, second, second, replace(second, sampling=replace(LIVELY, seed=8)), other, first):
            expected = plain.generate(request)
            answer = gated.generate(request, gate=Script(prompt_layers=(1, 2)))
            assert (answer.tokens, answer.text) == (expected.tokens, expected.text)
            # The message is read each time.
            assert request.message is not None
            assert answer.timing.reused_tokens == min(expected.timing.reused_tokens, request.message[0])
            # In an answer that is drawn anew the parts of the prompt are others, and may be rounded in another way.
            np.testing.assert_allclose(drawn_from[24:], drawn_from[:24], atol=LOGIT_NOISE)
            drawn_from.clear()


def test_an_interrupted_message_is_read_anew(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    split_into(monkeypatch, 7)
    request = Request(PROMPT, None, GREEDY, max_tokens=12, message=(3, 27))
    fresh = answer_of(tiny, request).tokens
    expected = run_alone(tiny, PROMPT).rows[1][3:27].mean(axis=0)
    with Generator(tiny) as generator:
        for asked_before in range(5):  # four parts of the message, and the last token
            stop = iter([False] * asked_before + [True]).__next__
            answer = generator.generate(request, gate=Script(prompt_layers=(1,)), should_stop=stop)
            assert (answer.text, answer.tokens, answer.finish_reason) == ("", (), "interrupted")
        gate = Script(prompt_layers=(1,))
        assert generator.generate(request, gate=gate).tokens == fresh
        np.testing.assert_allclose(gate.prompt_rows[1], expected, atol=ROW_NOISE)
        assert generator.generate(request).tokens == fresh


def test_a_gate_that_steers_after_the_prompt_takes_one_pass_more(transformer: Model, decoded: list[int]) -> None:
    edit = random_edit(transformer, seed=3)
    request = Request(PROMPT, None, GREEDY, max_tokens=5)
    steered = answer_of(transformer, replace(request, plan=plan_of(edit)))
    for output_layers in ((), (2,)):
        decoded.clear()
        answer = answer_of(transformer, request, Script(edit, prompt_layers=(1,), output_layers=output_layers))
        assert decoded == [len(PROMPT) - 1, 1, 1, 1, 1, 1, 1]
        assert answer.tokens == steered.tokens


@pytest.mark.parametrize("steer", [False, True])
def test_a_gate_is_shown_the_rows_of_each_token_before_its_edit(steerable: Model, steer: bool) -> None:
    edit = random_edit(steerable, seed=3) if steer else None
    layers = range(steerable.n_layer)
    gate = Script(edit, prompt_layers=layers, output_layers=layers)
    answer = answer_of(steerable, Request(PROMPT, None, LIVELY, max_tokens=8), gate)
    tokens, first = (*PROMPT, *answer.tokens), len(PROMPT) - 1
    unsteered = run_alone(steerable, PROMPT)
    alone = run_alone(steerable, tokens, [edit if place >= first else None for place in range(len(tokens))])
    # The last token is drawn, and nothing is computed from it.
    assert list(gate.rows) == list(range(1, 8))
    for layer in layers:
        np.testing.assert_allclose(gate.prompt_rows[layer], unsteered.rows[layer][-1], atol=ROW_NOISE)
        for position, rows in gate.rows.items():
            np.testing.assert_allclose(rows[layer], alone.rows[layer][first + position], atol=ROW_NOISE)


def test_a_plan_without_and_with_a_gate_gives_the_same_answer(steerable: Model) -> None:
    edit = random_edit(steerable, seed=3)
    for steer_prompt in (False, True):
        request = Request(PROMPT, plan_of(edit, steer_prompt=steer_prompt), LIVELY, max_tokens=12)
        gate = Script(request.response_edit, prompt_layers=(1, 2))
        assert answer_of(steerable, request, gate).tokens == answer_of(steerable, request).tokens
        alone = run_alone(steerable, PROMPT, [request.prompt_edit] * len(PROMPT))
        # Steering of the response has not begun where the prompt is read.
        for layer in (1, 2):
            np.testing.assert_allclose(gate.prompt_rows[layer], alone.rows[layer][-1], atol=ROW_NOISE)


def test_a_verdict_after_a_token_steers_the_very_next_one(steerable: Model, drawn_from: list[Floats]) -> None:
    edit = random_edit(steerable, seed=3)
    answer = answer_of(steerable, Request(PROMPT, None, GREEDY, max_tokens=8), Script(tokens={3: Verdict(edit)}))
    # Tokens 1 to 3 are drawn without it; the pass over token 3 predicts token 4.
    edits = [*[None] * (len(PROMPT) + 2), *[edit] * 6]
    expected = run_alone(steerable, (*PROMPT, *answer.tokens), edits, read=False).logits
    np.testing.assert_allclose(drawn_from, expected[len(PROMPT) - 1 : -1], atol=LOGIT_NOISE)


@pytest.mark.parametrize("again", [True, False])
def test_a_token_that_was_run_is_run_again_where_the_next_one_must_be_steered(
    steerable: Model, drawn_from: list[Floats], again: bool
) -> None:
    edit = random_edit(steerable, seed=3)
    gate = Script(output_layers=(2,), runs={5: Verdict(edit, again=again)})
    answer = answer_of(steerable, Request(PROMPT, None, GREEDY, max_tokens=9), gate)
    unsteered = len(PROMPT) + (4 if again else 5)
    edits = [*[None] * unsteered, *[edit] * (len(PROMPT) + 9 - unsteered)]
    expected = run_alone(steerable, (*PROMPT, *answer.tokens), edits, read=False).logits
    np.testing.assert_allclose(drawn_from, expected[len(PROMPT) - 1 : -1], atol=LOGIT_NOISE)
    # It is not shown to the gate a second time.
    assert list(gate.rows) == list(range(1, 9))


def test_steering_that_ends_leaves_the_later_tokens_unsteered(steerable: Model, drawn_from: list[Floats]) -> None:
    edit = random_edit(steerable, seed=3)
    answer = answer_of(steerable, Request(PROMPT, None, GREEDY, max_tokens=9), Script(edit, tokens={4: Verdict(None)}))
    edits = [*[None] * (len(PROMPT) - 1), *[edit] * 4, *[None] * 6]
    expected = run_alone(steerable, (*PROMPT, *answer.tokens), edits, read=False).logits
    np.testing.assert_allclose(drawn_from, expected[len(PROMPT) - 1 : -1], atol=LOGIT_NOISE)


# Tokens that are taken back


@pytest.mark.parametrize("after_run", [False, True])
def test_after_a_rewind_the_logits_are_those_of_a_fresh_cache(
    steerable: Model, drawn_from: list[Floats], after_run: bool
) -> None:
    before, after = random_edit(steerable, seed=3), random_edit(steerable, seed=4)
    verdict = {10: Verdict(after, rewind=6)}
    gate = Script(
        tokens={2: Verdict(before)} | ({} if after_run else verdict), runs=verdict if after_run else None, output_layers=(1,)
    )
    answer = answer_of(steerable, Request(PROMPT, None, LIVELY, max_tokens=14), gate)
    assert gate.drafts[9][:4] == answer.tokens[:4]
    assert gate.drafts[9][4:] != answer.tokens[4:10]
    # Drawn again is the token after the fourth, from a pass over the fourth that is steered anew.
    tokens = (*PROMPT, *answer.tokens[:4])
    edits = [*[None] * (len(PROMPT) + 1), before, before, after]
    again = drawn_from[10]
    assert np.abs(again - drawn_from[4]).max() > LOGIT_NOISE
    np.testing.assert_allclose(again, run_alone(steerable, tokens, edits, read=False).logits[-1], atol=LOGIT_NOISE)
    # A recurrent model computes all that is kept anew, in one batch: rounding, 1.5e-6 measured.
    rounding = 0 if steerable.sequences_share_tokens else ROUNDING
    np.testing.assert_allclose(again, logits_after(steerable, tokens, edits), rtol=0, atol=rounding)
    # And so is all that follows.
    edits += [after] * 10
    expected = run_alone(steerable, (*PROMPT, *answer.tokens), edits, read=False).logits
    np.testing.assert_allclose(drawn_from[10:], expected[len(PROMPT) + 3 : -1], atol=LOGIT_NOISE)


def test_a_whole_answer_can_be_taken_back(steerable: Model, drawn_from: list[Floats]) -> None:
    edit = random_edit(steerable, seed=3)
    gate = Script(tokens={8: Verdict(edit, rewind=8)})
    answer = answer_of(steerable, Request(PROMPT, None, GREEDY, max_tokens=12), gate)
    assert len(answer.tokens) == 12
    assert answer.timing.answer_tokens == 20
    assert_greedy(steerable, PROMPT, answer.tokens, edit)
    np.testing.assert_array_equal(drawn_from[8], logits_after(steerable, PROMPT, [*[None] * (len(PROMPT) - 1), edit]))


def test_nobody_sees_what_is_taken_back(steerable: Model) -> None:
    edit = random_edit(steerable, seed=3)
    for rewinds in ({7: 6}, {12: 3, 11: 5}, {6: 6, 9: 1}):
        pieces: list[str] = []
        verdicts = {position: Verdict(edit, rewind=count) for position, count in rewinds.items()}
        gate = Script(tokens=verdicts)
        with Generator(steerable) as generator:
            answer = generator.generate(Request(PROMPT, None, LIVELY, max_tokens=30), gate=gate, on_text=pieces.append)
        assert len(answer.tokens) == 30
        assert answer.timing.answer_tokens == 30 + sum(rewinds.values())
        assert "".join(pieces) == answer.text == steerable.detokenize(list(answer.tokens))
        assert any(draft != answer.tokens[: len(draft)] for draft in gate.drafts)


def test_the_latest_tokens_are_held_back(tiny: Model) -> None:
    shown: list[str] = []
    gate = Script(hold_back=4)
    seen: list[tuple[int, str]] = []

    def should_stop() -> bool:
        seen.append((len(gate.drafts), "".join(shown)))
        return False

    with Generator(tiny) as generator:
        answer = generator.generate(
            Request(PROMPT, None, LIVELY, max_tokens=40), gate=gate, on_text=shown.append, should_stop=should_stop
        )
    texts = [tiny.detokenize(list(answer.tokens[:count])) for count in range(41)]
    held = [(count, text) for count, text in seen if count]
    assert len(held) == 39
    for count, text in held:
        # A character of several bytes may wait for its end, but four tokens stay hidden.
        assert texts[max(count - 4, 0)].startswith(text) or text == texts[max(count - 4, 0)].rstrip("\ufffd")
    assert held[-1][1]
    assert "".join(shown) == answer.text == texts[40]


def test_the_same_seed_takes_the_same_way_through_rewinds(tiny: Model) -> None:
    edit = random_edit(tiny, seed=3)

    def gate() -> Script:
        return Script(tokens={9: Verdict(edit, rewind=5), 8: Verdict(edit, rewind=2)})

    request = Request(PROMPT, None, replace(LIVELY, repeat_penalty=1.3), max_tokens=20)
    answers = [answer_of(tiny, request, gate()) for _ in range(2)]
    assert answers[0].tokens == answers[1].tokens
    other = answer_of(tiny, replace(request, sampling=replace(request.sampling, seed=8)), gate())
    assert other.tokens != answers[0].tokens


def test_what_was_taken_back_is_drawn_with_other_random_numbers(tiny: Model) -> None:
    # The steering stays as it is, and a policy that fires must not be given the same text again.
    answers = []
    for seed in range(5):
        gate = Script(tokens={12: Verdict(None, rewind=10)})
        answer = answer_of(tiny, Request(PROMPT, None, replace(LIVELY, seed=seed), max_tokens=13), gate)
        assert gate.drafts[11][:2] == answer.tokens[:2]
        assert gate.drafts[11][2:] != answer.tokens[2:12]
        answers.append(answer.tokens)
    assert len(set(answers)) == 5


def test_each_time_that_something_is_taken_back_others_are_drawn(tiny: Model) -> None:
    gate = Script(ends=[Verdict(None, rewind=6)] * 3)
    answer = answer_of(tiny, Request(PROMPT, None, LIVELY, max_tokens=8), gate)
    written = [draft for draft in gate.drafts if len(draft) == 8]
    assert written[-1] == answer.tokens
    assert len(set(written)) == len(written) == 4


def test_the_highest_seed_can_be_rewound(tiny: Model) -> None:
    request = Request(PROMPT, None, replace(LIVELY, seed=2**32 - 2), max_tokens=8)
    assert len(answer_of(tiny, request, Script(tokens={4: Verdict(None, rewind=2)})).tokens) == 8


def test_an_answer_whose_end_is_taken_back_goes_on(steerable: Model) -> None:
    edit = random_edit(steerable, seed=3)
    pieces: list[str] = []
    gate = Script(ends=[Verdict(edit, rewind=4)])
    with Generator(steerable) as generator:
        answer = generator.generate(Request(PROMPT, None, LIVELY, max_tokens=12), gate=gate, on_text=pieces.append)
    assert (gate.ends_seen, len(answer.tokens), answer.finish_reason) == (2, 12, "length")
    assert gate.drafts[11][:8] == answer.tokens[:8]
    assert gate.drafts[11][8:] != answer.tokens[8:]
    assert "".join(pieces) == answer.text


def test_an_end_of_turn_that_is_taken_back_ends_nothing(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "ending.gguf")
    tensors_of(path)["output.weight"][END, 5] = 4.0
    added = np.zeros((4, 64), np.float32)
    added[3, 5] = 1000.0
    with Model(path, threads=1) as model:
        request = Request(PROMPT, None, GREEDY, max_tokens=12)
        plain = answer_of(model, request)
        gate = Script(tokens={6: Verdict(Edit(added))}, ends=[Verdict(None, rewind=3)])
        answer = answer_of(model, request, gate)
        assert (answer.finish_reason, gate.ends_seen) == ("length", 2)
        # Steering ended it after six tokens; three of them are written anew, and as they were.
        assert gate.drafts[6] == plain.tokens[:6]
        assert answer.tokens == plain.tokens


def test_a_stop_string_that_is_taken_back_ends_nothing(tiny: Model) -> None:
    request = Request(PROMPT, None, LIVELY, max_tokens=40)
    whole = answer_of(tiny, request)
    letters = [number for number, token in enumerate(whole.tokens) if 32 <= token < 127]
    at = next(number for number in letters if number >= 5)
    request = replace(request, stop=(chr(whole.tokens[at]),))
    assert answer_of(tiny, request).finish_reason == "stop"
    pieces: list[str] = []
    gate = Script(ends=[Verdict(None, rewind=3)])
    with Generator(tiny) as generator:
        answer = generator.generate(request, gate=gate, on_text=pieces.append)
    assert gate.ends_seen == 2
    assert gate.drafts[at] == whole.tokens[: at + 1]
    assert answer.tokens[: at - 2] == whole.tokens[: at - 2]
    assert len(answer.tokens) > at - 2
    assert "".join(pieces) == answer.text
    assert request.stop[0] not in answer.text


def test_a_full_context_can_be_taken_back(tiny: Model) -> None:
    prompt = random_tokens(230, seed=5)
    edit = random_edit(tiny, seed=3)
    gate = Script(ends=[Verdict(edit, rewind=9)])
    with Generator(tiny, n_ctx=256) as generator:
        answer = generator.generate(Request(prompt, None, GREEDY, max_tokens=1000), gate=gate)
    assert (len(answer.tokens), answer.finish_reason, gate.ends_seen) == (256 - 230 + 1, "length", 2)
    tokens = (*prompt, *answer.tokens)
    edits = [*[None] * (230 - 1 + 27 - 9), *[edit] * 10]
    logits = run_alone(tiny, tokens, edits, read=False).logits[len(prompt) - 1 : -1]
    assert (logits.max(axis=1) - logits[np.arange(27), list(answer.tokens)]).max() < LOGIT_NOISE


def test_nothing_of_a_rewound_answer_is_left_in_the_cache(transformer: Model) -> None:
    edit = random_edit(transformer, seed=3)
    request = Request(PROMPT, None, GREEDY, max_tokens=12)
    with Generator(transformer) as generator:
        first = generator.generate(request, gate=Script(tokens={10: Verdict(edit, rewind=6)}))
        follow_up = replace(request, prompt=(*PROMPT, *first.tokens, *OTHER_PROMPT))
        second = generator.generate(follow_up)
        # Three of the four tokens that were kept: the pass over the fourth was steered.
        assert second.timing.reused_tokens == len(PROMPT) + 3
        assert_greedy(transformer, follow_up.prompt, second.tokens)


# The end of a gated answer


def test_a_gate_can_end_the_answer(tiny: Model) -> None:
    request = Request(PROMPT, None, LIVELY, max_tokens=12)
    whole = answer_of(tiny, request)
    stop = Verdict(None, stop=True)
    for gate, count in (
        (Script(prompt=stop), 0),
        (Script(prompt=stop, prompt_layers=(1,)), 0),
        (Script(tokens={4: stop}), 4),
        (Script(tokens={4: stop}, hold_back=3), 1),  # what nobody has seen and nobody will look at again is dropped
        (Script(runs={4: stop}, output_layers=(1,)), 4),
        (Script(tokens={4: Verdict(None, stop=True, rewind=3)}), 0),
    ):
        pieces: list[str] = []
        with Generator(tiny) as generator:
            answer = generator.generate(request, gate=gate, on_text=pieces.append)
            assert (answer.finish_reason, answer.tokens) == ("policy", whole.tokens[:count])
            assert "".join(pieces) == answer.text == tiny.detokenize(list(answer.tokens))
            # The generator goes on as if nothing had been.
            assert generator.generate(request).tokens == whole.tokens


def test_what_is_held_back_is_shown_at_the_end(generator: Generator, tiny: Model) -> None:
    for count in (0, 1, 3, 10):
        pieces: list[str] = []
        gate = Script(hold_back=5)
        answer = generator.generate(Request(PROMPT, None, LIVELY, max_tokens=count), gate=gate, on_text=pieces.append)
        assert (len(answer.tokens), answer.finish_reason) == (count, "length")
        assert "".join(pieces) == answer.text == tiny.detokenize(list(answer.tokens))
        assert gate.ends_seen == (count > 0)


def test_what_is_held_back_is_shown_before_a_stop_string(tiny: Model) -> None:
    request = Request(PROMPT, None, LIVELY, max_tokens=40)
    whole = answer_of(tiny, request)
    letters = [number for number, token in enumerate(whole.tokens) if 32 <= token < 127]
    at = next(number for number in letters if number >= 5)
    stop = whole.text[whole.text.index(chr(whole.tokens[at])) :][:1]
    pieces: list[str] = []
    with Generator(tiny) as generator:
        answer = generator.generate(replace(request, stop=(stop,)), gate=Script(hold_back=30), on_text=pieces.append)
    assert answer.finish_reason == "stop"
    assert "".join(pieces) == answer.text == whole.text.partition(stop)[0]


def test_what_is_held_back_is_dropped_where_the_answer_is_interrupted(tiny: Model) -> None:
    gate = Script(hold_back=4)
    pieces: list[str] = []
    with Generator(tiny) as generator:
        answer = generator.generate(
            Request(PROMPT, None, GREEDY, max_tokens=30),
            gate=gate,
            on_text=pieces.append,
            should_stop=lambda: len(gate.drafts) >= 10,
        )
        assert (len(answer.tokens), answer.finish_reason) == (6, "interrupted")
        assert "".join(pieces) == answer.text == tiny.detokenize(list(answer.tokens))
        assert_greedy(tiny, PROMPT, generator.generate(Request(PROMPT, None, GREEDY, max_tokens=12)).tokens)


def test_steering_that_a_model_does_not_allow_is_refused_before_the_answer(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    gate = Script(tokens={4: Verdict(random_edit(model, seed=3))})
    with pytest.raises(ModelError, match=r"tiny \(architecture plamo2\) cannot be steered.*localsteer doctor"):
        answer_of(model, Request(PROMPT, None, GREEDY, max_tokens=8), gate)
    assert gate.drafts == []


# Anchored answers


def plausible_to(model: Model, request: Request, tokens: Sequence[int]) -> list[bool]:
    """For each token, whether the unsteered model finds it at least `min_p` times as likely as its likeliest one."""
    read = run_alone(model, (*request.prompt, *tokens), [None] * (len(request.prompt) + len(tokens)), read=False).logits
    rows = read[len(request.prompt) - 1 : -1]
    return [bool(np.exp(row[token] - row.max()) >= request.sampling.min_p) for row, token in zip(rows, tokens, strict=True)]


@pytest.fixture
def anchored(tiny: Model) -> Request:
    lively = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.3, seed=7)
    return Request(PROMPT, plan_of(random_edit(tiny, seed=3, norm=3.0), mode="anchored"), lively, max_tokens=24)


def test_an_anchored_answer_holds_only_what_the_unsteered_model_finds_plausible(
    generator: Generator, tiny: Model, anchored: Request
) -> None:
    free = generator.generate(in_mode(anchored, "response")).tokens
    answer = generator.generate(anchored).tokens
    assert not all(plausible_to(tiny, anchored, free))
    assert all(plausible_to(tiny, anchored, answer))
    assert answer != generator.generate(unsteered(anchored)).tokens


def test_an_anchored_answer_without_steering_is_the_unsteered_one(generator: Generator, anchored: Request) -> None:
    plain = replace(anchored, plan=None, mode="response")
    assert generator.generate(replace(anchored, plan=None)).tokens == generator.generate(plain).tokens


def test_a_gate_that_steers_later_is_anchored_from_there(generator: Generator, tiny: Model, anchored: Request) -> None:
    edit = anchored.response_edit
    script = Script(tokens={4: Verdict(edit)})
    answer = generator.generate(replace(anchored, plan=None), gate=script).tokens
    assert answer[:4] == generator.generate(unsteered(anchored)).tokens[:4]
    assert all(plausible_to(tiny, anchored, answer))


def test_the_next_turn_finds_an_anchored_answer_in_the_cache(generator: Generator, anchored: Request) -> None:
    answer = generator.generate(anchored).tokens
    following = replace(anchored, prompt=(*PROMPT, *answer, 65, 66))
    # But for the token that was drawn last, which nothing has run.
    assert generator.generate(following).timing.reused_tokens == len(PROMPT) + len(answer) - 1
    with Generator(generator.model) as fresh:
        assert generator.generate(following).tokens == fresh.generate(following).tokens


def test_anchoring_needs_a_filter_where_something_is_steered(generator: Generator, anchored: Request) -> None:
    without = replace(anchored, sampling=replace(anchored.sampling, min_p=0.0))
    for gate in (None, Script(tokens={4: Verdict(anchored.response_edit)})):
        with pytest.raises(LocalsteerError, match="needs top-k, top-p or min-p"):
            generator.generate(without if gate is None else replace(without, plan=None), gate=gate)
    with pytest.raises(LocalsteerError, match="needs top-k, top-p or min-p"):
        generate_many(generator.model, [without])
    assert generator.generate(replace(without, plan=None)).tokens == generator.generate(unsteered(without)).tokens


def test_a_plan_is_for_one_mode(tiny: Model, anchored: Request) -> None:
    for mode in ("response", "prompt"):
        with pytest.raises(LocalsteerError, match=f'"{mode}".*"anchored"'):
            replace(anchored, plan=plan_of(random_edit(tiny, seed=3), mode=mode))
    assert Request(PROMPT, anchored.plan).mode == "anchored"
    assert Request(PROMPT).mode == "response"


def test_a_recurrent_model_cannot_anchor(tiny_model: TinyModel, anchored: Request) -> None:
    model = tiny_model("mamba")
    request = replace(anchored, plan=plan_of(random_edit(model, seed=3), mode="anchored"))
    with Generator(model) as generator, pytest.raises(ModelError, match="recurrent, and cannot anchor"):
        generator.generate(request)
