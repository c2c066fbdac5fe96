"""OpenAI's `/v1/responses`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Response
from starlette.requests import Request as HTTPRequest

from localsteer.engine.reply import Reasoning
from localsteer.engine.request import Answer
from localsteer.llama.chat_template import Message
from localsteer.server.answers import Finished, Prompt, Service, Wishes
from localsteer.server.asking import Asked, ask, timing_document
from localsteer.server.blocks import Document, streamed, written
from localsteer.server.conversations import chat_prompt
from localsteer.server.errors import decision_documents, error_document
from localsteer.server.kept_responses import Kept, KeptResponses
from localsteer.server.reply import Said
from localsteer.server.responses_schema import Item, ResponsesRequest, joined
from localsteer.server.schema import SteeringHeader
from localsteer.server.streams import EventStream
from localsteer.tools.tool import MoreArguments, ToolCall

_INCOMPLETE = {"length": "max_output_tokens", "policy": "content_filter"}


def router(service: Service) -> APIRouter:
    """The routes. Those that see what is kept run in the loop's thread."""
    routes = APIRouter(prefix="/v1/responses", tags=["OpenAI"])
    kept = KeptResponses()

    @routes.post("", response_model=None)
    async def create(body: ResponsesRequest, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | Document:
        """Answer a conversation, or go on with one that is kept, steered as the request says."""
        before = body.previous_response_id
        earlier = kept.find(before, "previous_response_id").turns if before is not None else ()
        turns = joined([*earlier, *body.turns()])
        system = [Message("system", body.instructions)] if body.instructions else []

        def make() -> tuple[Sequence[Prompt], Wishes]:
            wishes, formed = body.wishes(service), body.constraint() is not None
            template, offer = body.template_wishes(), body.offer()
            prompt = chat_prompt(service, [*system, *turns], template, offer, formed=formed, with_span=service.gated)
            return [prompt], wishes

        asked = await ask(service, body, x_steering, http, make)
        writer = _Writer(asked, body, service)

        def keep() -> None:
            if body.store is not False and writer.response["status"] != "failed":
                said = [Item.model_validate(item).message() for item in writer.response["output"] if not _is_cut_call(item)]
                kept.keep(Kept(writer.response, tuple(joined([*turns, *said]))))

        async def events() -> AsyncIterator[dict[str, str]]:
            for document in writer.start():
                yield _event(document)
            async for document in streamed(asked, writer):
                if document["type"] in ("response.completed", "response.incomplete"):
                    keep()  # before it is told: the next request may come at once
                yield _event(document)

        if body.stream:
            return EventStream(events(), asked.answers)
        (finished,) = await asked.answers.all(http)
        written(asked, finished, writer)
        keep()
        return writer.response

    @routes.get("/{identity}", response_model=None)
    async def read(identity: str) -> Document:
        """One that is kept."""
        return kept.find(identity).document

    @routes.delete("/{identity}")
    async def delete(identity: str) -> Document:
        """Keep it no longer."""
        kept.delete(identity)
        return {"id": identity, "object": "response", "deleted": True}

    return routes


def _is_cut_call(item: Document) -> bool:
    return (item["type"], item["status"]) == ("function_call", "incomplete")


def _event(document: Document) -> dict[str, str]:
    return {"event": document["type"], "data": json.dumps(document)}


class _Writer:
    """Writes one reply.

    Args:
        asked: the request under way.
        body: it.
        service: its model counts the tokens of the reasoning.

    Attributes:
        response: all of it, as far as it has come.
    """

    def __init__(self, asked: Asked, body: ResponsesRequest, service: Service) -> None:
        self._asked = asked
        self._model = service.model
        self._told = 0
        self._reasoning_tokens = 0
        sampling = body.sampling(service)
        self.response: Document = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": asked.name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "store": body.store is not False,
            "temperature": sampling.temperature,
            "text": {"format": (body.text.format if body.text is not None else None) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    def start(self) -> list[Document]:
        return [self._document(f"response.{kind}", response=self.response) for kind in ("created", "in_progress")]

    def begin(self, index: int, first: Said) -> Iterator[Document]:
        identity, begun = secrets.token_hex(12), {"status": "in_progress"}
        item: Document
        if isinstance(first, ToolCall):
            call = {"call_id": f"call_{identity}", "name": first.name, "arguments": ""}
            item = {"id": f"fc_{identity}", "type": "function_call", **begun, **call}
        elif isinstance(first, Reasoning):
            item = {"id": f"rs_{identity}", "type": "reasoning", **begun, "summary": [], "content": []}
        else:
            item = {"id": f"msg_{identity}", "type": "message", **begun, "role": "assistant", "content": []}
        self.response["output"].append(item)
        yield self._document("response.output_item.added", output_index=index, item=item)
        if not isinstance(first, ToolCall):
            yield self._of_part(index, "response.content_part.added", part=_part(first, ""))

    def more(self, index: int, piece: Said) -> Iterator[Document]:
        if isinstance(piece, ToolCall | MoreArguments):
            told = piece.arguments if isinstance(piece, ToolCall) else piece.text
            if told:
                yield self._of_item(index, "response.function_call_arguments.delta", delta=told)
        elif isinstance(piece, Reasoning):
            yield self._of_part(index, "response.reasoning_text.delta", delta=piece.text)
        else:
            yield self._of_part(index, "response.output_text.delta", delta=piece, logprobs=[])

    def end(self, index: int, whole: Said, *, cut: bool) -> Iterator[Document]:
        item = self.response["output"][index]
        if isinstance(whole, ToolCall):
            item.update(arguments=whole.arguments, status="completed" if whole.is_whole else "incomplete")
            more = {"name": whole.name, "arguments": whole.arguments}
            yield self._of_item(index, "response.function_call_arguments.done", **more)
        else:
            text = whole if isinstance(whole, str) else whole.text
            item.update(content=[_part(whole, text)], status="incomplete" if cut else "completed")
            if isinstance(whole, Reasoning):
                self._reasoning_tokens += len(self._model.tokenize(text, add_special=False))
                yield self._of_part(index, "response.reasoning_text.done", text=text)
            else:
                yield self._of_part(index, "response.output_text.done", text=text, logprobs=[])
            yield self._of_part(index, "response.content_part.done", part=_part(whole, text))
        yield self._document("response.output_item.done", output_index=index, item=item)

    def finish(self, finished: Finished, _whole_calls: int) -> Iterator[Document]:
        answer = finished.answer
        reason = _INCOMPLETE.get(answer.finish_reason)
        status = "completed" if reason is None else "incomplete"
        self.response.update(
            status=status,
            incomplete_details={"reason": reason} if reason is not None else None,
            usage=self._usage(answer),
            steering=self._asked.steering,
            policy=decision_documents(finished.decisions),
            timing=timing_document([answer]),
            seed=answer.seed,
        )
        yield self._document(f"response.{status}", response=self.response)

    def fail(self, error: Exception) -> Iterator[Document]:
        told = error_document(error)[1]["error"]
        self.response.update(status="failed", error={"code": told["code"] or "server_error", "message": told["message"]})
        yield self._document("response.failed", response=self.response)

    def _usage(self, answer: Answer) -> dict[str, Any]:
        read, drawn = self._asked.prompt_tokens, len(answer.tokens)
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": min(answer.timing.reused_tokens, read), "cache_write_tokens": 0},
            "output_tokens": drawn,
            "output_tokens_details": {"reasoning_tokens": min(self._reasoning_tokens, drawn)},
            "total_tokens": read + drawn,
        }

    def _of_part(self, index: int, kind: str, **more: Any) -> Document:
        return self._of_item(index, kind, content_index=0, **more)

    def _of_item(self, index: int, kind: str, **more: Any) -> Document:
        return self._document(kind, item_id=self.response["output"][index]["id"], output_index=index, **more)

    def _document(self, kind: str, **more: Any) -> Document:
        self._told += 1
        return {"type": kind, "sequence_number": self._told - 1, **more}


def _part(said: Said, text: str) -> dict[str, Any]:
    if isinstance(said, Reasoning):
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
