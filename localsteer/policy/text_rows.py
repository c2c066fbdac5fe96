"""Texts as a probe sees them in a chat: which tokens of which prompt are read."""

from __future__ import annotations

from localsteer.errors import PolicyError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.reading.prompt import answer_prompt, latest_message, prompt_tokens
from localsteer.reading.span import Span

# What a lone answer is taken to be an answer to: the template wants a question, and this one hints at nothing.
NEUTRAL_MESSAGE = "Go on."


def message_span(model: Model, message: str) -> Span:
    """The tokens of a message, in the prompt that it is.

    Raises:
        PolicyError: it does not fit the context.
        LocalsteerError: it is empty, or refused by the model's template.
    """
    messages = [Message("user", message)]
    tokens = prompt_tokens(model, messages)
    _check_room(model, len(tokens), "message")
    start, stop = latest_message(model, messages)
    return Span(tokens, start, stop)


def answer_span(model: Model, message: str, answer: str) -> Span:
    """The tokens of an answer, after the message that it answers.

    Raises:
        PolicyError: it is empty, or does not fit the context.
        LocalsteerError: the model's template refuses the message.
    """
    prompt = answer_prompt(model, [Message("user", message or NEUTRAL_MESSAGE)])
    tokens = answer_tokens(model, answer)
    if not tokens:
        raise PolicyError("An answer is empty.", hint="Give each some text.")
    _check_room(model, len(prompt) + 1, "message")
    _check_room(model, len(prompt) + len(tokens), "answer")
    return Span((*prompt, *tokens), len(prompt))


def answer_tokens(model: Model, answer: str) -> list[int]:
    """The tokens of an answer; special ones in it are plain text."""
    return model.tokenize(answer, add_special=False, special=False)


def _check_room(model: Model, count: int, what: str) -> None:
    room = model.n_ctx_train
    if count > room:
        raise PolicyError(
            f"A text is too long to be read: its {what} takes it to {count} tokens, and the context holds {room}.",
            hint="Shorten it.",
        )
