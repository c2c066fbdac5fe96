"""What can be set while chatting, besides the steering: how tokens are drawn, how long answers are, whether the model thinks."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from localsteer.chat.conversation import Conversation
from localsteer.engine.checks import check_anchored
from localsteer.errors import LocalsteerError
from localsteer.llama.sampling import MAX_SEED, Sampling

# By name: whole numbers or not, the least and the most.
_NUMBERS: dict[str, tuple[bool, float, float]] = {
    "temperature": (False, 0, math.inf),
    "top_k": (True, 0, 2**31 - 1),
    "top_p": (False, 0, 1),
    "min_p": (False, 0, 1),
    "repeat_penalty": (False, 1e-6, math.inf),
    "frequency_penalty": (False, -2, 2),
    "presence_penalty": (False, -2, 2),
    "seed": (True, 0, MAX_SEED),
    "max_tokens": (True, 1, 2**31 - 1),
}
# What other programs call them.
_CALLED = {"num_predict": "max_tokens", "n_predict": "max_tokens", "temp": "temperature"}
_AT_THE_START = ("num_ctx", "n_ctx", "context")
_THINK = {"on": True, "off": False, "auto": None}


def names() -> tuple[str, ...]:
    """What can be set."""
    return (*_NUMBERS, "think")


def change(conversation: Conversation, name: str, value: str) -> None:
    """Set one of them for the answers that follow.

    Raises:
        LocalsteerError: there is none of that name, or it cannot be that.
    """
    name = name.replace("-", "_")
    if name == "think":
        if value not in _THINK:
            raise LocalsteerError(f'think is on, off or auto (as the template says), not "{value}".')
        conversation.set_think(_THINK[value])
        return
    if name not in _NUMBERS:
        near = [_CALLED[name]] if name in _CALLED else difflib.get_close_matches(name, names(), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"What can: {', '.join(names())}."
        if name in _AT_THE_START:
            hint = "How long the context is, --context says at the start."
        raise LocalsteerError(f'"{name}" cannot be set.', hint=hint)
    if name == "seed" and value == "off":
        conversation.sampling = replace(conversation.sampling, seed=None)
        return
    number = _number(name, value)
    if name == "max_tokens":
        conversation.max_tokens = int(number)
        return
    changed: dict[str, Any] = {name: number}
    sampling = replace(conversation.sampling, **changed)
    if conversation.mode == "anchored":
        check_anchored(conversation.generator.model, sampling)
    conversation.sampling = sampling


def _number(name: str, value: str) -> float:
    whole, least, most = _NUMBERS[name]
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        raise LocalsteerError(f'{name} is a {"whole " if whole else ""}number, not "{value}".') from None
    if not least <= number <= most or math.isinf(number):
        most_said = "" if math.isinf(most) else f" to {most:.0f}"
        raise LocalsteerError(f"{name} is a number from {least:g}{most_said}, not {value}.")
    return number


def told(conversation: Conversation) -> Iterator[str]:
    """All of them as they are, a line each."""
    known = {field.name for field in fields(Sampling)}
    for name in _NUMBERS:
        value = getattr(conversation.sampling if name in known else conversation, name)
        yield f"{name} {'off' if value is None else f'{value:g}' if isinstance(value, float) else value}"
    yield f"think {next(said for said, value in _THINK.items() if value is conversation.think)}"
