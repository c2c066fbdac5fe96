"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from localsteer.engine.request import Answer, FinishReason, TokenLogprob
from localsteer.llama.model import Model
from localsteer.server.answers import Answers, EventStream, Finished, Prompt, RequestError, Service, applied
from localsteer.server.errors import decision_documents, error_document
from localsteer.server.jobs import Ended, Event, Failed, Job
from localsteer.server.schema import ChatRequest, Common, CompletionRequest, SteeringHeader
from localsteer.steering.plan import Plan

_FINISH: dict[FinishReason, str] = {"stop": "stop", "length": "length", "interrupted": "stop", "policy": "content_filter"}


@dataclass(frozen=True)
class _Form:
    """What the two kinds of completion differ in.

    Attributes:
        prefix: of the answer's identity.
        whole, chunk: names of the objects.
        answer, piece: a choice's part that holds the text, whole and streamed.
        logprobs: how log probabilities are written.
    """

    prefix: str
    whole: str
    chunk: str
    answer: Callable[[str], dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    logprobs: Callable[[Model, Sequence[TokenLogprob]], dict[str, Any]]


def _token_document(model: Model, token: int, logprob: float) -> dict[str, Any]:
    data = model.token_bytes(token, special=True)
    return {"token": data.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(data)}


def _chat_logprobs(model: Model, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token_document(model, entry.token, entry.logprob),
            "top_logprobs": [_token_document(model, token, logprob) for token, logprob in entry.likeliest],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _text_logprobs(model: Model, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    def text(token: int) -> str:
        return model.token_bytes(token, special=True).decode("utf-8", errors="replace")

    return {
        "tokens": [text(entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{text(token): logprob for token, logprob in entry.likeliest} for entry in entries],
        "text_offset": None,
    }


_CHAT = _Form(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text}},
    _chat_logprobs,
)
_TEXT = _Form(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}, _text_logprobs
)


@dataclass(frozen=True)
class _Reply:
    """One request's answers as documents."""

    service: Service
    form: _Form
    plan: Plan | None
    jobs: Sequence[Job]
    wants_logprobs: bool
    name: str
    note: str | None
    prompt_tokens: int
    identity: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.form.prefix}-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": self.service.model.fingerprint.content[:16],
        }

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        drawn = sum(len(answer.tokens) for answer in answers)
        cached = sum(answer.timing.reused_tokens for answer in answers)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": drawn,
            "total_tokens": self.prompt_tokens + drawn,
            "prompt_tokens_details": {"cached_tokens": min(cached, self.prompt_tokens)},
        }

    def whole(self, finished: Sequence[Finished]) -> dict[str, Any]:
        """All answers in one document."""
        choices = [
            {
                "index": number,
                **self.form.answer(one.answer.text),
                "finish_reason": _FINISH[one.answer.finish_reason],
                "logprobs": self.logprobs(one.answer.logprobs) if self.wants_logprobs else None,
                "seed": one.answer.seed,
            }
            for number, one in enumerate(finished)
        ]
        decisions = [decision for one in finished for decision in one.decisions]
        return {
            **self.head(self.form.whole),
            "choices": choices,
            "usage": self.usage([one.answer for one in finished]),
            "steering": self.steering,
            "policy": decision_documents(decisions),
            "timing": _timing([one.answer for one in finished]),
        }

    @property
    def steering(self) -> dict[str, Any]:
        return applied(self.plan, self.jobs[0].request.mode, self.note)

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

    async def stream(self, answers: Answers, *, include_usage: bool) -> AsyncIterator[str]:
        """The answers as server-sent events."""
        if self.form is _CHAT:
            for choice in range(len(self.jobs)):
                yield json.dumps(self.chunk(choice, {"delta": {"role": "assistant", "content": ""}}))
        ended: list[Answer] = []
        async for event in answers.events():
            if isinstance(event, Failed):
                yield json.dumps(error_document(event.error)[1])
                return
            for document in self._documents_of(event, ended):
                yield json.dumps(document)
        if include_usage:
            yield json.dumps({**self.head(self.form.chunk), "choices": [], "usage": self.usage(ended)})
        yield "[DONE]"

    def _documents_of(self, event: Event, ended: list[Answer]) -> list[dict[str, Any]]:
        assert not isinstance(event, Failed)
        policy: dict[str, Any] = {"policy": decision_documents(event.decisions)} if event.decisions else {}
        if not isinstance(event, Ended):
            return [self.chunk(event.choice, self.form.piece(event.text), None, event.logprobs, **policy)]
        ended.append(event.answer)
        documents = []
        if event.logprobs and self.wants_logprobs:
            documents.append(self.chunk(event.choice, self.form.piece(""), None, event.logprobs))
        content: dict[str, Any] = {"delta": {}} if self.form is _CHAT else {"text": ""}
        finish = _FINISH[event.answer.finish_reason]
        more = {
            "steering": self.steering,
            "timing": _timing([event.answer]),
            "seed": event.answer.seed,
        }
        return [*documents, self.chunk(event.choice, content, finish, **policy, **more)]


