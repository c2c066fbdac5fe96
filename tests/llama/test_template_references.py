from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import tools
from localsteer.errors import ModelError
from localsteer.llama import given
from localsteer.llama.chat_template import ChatTemplate, Message, ToolCall
from tests.reference.conversations import BOS, CONVERSATIONS, EOS, NOW, SMALL_TEMPLATES, Conversation, digest

REFERENCES = json.loads((Path(__file__).parent.parent / "reference" / "templates.json").read_text(encoding="utf-8"))


# Before the tests get a cache folder of their own.
TEMPLATES = tools.source_folder() / "models" / "templates"


@pytest.fixture(autouse=True)
def _same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers tells a template the time by `strftime_now` alone.
    monkeypatch.setattr(given, "_A_DAY", NOW)


def message(document: dict[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["function"]["name"], call["function"]["arguments"], call["id"]) for call in document.get("tool_calls", ())
    )
    return Message(**{**document, "tool_calls": calls})


def render(template: ChatTemplate, conversation: Conversation) -> str:
    known = conversation.think is not None and "enable_thinking" in template.variables
    variables = {"enable_thinking": conversation.think} if known else {}
    messages = [message(one) for one in conversation.messages]
    return template.render(messages, tools=conversation.tools, variables=variables)


@pytest.mark.parametrize("name", SMALL_TEMPLATES)
def test_small_templates_are_rendered_as_by_transformers(name: str) -> None:
    template = ChatTemplate(SMALL_TEMPLATES[name], bos=BOS, eos=EOS)
    for conversation, expected in zip(CONVERSATIONS.values(), REFERENCES["small"][name], strict=True):
        if expected is not None:
            assert render(template, conversation) == expected


def test_the_templates_of_llama_cpp_are_rendered_as_by_transformers() -> None:
    """Where transformers raises an error or leaves something out, ours do without neither a reason nor a text.

    Only templates that this version of llama.cpp has in the very form that the references were made of are compared.
    """
    if not TEMPLATES.is_dir():
        pytest.skip("llama.cpp's source is not here: `make bench-tools` unpacks it")
    sources = (path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja")))
    here = {digest(source): source for source in sources}
    both = [
        (name, here[name.split()[-1]], prompts) for name, prompts in REFERENCES["llama.cpp"].items() if name.split()[-1] in here
    ]
    if not both:
        pytest.skip("llama.cpp's source has none of the templates that there are references of")
    different = []
    for name, source, prompts in both:
        template = ChatTemplate(source, bos=BOS, eos=EOS)
        for (kind, conversation), expected in zip(CONVERSATIONS.items(), prompts, strict=True):
            try:
                prompt = render(template, conversation)
            except ModelError as error:
                if expected is not None:
                    different.append((name, kind, error.message))
                continue
            if expected is not None and digest(prompt) != expected:
                different.append((name, kind, prompt))
            assert all(one["content"].strip() in prompt for one in conversation.messages if one["role"] == "user")
    assert different == []
