"""What requests to OpenAI's newer API, `/v1/responses`, hold. As in `schema`: what cannot be had is refused by its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from localsteer.llama.chat_template import Message
from localsteer.server.answers import RequestError, Service, Wishes
from localsteer.server.constraints import Constraint, any_json, of_schema
from localsteer.server.conversations import Offer, offer_of, tool_calls_of
from localsteer.server.schema import (
    ContentPart,
    Fields,
    InAnyCase,
    MaxTokens,
    SteeredFields,
    Text,
    longest,
    refuse_fields,
    text_of,
)
from localsteer.server.template_wishes import TemplateWishes

_NOT_OFFERED = (
    "background",
    "context_management",
    "conversation",
    "max_tool_calls",
    "prompt",
    "top_logprobs",
    # Of the older API.
    "grammar",
    "json_schema",
    "logit_bias",
    "max_tokens",
    "messages",
    "n",
    "response_format",
)


class Item(Fields):
    """A part of the conversation."""

    type: str = "message"
    role: Annotated[Literal["user", "assistant", "system", "developer"], InAnyCase] | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None

    def message(self) -> Message:
        """As a turn; parts of one answer are turns of their own.

        Raises:
            RequestError: it is not read here.
        """
        if self.type == "message" and self.role is not None:
            return Message("system" if self.role == "developer" else self.role, text_of(self.content, "input"))
        if self.type == "function_call":
            call = {"id": self.call_id, "function": {"name": self.name, "arguments": self.arguments}}
            return Message("assistant", "", tool_calls=tool_calls_of([call]))
        if self.type == "function_call_output":
            return Message("tool", text_of(self.output, "input"), tool_call_id=self.call_id)
        if self.type == "reasoning":
            parts = self.content if isinstance(self.content, list) else []
            return Message("assistant", "", "".join(part.text for part in parts) or None)
        raise RequestError(f'The input holds an item of the type "{self.type}", which is not read here.', "input")


def joined(turns: Iterable[Message]) -> list[Message]:
    """The same; reasoning, text and calls that follow one another are one answer, in this order."""
    whole: list[Message] = []
    for turn in turns:
        last = whole[-1] if whole else None
        if last is None or turn.role != "assistant" or last.role != "assistant" or not _goes_on(last, turn):
            whole.append(turn)
        else:
            calls = (*last.tool_calls, *turn.tool_calls)
            whole[-1] = replace(
                last, content=last.content + turn.content, reasoning=last.reasoning or turn.reasoning, tool_calls=calls
            )
    return whole


def _goes_on(answer: Message, more: Message) -> bool:
    if more.reasoning:
        return not (answer.reasoning or answer.content or answer.tool_calls)
    return bool(more.tool_calls) or not (answer.content or answer.tool_calls)


class ReasoningWish(BaseModel):
    """How much the model thinks; what it thinks is told as it is, and not summarised."""

    effort: str | None = Field(default=None, max_length=50)


class TextConfig(BaseModel):
    """The form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(SteeredFields):
    """POST /v1/responses."""

    input: Text | Annotated[list[Item], Field(max_length=10_000)] = ""
    instructions: str | None = None
    previous_response_id: str | None = Field(default=None, max_length=200)
    store: bool | None = None
    max_output_tokens: MaxTokens | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningWish | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="What else the chat template is given.")
    metadata: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        refuse_fields(data, _NOT_OFFERED)
        return data

    @model_validator(mode="after")
    def _refuse_values(self) -> ResponsesRequest:
        if self.truncation not in (None, "disabled"):
            raise ValueError(f'truncation "{self.truncation}" is not offered here: what is too long is refused.')
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise ValueError("text.verbosity is not offered here.")
        if "message.output_text.logprobs" in (self.include or ()):
            raise ValueError("message.output_text.logprobs is not offered here.")
        return self

    def turns(self) -> list[Message]:
        """What the request adds to the conversation, its instructions left out.

        Raises:
            RequestError: it holds what the model cannot read.
        """
        if isinstance(self.input, str):
            return [Message("user", self.input)]
        return [item.message() for item in self.input]

    def offer(self) -> Offer | None:
        """The tools that may be called.

        Raises:
            RequestError: they cannot be had.
        """
        for tool in self.tools or ():
            if tool.get("type") != "function":
                raise RequestError(f'Tools of the type "{tool.get("type")}" are not offered here, only functions.', "tools")
        documents = [
            {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in self.tools or ()
        ]
        return offer_of(documents, self.tool_choice, self.parallel_tool_calls)

    def template_wishes(self) -> TemplateWishes:
        """What the chat template is asked for."""
        effort = self.reasoning.effort if self.reasoning is not None else None
        return TemplateWishes(None, effort, self.chat_template_kwargs or {})

    def constraint(self) -> Constraint | None:
        """What the answer follows.

        Raises:
            RequestError: it cannot be had.
        """
        wanted = self.text.format if self.text is not None else None
        kind = wanted.get("type") if wanted is not None else "text"
        if wanted is None or kind == "text":
            return None
        if kind == "json_object":
            return any_json
        if kind != "json_schema" or "schema" not in wanted:
            raise RequestError("text.format is text, json_object, or json_schema with its schema.", "text.format")
        return of_schema(wanted["schema"], "text.format")

    def wishes(self, service: Service) -> Wishes:
        """How it is to be answered.

        Raises:
            RequestError: what the answer is to follow cannot be had.
        """
        most = longest(self.max_output_tokens, service)
        return Wishes(self.sampling(service), most, self.stops(), self.constraint(), steer_forms=self.steer_tools)
