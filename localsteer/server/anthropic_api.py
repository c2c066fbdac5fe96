"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from localsteer.engine.reply import Reasoning
from localsteer.engine.request import Answer
from localsteer.server.answers import Finished, Prompt, Service, Wishes
from localsteer.server.anthropic_schema import CountRequest, MessagesRequest
from localsteer.server.asking import Asked, ask, timing_document
from localsteer.server.blocks import Document, streamed, written
from localsteer.server.conversations import chat_prompt
from localsteer.server.errors import anthropic_document, decision_documents, error_document
from localsteer.server.reply import Said
from localsteer.server.schema import SteeringHeader
from localsteer.server.streams import EventStream
from localsteer.tools.tool import MoreArguments, ToolCall

_REASONS = {"stop": "end_turn", "length": "max_tokens", "interrupted": "end_turn", "policy": "refusal"}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/messages", tags=["Anthropic"])

    def prompt_of(body: CountRequest) -> Prompt:
        wishes, offer = body.template_wishes(), body.offer()
        formed = body.constraint() is not None
        return chat_prompt(service, body.turns(), wishes, offer, formed=formed, with_span=service.gated)

    @routes.post("", response_model=None)
    async def messages(body: MessagesRequest, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | Document:
        """Answer a conversation, steered as the request says."""

        def make() -> tuple[Sequence[Prompt], Wishes]:
            return [prompt_of(body)], body.wishes(service)

        asked = await ask(service, body, x_steering, http, make, body.note)
        writer = _Writer(asked, body.stop_sequences or ())
        if body.stream:
            return EventStream(_events(asked, writer), asked.answers)
        (finished,) = await asked.answers.all(http)
        written(asked, finished, writer)
        return writer.message

    @routes.post("/count_tokens")
    async def count_tokens(body: CountRequest) -> dict[str, int]:
        """How many tokens the prompt of a conversation has."""
        service.called(body.model)  # which may refuse it
        prompt = await run_in_threadpool(prompt_of, body)
        return {"input_tokens": len(prompt.tokens)}

    return routes


async def _events(asked: Asked, writer: _Writer) -> AsyncIterator[dict[str, str]]:
    for document in writer.start():
        yield _event(document)
    async for document in streamed(asked, writer):
        yield _event(document)


def _event(document: Document) -> dict[str, str]:
    return {"event": document["type"], "data": json.dumps(document)}


class _Writer:
    """Writes one reply.

    Args:
        asked: the request.
        stops: those of its stop strings that are told where they end the answer.

    Attributes:
        message: all of it, as far as it has come.
    """

    def __init__(self, asked: Asked, stops: Sequence[str]) -> None:
        self._stops = stops
        self._prompt_tokens = asked.prompt_tokens
        self._steering = asked.steering
        self.message: Document = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": asked.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(0, 0),
        }

    def start(self) -> list[Document]:
        return [{"type": "message_start", "message": self.message}, {"type": "ping"}]

    def begin(self, index: int, first: Said) -> Iterator[Document]:
        if isinstance(first, ToolCall):
            block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": first.name, "input": {}}
        elif isinstance(first, Reasoning):
            block = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            block = {"type": "text", "text": ""}
        self.message["content"].append(block)
        yield {"type": "content_block_start", "index": index, "content_block": block}

    def more(self, index: int, piece: Said) -> Iterator[Document]:
        if isinstance(piece, ToolCall | MoreArguments):
            told = piece.arguments if isinstance(piece, ToolCall) else piece.text
            delta = {"type": "input_json_delta", "partial_json": told}
        elif isinstance(piece, Reasoning):
            delta = {"type": "thinking_delta", "thinking": piece.text}
        else:
            delta = {"type": "text_delta", "text": piece}
        yield {"type": "content_block_delta", "index": index, "delta": delta}

    def end(self, index: int, whole: Said, *, cut: bool) -> Iterator[Document]:
        block = self.message["content"][index]
        if isinstance(whole, ToolCall):
            block["input"] = json.loads(whole.arguments) if whole.is_whole else {}
        elif isinstance(whole, Reasoning):
            block["thinking"] = whole.text
        else:
            block["text"] = whole
        yield {"type": "content_block_stop", "index": index}

    def finish(self, finished: Finished, whole_calls: int) -> Iterator[Document]:
        answer = finished.answer
        ends = self._end(answer, whole_calls)
        usage = self._usage(answer.timing.reused_tokens, len(answer.tokens))
        more = {
            "steering": self._steering,
            "policy": decision_documents(finished.decisions),
            "timing": timing_document([answer]),
            "seed": answer.seed,
        }
        self.message.update(ends, usage=usage, **more)
        yield {"type": "message_delta", "delta": ends, "usage": usage, **more}
        yield {"type": "message_stop"}

    def fail(self, error: Exception) -> Iterator[Document]:
        yield anthropic_document(*error_document(error))

    def _end(self, answer: Answer, whole_calls: int) -> dict[str, Any]:
        if answer.finish_reason == "stop":
            if whole_calls:
                return {"stop_reason": "tool_use", "stop_sequence": None}
            if answer.met in self._stops:
                return {"stop_reason": "stop_sequence", "stop_sequence": answer.met}
        return {"stop_reason": _REASONS[answer.finish_reason], "stop_sequence": None}

    def _usage(self, cached: int, drawn: int) -> dict[str, int]:
        """Anthropic counts what came from the cache apart."""
        cached = min(cached, self._prompt_tokens)
        return {
            "input_tokens": self._prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": drawn,
        }
