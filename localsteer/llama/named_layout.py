"""llama.cpp's built-in chat layouts, which a model file may name instead of holding a template."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from localsteer.llama import library
from localsteer.llama.template_errors import RefusedError, TemplateError

_MOST = 1000  # There are some 60.


def is_layout_name(text: str) -> bool:
    """Whether it is the name of a layout in this build of llama.cpp."""
    names = (ctypes.c_char_p * _MOST)()
    count = library.load().llama_chat_builtin_templates(names, _MOST)
    return text.strip().encode() in names[:count]


class NamedLayout:
    """One of them.

    Args:
        name: its name; or the text of a template in another language, such as Ollama's, that uses the marks of one.

    Attributes:
        variables: what else it may be given: nothing.

    Raises:
        TemplateError: llama.cpp does not know it.
    """

    def __init__(self, name: str) -> None:
        self.variables: frozenset[str] = frozenset()
        self._name = name.strip().encode()
        try:
            self.render({"messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": True})
        except RefusedError as error:
            raise TemplateError("llama.cpp has no chat layout of that kind.") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt of `messages`, each with a role and a content, and with `add_generation_prompt` the header of a reply.

        Raises:
            RefusedError: it takes no such messages.
        """
        llama = library.load()
        turns = [(str(turn["role"]).encode(), str(turn["content"]).encode()) for turn in variables["messages"]]
        if any(b"\0" in content for _, content in turns):
            raise RefusedError("The model's chat layout takes no zero bytes.", hint="Leave them out.")
        chat = (llama.llama_chat_message * len(turns))(*turns)
        size = 2 * sum(len(content) + 256 for _, content in turns)
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = llama.llama_chat_apply_template(
                self._name, chat, len(turns), bool(variables["add_generation_prompt"]), buffer, size
            )
            if needed < 0:
                raise RefusedError("The model's chat layout refuses this conversation.")
            if needed <= size:
                return buffer.raw[:needed].decode("utf-8", errors="replace")
            size = needed
