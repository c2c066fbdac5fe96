"""`/api/chat` and `/api/generate`, as programs for Ollama use them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field
from starlette.requests import Request as HTTPRequest

from localsteer.engine.request import Answer, TokenLogprob
from localsteer.llama.chat_template import Message
from localsteer.policy.audit import Decision
from localsteer.server.answers import Prompt, RequestError, Service, Wishes
from localsteer.server.asking import ask
from localsteer.server.constraints import Constraint, any_json, of_schema
from localsteer.server.conversations import chat_prompt, offer_of, tool_calls_of
from localsteer.server.errors import decision_documents, error_document
from localsteer.server.jobs import Ended, Failed
from localsteer.server.logprobs import logprob_documents
from localsteer.server.ollama_prompts import going_on, said_tokens, templated_prompt
from localsteer.server.reply import Said, parts_of
from localsteer.server.schema import Fields, InAnyCase, MaxTokens, SamplingFields, SteeringHeader, longest
from localsteer.server.streams import JSONLines
from localsteer.server.template_wishes import TemplateWishes
from localsteer.tools.tool import ToolCall

_NANOSECONDS = 1e9
# What `/api/generate` takes for the chat template.
_OF_CHATS = ("system", "template", "context", "think")


class Options(SamplingFields):
    """Ollama's options, as far as they are ours."""

    num_ctx: int | None = None
    num_predict: MaxTokens | None = None
    # For programs whose Ollama client passes nothing else on; what the body says of the same goes first.
    steering: str | None = None
    steer_prompt: bool | None = None
    steer_tools: bool | None = None
    anchored: bool | None = None


class _Common(Fields):
    model: str = Field(max_length=2000)
    stream: bool = True
    steering: str | None = None
    steer_prompt: bool | None = None
    steer_tools: bool | None = None
    anchored: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    def wishes(self, service: Service) -> Wishes:
        """How it is to be answered.

        Raises:
            RequestError: the format cannot be had, or what has a bias is no token of the model.
        """
        options = self.options or Options()
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true.", "top_logprobs")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        steer_forms = self.steer_tools if self.steer_tools is not None else options.steer_tools
        return Wishes(
            options.sampling(service),
            longest(options.num_predict, service),
            options.stops(),
            self.constraint(),
            logprobs,
            steer_forms=steer_forms is True,
        )

    def constraint(self) -> Constraint | None:
        if isinstance(self.format, dict):
            return of_schema(self.format, "format")
        return any_json if self.format == "json" else None


class OllamaMessage(Fields):
    """One turn."""

    role: Annotated[Literal["system", "user", "assistant", "tool"], InAnyCase]
    content: str = ""
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def message(self) -> Message:
        """As the model's template takes it.

        Raises:
            RequestError: it holds what the model cannot read.
        """
        if self.images:
            raise RequestError("Images cannot be read.", "messages")
        calls, thinking = ((), None) if self.role != "assistant" else (tool_calls_of(self.tool_calls), self.thinking or None)
        return Message(self.role, self.content, thinking, calls, self.tool_name, self.tool_call_id)


class OllamaChat(_Common):
    """POST /api/chat."""

    messages: list[OllamaMessage] = Field(default_factory=list, max_length=10_000)
    tools: list[Any] | None = None