def _timing(answers: Sequence[Answer]) -> dict[str, float]:
    slowest = max(answers, key=lambda answer: answer.timing.seconds)
    return {
        "prompt_tokens_per_second": slowest.timing.prompt_tokens_per_second,
        "tokens_per_second": slowest.timing.tokens_per_second,
        "seconds": slowest.timing.seconds,
    }


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])
    created = int(time.time())

    @routes.post("/chat/completions", response_model=None)
    async def chat(body: ChatRequest, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | dict[str, Any]:
        """Answer a conversation, steered as the request says."""
        messages = [message.message() for message in body.messages]
        if body.top_logprobs and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs: true.", "top_logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens

        def prompts() -> list[Prompt]:
            return [service.chat_prompt(messages, *body.template_wishes().of(service.model))]

        return await _answer(service, _CHAT, body, prompts, max_tokens, logprobs, x_steering, http)

    @routes.post("/completions", response_model=None)
    async def complete(
        body: CompletionRequest, http: HTTPRequest, x_steering: SteeringHeader = None
    ) -> Response | dict[str, Any]:
        """Go on with a text, steered as the request says."""

        def prompts() -> list[Prompt]:
            return [_prompt(service, one) for one in _several(body.prompt)]

        max_tokens = body.max_tokens if body.max_tokens is not None else _LEGACY_MAX_TOKENS
        return await _answer(service, _TEXT, body, prompts, max_tokens, body.logprobs, x_steering, http)

    @routes.get("/models")
    def models() -> dict[str, Any]:
        """The model, and one more name for each preset, and for what it can be steered by."""
        return {"object": "list", "data": [_model_document(name, created) for name in service.steerings.listed()]}

    @routes.get("/models/{name:path}")
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


def _prompt(service: Service, prompt: str | list[int]) -> Prompt:
    return service.text_prompt(prompt) if isinstance(prompt, str) else service.token_prompt(prompt)


async def _answer(
    service: Service,
    form: _Form,
    body: Common,
    make_prompts: Callable[[], list[Prompt]],
    max_tokens: int | None,
    logprobs: int | None,
    header: str | None,
    http: HTTPRequest,
) -> Response | dict[str, Any]:
    mode = service.mode(steer_prompt=body.steer_prompt, anchored=body.anchored)
    plan = await service.plan(body.steering, header, body.model, mode, http)

    def prepare() -> _Reply:
        prompts, wishes = make_prompts(), body.wishes(max_tokens=max_tokens, logprobs=logprobs)
        jobs = service.jobs(prompts, plan, wishes, mode)
        read = sum(len(prompt.tokens) for prompt in prompts)
        return _Reply(service, form, plan, jobs, logprobs is not None, *service.called(body.model), read)

    reply = await run_in_threadpool(prepare)  # schemas may have to be converted: not in the loop that serves everybody
    answers = Answers(service.engine, reply.jobs)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(reply.stream(answers, include_usage=usage), answers)
    return reply.whole(await answers.all(http))
