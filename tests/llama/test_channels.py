"""The headers of gpt-oss's messages, as OpenAI's description of the format has them."""

from __future__ import annotations

import pytest

from localsteer.llama.channels import Kind, called_in, kind_behind, kind_of


@pytest.mark.parametrize(
    ("header", "kind", "called"),
    [
        ("<|channel|>analysis", "thinking", ""),
        ("<|channel|>final", "answer", ""),
        ("<|start|>assistant<|channel|>final <|constrain|>json", "answer", ""),
        ("<|channel|>commentary", "answer", ""),
        ("<|channel|>commentary to=functions.get_weather <|constrain|>json", "call", "get_weather"),
        ("<|channel|>commentary to=functions.get_weather json", "call", "get_weather"),
        ("assistant to=functions.get_weather<|channel|>commentary json", "call", "get_weather"),
        ("<|start|>assistant to=functions.a-b.c<|channel|>analysis", "call", "a-b.c"),
        ("<|channel|>analysis to=python code", "thinking", ""),
        ("<|channel|>commentary to=browser.search", "thinking", ""),
        (" to=self", "thinking", ""),
        ("", "answer", ""),
    ],
)
def test_a_header_says_what_its_message_is(header: str, kind: Kind, called: str) -> None:
    assert (kind_of(header), called_in(header) if kind == "call" else "") == (kind, called)


THOUGHT = "<|channel|>analysis<|message|>why<|end|>"


@pytest.mark.parametrize(
    ("reply", "begun", "kind"),
    [
        ("", False, "header"),
        ("<|chan", False, "header"),
        ("Because", False, "answer"),
        ("why", True, "thinking"),
        ("why<|end|><|start|>assistant", True, "header"),
        ("why<|end|><|start|>assistant<|channel|>final<|message|>", True, "answer"),
        ("<|channel|>analysis<|message|>why", False, "thinking"),
        (f"{THOUGHT}<|start|>assistant<|channel|>commentary to=functions.a", False, "header"),
        (
            f"{THOUGHT}<|start|>assistant<|channel|>commentary to=functions.a<|message|>{{",
            False,
            "call",
        ),
        (
            "<|channel|>commentary<|message|>I look.<|end|>assistant to=functions.a<|channel|>x<|message|>{",
            False,
            "call",
        ),
        (f"{THOUGHT}assistant<|channel|>final json<|message|>{{", False, "answer"),
    ],
)
def test_a_reply_says_what_goes_on_behind_it(reply: str, begun: bool, kind: Kind) -> None:
    assert kind_behind(reply, begun=begun) == kind
