"""What requests to the OpenAI API hold. What is not listed is ignored, as such servers do; what cannot be had is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from localsteer.llama.chat_template import Message
from localsteer.llama.sampling import MAX_SEED, Sampling
from localsteer.server.answers import RequestError, Service, Wishes
from localsteer.server.constraints import Constraint, constraint
from localsteer.server.conversations import tool_calls_of
from localsteer.server.logit_bias import biases_of
from localsteer.server.template_wishes import TemplateWishes

SteeringHeader = Annotated[str | None, Header(alias="X-Steering", description="A steering expression.")]

_SAMPLING = {field.name for field in fields(Sampling)} - {"logit_bias", "seed"}


# Programs for role play send some twenty.
_MAX_STOPS = 64

# llama-server and vLLM turn a filter off by -1.
Off = BeforeValidator(lambda value: 0 if value == -1 else value)

# llama-server and Ollama mean the whole context by -1; none here is longer than what penalties can look back on.
_FARTHEST = 2**20
Farthest = BeforeValidator(lambda value: _FARTHEST if value == -1 else value)


def longest(max_tokens: int | None, service: Service) -> int | None:
    """Tokens of the longest answer; None where it may fill the context."""
    if max_tokens is None:
        return service.defaults.max_tokens
    return max_tokens if max_tokens >= 0 else None


# What would change how tokens are drawn, with the values by which it does not.
_IDLE: dict[str, tuple[float, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1,),
    "dynatemp_range": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "top_n_sigma": (0, -1),
}


class Fields(BaseModel):
    """A part of a request, in which null means what it means to leave a field out."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class SamplingFields(Fields):
    """The part of a request that says how tokens are drawn; what it leaves out is as the server was started."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Annotated[int, Off] | None = Field(default=None, ge=0, le=10**6)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repeat_last_n: Annotated[int, Farthest] | None = Field(default=None, ge=0, le=_FARTHEST)
    logit_bias: dict[str, Any] | list[Any] | None = Field(
        default=None, description="What is added to the logits of tokens; false rules one out."
    )
    min_tokens: int | None = Field(default=None, ge=0, le=10**7)
    ignore_eos: bool | None = None
    # Programs send any 64-bit number.
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=_MAX_STOPS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_samplers(cls, data: Any) -> Any:
        for name, idle in _IDLE.items() if isinstance(data, dict) else []:
            if data.get(name) not in (None, *idle):
                raise ValueError(f"{name} is not offered here.")
        return data

    def sampling(self, service: Service) -> Sampling:
        """The settings of the sampler chain.

        Raises:
            RequestError: what has a bias is no token of the model.
        """
        given = self.model_dump(include=_SAMPLING, exclude_none=True)
        if self.seed is not None:
            # llama.cpp and Ollama take -1 for a random one.
            given["seed"] = self.seed % (MAX_SEED + 1) if self.seed != -1 else None
        return replace(service.defaults.sampling, **given, logit_bias=biases_of(service.model, self.logit_bias))

    def stops(self) -> tuple[str, ...]:
        """Strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


# -1 is "as much as the context holds" to llama-server and LM Studio, and so is -2 to Ollama.
MaxTokens = Annotated[int, Field(ge=-2, le=10**7)]

Text = Annotated[str, Field(max_length=10**6)]

# Asked for with these, the answer would be another one.
_NOT_OFFERED = {
    "functions": "Functions are",
    "audio": "Audio is",
    # Of texts to go on with alone.
    "suffix": "suffix is",
    "best_of": "best_of is",
    "echo": "echo is",
    # Of llama-server and vLLM.
    "grammar_lazy": "grammar_lazy is",
    "grammar_triggers": "grammar_triggers are",
    "guided_json": "guided_json is",
    "guided_regex": "guided_regex is",
    "guided_choice": "guided_choice is",
    "guided_grammar": "guided_grammar is",
    "structured_outputs": "structured_outputs are",
}


InAnyCase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)

# By OpenAI's newer names, too, which programs for both of its APIs send to either.
_TEXTS = ("text", "input_text", "output_text")


def refuse_fields(data: object, names: Iterable[str]) -> None:
    """Refuse a body that says something with one of these fields.

    Raises:
        ValueError: it does.
    """
    if isinstance(data, dict):
        for name in names:
            if data.get(name) not in (None, False, [], {}, ""):
                raise ValueError(f"{name} is not offered here.")


class ContentPart(BaseModel):
    """A part of a message; only texts can be read."""

    type: str
    text: str = ""


