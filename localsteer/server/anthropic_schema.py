"""What requests to Anthropic's API hold. As in `schema`: what is not listed is ignored, what cannot be had is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from localsteer.llama.chat_template import Message, ToolCall
from localsteer.server.answers import RequestError, Service, Wishes
from localsteer.server.constraints import Constraint, of_schema
from localsteer.server.conversations import Offer, offer_of
from localsteer.server.schema import ContentPart, Fields, InAnyCase, MaxTokens, SteeredFields, longest, refuse_fields, text_of
from localsteer.server.template_wishes import TemplateWishes

_NOT_OFFERED = ("container", "mcp_servers", "context_management", "n", "logprobs", "logit_bias", "response_format", "grammar")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Block(Fields):
    """A part of a message."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str | None = None
    name: str = ""
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str | None = None
    content: str | list[ContentPart] | None = None
    is_error: bool = False


class AnthropicMessage(BaseModel):
    """One turn."""

    role: Annotated[Literal["user", "assistant", "system"], InAnyCase]
    content: str | list[Block]

    def messages(self) -> list[Message]:
        """As the model's template takes them: results of tools are turns of their own.

        Raises:
            RequestError: it holds what the model cannot read.
        """
        if isinstance(self.content, str):
            return [Message(self.role, self.content)]
        return [self._assistant(self.content)] if self.role == "assistant" else self._others(self.content)

    def _assistant(self, blocks: Sequence[Block]) -> Message:
        text, thinking = "", ""
        calls: list[ToolCall] = []
        for block in blocks:
            if block.type == "text":
                text += block.text
            elif block.type == "thinking":
                thinking += block.thinking
            elif block.type == "tool_use" and block.name:
                calls.append(ToolCall(block.name, block.input, block.id))
            elif block.type != "redacted_thinking":  # only its maker can read that
                raise self._unread(block)
        return Message("assistant", text, thinking or None, tuple(calls))

    def _others(self, blocks: Sequence[Block]) -> list[Message]:
        turns: list[Message] = []
        text: list[str] = []
        for block in blocks:
            if block.type == "text":
                text.append(block.text)
            elif block.type == "tool_result" and self.role == "user":
                if text:
                    turns.append(Message("user", "".join(text)))
                    text.clear()
                said = text_of(block.content, "messages")
                # Templates know no other way to say that a call went wrong.
                turns.append(Message("tool", f"Error: {said}" if block.is_error else said, tool_call_id=block.tool_use_id))
            else:
                raise self._unread(block)
        return [*turns, Message(self.role, "".join(text))] if text or not turns else turns

    def _unread(self, block: Block) -> RequestError:
        return RequestError(
            f'A message of the {self.role} holds a block of the type "{block.type}", which is not read here.', "messages"
        )


class AnthropicTool(BaseModel):
    """A tool; those that run at Anthropic's have types of their own."""

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As OpenAI's API has it.

        Raises:
            RequestError: it is not described by the request.
        """
        if self.type not in (None, "custom") or self.input_schema is None:
            raise RequestError(f'The tool "{self.name}" has no input_schema: tools of Anthropic\'s own are not offered.', "tools")
        about = {"description": self.description} if self.description is not None else {}
        return {"type": "function", "function": {"name": self.name, **about, "parameters": self.input_schema}}


class ToolChoice(Fields):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingWish(BaseModel):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class OutputFormat(BaseModel):
    """The form of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """More about the answer."""

    effort: str | None = Field(default=None, max_length=50)
    format: OutputFormat | None = None


class CountRequest(BaseModel):
    """POST /v1/messages/count_tokens: the part that the prompt is made from."""

    model: str | None = Field(default=None, max_length=2000)
    messages: list[AnthropicMessage] = Field(min_length=1, max_length=10_000)
    system: str | list[ContentPart] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingWish | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="What else the chat template is given.")

    def turns(self) -> list[Message]:
        """The conversation.

        Raises:
            RequestError: it holds what the model cannot read.
        """
        system = text_of(self.system, "system")
        head = [Message("system", system)] if system else []
        return [*head, *(turn for message in self.messages for turn in message.messages())]

    def offer(self) -> Offer | None:
        """The tools that may be called.

        Raises:
            RequestError: they cannot be had.
        """
        choice = self.tool_choice
        documents = [tool.document() for tool in self.tools or ()]
        if choice is None:
            return offer_of(documents)
        wanted = {"name": choice.name} if choice.type == "tool" else _CHOICES[choice.type]
        return offer_of(documents, wanted, not choice.disable_parallel_tool_use)

    def template_wishes(self) -> TemplateWishes:
        """What the chat template is asked for."""
        think = None if self.thinking is None or self.thinking.type == "adaptive" else self.thinking.type == "enabled"
        effort = self.output_config.effort if self.output_config is not None else None
        return TemplateWishes(think, effort, self.chat_template_kwargs or {})

    def constraint(self) -> Constraint | None:
        """What the answer follows."""
        wanted = self.output_config.format if self.output_config is not None else None
        return of_schema(wanted.schema_, "output_config") if wanted is not None else None


class MessagesRequest(SteeredFields, CountRequest):
    """POST /v1/messages."""

    model: str | None = Field(default=None, max_length=2000)
    max_tokens: MaxTokens | None = None
    stop_sequences: Annotated[list[str], Field(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        refuse_fields(data, _NOT_OFFERED)
        return data

    def wishes(self, service: Service) -> Wishes:
        """How it is to be answered.

        Raises:
            RequestError: what the answer is to follow cannot be had.
        """
        stop = (*self.stops(), *(self.stop_sequences or ()))
        most = longest(self.max_tokens, service)
        return Wishes(self.sampling(service), most, stop, self.constraint(), steer_forms=self.steer_tools)

    @property
    def note(self) -> str | None:
        """What of it cannot be had, and is no reason to refuse it."""
        if self.thinking is None or self.thinking.budget_tokens is None:
            return None
        return "budget_tokens does not end the thinking; max_tokens ends the answer with all that was thought."
