from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from localsteer.errors import ModelError, PolicyError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.policy.text_rows import NEUTRAL_MESSAGE, Reader
from localsteer.reading.prompt import latest_message, prompt_tokens
from tests.conftest import ROW_NOISE, Floats, TinyModel, run_alone
from tests.policy.made import decoded
from tests.tiny_models import UNSTEERABLE_ARCHITECTURE, write_tiny_model

MESSAGE = "How are you today, in the hen house?"
ANSWER = " I am the hen.\n"


def prompt(model: Model, message: str) -> tuple[int, ...]:
    return prompt_tokens(model, [Message("user", message)])


def rows_alone(model: Model, tokens: Sequence[int], layers: Sequence[int]) -> Floats:
    """(n_tokens, n_layers, n_embd) of a sequence in one decode of its own."""
    rows = run_alone(model, tokens).rows
    return np.stack([rows[layer] for layer in layers], axis=1)


def assert_close(found: Floats, expected: Floats) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < ROW_NOISE


def mean_alone(model: Model, message: str, layers: Sequence[int]) -> Floats:
    """(n_layers, n_embd), the mean over the tokens of a message."""
    start, stop = latest_message(model, [Message("user", message)])
    return np.asarray(rows_alone(model, prompt(model, message), layers)[start:stop].mean(axis=0), np.float32)


@pytest.mark.parametrize("layers", [(1, 2), (2,), (0, 1)])
def test_a_prompt_is_read_over_its_message(steerable: Model, layers: tuple[int, ...]) -> None:
    for message in (MESSAGE, "x", " "):
        with Reader(steerable, layers) as reader:
            found = reader.prompt(message)
        assert_close(found, mean_alone(steerable, message, layers))


