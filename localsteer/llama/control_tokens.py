"""Control tokens in what people write: they stay text, so that no message closes its turn and opens another.

A template writes control tokens and people's texts into one string. A mark in each control token of theirs tells it from the
template's own in the prompt; there the mark is taken out again, and what it stood in is read as plain text.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Private characters, drawn anew for each prompt: 75 bits that no text can foresee.
_FIRST_PRIVATE, _PRIVATE, _LENGTH = 0xE000, 6400, 6


class ControlTokens:
    """The texts of a vocabulary's control tokens.

    Args:
        texts: the texts.
    """

    def __init__(self, texts: Collection[str]) -> None:
        self._texts = frozenset(texts)
        # A template may change the case of what it is given.
        self._lower = {text.lower() for text in texts}
        self._beginnings = {text[:length] for text in self._lower for length in range(1, len(text))}
        self._longest = max(map(len, texts), default=0)
        self._lengths: dict[str, list[int]] = {}
        for text in sorted(texts, key=len, reverse=True):
            for first in {text[0], text[0].lower(), text[0].upper()}:
                lengths = self._lengths.setdefault(first, [])
                if len(text) not in lengths:
                    lengths.append(len(text))
        self._firsts = re.compile("[" + re.escape("".join(self._lengths)) + "]" if texts else r"(?!)")

    def found(self, text: str) -> Iterator[tuple[int, int]]:
        """Where they stand in a text, the longest one at each place, none inside another."""
        place = 0
        while first := self._firsts.search(text, place):
            start = first.start()
            length = next((length for length in self._lengths[first[0]] if text[start : start + length] in self._texts), 0)
            if length:
                yield start, start + length
            place = start + max(length, 1)

    def marked(self, text: str, mark: str, keep: Sequence[str] = ()) -> str:
        """A text with a mark behind the first character of each, in any case, and of what the next text could make into one."""
        kept = {start for one in keep for start in _places(text, one)}
        places = [
            first.start()
            for first in self._firsts.finditer(text)
            if first.start() not in kept and self._begins(text, first.start(), first[0])
        ]
        cuts = [0, *(place + 1 for place in places), len(text)]
        return mark.join(text[start:stop] for start, stop in itertools.pairwise(cuts))

    def _begins(self, text: str, start: int, first: str) -> bool:
        if any(text[start : start + length].lower() in self._lower for length in self._lengths[first]):
            return True
        return len(text) - start < self._longest and text[start:].lower() in self._beginnings


def _places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


@dataclass(frozen=True)
class TextGuard:
    """Keeps people's control tokens apart from the template's, in one prompt.

    Attributes:
        control: those of the vocabulary.
    """

    control: ControlTokens
    _mark: str = field(
        default_factory=lambda: "".join(chr(_FIRST_PRIVATE + secrets.randbelow(_PRIVATE)) for _ in range(_LENGTH)), init=False
    )

    def __call__(self, text: str, keep: Sequence[str] = ()) -> str:
        """The text, with a mark in every control token but those to keep."""
        return self.control.marked(text, self._mark, keep)

    def within(self, value: Any, keep: Sequence[str] = ()) -> Any:
        """A value of JSON with a mark in every control token of all its texts."""
        if isinstance(value, str):
            return self(value, keep)
        if isinstance(value, Mapping):
            return {self.within(key): self.within(one, keep) for key, one in value.items()}
        return [self.within(one, keep) for one in value] if isinstance(value, list | tuple) else value

    def pieces(self, prompt: str) -> Iterator[tuple[list[str], bool]]:
        """A prompt in pieces, and whether control tokens in each are to be read as such.

        Between two pieces there is always a control token of the template's, where no tokens merge. A piece without any is
        divided where the marks were.
        """
        marks = re.compile(f"{re.escape(self._mark)}|{re.escape(json.dumps(self._mark)[1:-1])}")
        if not marks.search(prompt):
            yield [prompt], True
            return
        read, place = "", 0
        for start, stop in [*self.control.found(prompt), (len(prompt), len(prompt))]:
            between = marks.split(prompt[place:start])
            if len(between) > 1:
                if read:
                    yield [read], True
                yield between, False
                read = ""
            else:
                read += between[0]
            read += prompt[start:stop]
            place = stop
        if read:
            yield [read], True
