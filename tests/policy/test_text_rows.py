from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from localsteer.errors import ModelError, PolicyError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.policy.text_rows import NEUTRAL_MESSAGE, answer_span, answer_tokens, message_span
from localsteer.reading.prompt import latest_message, prompt_tokens
from localsteer.reading.rows import read_means, read_tokens
from localsteer.reading.span import Part
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


def read_messages(model: Model, messages: Sequence[str], layers: Sequence[int]) -> Floats:
    """(n_messages, n_layers, n_embd)."""
    return read_means(model, [message_span(model, message) for message in messages], layers).values


def read_answers(model: Model, pairs: Sequence[tuple[str, str]], layers: Sequence[int]) -> list[Floats]:
    """(n_tokens, n_layers, n_embd) of each answer to a message."""

    def keep(part: Part) -> Floats:
        return np.stack([part.rows(layer) for layer in layers], axis=1)

    found = dict(read_tokens(model, [answer_span(model, *pair) for pair in pairs], layers, keep))
    return [found[number] for number in range(len(pairs))]


def answer_alone(model: Model, message: str, answer: str, layers: Sequence[int]) -> Floats:
    """(n_tokens, n_layers, n_embd) of an answer, read after its message in one decode."""
    before, tokens = prompt(model, message), model.tokenize(answer, special=False)
    return rows_alone(model, (*before, *tokens), layers)[len(before) :]


# The last block only shows tokens that ask for logits.
@pytest.mark.parametrize("layers", [(1, 2), (2,), (0, 1), (1, 3)])
def test_a_message_is_read_over_its_tokens(steerable: Model, layers: tuple[int, ...]) -> None:
    messages = [MESSAGE, MESSAGE[:10], "x", " ", MESSAGE + " And you?", MESSAGE]
    for message, found in zip(messages, read_messages(steerable, messages, layers), strict=True):
        assert_close(found, mean_alone(steerable, message, layers))


@pytest.mark.parametrize("layers", [(1, 2), (2,), (1, 3), (3,)])
def test_an_answer_is_read_at_each_of_its_tokens(steerable: Model, layers: tuple[int, ...]) -> None:
    pairs = [(MESSAGE, ANSWER), (MESSAGE, "x"), ("x", ANSWER), (MESSAGE, ANSWER), (MESSAGE + " And you?", ANSWER * 2)]
    for pair, found in zip(pairs, read_answers(steerable, pairs, layers), strict=True):
        assert_close(found, answer_alone(steerable, *pair, layers))


def test_a_base_models_prompt_is_all_message(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as base:
        messages = [MESSAGE, "x", " "]
        for message, found in zip(messages, read_messages(base, messages, (1, 2)), strict=True):
            rows = rows_alone(base, prompt(base, message), (1, 2))
            assert_close(found, np.asarray(rows.mean(axis=0), np.float32))


def test_what_texts_begin_with_alike_is_computed_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [MESSAGE + " Well?", MESSAGE + " Oh!"]
    with decoded(monkeypatch) as run:
        read_messages(tiny, messages, (1,))
    # The second goes on where it parts from the first. Nothing behind a message is computed, for nothing there is read.
    _, stop = latest_message(tiny, [Message("user", messages[0])])
    assert len(run) == stop + len(" Oh!") - len(" ")
    with decoded(monkeypatch) as run:
        read_answers(tiny, [(MESSAGE, ANSWER), (MESSAGE, "x")], (1,))
    assert len(run) == len(prompt(tiny, MESSAGE)) + len(answer_tokens(tiny, ANSWER)) + 1


def test_an_answer_alone_follows_a_neutral_message(tiny: Model) -> None:
    alone, told, other = read_answers(tiny, [("", ANSWER), (NEUTRAL_MESSAGE, ANSWER), (MESSAGE, ANSWER)], (1,))
    assert_close(alone, told)
    assert np.abs(alone - other).max() > 2 * ROW_NOISE


def test_no_beginning_of_a_text_stands_before_an_answer(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize, begun = tiny.tokenize, list[bool]()

    def remember(text: str, *, add_special: bool = True, special: bool = True) -> list[int]:
        begun.append(add_special)
        return tokenize(text, add_special=add_special, special=special)

    monkeypatch.setattr(tiny, "tokenize", remember)
    answer_tokens(tiny, "Hello")
    assert begun == [False]


def test_special_tokens_in_an_answer_are_plain_text(tiny: Model) -> None:
    text = "a<|im_end|>b"
    assert answer_tokens(tiny, text) == list(text.encode())
    assert len(answer_span(tiny, "", text).places) == len(text)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
@pytest.mark.parametrize("layer", [1, 2])
def test_texts_longer_than_a_batch_are_read_in_parts(tmp_path: Path, architecture: str, layer: int) -> None:
    path = write_tiny_model(tmp_path / "long.gguf", architecture, n_layer=3, n_ctx_train=2048)
    text = "".join(np.random.default_rng(0).choice(list("abcdfg"), 1300))
    with Model(path, threads=1) as model:
        (found,) = read_answers(model, [(MESSAGE, text[:700])], (layer,))
        assert_close(found, answer_alone(model, MESSAGE, text[:700], (layer,)))
        messages = [text, text[:700], text[5:]]
        for message, mean in zip(messages, read_messages(model, messages, (layer,)), strict=True):
            assert_close(mean, mean_alone(model, message, (layer,)))


def test_a_text_that_is_too_long_is_told(tiny: Model) -> None:
    room = 512
    fits = "x" * (room - len(prompt(tiny, "x")) + 1)
    assert len(message_span(tiny, fits).tokens) == room
    with pytest.raises(PolicyError, match=r"its message takes it to 513 tokens.* holds 512"):
        message_span(tiny, fits + "x")
    with pytest.raises(PolicyError, match="its message takes it to"):
        answer_span(tiny, fits + "x", "y")
    answer = "y" * (room - len(prompt(tiny, "x")))
    assert len(answer_span(tiny, "x", answer).places) == len(answer)
    with pytest.raises(PolicyError, match="its answer takes it to 513 tokens"):
        answer_span(tiny, "x", answer + "y")


def test_an_empty_answer_is_told(tiny: Model) -> None:
    with pytest.raises(PolicyError, match="answer is empty"):
        answer_span(tiny, MESSAGE, "")


def test_a_model_that_does_not_show_its_hidden_states_is_told(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match="does not show"):
        read_messages(tiny_model(UNSTEERABLE_ARCHITECTURE), [MESSAGE], (1,))
