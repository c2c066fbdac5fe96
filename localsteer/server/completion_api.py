"""llama-server's own `/completion` and `/infill`: a text is gone on with, or what stands between two texts is filled in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, model_validator
from starlette.requests import Request as HTTPRequest

from localsteer.engine.request import TokenLogprob
from localsteer.llama.infill import File
from localsteer.server.answered import answered, progress_document
from localsteer.server.answers import Answers, Finished, Prompt, Service, Wishes
from localsteer.server.asking import applied
from localsteer.server.errors import decision_documents, error_document
from localsteer.server.jobs import Ended, Failed, Job
from localsteer.server.logprobs import logprob_documents
from localsteer.server.schema import Common, Fields, MaxTokens, SteeringHeader, Text
from localsteer.server.streams import EventStream
from localsteer.server.texts import token_lists
from localsteer.steering.plan import Plan

_MAX_PROBS = 100

# What would change the answer, with the values by which it does not.
_IDLE: dict[str, tuple[object, ...]] = {
    "n_indent": (0,),
    "t_max_predict_ms": (0, -1),
    "post_sampling_probs": (False,),
    "lora": ([],),
}
# The order in which samplers work here.
_SAMPLERS = ("penalties", "top_k", "typ_p", "top_p", "min_p", "temperature")


class Completion(Common):
    """POST /completion."""

    prompt: Any = Field(default="", description="A text, tokens, both mixed, or a list of such.")
    n_predict: MaxTokens | None = None
    n_cmpl: int | None = Field(default=None, ge=1, le=128)
    n_probs: int = Field(default=0, ge=0, le=_MAX_PROBS)
    return_tokens: bool = False
    response_fields: list[Annotated[str, Field(max_length=200)]] = Field(default_factory=list, max_length=100)

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_there(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, idle in _IDLE.items():
            if data.get(name) not in (None, *idle):
                raise ValueError(f"{name} is not offered here.")
        samplers = data.get("samplers")
        if isinstance(samplers, list) and samplers:
            known = [one for one in samplers if one in _SAMPLERS]
            if known not in (list(_SAMPLERS), list(_SAMPLERS[1:])):
                raise ValueError(f"samplers are offered in this order only: {', '.join(_SAMPLERS)}.")
        return data

    def wishes_for(self, service: Service) -> Wishes:
        """How it is to be answered.

        Raises:
            RequestError: what the answer is to follow cannot be had, or what has a bias is no token of the model.
        """
        most = self.n_predict if self.n_predict is not None else self.max_tokens
        count = {"n": self.n_cmpl} if self.n_cmpl is not None else {}
        body = self.model_copy(update=count)
        return body.wishes(service, max_tokens=most, logprobs=self.n_probs or None)


class Extra(Fields):
    """Another file."""

    filename: Annotated[str, Field(max_length=2000)] = "tmp"
    text: Text


class Infill(Completion):
    """POST /infill."""

    prompt: Text = ""
    input_prefix: Text
    input_suffix: Text
    input_extra: list[Extra] = Field(default_factory=list, max_length=1000)


@dataclass(frozen=True)
class _Reply:
    """One request's answers as documents."""

    service: Service
    body: Completion
    plan: Plan | None
    jobs: Sequence[Job]
    note: str | None
    name: str

    def whole(self, choice: int, finished: Finished) -> dict[str, Any]:
        """An answer in one document."""
        answer, body = finished.answer, self.body
        probabilities = {"completion_probabilities": self._probabilities(answer.logprobs)} if body.n_probs else {}
        document = {
            **self._last(choice, finished),
            "content": answer.text,
            "tokens": list(answer.tokens) if body.return_tokens else [],
            **probabilities,
        }
        return _fields(document, body.response_fields) if body.response_fields else document

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """The answers as server-sent events."""
        async for event in answers.events():
            if isinstance(event, Failed):
                yield json.dumps(error_document(event.error)[1])
                return
            text = event.text if not isinstance(event, Ended) else ""
            progress = event.progress if not isinstance(event, Ended) else None
            decided = bool(event.decisions) and not isinstance(event, Ended)
            if event.tokens or text or progress is not None or decided:
                yield json.dumps(
                    {
                        "index": event.choice,
                        "content": text,
                        "tokens": list(event.tokens),
                        "stop": False,
                        "tokens_evaluated": len(self.jobs[event.choice].request.prompt),
                        **({"prompt_progress": progress_document(progress)} if progress is not None else {}),
                        **({"completion_probabilities": self._probabilities(event.logprobs)} if self.body.n_probs else {}),
                        **({"policy": decision_documents(event.decisions)} if event.decisions else {}),
                    }
                )
            if isinstance(event, Ended):
                document = {**self._last(event.choice, Finished(event.answer, event.decisions)), "content": "", "tokens": []}
                fields = self.body.response_fields
                yield json.dumps(_fields(document, fields) if fields else document)

    def _last(self, choice: int, finished: Finished) -> dict[str, Any]:
        request = self.jobs[choice].request
        return {
            "index": choice,
            **answered(self.service, self.body, self.name, request, finished.answer),
            "steering": applied(self.plan, request.mode, self.note, *request.unheard),
            "policy": decision_documents(finished.decisions),
        }

    def _probabilities(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return logprob_documents(self.service.model, entries, with_ids=True)


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["llama-server"])

    @routes.post("/completions", response_model=None, include_in_schema=False)
    @routes.post("/completion", response_model=None)
    async def complete(body: Completion, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | Any:
        """Go on with a text; with several, a list of answers."""

        def prompts() -> list[Prompt]:
            return [service.token_prompt(tokens) for tokens in token_lists(service.model, body.prompt, "prompt")]

        return await _answer(service, body, prompts, x_steering, http)

    @routes.post("/infill", response_model=None)
    async def infill(body: Infill, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | Any:
        """Fill in what stands between two texts, where the model was trained to."""

        def prompts() -> list[Prompt]:
            files = [File(one.filename, one.text) for one in body.input_extra]
            return [service.infill_prompt(body.input_prefix, body.input_suffix, files=files, begun=body.prompt)]

        return await _answer(service, body, prompts, x_steering, http)

    return routes


async def _answer(
    service: Service, body: Completion, make_prompts: Callable[[], list[Prompt]], header: str | None, http: HTTPRequest
) -> Response | Any:
    mode = service.mode(steer_prompt=body.steer_prompt, anchored=body.anchored)
    plan = await service.plan(body.steering, header, body.model, mode, http)

    def prepare() -> _Reply:
        jobs = service.jobs(make_prompts(), plan, body.wishes_for(service), mode)
        name, note = service.called(body.model)
        return _Reply(service, body, plan, jobs, note, name)

    reply = await run_in_threadpool(prepare)
    answers = Answers(service.engine, reply.jobs)
    if body.stream:
        return EventStream(reply.stream(answers), answers)
    documents = [reply.whole(choice, finished) for choice, finished in enumerate(await answers.all(http))]
    return documents if len(documents) > 1 else documents[0]


def _fields(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of these names that there are; one with slashes lies within another."""
    found: dict[str, Any] = {}
    for name in names:
        value: Any = document
        for part in name.split("/"):
            value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING:
            found[name] = value
    return found


_MISSING = object()
