"""From a request's conversation, tools and wishes to the prompt, and how the reply to it is to be read."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from localsteer.engine.phases import Division, division_of
from localsteer.errors import LocalsteerError
from localsteer.llama.chat_template import Message, ToolCall
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.llama.template_errors import TemplateError
from localsteer.reading.prompt import changed_span, chat_stop, chat_tokens
from localsteer.server.answers import Prompt, RequestError, Service
from localsteer.server.reply import Reading
from localsteer.server.template_wishes import TemplateWishes
from localsteer.tools.derivation import form_for
from localsteer.tools.form import GENERIC, Form
from localsteer.tools.generic import described
from localsteer.tools.grammar import tool_grammar
from localsteer.tools.tool import Tool, tool_of

MAX_TOOLS = 128

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Offer:
    """The tools that a model may call.

    Attributes:
        tools: those.
        choice: whether it may, or must.
        parallel: whether it may call several at once.
    """

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    parallel: bool = True


def offer_of(tools: Sequence[object] | None, choice: object = None, parallel: bool | None = None) -> Offer | None:
    """What `tools`, `tool_choice` and `parallel_tool_calls` offer; None for nothing.

    Raises:
        RequestError: one of them is none that there is.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise RequestError("tool_choice wants a tool to be called, and there are no tools.", "tool_choice")
        return None
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"{len(tools)} tools are offered, and {MAX_TOOLS} are allowed.", "tools")
    try:
        offered = tuple(tool_of(tool) for tool in tools)
    except LocalsteerError as error:
        raise RequestError(error.message, "tools", hint=error.hint) from error
    if len({tool.name for tool in offered}) < len(offered):
        raise RequestError("Two tools have the same name.", "tools")
    if choice == "none":
        return None
    if isinstance(choice, dict):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, dict) else None
        named = tuple(tool for tool in offered if tool.name == name)
        if choice.get("type", "function") != "function" or not named:
            raise RequestError(f"tool_choice names no tool that is offered: {json.dumps(choice)[:200]}.", "tool_choice")
        return Offer(named, "required", parallel=False)
    if choice not in (None, "auto", "required", "any"):
        raise RequestError('tool_choice is "none", "auto", "required", or names a tool.', "tool_choice")
    return Offer(offered, "required" if choice in ("required", "any") else "auto", parallel is not False)


def tool_calls_of(documents: Sequence[Any] | None) -> tuple[ToolCall, ...]:
    """The calls that an assistant's message holds, in the form of OpenAI's API or Ollama's.

    Raises:
        RequestError: one is no call.
    """
    calls = []
    for document in documents or ():
        function = document.get("function") if isinstance(document, dict) else None
        arguments = function.get("arguments", {}) if isinstance(function, dict) else None
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                arguments = None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise RequestError("A tool call holds function.name, and function.arguments, a JSON object.", "messages")
        identity = document.get("id")
        calls.append(ToolCall(name, arguments, identity if isinstance(identity, str) else None))
    return tuple(calls)


