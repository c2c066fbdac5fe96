"""From a conversation to the tokens that a model reads, and where in them a message stands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from localsteer.errors import LocalsteerError
from localsteer.llama.chat_template import ChatTemplate, Message
from localsteer.llama.model import Model
from localsteer.llama.template_errors import TemplateError
from localsteer.reading.prefix_tree import common_beginning

# What stands between the turns of a conversation where a base model reads them as plain text.
PARAGRAPH = "\n\n"
# A base model takes part in a conversation that is laid out so, and goes on writing the other side's lines, too.
_PLAIN_TURN = {"system": "", "user": "User: ", "assistant": "Assistant: ", "tool": "Tool: "}
_PLAIN_STOP = ("\nUser:",)


def prompt_tokens(
    model: Model,
    messages: Sequence[Message],
    *,
    raw: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
    think: bool | None = None,
    variables: Mapping[str, object] = MappingProxyType({}),
    header: bool = True,
    now: datetime | None = None,
) -> tuple[int, ...]:
    """Tokens of a conversation up to the assistant's next turn, or to the end of its last one.

    Control tokens in the messages are plain text, unless the model was opened with `parse_special`.

    Args:
        model: the model that will read it.
        messages: the turns.
        raw: take the texts as they are, without the chat template. A base model, which has none, always gets them so.
        tools: what the assistant may call, in OpenAI's form.
        think: whether the model thinks before it answers; None leaves that to its template.
        variables: what else the template is given.
        header: begin the assistant's next turn.
        now: the time that the template is told: for who talks with a person. None for one that is always the same: vectors,
            doses and what is measured do not depend on the day.

    Raises:
        LocalsteerError: there is no text.
        TemplateError: the model's template refuses the conversation, or does not know a variable.
    """
    if not any(message.content or message.tool_calls for message in messages):
        raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
    if raw or model.chat_template is None:
        return tuple(model.tokenize(PARAGRAPH.join(message.content for message in messages)))
    return _templated(model, model.chat_template, messages, tools, think, variables, header=header, now=now)


def answer_prompt(model: Model, messages: Sequence[Message]) -> tuple[int, ...]:
    """`prompt_tokens` up to where the answer itself begins: a model that thinks first is taken past that.

    What is built, dosed and measured is about answers, and the first tokens that are sampled after this are an answer's.

    Raises:
        LocalsteerError: there is no text.
        TemplateError: the model's template refuses the conversation.
    """
    return prompt_tokens(model, messages, think=False)


def _templated(
    model: Model,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    think: bool | None,
    variables: Mapping[str, object],
    *,
    header: bool,
    now: datetime | None,
) -> tuple[int, ...]:
    guard = model.template_tokens.guard()
    prompt = template.render(messages, tools=tools, think=think, guard=guard, variables=variables, header=header, now=now)
    return tuple(model.template_tokens.tokenize(prompt, guard))


def chat_tokens(
    model: Model,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    think: bool | None = None,
    variables: Mapping[str, object] = MappingProxyType({}),
    header: bool = True,
    now: datetime | None = None,
) -> tuple[int, ...]:
    """Tokens of a conversation as `prompt_tokens` gives them, with a base model as well, and where nothing is said in it.

    Raises:
        LocalsteerError: there is no message.
        TemplateError: the model's template refuses the conversation, or does not know a variable, or there is no template to.
    """
    if not messages:
        raise LocalsteerError("The conversation is empty.", hint="Give the model a message.")
    if model.chat_template is not None:
        return _templated(model, model.chat_template, messages, tools, think, variables, header=header, now=now)
    if think or variables or tools:
        name = next(iter(variables), "thinking" if think else "a list of tools")
        raise TemplateError(f"{model.name} is a base model without a chat template: {name} means nothing to it.")
    guard = model.template_tokens.guard()
    texts = [message.content if guard is None else guard(message.content) for message in messages]
    lines = [f"{_PLAIN_TURN[message.role]}{text}" for message, text in zip(messages, texts, strict=True)]
    begun = messages[-1].role == "assistant"
    return tuple(model.template_tokens.tokenize("\n".join(lines if begun or not header else [*lines, "Assistant:"]), guard))


def chat_stop(model: Model) -> tuple[str, ...]:
    """What ends the assistant's turn in `chat_tokens`, besides the model's own end."""
    if model.chat_template is None:
        return _PLAIN_STOP
    written = model.template_tokens.written_end
    return (written,) if written else ()


def latest_message(
    model: Model, messages: Sequence[Message], *, raw: bool = False, think: bool | None = None, now: datetime | None = None
) -> tuple[int, int]:
    """Where the last message stands in `prompt_tokens` of a conversation: its first token, and the one behind its last."""
    tokens_of = functools.partial(prompt_tokens, model, raw=raw, think=think, now=now)
    return changed_span(tokens_of(messages), tokens_of, messages, len(messages) - 1)


def changed_span(
    tokens: Sequence[int], tokens_of: Callable[[Sequence[Message]], Sequence[int]], messages: Sequence[Message], place: int
) -> tuple[int, int]:
    """Which tokens come from a message, whatever stands around it: those that change with it. The last one where none does.

    Args:
        tokens: those of the conversation.
        tokens_of: gives the tokens of another one.
        messages: the conversation.
        place: the index of the message in it.
    """
    # No content begins or ends as both of these do.
    contents = (replace(messages[place], content=content) for content in ("~", "7"))
    others = [tokens_of([*messages[:place], other, *messages[place + 1 :]]) for other in contents]
    start = min(common_beginning(tokens, other) for other in others)
    stop = len(tokens) - min(common_beginning(tokens[::-1], other[::-1]) for other in others)
    return (start, stop) if start < stop else (len(tokens) - 1, len(tokens))
