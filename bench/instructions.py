"""Instructions: whether a model still does as it is told, as a program can check in the text of its answer.

They are after IFEval (Zhou et al. 2023), in requests of our own that a small model can answer in 64 tokens. A check looks at
the form of an answer alone, not at whether it is right. Where a model's habits say nothing about its obedience (quotation marks
or asterisks around an answer, a fence around JSON), the check looks past them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("instructions.yaml")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
# A line ends a sentence, too: a list without full stops is not one sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)*]*\s+|\n+")
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*(\d+)[.)]\s+\S", re.MULTILINE)
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
_AROUND = "\"“”'‘’*_ "


@dataclass(frozen=True)
class Instruction:
    """A request whose answer can be checked.

    Attributes:
        ask: the whole prompt.
        check: what must hold of the answer: arguments by the names of checks.
    """

    ask: str
    check: Mapping[str, Any]

    def followed(self, text: str) -> bool:
        """Whether an answer passes every check; an empty one follows nothing, though it holds no comma."""
        text = text.strip()
        return bool(text) and all(CHECKS[name](text, argument) for name, argument in self.check.items())


@functools.cache
def instructions() -> tuple[Instruction, ...]:
    """Those of `instructions.yaml`.

    Raises:
        ValueError: one of them names a check that there is not.
    """
    read = tuple(Instruction(**entry) for entry in yaml.safe_load(_FILE.read_text(encoding="utf-8")))
    for one in read:
        if unknown := set(one.check) - set(CHECKS):
            raise ValueError(f"{_FILE.name}: no such check: {', '.join(sorted(unknown))}, in {one.ask!r}")
    return read


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _times(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _sentences(text: str, count: int) -> bool:
    return sum(any(map(str.isalpha, part)) for part in _SENTENCE_END.split(text)) == count


def _starts_with(text: str, phrase: str) -> bool:
    """And goes on: the phrase alone is no answer."""
    before, found, after = text.lstrip(_AROUND).casefold().partition(phrase.casefold())
    return not before and bool(found) and bool(_words(after))


def _ends_with(text: str, phrase: str) -> bool:
    """After something else, whether or not a full stop follows."""
    before, found, after = text.rstrip(_AROUND + ".").casefold().rpartition(phrase.rstrip(".").casefold())
    return not after and bool(found) and bool(_words(before))


def _json_keys(text: str, keys: Sequence[str]) -> bool:
    try:
        value = json.loads(_FENCE.sub("", text))
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def _separated(text: str, by_and_count: tuple[str, int]) -> bool:
    by, count = by_and_count
    parts = text.split(by)
    return len(parts) == count and all(map(_words, parts))


def _one_of(text: str, options: Sequence[str]) -> bool:
    return text.strip(_AROUND + ".").casefold() in map(str.casefold, options)


CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "at_most_words": lambda text, count: len(_words(text)) <= count,
    "at_least_words": lambda text, count: len(_words(text)) >= count,
    "sentences": _sentences,
    "lines": lambda text, count: sum(bool(line.strip()) for line in text.splitlines()) == count,
    "paragraphs": lambda text, count: len(re.split(r"\n\s*\n", text)) == count,
    "has": lambda text, words: all(_times(text, word) for word in words),
    "lacks": lambda text, words: not any(_times(text, word) for word in words),
    "lacks_characters": lambda text, characters: not set(text.casefold()) & set(characters),
    "word_times": lambda text, word_and_count: _times(text, word_and_count[0]) == word_and_count[1],
    "number_of_digits": lambda text, count: re.search(rf"(?<!\d)\d{{{count}}}(?!\d)", text) is not None,
    "initials": lambda text, letter: all(word.casefold().startswith(letter) for word in _words(text)),
    "capital_words": lambda text, count: sum(len(word) > 1 and word.isupper() for word in _words(text)) == count,  # not "I"
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "postscript": lambda text, mark: re.search(rf"\n\W*{re.escape(mark)}\W*\w", text) is not None,
    "lower_case": lambda text, wanted: text.islower() is wanted,
    "upper_case": lambda text, wanted: text.isupper() is wanted,
    "quoted": lambda text, wanted: (re.fullmatch(r"[\"“][^\"“”]+[\"”]", text) is not None) is wanted,
    "placeholders": lambda text, count: len(re.findall(r"\[[^\[\]\n]+\]", text)) >= count,
    "bullets": lambda text, count: len(_BULLET.findall(text)) == count,
    "numbered": lambda text, count: [int(number) for number in _NUMBERED.findall(text)] == list(range(1, count + 1)),
    "separated": _separated,
    "title": lambda text, wanted: (re.search(r"<<[^<>\n]+>>", text) is not None) is wanted,
    "json_keys": _json_keys,
    "one_of": _one_of,
}
"""Of a text without white space around it, and what an instruction gives the check's name: a number, words, or true."""
