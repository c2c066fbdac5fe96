"""What `/v1/chat/completions` and `/v1/completions` write differently."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from localsteer.engine.request import TokenLogprob
from localsteer.llama.model import Model
from localsteer.server.logprobs import logprob_documents
from localsteer.server.reply import Said, parts_of
from localsteer.tools.tool import MoreArguments, ToolCall


@dataclass(frozen=True)
class Form:
    """One of the two kinds of completion.

    Attributes:
        prefix: of the answer's identity.
        whole, chunk: names of the objects.
        answer, piece: a choice's part that holds the reply, whole and streamed, with the number of calls before.
        logprobs: how log probabilities are written.
    """

    prefix: str
    whole: str
    chunk: str
    answer: Callable[[Sequence[Said]], dict[str, Any]]
    piece: Callable[[Sequence[Said], int], dict[str, Any]]
    logprobs: Callable[[Model, Sequence[TokenLogprob]], dict[str, Any]]


def _chat_logprobs(model: Model, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": logprob_documents(model, entries), "refusal": None}


def _text_logprobs(model: Model, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    def text(token: int) -> str:
        return model.token_bytes(token, special=True).decode("utf-8", errors="replace")

    return {
        "tokens": [text(entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{text(token): logprob for token, logprob in entry.likeliest} for entry in entries],
        "text_offset": None,
    }


def _message(said: Sequence[Said]) -> dict[str, Any]:
    reasoning, text, calls = parts_of(said)
    return {
        "message": {
            "role": "assistant",
            "content": text if text or not calls else None,
            "refusal": None,
            **({"reasoning_content": reasoning} if reasoning else {}),
            **({"tool_calls": [_call(call) for call in calls]} if calls else {}),
        }
    }


def _delta(said: Sequence[Said], calls_before: int) -> dict[str, Any]:
    reasoning, text, _ = parts_of(said)
    told = list(_calls_in(said, calls_before))
    return {
        "delta": {
            **({"reasoning_content": reasoning} if reasoning else {}),
            **({"tool_calls": told} if told else {}),
            **({"content": text} if text or not (reasoning or told) else {}),
        }
    }


def _calls_in(said: Sequence[Said], before: int) -> Iterator[dict[str, Any]]:
    """The calls that begin, and more of the latest one's arguments; `before`: how many have begun."""
    for one in said:
        if isinstance(one, ToolCall):
            yield {"index": before, **_call(one)}
            before += 1
        elif isinstance(one, MoreArguments):
            yield {"index": before - 1, "function": {"arguments": one.text}}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


CHAT = Form(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    _message,
    _delta,
    _chat_logprobs,
)
TEXT = Form(
    "cmpl",
    "text_completion",
    "text_completion",
    lambda said: {"text": parts_of(said)[1]},
    lambda said, _calls: {"text": parts_of(said)[1]},
    _text_logprobs,
)
