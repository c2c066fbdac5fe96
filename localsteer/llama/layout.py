"""What lays a conversation out as a prompt: jinja, one of llama.cpp's own layouts, or a template of Ollama's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from localsteer.llama.jinja_sandbox import Program
from localsteer.llama.named_layout import NamedLayout, is_layout_name
from localsteer.llama.ollama_layout import ollama_layout


class Layout(Protocol):
    """One of them; `variables` are the names that it may be given."""

    variables: frozenset[str]

    def render(self, variables: Mapping[str, Any], /) -> str:
        """The prompt of `messages` and whatever else it is given."""
        ...


def layout_of(template: str, *, of_ollama: bool) -> Layout:
    """The layout that a model file's template is, or names.

    Raises:
        TemplateError: it is none.
    """
    if of_ollama:
        return ollama_layout(template)
    return NamedLayout(template) if is_layout_name(template) else Program(template)