def text_of(content: str | list[ContentPart] | None, parameter: str) -> str:
    """The text of what a message holds.

    Raises:
        RequestError: a part of it, in this part of the request, is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if other := next((part.type for part in content if part.type not in _TEXTS), None):
        raise RequestError(f'A message holds a part of the type "{other}", and only text can be read.', parameter)
    return "".join(part.text for part in content)


class ChatMessage(BaseModel):
    """One turn."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool", "function"], InAnyCase]
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    function_call: dict[str, Any] | None = None

    def message(self) -> Message:
        """As the model's template takes it.

        Raises:
            RequestError: it holds what the model cannot read.
        """
        if self.role == "function" or self.function_call:
            raise RequestError("Functions are not offered, only tools.", "messages")
        role: Literal["system", "user", "assistant", "tool"] = "system" if self.role == "developer" else self.role
        calls = tool_calls_of(self.tool_calls) if role == "assistant" else ()
        reasoning = self.reasoning_content if role == "assistant" else None
        if self.content is None and role != "assistant":
            raise RequestError(f"A message of the role {self.role} has no content.", "messages")
        return Message(role, text_of(self.content, "messages"), reasoning or None, calls, self.name, self.tool_call_id)


class SteeredFields(SamplingFields):
    """What every request for an answer has: its model, its steering, and how tokens are drawn."""

    model: str | None = Field(
        default=None, max_length=2000, description="The served model, with a steering or preset behind a colon."
    )
    steering: str | None = Field(
        default=None, description='A steering expression, such as "0.5 happy + 0.3 formal"; "" for none.'
    )
    steer_prompt: bool = Field(default=False, description="Steer the prompt as well.")
    steer_tools: bool = Field(default=False, description="Steer calls of tools, and answers in a form, as well.")
    anchored: bool | None = Field(
        default=None, description="Let the unsteered model have a say in every token; null: as the server does by default."
    )
    stream: bool = False


class StreamOptions(Fields):
    """Of a streamed answer."""

    include_usage: bool = False


class Common(SteeredFields):
    """What both kinds of completion have."""

    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    response_format: dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = Field(
        default=None, description="A JSON schema that the answer follows, as llama-server takes it."
    )
    return_progress: bool = Field(default=False, description="Tell in the stream how far the prompt is read.")
    verbose: bool = Field(default=False, description="Show the prompt, the settings and the tokens as well, in `__verbose`.")
    grammar: str | None = Field(default=None, description="A grammar that the answer follows: GBNF, or llguidance's Lark.")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, what in _NOT_OFFERED.items():
                idle: tuple[object, ...] = (None, False, [], {}, "", 1 if name == "best_of" else None)
                if name not in cls.model_fields and data.get(name) not in idle:
                    raise ValueError(f"{what} not offered here.")
        return data

    def constraint(self) -> Constraint | None:
        """What the answer is to follow.

        Raises:
            RequestError: it cannot be had.
        """
        return constraint(self.response_format, self.json_schema, self.grammar)

    def wishes(self, service: Service, *, max_tokens: int | None, logprobs: int | None) -> Wishes:
        """How it is to be answered.

        Raises:
            RequestError: what the answer is to follow cannot be had, or what has a bias is no token of the model.
        """
        sampling, most, follows = self.sampling(service), longest(max_tokens, service), self.constraint()
        tell = self.return_progress and self.stream
        return Wishes(sampling, most, self.stops(), follows, logprobs, self.n or 1, self.steer_tools, tell)


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: MaxTokens | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    think: bool | None = Field(
        default=None, description="Whether the model thinks before it answers; null: as its template says."
    )
    enable_thinking: bool | None = Field(default=None, description="The same.")
    reasoning_effort: str | None = Field(default=None, max_length=50, description='How much it thinks; "none" for not at all.')
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="What else its template is given.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool | None = Field(default=None, description="Whether the prompt begins the assistant's turn.")
    continue_final_message: bool | None = Field(
        default=None, description="That the answer goes on with the last message, as it does where that is the assistant's."
    )

    @model_validator(mode="after")
    def _check_end(self) -> ChatRequest:
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise ValueError("add_generation_prompt and continue_final_message cannot both be true.")
            if self.messages[-1].role != "assistant":
                raise ValueError("continue_final_message needs a last message of the assistant's.")
        return self

    def template_wishes(self) -> TemplateWishes:
        """What its template is asked for."""
        think = self.think if self.think is not None else self.enable_thinking
        header = self.add_generation_prompt is not False
        return TemplateWishes(think, self.reasoning_effort, self.chat_template_kwargs or {}, header)


class CompletionRequest(Common):
    """POST /v1/completions."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    suffix: Text | None = Field(default=None, description="What stands behind the answer.")
    echo: bool | None = Field(default=None, description="Put the prompt before the answer.")
    best_of: int | None = Field(
        default=None, ge=1, le=128, description="How many answers are written; the `n` likeliest of them are given."
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.echo and (self.suffix or self.logprobs is not None):
            raise ValueError("echo is not offered together with suffix, nor with logprobs, which a prompt has none of here.")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of is less than n.")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise ValueError("best_of cannot be streamed: which answers are the likeliest is known at their end.")
        return self
