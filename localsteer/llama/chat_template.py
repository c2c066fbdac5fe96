"""Render messages through the chat template that a model file carries."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from localsteer.errors import ModelError
from localsteer.llama import library


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatTemplate:
    """A model's jinja template, run in llama-cpp-python's sandboxed formatter.

    Args:
        template: jinja source, from `tokenizer.chat_template`.
        bos: text of the beginning-of-sequence token, which many templates print.
        eos: text of the end-of-sequence token.

    Raises:
        ModelError: the template is not valid jinja.
    """

    def __init__(self, template: str, *, bos: str, eos: str) -> None:
        library.load()
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        try:
            self._formatter: Any = Jinja2ChatFormatter(template=template, bos_token=bos, eos_token=eos)
        except Exception as error:
            raise ModelError(
                f"The model's chat template is not valid jinja: {error}.",
                hint="Use --raw to give the prompt as plain text.",
            ) from error

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt up to and with the header of the assistant's next turn.

        A template without a system role gets the system text at the head of the first user message.

        Raises:
            ModelError: the template refuses these messages.
        """
        merged = list(messages)
        if [message.role for message in merged] == ["system"]:
            # Many templates show a system message only together with a user's.
            merged = [Message("user", merged[0].content)]
        if merged and merged[0].role == "system" and not self._has_system_role:
            head = merged[:2] if [message.role for message in merged[:2]] == ["system", "user"] else merged[:1]
            merged = [Message("user", "\n\n".join(message.content for message in head)), *merged[len(head) :]]
        try:
            return self._format(merged)
        except Exception as error:
            raise ModelError(
                f"The model's chat template refuses this conversation: {error}.",
                hint="Use --raw to give the prompt as plain text.",
            ) from error

    @functools.cached_property
    def _has_system_role(self) -> bool:
        # A template may raise on a system message, or drop it in silence: both show when one is tried.
        mark = "7f3a-system-role"
        try:
            return mark in self._format([Message("system", mark), Message("user", "Hello")])
        except Exception:
            return False

    def _format(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(self._formatter(messages=turns).prompt)