def with_names(messages: Sequence[Message]) -> list[Message]:
    """The same; results of tools say of which, as most templates want: requests name the call alone."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [
        replace(message, name=names.get(message.tool_call_id))
        if message.role == "tool" and message.name is None and message.tool_call_id is not None
        else message
        for message in messages
    ]


def chat_prompt(
    service: Service,
    messages: Sequence[Message],
    wishes: TemplateWishes,
    offer: Offer | None = None,
    *,
    formed: bool = False,
    with_span: bool = False,
) -> Prompt:
    """The prompt of a conversation.

    Args:
        service: its model answers; its defaults say whether that thinks where the wishes do not.
        messages: the turns.
        wishes: what the chat template is asked for.
        offer: tools that may be called.
        formed: the answer follows a grammar, from its first token on.
        with_span: say where the latest message stands.

    Raises:
        LocalsteerError: the model's template refuses it, or it says nothing, or it asks for two things that do not go together.
    """
    model = service.model
    think, variables = wishes.of(model)
    in_channels = offer is not None and _calls_in_channels(model)
    must_call = offer is not None and offer.choice == "required"
    if formed or must_call:
        if think and model.chat_template is not None and model.chat_template.thinking is not None:
            raise RequestError("An answer in a form, or a call that has to be made, begins at once: without thinking.", "think")
        if must_call and in_channels:
            think = None  # the call takes the place of the reasoning
        elif model.chat_template is not None and model.chat_template.thinking is not None:
            think = False
    elif wishes.is_open and not in_channels:
        think = service.defaults.think
    turns = with_names(messages)
    given: dict[str, Any] = {"think": think, "variables": variables, "header": wishes.header, "now": datetime.now()}
    render = functools.partial(chat_tokens, model, **given)
    tokens, tokens_of, form = _rendered(model, turns, render, offer)
    last = max((place for place, message in enumerate(messages) if message.role == "user"), default=None)
    span = changed_span(tokens, tokens_of, turns, last) if with_span and last is not None else None
    division = division_of(model, tokens, call=(form.begin, form.end, *form.texts) if form is not None else None)
    tools = offer.tools if offer is not None else ()
    said = messages[last].content if last is not None else ""
    if form is not None and form.kind == "channel" and think is False:
        raise RequestError("This model calls tools from between its channels: it cannot be kept from thinking then.", "think")
    grammar = _grammar(model, form, offer, division) if form is not None and offer is not None else None
    return Prompt(tokens, said, span, chat_stop(model), Reading(division, form, tools, held=grammar is not None), grammar)


def _calls_in_channels(model: Model) -> bool:
    """Whether calls stand between the channels of the reasoning and of the answer, as gpt-oss's do."""
    form = form_for(model) if model.chat_template is not None else None
    return form is not None and form.kind == "channel"


def _rendered(
    model: Model, turns: Sequence[Message], render: Callable[..., Tokens], offer: Offer | None
) -> tuple[Tokens, Callable[[Sequence[Message]], Tokens], Form | None]:
    """The prompt, what makes one of other turns, and the form of calls: that of the template, or one that is explained to it."""
    documents: list[Mapping[str, Any]] = [tool.document for tool in offer.tools] if offer is not None else []
    has_tools = bool(documents) or any(turn.role == "tool" or turn.tool_calls for turn in turns)
    if not has_tools:
        return render(turns), render, None
    if model.chat_template is not None:
        form = form_for(model) if offer is not None else None
        # Some templates cannot do without a description.
        filled = [{**one, "function": {"description": "", **one["function"]}} for one in documents]
        for shown in (documents, filled) if filled != documents else (documents,):
            own = functools.partial(render, tools=shown)
            # Where it has no place for tools, or teaches a form that is not read here, they are explained instead.
            with contextlib.suppress(TemplateError):
                if form is not None or offer is None:
                    return own(turns), own, form
    tools = offer.tools if offer is not None else ()

    def explained(others: Sequence[Message]) -> Tokens:
        return render(described(others, tools))

    return explained(turns), explained, GENERIC if offer is not None else None


def _grammar(model: Model, form: Form, offer: Offer, division: Division | None) -> Callable[[Model], Grammar] | None:
    thinking = division.thinking if division is not None and offer.choice == "auto" else None
    if offer.choice == "auto" and (form.kind == "channel" or (thinking is not None and thinking.answers)):
        # What may stand in channels has many shapes, and llama.cpp takes their marks for text ("quick hack for gpt-oss" of
        # llama-vocab.cpp): no grammar knows where a call begins.
        return None
    marks = model.control_tokens_in(*form.texts, *((thinking.opens, thinking.closes) if thinking is not None else ()))
    given: dict[str, Any] = {"choice": offer.choice, "parallel": offer.parallel, "marks": marks}
    if division is not None and thinking is not None:
        given |= {"thinking": thinking, "begun": division.begun}

    def made(model: Model) -> Grammar:
        try:
            return Grammar(model, tool_grammar(form, offer.tools, **given))
        except LocalsteerError as error:
            raise RequestError(error.message, "tools", hint=error.hint) from error

    return made
