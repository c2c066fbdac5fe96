"""What a request asks of the chat template: whether and how much to think, and whatever else the template knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from localsteer.llama.chat_template import SWITCHES
from localsteer.llama.model import Model
from localsteer.server.answers import RequestError

_NO_EFFORT = ("none", "off")


@dataclass(frozen=True)
class TemplateWishes:
    """As the request says it.

    Attributes:
        think: whether to think before the answer; or how much, as Ollama's requests may say.
        effort: how much, as OpenAI's say; "none" for not at all.
        variables: `chat_template_kwargs`.
        header: whether the assistant's next turn is begun.
    """

    think: bool | str | None = None
    effort: str | None = None
    variables: Mapping[str, object] = field(default_factory=dict)
    header: bool = True

    @property
    def is_open(self) -> bool:
        """Whether nothing is said about thinking."""
        return self.think is None and self.effort is None and not self.variables.keys() & set(SWITCHES)

    def of(self, model: Model) -> tuple[bool | None, dict[str, object]]:
        """Whether the model shall think, and what its template is given.

        Raises:
            RequestError: the template has no degrees of thinking.
            TemplateError: it cannot be used.
        """
        known = model.chat_template.variables if model.chat_template is not None else frozenset()
        think = self.think if isinstance(self.think, bool) else None
        variables = dict(self.variables)
        level = self.effort if self.effort is not None else self.think if isinstance(self.think, str) else None
        if level in _NO_EFFORT:
            think = False
        elif level is not None and "reasoning_effort" in known:
            variables.setdefault("reasoning_effort", level)
        elif level is not None and self.effort is None:
            think = True
        elif level is not None:
            raise RequestError("The model's chat template does not know reasoning_effort.", "reasoning_effort")
        # Not every template calls it so, or has a name for it.
        if "enable_thinking" not in known and isinstance(switch := variables.get("enable_thinking"), bool):
            del variables["enable_thinking"]
            think = switch if think is None else think
        return think, variables
