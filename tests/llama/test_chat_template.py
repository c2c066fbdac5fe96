from __future__ import annotations

import pytest

from localsteer.errors import ModelError
from localsteer.llama.chat_template import ChatTemplate, Message
from tests.tiny_models import CHATML_TEMPLATE

SYSTEM = Message("system", "Be brief.")
USER = Message("user", "Hello")
ASSISTANT = Message("assistant", "Hi!")

TURNS = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
DROPS_SYSTEM = TURNS.replace("in messages %}", "in messages if message.role != 'system' %}")


def render(template: str, *messages: Message) -> str:
    return ChatTemplate(template, bos="<s>", eos="</s>").render(messages)


def test_a_conversation_ends_with_the_header_of_the_next_answer() -> None:
    assert render(CHATML_TEMPLATE, SYSTEM, USER, ASSISTANT, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_prints_the_models_own_special_tokens() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", USER) == "<s>Hello</s>"


@pytest.mark.parametrize("template", [DROPS_SYSTEM, REFUSES_SYSTEM], ids=["drops", "refuses"])
def test_a_template_without_a_system_role_gets_the_text_with_the_first_question(template: str) -> None:
    expected = "[user] Be brief.\n\nHello\n[assistant] Hi!\n[user] Hello\n"
    assert render(template, SYSTEM, USER, ASSISTANT, USER) == expected


@pytest.mark.parametrize("template", [DROPS_SYSTEM, REFUSES_SYSTEM], ids=["drops", "refuses"])
def test_a_template_without_a_system_role_gets_a_lone_system_text_as_a_question(template: str) -> None:
    assert render(template, SYSTEM) == "[user] Be brief.\n"
    assert render(template, SYSTEM, ASSISTANT, USER) == "[user] Be brief.\n[assistant] Hi!\n[user] Hello\n"


def test_a_conversation_without_a_system_text_is_left_alone() -> None:
    assert render(DROPS_SYSTEM, USER, ASSISTANT) == "[user] Hello\n[assistant] Hi!\n"


def test_a_template_that_is_no_jinja_is_an_error() -> None:
    with pytest.raises(ModelError, match="--raw"):
        ChatTemplate("{% for message in messages %}", bos="", eos="")


def test_a_refused_conversation_says_why() -> None:
    template = "{% if messages[0].role == 'assistant' %}{{ raise_exception('Roles must alternate') }}{% endif %}" + TURNS
    with pytest.raises(ModelError, match=r"Roles must alternate.*--raw"):
        render(template, ASSISTANT)


def test_a_template_cannot_reach_into_python() -> None:
    with pytest.raises(ModelError, match="--raw"):
        render("{{ messages.__class__.__mro__[-1].__subclasses__() }}", USER)