def test_a_base_models_prompt_is_all_message(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as base:
        for message in (MESSAGE, "x", " "):
            with Reader(base, (1, 2)) as reader:
                found = reader.prompt(message)
            rows = rows_alone(base, prompt(base, message), (1, 2))
            assert_close(found, np.asarray(rows.mean(axis=0), np.float32))


def test_a_message_is_read_beside_the_last_block_of_answers(steerable: Model) -> None:
    with Reader(steerable, (1, 2, 3)) as reader:
        assert_close(reader.prompt(MESSAGE, (2,)), mean_alone(steerable, MESSAGE, (2,)))
        assert_close(reader.prompt(MESSAGE, {2, 1}), mean_alone(steerable, MESSAGE, (1, 2)))
        tokens = (*prompt(steerable, MESSAGE), *steerable.tokenize(ANSWER))
        answer = rows_alone(steerable, tokens, (1, 2, 3))[-len(steerable.tokenize(ANSWER)) :]
        assert_close(reader.answer(MESSAGE, ANSWER), answer)


# The last block only shows tokens with logits, so it is read in another way than the others.
@pytest.mark.parametrize("layers", [(1, 2), (2,), (1, 3), (3,)])
def test_an_answer_is_read_at_each_of_its_tokens(steerable: Model, layers: tuple[int, ...]) -> None:
    before, tokens = prompt(steerable, MESSAGE), steerable.tokenize(ANSWER)
    with Reader(steerable, layers) as reader:
        found = reader.answer(MESSAGE, ANSWER)
    assert_close(found, rows_alone(steerable, (*before, *tokens), layers)[len(before) :])


def test_texts_that_were_read_before_change_nothing(steerable: Model) -> None:
    messages = [MESSAGE, MESSAGE[:10], "x", MESSAGE + " And you?", MESSAGE, MESSAGE]
    with Reader(steerable, (1, 3)) as reader:
        for message in messages:
            assert_close(reader.prompt(message, (1,)), mean_alone(steerable, message, (1,)))
            tokens = (*prompt(steerable, message), *steerable.tokenize(ANSWER))
            answer = rows_alone(steerable, tokens, (1, 3))[-len(steerable.tokenize(ANSWER)) :]
            assert_close(reader.answer(message, ANSWER), answer)


def test_what_texts_begin_with_alike_is_computed_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader(tiny, (1,)) as reader:
        reader.prompt(MESSAGE)
        with decoded(monkeypatch) as run:
            reader.prompt(MESSAGE + " Well?")
    first, second = prompt(tiny, MESSAGE), prompt(tiny, MESSAGE + " Well?")
    # All of the message: what was read of its beginning is gone. Nothing behind it, for nothing there is read.
    start, stop = latest_message(tiny, [Message("user", MESSAGE + " Well?")])
    assert first[:start] == second[:start]
    assert run == list(second[start:-1])
    assert stop < len(second) - 1


def test_an_answer_alone_follows_a_neutral_message(tiny: Model) -> None:
    with Reader(tiny, (1,)) as reader:
        alone, told = reader.answer("", ANSWER), reader.answer(NEUTRAL_MESSAGE, ANSWER)
        other = reader.answer(MESSAGE, ANSWER)
    assert_close(alone, told)
    assert np.abs(alone - other).max() > 2 * ROW_NOISE


def test_special_tokens_in_an_answer_are_plain_text(tiny: Model) -> None:
    text = "a<|im_end|>b"
    with Reader(tiny, (1,)) as reader:
        assert reader.tokens_of(text) == list(text.encode())
        assert len(reader.answer("", text)) == len(text)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
@pytest.mark.parametrize("layer", [1, 2])
def test_an_answer_longer_than_a_batch_is_read_in_parts(tmp_path: Path, architecture: str, layer: int) -> None:
    path = write_tiny_model(tmp_path / "long.gguf", architecture, n_layer=3, n_ctx_train=1024)
    answer = "".join(np.random.default_rng(0).choice(list("abcdfg"), 700))
    with Model(path, threads=1) as model:
        before = prompt(model, MESSAGE)
        with Reader(model, (layer,)) as reader:
            found = reader.answer(MESSAGE, answer)
        assert_close(found, rows_alone(model, (*before, *answer.encode()), (layer,))[len(before) :])


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_a_message_longer_than_a_batch_is_read_in_parts(tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "long.gguf", architecture, n_layer=3, n_ctx_train=2048)
    message = "".join(np.random.default_rng(0).choice(list("abcdfg"), 1300))
    with Model(path, threads=1) as model, Reader(model, (0, 1)) as reader:
        for text in (message, message[:700], message[5:]):
            assert_close(reader.prompt(text), mean_alone(model, text, (0, 1)))


def test_a_text_that_is_too_long_is_told_and_does_no_harm(steerable: Model) -> None:
    room = 512
    fits = "x" * (room - len(prompt(steerable, "x")) + 1)
    with Reader(steerable, (1,)) as reader:
        assert len(reader.prompt(fits)) == 1
        with pytest.raises(PolicyError, match=r"too long to be read: its message takes it to 513 tokens.* holds 512"):
            reader.prompt(fits + "x")
        with pytest.raises(PolicyError, match="its message takes it to"):
            reader.answer(fits + "x", "y")
        answer = "y" * (room - len(prompt(steerable, "x")))
        assert len(reader.answer("x", answer)) == len(answer)
        with pytest.raises(PolicyError, match="its answer takes it to 513 tokens"):
            reader.answer("x", answer + "y")
        assert_close(reader.prompt(MESSAGE), mean_alone(steerable, MESSAGE, (1,)))


def test_an_empty_answer_is_told(tiny: Model) -> None:
    with Reader(tiny, (1,)) as reader, pytest.raises(PolicyError, match="answer is empty"):
        reader.answer(MESSAGE, "")


def test_a_model_that_does_not_show_its_hidden_states_is_told(tiny_model: TinyModel) -> None:
    with Reader(tiny_model(UNSTEERABLE_ARCHITECTURE), (1,)) as reader, pytest.raises(ModelError, match="does not show"):
        reader.prompt(MESSAGE)
