"""An answer while it is written: its last tokens may still be taken back, and are not shown until they cannot."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Collects an answer's bytes and hands out the text that is certain.

    Args:
        stop: strings that end the answer; neither they nor what follows is part of it.

    Attributes:
        text: all text handed out so far.
        met: the stop string that was met; None where none was.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.met: str | None = None
        self._stop = [string for string in stop if string]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self.met is not None

    def push(self, data: bytes) -> str:
        """Take the bytes of a token; returns the text that can be shown now."""
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """The answer is at its end: returns what was held back."""
        fresh = self._take(self._decoder.decode(b"", final=True))
        if self.stopped:
            return fresh
        rest, self._held = self._held, ""
        self.text += rest
        return fresh + rest

    def _take(self, fresh: str) -> str:
        if self.stopped:
            return ""
        self._held += fresh
        # The one that ends first, as it would be met token by token.
        places = [(at + len(string), at, string) for string in self._stop if (at := self._held.find(string)) >= 0]
        if places:
            _, at, self.met = min(places)
            shown, self._held = self._held[:at], ""
        else:
            keep = self._open_end()
            cut = len(self._held) - keep
            shown, self._held = self._held[:cut], self._held[cut:]
        self.text += shown
        return shown

    def _open_end(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(string) - 1 for string in self._stop), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-size:]) for string in self._stop):
                return size
        return 0


class Draft:
    """Tokens, their text, and how much of it has been shown.

    Args:
        token_bytes: the bytes of a token.
        stop: strings that end the answer.
        on_text: called with each piece of text once it is certain.

    Attributes:
        tokens: the answer so far.
        drawn: how many tokens were drawn for it, those that were taken back included.
        aside: how many tokens are of parts that are not steered; none of them is taken back.
        fixed: how many of the first tokens stay as they are, whether anybody has seen them or not.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str], on_text: Callable[[str], None] | None) -> None:
        self.tokens: list[int] = []
        self.drawn = 0
        self.aside = 0
        self.fixed = 0
        self._token_bytes = token_bytes
        self._stop = stop
        self._on_text = on_text
        self._stream = TextStream(stop)
        self._ends: list[int] = []  # for each token the length of the text that was certain with it
        self._shown = 0  # length of the text that was shown
        self._shown_tokens = 0

    @property
    def text(self) -> str:
        """The text of all tokens, whether shown or not, without what may still become a stop string or a character."""
        return self._stream.text

    @property
    def met(self) -> str | None:
        """The stop string that was met; None where none was."""
        return self._stream.met

    @property
    def stopped(self) -> bool:
        """Whether one was."""
        return self._stream.stopped

    @property
    def unseen(self) -> int:
        """How many of the latest tokens can be taken back: nobody has seen them yet."""
        return len(self.tokens) - max(self._shown_tokens, self.fixed)

    @property
    def shown_tokens(self) -> int:
        """How many tokens the text that was shown took."""
        return self._shown_tokens

    def push(self, token: int) -> None:
        """Add a token."""
        self.drawn += 1
        self._append(token)

    def finish(self) -> None:
        """No token follows: what a stop string might have begun with is text after all."""
        self._stream.finish()
        if self._ends:
            self._ends[-1] = len(self._stream.text)

    def rewind(self, count: int) -> None:
        """Take back the latest tokens, at most the unseen ones."""
        assert count <= self.unseen
        kept = self.tokens[: len(self.tokens) - count]
        self.tokens, self._ends, self._stream = [], [], TextStream(self._stop)
        for token in kept:
            self._append(token)

    def show(self, hold_back: int = 0) -> None:
        """Hand on the text of all but the latest `hold_back` tokens."""
        certain = len(self._ends) - hold_back
        self._shown_tokens = max(self._shown_tokens, certain)
        end = self._ends[certain - 1] if certain > 0 else 0
        if end > self._shown:
            fresh = self.text[self._shown : end]
            self._shown = end
            if self._on_text is not None:
                self._on_text(fresh)

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self._stream.push(self._token_bytes(token))
        self._ends.append(len(self._stream.text))
