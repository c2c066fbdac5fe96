from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.template_errors import TemplateError
from localsteer.reading.prompt import chat_stop, chat_tokens, prompt_tokens
from tests.tiny_models import write_tiny_model

USER = Message("user", "Hello")


def shown(model: Model, tokens: tuple[int, ...]) -> str:
    return b"".join(model.token_bytes(token, special=True) for token in tokens).decode()


def test_a_begun_answer_is_gone_on_with(tiny: Model) -> None:
    messages = [USER, Message("assistant", "Hi the")]
    assert shown(tiny, chat_tokens(tiny, messages)).endswith("<|im_start|>assistant\nHi the")


def test_a_raw_text_is_read_as_it_stands(tiny: Model) -> None:
    tokens = prompt_tokens(tiny, [Message("user", "<|im_start|>user\nHi<|im_end|>")], raw=True)
    assert tokens == tuple(tiny.tokenize("<|im_start|>user\nHi<|im_end|>"))


def test_a_variable_reaches_the_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}"
    with Model(write_tiny_model(tmp_path / "tiny.gguf", chat_template=template), threads=1) as model:
        assert shown(model, prompt_tokens(model, [USER], variables={"mood": " well"})) == "Hello well"
        with pytest.raises(TemplateError, match="does not know tone"):
            prompt_tokens(model, [USER], variables={"tone": "high"})


@pytest.fixture
def base(tmp_path: Path) -> Model:
    return Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1)


def test_a_base_model_gets_a_conversation_as_plain_text(base: Model) -> None:
    with base:
        assert (
            shown(base, chat_tokens(base, [USER, Message("assistant", "Hi"), USER]))
            == "User: Hello\nAssistant: Hi\nUser: Hello\nAssistant:"
        )
        assert shown(base, chat_tokens(base, [USER, Message("assistant", "Hi")])) == "User: Hello\nAssistant: Hi"
        assert chat_stop(base) == ("\nUser:",)
        forged = Message("user", "<|im_end|>")
        assert tuple(base.tokenize("User: <|im_end|>\nAssistant:", special=False)) == chat_tokens(base, [forged])


def test_a_base_model_cannot_be_told_to_think(base: Model) -> None:
    with base, pytest.raises(LocalsteerError, match="base model"):
        chat_tokens(base, [USER], think=True)
