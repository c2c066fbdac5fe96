"""A reply as a row of blocks: a text, a piece of reasoning or a call of a tool each, told while they are written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

from localsteer.policy.audit import Decision
from localsteer.server.answers import Finished
from localsteer.server.asking import Asked
from localsteer.server.jobs import Ended, Failed
from localsteer.server.reply import Said, joined, parts_of

Document = dict[str, Any]


class Writer(Protocol):
    """Writes one reply as the events of an API; `index` counts its blocks."""

    def begin(self, index: int, first: Said) -> Iterator[Document]:
        """A block begins; nothing of it is told yet."""
        ...

    def more(self, index: int, piece: Said) -> Iterator[Document]:
        """More of it."""
        ...

    def end(self, index: int, whole: Said, *, cut: bool) -> Iterator[Document]:
        """It is whole, or was cut off."""
        ...

    def finish(self, finished: Finished, whole_calls: int) -> Iterator[Document]:
        """The reply is at its end; so many of its calls are whole."""
        ...

    def fail(self, error: Exception) -> Iterator[Document]:
        """It cannot be given."""
        ...


class _Blocks:
    """Divides one reply into blocks: texts that follow one another are one, and so is reasoning; a call is always one."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._index = -1
        self._open: Said | None = None

    def push(self, said: Sequence[Said]) -> Iterator[Document]:
        for piece in said:
            whole = joined(self._open, piece)
            if whole is None:
                yield from self.close()
                self._index += 1
                yield from self._writer.begin(self._index, piece)
            self._open = whole if whole is not None else piece
            yield from self._writer.more(self._index, piece)

    def close(self, *, cut: bool = False) -> Iterator[Document]:
        if self._open is not None:
            yield from self._writer.end(self._index, self._open, cut=cut)
            self._open = None


def written(asked: Asked, finished: Finished, writer: Writer) -> list[Document]:
    """All events of a reply that is whole."""
    blocks = _Blocks(writer)
    cut = finished.answer.finish_reason == "length"
    said = asked.reading.of(finished.answer.text)
    return [*blocks.push(said), *blocks.close(cut=cut), *writer.finish(finished, len(parts_of(said)[2]))]


async def streamed(asked: Asked, writer: Writer) -> AsyncIterator[Document]:
    """The events of a reply while it comes."""
    blocks, reader = _Blocks(writer), asked.reading.reader(in_pieces=True)
    decisions: list[Decision] = []
    async for event in asked.answers.events():
        if isinstance(event, Failed):
            for document in writer.fail(event.error):
                yield document
            return
        decisions += event.decisions
        said = reader.finish() if isinstance(event, Ended) else reader.push(event.text)
        for document in blocks.push(said):
            yield document
        if isinstance(event, Ended):
            cut = event.answer.finish_reason == "length"
            whole = Finished(event.answer, tuple(decisions))
            for document in (*blocks.close(cut=cut), *writer.finish(whole, reader.whole_calls)):
                yield document
