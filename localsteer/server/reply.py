"""A reply as programs want it: reasoning, text and calls of tools apart, told from each other while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localsteer.engine.phases import Division
from localsteer.engine.reply import PartReader, Reasoning
from localsteer.tools.form import Form
from localsteer.tools.parser import ToolCallParser
from localsteer.tools.tool import MoreArguments, Tool, ToolCall

Said = Reasoning | str | ToolCall | MoreArguments


@dataclass(frozen=True)
class Reading:
    """How a reply is to be read.

    Attributes:
        division: into reasoning and answer; None where it is all answer.
        form: in which calls of tools are written; None where there are no tools.
        tools: those that may be called.
        held: a grammar holds calls to their form.
    """

    division: Division | None = None
    form: Form | None = None
    tools: tuple[Tool, ...] = ()
    held: bool = False

    def reader(self, *, in_pieces: bool = False) -> ReplyReader:
        """For one reply; `in_pieces`: calls that a grammar holds are told while they are written, else as a whole."""
        return ReplyReader(self, in_pieces=in_pieces)

    def of(self, text: str) -> list[Said]:
        """A whole reply; texts that follow one another are one."""
        reader = self.reader()
        return _joined([*reader.push(text), *reader.finish()])


class ReplyReader:
    """Reads one reply piece by piece.

    Args:
        reading: how.
        in_pieces: see `Reading.reader`.
    """

    def __init__(self, reading: Reading, *, in_pieces: bool = False) -> None:
        held = reading.held and in_pieces
        self._calls = ToolCallParser(reading.form, reading.tools, held=held) if reading.form is not None else None
        in_channels = reading.form is not None and reading.form.kind == "channel"
        self._parts = PartReader(reading.division, calls=in_channels)

    @property
    def whole_calls(self) -> int:
        """How many calls were whole so far; one that is told while it is written may never be."""
        return self._calls.whole if self._calls is not None else 0

    def push(self, text: str) -> list[Said]:
        """What is certain with this piece; what belongs together as one."""
        return _joined(self._read(self._parts.push(text)))

    def finish(self) -> list[Said]:
        """What is left at the end."""
        said = self._read(self._parts.finish())
        return _joined([*said, *(self._calls.finish() if self._calls is not None else ())])

    def _read(self, parts: Sequence[Reasoning | str]) -> list[Said]:
        said: list[Said] = []
        for part in parts:
            if isinstance(part, Reasoning) or self._calls is None:
                said.append(part)
            else:
                said += self._calls.push(part)
        return said


def joined(one: Said | None, other: Said) -> Said | None:
    """What is said and what follows it, as one; None where they are two."""
    if isinstance(one, str) and isinstance(other, str):
        return one + other
    if isinstance(one, Reasoning) and isinstance(other, Reasoning):
        return Reasoning(one.text + other.text)
    if isinstance(one, ToolCall) and isinstance(other, MoreArguments):
        return ToolCall(one.name, one.arguments + other.text)
    if isinstance(one, MoreArguments) and isinstance(other, MoreArguments):
        return MoreArguments(one.text + other.text)
    return None


def _joined(said: Sequence[Said]) -> list[Said]:
    whole: list[Said] = []
    for one in said:
        both = joined(whole[-1], one) if whole else None
        if both is None:
            whole.append(one)
        else:
            whole[-1] = both
    return whole


def parts_of(said: Sequence[Said]) -> tuple[str, str, list[ToolCall]]:
    """The reasoning, the text and the calls that begin."""
    reasoning = "".join(one.text for one in said if isinstance(one, Reasoning))
    text = "".join(one for one in said if isinstance(one, str))
    return reasoning, text, [one for one in said if isinstance(one, ToolCall)]
