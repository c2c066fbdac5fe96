"""An answer while it is written: its last tokens may still be taken back, and are not shown until they cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from localsteer.text_stream import TextStream


class Draft:
    """Tokens, their text, and how much of it has been shown.

    Args:
        token_bytes: the bytes of a token.
        stop: strings that end the answer.
        on_text: called with each piece of text once it is certain.

    Attributes:
        tokens: the answer so far.
        drawn: how many tokens were drawn for it, those that were taken back included.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str], on_text: Callable[[str], None] | None) -> None:
        self.tokens: list[int] = []
        self.drawn = 0
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
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stream.stopped

    @property
    def unseen(self) -> int:
        """How many of the latest tokens nobody has seen yet, so that they can be taken back."""
        return len(self.tokens) - self._shown_tokens

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
