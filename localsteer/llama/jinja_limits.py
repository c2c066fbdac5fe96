"""What chat templates may use: limits on the time of a rendering, and on what is made in it."""

from __future__ import annotations

import re
import string
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

from localsteer.llama.template_errors import TemplateLimitError

# Characters (and items) of any value: those of a million tokens.
_SIZE = 2**22
_ITEM, _NEW_ITEM = 40, 100  # bytes of an item of a list, and of one with a short text of its own
_LARGEST_ARGUMENT = 10**6  # of a function or filter: a width, a count
_LARGEST_BITS = 2**12
_HELD = 2**16  # items of lists whose sizes are remembered
_TURNS_UNCHECKED = 16  # of a loop: reading the clock costs as much as a turn
# They make a list of a text.
_PARTS_OF_TEXTS = {"list", "rsplit", "slice", "batch", "split", "splitlines"}

_NUMBER = re.compile(r"\d+")  # a width in a format string
_LONGEST_NUMBER = 4  # digits
_LONGEST_FLOAT = 320  # characters of 1e308, written by %f


class _Limits(threading.local):
    """What the rendering in this thread has used."""

    seconds = deadline = budget = float("inf")
    turns = held = kept = made = buffered = 0
    sizes: dict[int, tuple[object, int]]

    def begin(self, seconds: float, budget: int) -> None:
        self.seconds, self.deadline, self.budget = seconds, time.thread_time() + seconds, budget
        self.turns = self.kept = self.made = self.buffered = 0
        self.forget()

    def step(self) -> None:
        if time.thread_time() > self.deadline:
            raise TemplateLimitError(f"does not end: it was stopped after {self.seconds:.2g} s")

    def turn(self) -> None:
        self.turns += 1
        if self.turns % _TURNS_UNCHECKED == 0:
            self.step()

    def size(self, value: object) -> int:
        """Characters and items of a value, those in it included; what it holds twice counts twice, as it is written twice."""
        if isinstance(value, str):
            return len(value) + 1
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
        if not isinstance(value, (list, tuple, dict)):
            return 1
        known = self.sizes.get(id(value))
        if known is None:
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            # Nothing in the sandbox changes a list or a dictionary once it is there.
            known = self.sizes[id(value)] = value, 1 + sum(map(self.size, parts))
            self.held += len(parts)
            if self.held > _HELD:
                self.forget()
        return known[1]

    def forget(self) -> None:
        """What was measured is held until then, so that nothing else comes to its place in memory."""
        self.sizes, self.held = {}, 0

    def keep(self, new: object, old: object = ()) -> None:
        """A namespace keeps another value: namespaces count by what is in all of them together."""
        self.kept += self.size(new) - self.size(old)
        self.check(self.kept)
        if isinstance(old, str):
            self.made -= len(old)  # Texts are put together in one.

    def make(self, size: int) -> None:
        """So many bytes are about to be made, or were."""
        self.made += size
        if self.made > self.budget:
            raise TemplateLimitError("makes more than any prompt needs")

    def buffer(self, size: int) -> None:
        """So many characters more stand in what macros and blocks are writing; less, where they are done."""
        self.buffered += size
        self.check(self.buffered)

    def check(self, size: int) -> None:
        if size > _SIZE:
            raise TemplateLimitError("makes more text than any prompt holds")


limits = _Limits()


def checked(value: Any) -> Any:
    """A value that was just made, if it is not too much."""
    if isinstance(value, (str, list, tuple, dict)):
        limits.check(limits.size(value))
        limits.make(len(value) * (1 if isinstance(value, str) else _ITEM))
    return value


class Buffer(list[str]):
    """What a macro or a block has written so far."""

    def append(self, text: str, /) -> None:  # noqa: D102
        limits.buffer(len(text))
        super().append(text)

    def extend(self, texts: Iterable[str], /) -> None:  # noqa: D102
        for text in texts:
            self.append(text)


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, if it ends in time."""
    for item in items:
        limits.turn()
        yield item


def concatenated(parts: Iterable[Any]) -> str:
    """Parts as one text, if it is not too long."""
    texts, size = [], 0
    for part in parts:
        text = str(part)
        size += len(text)
        limits.check(size)
        texts.append(text)
    if isinstance(parts, Buffer):
        limits.buffer(-size)
    limits.make(size)
    return "".join(texts)


def bounded(items: Iterable[Any]) -> Iterator[Any]:
    """Items that come one by one, if all together are not too much."""
    size = 0
    for item in counted(items):
        size += limits.size(item)
        limits.check(size)
        yield item


def bounded_list(items: Any) -> Any:
    """The same, as a list; what is no iterator stays what it is."""
    return list(bounded(items)) if isinstance(items, (Iterator, range)) else items


def check_call(name: str, subject: Any, others: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Before a function, filter or method is called: what it would make of its subject is not too much."""
    values = (*others, *named.values())
    for value in values:
        if isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT:
            raise TemplateLimitError(f"asks for {value} of something")
    texts = [value for value in values if isinstance(value, str)]
    longest = max(map(len, texts), default=0)
    width = max((value for value in values if isinstance(value, int)), default=longest)
    if name == "format":
        check_format(str(subject), "%", values)
    elif name.startswith("str.format"):
        check_format(subject, "{", values)
    elif name == "join" and isinstance(subject, (list, tuple, dict, str)):
        limits.check(limits.size(subject) + longest * len(subject))
    elif name == "replace" and texts:
        limits.check(str(subject).count(texts[0]) * longest)
    elif name == "indent":
        limits.check(str(subject).count("\n") * max(width, longest))
    elif name == "tojson":
        separators = [
            len(text) for value in values if isinstance(value, (list, tuple)) for text in value if isinstance(text, str)
        ]
        limits.check(limits.size(subject) * max(width, longest, *separators, 1))
    elif isinstance(subject, str) and name in _PARTS_OF_TEXTS:
        limits.make(_NEW_ITEM * (subject.count(texts[0]) if texts and texts[0] else len(subject)))
    elif name == "sum" and any(not isinstance(value, (int, float, str)) for value in values):
        raise SecurityError("sum is for numbers in a chat template")


def check_format(text: str, mark: str, values: Iterable[Any]) -> None:
    """Before values are put into a text."""
    numbers = _NUMBER.findall(text)
    # A width that is itself a value is in no text.
    inner = "*" in text if mark == "%" else any("{" in (spec or "") for _, _, spec, _ in string.Formatter().parse(text))
    if inner or any(len(number) > _LONGEST_NUMBER for number in numbers):
        raise TemplateLimitError("writes very wide columns")
    limits.check(text.count(mark) * max(_LONGEST_FLOAT, *map(int, numbers), *map(limits.size, values)))


def check_product(left: Any, right: Any) -> None:
    """Before two values are multiplied."""
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())
    for times, what in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(what, (str, list, tuple)):
            limits.check(times * limits.size(what))


def check_bits(bits: int) -> None:
    """Before a number of so many bits is computed."""
    if bits > _LARGEST_BITS:
        raise TemplateLimitError("computes with endless numbers")