class OllamaGenerate(_Common):
    """POST /api/generate."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[Any] | None = None


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api", tags=["Ollama"])

    @routes.post("/chat", response_model=None)
    async def chat(body: OllamaChat, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | dict[str, Any]:
        """Answer a conversation."""
        offer = offer_of(body.tools)
        messages = [message.message() for message in body.messages]

        def part(said: Sequence[Said]) -> dict[str, Any]:
            thinking, text, calls = parts_of(said)
            message = {
                "role": "assistant",
                "content": text,
                **({"thinking": thinking} if thinking else {}),
                **({"tool_calls": [_call(call) for call in calls]} if calls else {}),
            }
            return {"message": message}

        if not messages:
            return _loaded(service, body.model, part(()))

        def prompt() -> Prompt:
            formed = body.constraint() is not None
            return chat_prompt(service, messages, TemplateWishes(body.think), offer, formed=formed, with_span=service.gated)

        return await _answer(service, body, prompt, part, x_steering, http)

    @routes.post("/generate", response_model=None)
    async def generate(body: OllamaGenerate, http: HTTPRequest, x_steering: SteeringHeader = None) -> Response | dict[str, Any]:
        """Answer a prompt; with `raw`, go on with it as it stands."""
        if body.images:
            raise RequestError("Images cannot be read.", "images")
        plain = body.raw or bool(body.suffix)
        if plain and (unused := next((name for name in _OF_CHATS if getattr(body, name) not in (None, "", [])), None)):
            raise RequestError(f"raw and suffix take the prompt as it stands: {unused} has no place in it.", unused)
        if body.template and body.think is not None:
            raise RequestError("A template of the request's own does not know think.", "think")

        def part(said: Sequence[Said]) -> dict[str, Any]:
            thinking, text, _ = parts_of(said)
            return {"response": text, **({"thinking": thinking} if thinking else {})}

        def prompt() -> Prompt:
            if body.suffix:
                return service.infill_prompt(body.prompt, body.suffix)
            if body.raw:
                return service.text_prompt(body.prompt)
            system = [Message("system", body.system)] if body.system else []
            turns, formed = [*system, Message("user", body.prompt)], body.constraint() is not None
            if body.template:
                made = templated_prompt(service, turns, body.template)
            else:
                made = chat_prompt(service, turns, TemplateWishes(body.think), formed=formed, with_span=service.gated)
            return going_on(service, body.context, made) if body.context else made

        if not body.prompt:
            return _loaded(service, body.model, part(()))
        return await _answer(service, body, prompt, part, x_steering, http, with_context=not plain)

    return routes


@dataclass
class _Steered:
    """How a request is steered, by its body or its options; see `asking.Asking`."""

    model: str | None
    steering: str | None
    steer_prompt: bool
    anchored: bool | None


async def _answer(
    service: Service,
    body: _Common,
    make_prompt: Callable[[], Prompt],
    part: Callable[[Sequence[Said]], dict[str, Any]],
    header: str | None,
    http: HTTPRequest,
    *,
    with_context: bool = False,
) -> Response | dict[str, Any]:
    options = body.options or Options()
    _check_context(service, options.num_ctx)
    steering = body.steering if body.steering is not None else options.steering
    steer_prompt = body.steer_prompt if body.steer_prompt is not None else options.steer_prompt
    anchored = body.anchored if body.anchored is not None else options.anchored
    steered = _Steered(body.model, steering, steer_prompt is True, anchored)
    asked = await ask(service, steered, header, http, lambda: ([make_prompt()], body.wishes(service)))
    answers = asked.answers

    def logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"logprobs": logprob_documents(service.model, entries)} if body.logprobs and entries else {}

    def last(answer: Answer, decisions: Sequence[Decision], said: Sequence[Said]) -> dict[str, Any]:
        timing = answer.timing
        return {
            "model": asked.name,
            "created_at": _now(),
            **part(said),
            "done": True,
            "done_reason": "length" if answer.finish_reason == "length" else "stop",
            "total_duration": int(timing.seconds * _NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": asked.prompt_tokens,
            "prompt_eval_duration": int(timing.prompt_seconds * _NANOSECONDS),
            "eval_count": len(answer.tokens),
            "eval_duration": int(timing.answer_seconds * _NANOSECONDS),
            **({"context": [*answers.jobs[0].request.prompt, *said_tokens(service.model, answer)]} if with_context else {}),
            "seed": answer.seed,
            "steering": asked.steering,
            "policy": decision_documents(decisions),
        }

    async def lines() -> AsyncIterator[str]:
        reader = asked.reading.reader()
        async for event in answers.events():
            if isinstance(event, Failed):
                yield json.dumps({"error": error_document(event.error)[1]["error"]["message"]}) + "\n"
                return
            ends = isinstance(event, Ended)
            said = reader.finish() if isinstance(event, Ended) else reader.push(event.text)
            policy = {"policy": decision_documents(event.decisions)} if event.decisions and not ends else {}
            if said or policy or (event.logprobs and body.logprobs):
                head = {"model": asked.name, "created_at": _now(), **part(said), "done": False}
                yield json.dumps({**head, **policy, **logprobs(event.logprobs)}) + "\n"
            if isinstance(event, Ended):
                yield json.dumps(last(event.answer, event.decisions, ())) + "\n"

    if body.stream:
        return JSONLines(lines(), answers)
    (finished,) = await answers.all(http)
    document = last(finished.answer, finished.decisions, asked.reading.of(finished.answer.text))
    return {**document, **logprobs(finished.answer.logprobs)}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}


def _check_context(service: Service, wanted: int | None) -> None:
    """What a model cannot have at all, Ollama cuts down without a word, and so is it here."""
    has = service.engine.n_ctx
    if wanted is not None and min(wanted, service.model.n_ctx_train or wanted) > has:
        raise RequestError(
            f"num_ctx asks for a context of {wanted} tokens, and this server's holds {has}.",
            "num_ctx",
            hint="Start it with a larger --context.",
        )


def _loaded(service: Service, name: str, part: dict[str, Any]) -> dict[str, Any]:
    """The answer to an empty request, by which programs have a model loaded."""
    return {"model": service.called(name)[0], "created_at": _now(), **part, "done": True, "done_reason": "load"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
