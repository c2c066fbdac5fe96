"""The rule classifier: words and patterns, found in linear time whatever the text.

The text may be hostile, and backtracking engines can be sent into exponential time by one. RE2 cannot: its time is linear in the
text. A growing answer is searched in a window that moves along with it, so the whole answer costs linear time, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import re2

from localsteer.policy.classifier import Classifier, Observer, Seen

# Longest match in a growing answer, in bytes of UTF-8; some 300 tokens of English. A search of it takes 5 microseconds.
WINDOW = 1024
# Letters, marks, digits and the underscore of any script: RE2's own \b knows ASCII only.
_LETTER = r"[\pL\pM\pN_]"
# Scripts that write no spaces between words: any letter of theirs may be a word's first or last.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_BESIDE = rf"(?:[^\pL\pM\pN_]|{_UNSPACED})"
_BEFORE = rf"(?:\A|{_BESIDE})"
_BEHIND = rf"(?:{_BESIDE}|\z)"
_SPACE = r"[\s\pZ]+"  # \pZ: the no-break space and its like


class PatternError(ValueError):
    """A pattern that RE2 does not take."""


def compile_pattern(pattern: str) -> Any:
    """A pattern in RE2's syntax.

    Raises:
        PatternError: it is none.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise PatternError(f"not a pattern that RE2 takes ({text}); it has no lookaround and no backreferences") from error


@dataclass(frozen=True)
class Search:
    """Something to find.

    Attributes:
        so_far: finds it where more text may follow.
        at_end: finds it where the text is complete.
        words: whether the matches hold the characters around a word as well; the word itself is a group then.
    """

    so_far: Any
    at_end: Any
    words: bool = False

    @classmethod
    def for_pattern(cls, pattern: str) -> Search:
        """A pattern is searched in the text as it stands: `$` is the end so far.

        Raises:
            PatternError: it is none.
        """
        compiled = compile_pattern(pattern)
        return cls(compiled, compiled)

    @classmethod
    def for_words(cls, words: Sequence[str]) -> tuple[Search, ...]:
        """Whole words or phrases, in any case. Only what follows a word shows that it is whole.

        Raises:
            PatternError: there are too many (10,000 are not).
        """
        # A boundary only where the word itself has a letter: "c++" is found in "c++11" as well. One search for all words with
        # the same boundaries: these make up nearly all of a pattern's size.
        by_boundaries: dict[tuple[bool, bool], list[str]] = {}
        for parts in map(str.split, words):
            boundaries = _needs_boundary(parts[0][0]), _needs_boundary(parts[-1][-1])
            by_boundaries.setdefault(boundaries, []).append(_SPACE.join(re2.escape(part) for part in parts))
        searches = []
        for (left, right), escaped in by_boundaries.items():
            pattern = f"(?i){_BEFORE if left else ''}({'|'.join(escaped)})"
            ends = (_BESIDE, _BEHIND) if right else ("", "")
            so_far, at_end = (compile_pattern(pattern + end) for end in ends)
            searches.append(cls(so_far, at_end, words=True))
        return tuple(searches)

    def end_of(self, match: Any) -> int:
        """Where another match may begin: words that follow each other share the character between them."""
        return int(max(match.end(1) if self.words else match.end(), match.start() + 1))


def _needs_boundary(character: str) -> bool:
    return re2.match(_LETTER, character) is not None and re2.match(_UNSPACED, character) is None


@dataclass(frozen=True, kw_only=True)
class RuleClassifier(Classifier):
    """True at the moment when a word or pattern is found.

    In a growing answer that is the token with which a match is complete: a score of 1 then, and of 0 before and after.

    Attributes:
        searches: what to find.
    """

    searches: tuple[Search, ...]
    threshold: float = 0.5
    release: float = 0.5

    def observer(self) -> Observer:
        """A view of one answer."""
        return _Whole(self.searches) if self.watch == "prompt" else _Growing(self.searches)


class _Whole(Observer):
    def __init__(self, searches: Sequence[Search]) -> None:
        self._searches = searches

    def observe(self, seen: Seen) -> float:
        data = _encode(seen.message)
        return float(any(search.at_end.search(data) is not None for search in self._searches))


class _Growing(Observer):
    """The end of the answer, and where the matches in it are: one that was reported is not reported again."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self._searches = searches
        self._text = b""
        self._offset = 0  # of _text in the answer, bytes
        # For each search where its matches ended, and from where the next one may begin; in the answer, bytes.
        self._matches: list[list[tuple[int, int]]] = [[] for _ in searches]

    def observe(self, seen: Seen) -> float:
        self._text += _encode(seen.fresh)
        found = False
        for search, matches in zip(self._searches, self._matches, strict=True):
            engine = search.at_end if seen.final else search.so_far
            start = max(matches[-1][1] - self._offset if matches else 0, self._context)
            while start <= len(self._text) and (match := engine.search(self._text, start)) is not None:
                found = True
                start = search.end_of(match)
                matches.append((match.end() + self._offset, start + self._offset))
        self._forget()
        return float(found)

    def rewind(self, position: int, answer: str) -> None:
        self._text = _encode(answer)
        self._offset = 0
        # A match that was taken back is looked for again: the text before it may go on to another one. So is a word that still
        # stands but for the character behind it.
        self._matches = [[match for match in matches if match[0] <= len(self._text)] for matches in self._matches]
        self._forget()

    @property
    def _context(self) -> int:
        """The first character of a cut text is not searched: it is there for what looks at the character before, such as `^`."""
        return 0 if self._offset == 0 else _next_character(self._text, 1)

    def _forget(self) -> None:
        """Once two windows are full, drop the older one."""
        if len(self._text) > 2 * WINDOW:
            cut = _next_character(self._text, len(self._text) - WINDOW)
            self._text = self._text[cut:]
            self._offset += cut


def _next_character(data: bytes, start: int) -> int:
    """The first place from `start` on where a character of UTF-8 begins."""
    while start < len(data) and data[start] & 0xC0 == 0x80:
        start += 1
    return start


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # half a character, which JSON can hold, becomes a question mark
