"""From a conversation to the tokens that a model reads, and where in them a message stands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from localsteer.errors import LocalsteerError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.reading.prefix_tree import common_beginning

# What stands between the turns of a conversation where a base model reads them as plain text.
PARAGRAPH = "\n\n"
# A base model takes part in a conversation that is laid out so, and goes on writing the other side's lines, too.
_PLAIN_TURN = {"system": "", "user": "User: ", "assistant": "Assistant: "}
_PLAIN_STOP = ("\nUser:",)


def prompt_tokens(model: Model, messages: Sequence[Message], *, raw: bool = False) -> tuple[int, ...]:
    """Tokens of a conversation.

    Args:
        model: the model that will read it.
        messages: the turns.
        raw: take the texts as they are, without the chat template. A base model, which has none, always gets them so.

    Raises:
        LocalsteerError: there is no text.
        ModelError: the model's template refuses the conversation.
    """
    if not any(message.content for message in messages):
        raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
    if raw or model.chat_template is None:
        return tuple(model.tokenize(PARAGRAPH.join(message.content for message in messages)))
    return tuple(model.tokenize(model.chat_template.render(messages)))


def chat_tokens(model: Model, messages: Sequence[Message]) -> tuple[int, ...]:
    """Tokens of a conversation up to the assistant's next turn, with a base model as well.

    Raises:
        LocalsteerError: there is no text.
        ModelError: the model's template refuses the conversation.
    """
    if model.chat_template is not None or not messages:
        return prompt_tokens(model, messages)
    lines = [f"{_PLAIN_TURN[message.role]}{message.content}" for message in messages]
    return tuple(model.tokenize("\n".join([*lines, "Assistant:"])))


def chat_stop(model: Model) -> tuple[str, ...]:
    """What ends the assistant's turn in `chat_tokens`, besides the model's own end."""
    return () if model.chat_template is not None else _PLAIN_STOP


def latest_message(model: Model, messages: Sequence[Message], *, raw: bool = False) -> tuple[int, int]:
    """Where the last message stands in `prompt_tokens` of a conversation: its first token, and the one behind its last."""
    tokens_of = functools.partial(prompt_tokens, model, raw=raw)
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
