"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Response
from starlette.requests import Request as HTTPRequest

from localsteer.engine.request import Answer, FinishReason, TokenLogprob
from localsteer.llama import library
from localsteer.server.answered import answered, progress_document, timings
from localsteer.server.answers import Finished, Prompt, RequestError, Service, Wishes, likeliest
from localsteer.server.asking import Asked, ask, timing_document
from localsteer.server.conversations import chat_prompt, offer_of
from localsteer.server.errors import decision_documents, error_document
from localsteer.server.jobs import Ended, Event, Failed
from localsteer.server.openai_forms import CHAT, TEXT, Form
from localsteer.server.reply import ReplyReader, Said, parts_of
from localsteer.server.schema import ChatRequest, Common, CompletionRequest, SteeringHeader
from localsteer.server.streams import EventStream

_FINISH: dict[FinishReason, str] = {"stop": "stop", "length": "length", "interrupted": "stop", "policy": "content_filter"}


@dataclass(frozen=True)
class _Reply:
    """One request's answers as documents."""

    service: Service
    form: Form
    body: Common
    asked: Asked
    wants_logprobs: bool
    echoed: Sequence[str] = ()
    kept: int | None = None
    identity: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.form.prefix}-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.asked.name,
            # What computes, behind a b as llama-server has it, and the model: a seed gives the same answer by the same of both.
            "system_fingerprint": f"b{library.load().__version__}-{self.service.model.fingerprint.content[:16]}",
        }

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        read = self.asked.prompt_tokens
        drawn = sum(len(answer.tokens) for answer in answers)
        cached = sum(answer.timing.reused_tokens for answer in answers)
        return {
            "prompt_tokens": read,
            "completion_tokens": drawn,
            "total_tokens": read + drawn,
            "prompt_tokens_details": {"cached_tokens": min(cached, read)},
        }

    def whole(self, finished: Sequence[Finished]) -> dict[str, Any]:
        """All answers in one document."""
        usage = self.usage([one.answer for one in finished])
        if self.kept is not None:
            finished = likeliest(finished, self.asked.prompts, self.kept)
        said = [self.asked.reading.of(one.answer.text) for one in finished]
        choices = [
            {
                "index": number,
                **self._echoing(number, len(finished), self.form.answer(said[number])),
                "finish_reason": _finish(one.answer, calls=len(parts_of(said[number])[2])),
                "logprobs": self.logprobs(one.answer.logprobs) if self.wants_logprobs else None,
                "seed": one.answer.seed,
            }
            for number, one in enumerate(finished)
        ]
        decisions = [decision for one in finished for decision in one.decisions]
        return {
            **self.head(self.form.whole),
            "choices": choices,
            "usage": usage,
            "steering": self.asked.steering,
            "policy": decision_documents(decisions),
            **_times([one.answer for one in finished]),
            **({"__verbose": self.verbose(0, finished[0].answer)} if self.body.verbose else {}),
        }

    def verbose(self, choice: int, answer: Answer) -> dict[str, Any]:
        """All of an answer in llama-server's form: what was read, and what was written, marks and all."""
        request = self.asked.answers.jobs[choice].request
        document = answered(self.service, self.body, self.asked.name, request, answer)
        return {"index": choice, "content": answer.text, "tokens": list(answer.tokens), **document}

    def _echoing(self, choice: int, count: int, content: dict[str, Any]) -> dict[str, Any]:
        """A choice's text with its prompt before it, where that was asked for."""
        if not self.echoed:
            return content
        return {"text": self.echoed[choice * self.asked.prompts // count] + content["text"]}

    def logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self.form.logprobs(self.service.model, entries)

    def chunk(
        self,
        choice: int,
        content: dict[str, Any],
        finish: str | None = None,
        entries: Sequence[TokenLogprob] = (),
        /,
        **more: Any,
    ) -> dict[str, Any]:
        logprobs = self.logprobs(entries) if self.wants_logprobs and entries else None
        choices = [{"index": choice, **content, "finish_reason": finish, "logprobs": logprobs}]
        return {**self.head(self.form.chunk), "choices": choices, **more}

    async def stream(self, *, include_usage: bool) -> AsyncIterator[str]:
        """The answers as server-sent events."""
        answers = self.asked.answers
        if self.form is CHAT:
            for choice in range(len(answers.jobs)):
                # null, as llama-server has it: programs that count deltas take an empty text for one.
                start = {"delta": {"role": "assistant", "content": None}}
                yield json.dumps(self.chunk(choice, start, steering=self.asked.steering))
        elif self.echoed:
            for choice in range(len(answers.jobs)):
                yield json.dumps(self.chunk(choice, self._echoing(choice, len(answers.jobs), {"text": ""})))
        ended: list[Answer] = []
        telling = [_Telling(self.asked.reading.reader(in_pieces=True)) for _ in answers.jobs]
        async for event in answers.events():
            if isinstance(event, Failed):
                yield json.dumps(error_document(event.error)[1])
                return
            if isinstance(event, Ended):
                ended.append(event.answer)
            for document in self._documents_of(event, telling[event.choice]):
                yield json.dumps(document)
        if include_usage:
            yield json.dumps({**self.head(self.form.chunk), "choices": [], "usage": self.usage(ended), **_times(ended)})
        yield "[DONE]"

    def _documents_of(self, event: Event, telling: _Telling) -> list[dict[str, Any]]:
        assert not isinstance(event, Failed)
        policy: dict[str, Any] = {"policy": decision_documents(event.decisions)} if event.decisions else {}
        if not isinstance(event, Ended):
            if event.progress is not None:
                empty = self.form.piece((), telling.calls)
                return [self.chunk(event.choice, empty, prompt_progress=progress_document(event.progress))]
            said = telling.reader.push(event.text)
            if not (said or policy or (event.logprobs and self.wants_logprobs)):
                return []
            return [self._piece(event.choice, said, telling, event.logprobs, **policy)]
        said = telling.reader.finish()
        documents = []
        if said or (event.logprobs and self.wants_logprobs):
            documents.append(self._piece(event.choice, said, telling, event.logprobs))
        content: dict[str, Any] = {"delta": {}} if self.form is CHAT else {"text": ""}
        finish = _finish(event.answer, calls=telling.reader.whole_calls)
        more = {
            "steering": self.asked.steering,
            **_times([event.answer]),
            **({"__verbose": self.verbose(event.choice, event.answer)} if self.body.verbose else {}),
            "seed": event.answer.seed,
        }
        return [*documents, self.chunk(event.choice, content, finish, **policy, **more)]

    def _piece(
        self, choice: int, said: Sequence[Said], telling: _Telling, entries: Sequence[TokenLogprob], **more: Any
    ) -> dict[str, Any]:
        document = self.chunk(choice, self.form.piece(said, telling.calls), None, entries, **more)
        telling.calls += len(parts_of(said)[2])
        return document


@dataclass
class _Telling:
    """How far the stream of one answer has come.

    Attributes:
        reader: what reads it.
        calls: how many calls of tools have begun.
    """

    reader: ReplyReader
    calls: int = 0


def _times(answers: Sequence[Answer]) -> dict[str, Any]:
    """How long they took, in our form and in llama-server's."""
    slowest = max(answers, key=lambda answer: answer.timing.seconds)
    return {"timing": timing_document([slowest]), "timings": timings(slowest)}


def _finish(answer: Answer, *, calls: int) -> str:
    return "tool_calls" if calls and answer.finish_reason == "stop" else _FINISH[answer.finish_reason]


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["OpenAI"])
    created = int(time.time())

    @routes.post("/chat/completions", response_model=None, include_in_schema=False)
    @routes.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | dict[str, Any]:
        """Answer a conversation, steered as the request says."""
        messages = [message.message() for message in body.messages]
        if body.top_logprobs and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs: true.", "top_logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens

        offer = offer_of(body.tools, body.tool_choice, body.parallel_tool_calls)
        formed = body.constraint() is not None

        def prompts() -> list[Prompt]:
            wishes = body.template_wishes()
            return [chat_prompt(service, messages, wishes, offer, formed=formed, with_span=service.gated)]

        return await _answer(service, CHAT, body, prompts, max_tokens, logprobs, x_steering, http)

    @routes.post("/v1/completions", response_model=None)
    async def complete(
        body: CompletionRequest, http: HTTPRequest, x_steering: SteeringHeader = None
    ) -> Response | dict[str, Any]:
        """Go on with a text, steered as the request says."""

        def prompts() -> list[Prompt]:
            return [_prompt(service, one, body.suffix) for one in _several(body.prompt)]

        max_tokens = body.max_tokens
        if max_tokens is None and service.defaults.max_tokens is None:
            max_tokens = _LEGACY_MAX_TOKENS
        best_of = body.best_of if body.best_of != (body.n or 1) else None
        options = _Options(body.echo is True, best_of)
        return await _answer(service, TEXT, body, prompts, max_tokens, body.logprobs, x_steering, http, options)

    @routes.get("/models", include_in_schema=False)
    @routes.get("/v1/models")
    def models() -> dict[str, Any]:
        """The model, and one more name for each preset, and for what it can be steered by."""
        return {"object": "list", "data": [_model_document(name, created) for name in service.steerings.listed()]}

    @routes.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        """One of them; a name with a steering behind it is one, too."""
        service.steerings.of_model_name(name)
        return _model_document(name, created)

    return routes


# OpenAI's default for this old form.
_LEGACY_MAX_TOKENS = 16


def _model_document(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "localsteer"}


def _several(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(one, int) for one in prompt):
        return [prompt]  # type: ignore[list-item]
    return prompt  # type: ignore[return-value]


def _prompt(service: Service, prompt: str | list[int], suffix: str | None) -> Prompt:
    if suffix:
        if not isinstance(prompt, str):
            raise RequestError("A suffix is offered for prompts that are texts.", "suffix")
        return service.infill_prompt(prompt, suffix)
    return service.text_prompt(prompt) if isinstance(prompt, str) else service.token_prompt(prompt)


@dataclass(frozen=True)
class _Options:
    """What only texts to go on with have: the prompt before the answer, and more answers than are given."""

    echo: bool = False
    best_of: int | None = None


async def _answer(
    service: Service,
    form: Form,
    body: Common,
    make_prompts: Callable[[], list[Prompt]],
    max_tokens: int | None,
    logprobs: int | None,
    header: str | None,
    http: HTTPRequest,
    options: _Options = _Options(),
) -> Response | dict[str, Any]:
    prompts: list[Prompt] = []

    def make() -> tuple[Sequence[Prompt], Wishes]:
        prompts.extend(make_prompts())
        wishes = body.wishes(service, max_tokens=max_tokens, logprobs=logprobs)
        if options.best_of is not None:
            wishes = replace(wishes, count=options.best_of, logprobs=logprobs or 0)
        return prompts, wishes

    asked = await ask(service, body, header, http, make)
    echoed = [prompt.message for prompt in prompts] if options.echo else []
    kept = (body.n or 1) if options.best_of is not None else None
    reply = _Reply(service, form, body, asked, logprobs is not None, echoed, kept)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(reply.stream(include_usage=usage), asked.answers)
    return reply.whole(await asked.answers.all(http))
