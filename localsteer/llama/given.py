"""What a chat template is given besides the turns of a conversation, and how."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from localsteer.llama.control_tokens import TextGuard


@dataclass(frozen=True)
class CallStyle:
    """How a template wants the calls of a turn.

    Attributes:
        arguments_as_text: a text of JSON, as OpenAI's API has them, in place of an object.
        no_content: a turn without a text has None for it, as OpenAI's API has it, in place of "".
    """

    arguments_as_text: bool = False
    no_content: bool = False

    def document(self, name: str, arguments: Mapping[str, Any], identity: str | None) -> dict[str, Any]:
        """A call."""
        given = json.dumps(arguments, ensure_ascii=False) if self.arguments_as_text else dict(arguments)
        identified = {"id": identity} if identity is not None else {}
        return {**identified, "type": "function", "function": {"name": name, "arguments": given}}


# What is built from a template must not depend on the day. Llama 3's template says that it is this one where nobody tells it.
_A_DAY = datetime(2024, 7, 26, 12)
# As llama-server gives them.
_DATES = {"date_string": "%d %b %Y", "datetime": "%b %d %Y"}

# The first is transformers'.
CALL_STYLES = (CallStyle(), CallStyle(no_content=True), CallStyle(True), CallStyle(True, no_content=True))


@dataclass(frozen=True)
class Given:
    """What a prompt is made with, besides its turns.

    Attributes:
        tools: what may be called.
        variables: what else the template knows.
        guard: keeps control tokens out of texts.
        kept: control tokens that may stand in an answer.
        header: begin the assistant's next turn.
        calls: how calls are given; None: as the template wants them.
        now: the time that a template is told; None for one that is always the same.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, object] = field(default_factory=dict)
    guard: TextGuard | None = None
    kept: tuple[str, ...] = ()
    header: bool = True
    calls: CallStyle | None = None
    now: datetime | None = None

    @property
    def moment(self) -> datetime:
        """The time that a template is told where it asks for one."""
        return self.now or _A_DAY

    def dates(self, known: Collection[str]) -> dict[str, object]:
        """The time as templates ask for it; those of these names that have a default are left to that where no time is given."""
        named = {name: self.now.strftime(form) for name, form in _DATES.items() if name in known} if self.now is not None else {}
        return {"strftime_now": self.moment.strftime, **named}

    def guarded(self, value: Any, keep: Sequence[str] = ()) -> Any:
        """A value of JSON, with all texts in it guarded."""
        return value if self.guard is None else self.guard.within(value, keep)

    def content(self, text: str, role: str) -> str:
        """The text of a turn, guarded."""
        return str(self.guarded(text, self.kept if role == "assistant" else ()))
