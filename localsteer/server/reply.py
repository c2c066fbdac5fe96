"""A reply as programs want it: reasoning, text and calls of tools apart, told from each other while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localsteer.engine.phases import Division
from localsteer.engine.reply import PartReader, Reasoning
from localsteer.tools.form import Form
from localsteer.tools.parser import ToolCallParser
from localsteer.tools.tool import Tool, ToolCall

Said = Reasoning | str | ToolCall


@dataclass(frozen=True)
class Reading:
    """How a reply is to be read.

    Attributes:
        division: into reasoning and answer; None where it is all answer.
        form: in which calls of tools are written; None where there are no tools.
        tools: those that may be called.
    """

    division: Division | None = None
    form: Form | None = None
    tools: tuple[Tool, ...] = ()

    def reader(self) -> ReplyReader:
        """For one reply."""
        return ReplyReader(self)

    def of(self, text: str) -> list[Said]:
        """A whole reply; texts that follow one another are one."""
        reader = self.reader()
        joined: list[Said] = []
        for said in [*reader.push(text), *reader.finish()]:
            last = joined[-1] if joined else None
            if isinstance(said, str) and isinstance(last, str):
                joined[-1] = last + said
            elif isinstance(said, Reasoning) and isinstance(last, Reasoning):
                joined[-1] = Reasoning(last.text + said.text)
            else:
                joined.append(said)
        return joined


class ReplyReader:
    """Reads one reply piece by piece.

    Args:
        reading: how.
    """

    def __init__(self, reading: Reading) -> None:
        self._calls = ToolCallParser(reading.form, reading.tools) if reading.form is not None else None
        in_channels = reading.form is not None and reading.form.kind == "channel"
        self._parts = PartReader(reading.division, calls=in_channels)

    def push(self, text: str) -> list[Said]:
        """What is certain with this piece."""
        return self._read(self._parts.push(text))

    def finish(self) -> list[Said]:
        """What is left at the end."""
        said = self._read(self._parts.finish())
        return [*said, *(self._calls.finish() if self._calls is not None else ())]

    def _read(self, parts: Sequence[Reasoning | str]) -> list[Said]:
        said: list[Said] = []
        for part in parts:
            if isinstance(part, Reasoning) or self._calls is None:
                said.append(part)
            else:
                said += self._calls.push(part)
        return said


def parts_of(said: Sequence[Said]) -> tuple[str, str, list[ToolCall]]:
    """The reasoning, the text and the calls."""
    reasoning = "".join(one.text for one in said if isinstance(one, Reasoning))
    text = "".join(one for one in said if isinstance(one, str))
    return reasoning, text, [one for one in said if isinstance(one, ToolCall)]
