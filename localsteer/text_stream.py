"""From token bytes to text that can be shown: whole characters, and nothing that a stop string may still take back."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Collects an answer's bytes and hands out the text that is certain.

    Args:
        stop: strings that end the answer; neither they nor what follows is part of it.

    Attributes:
        text: all text handed out so far.
        stopped: whether a stop string was met.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._stop = [string for string in stop if string]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

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
        places = [(at + len(string), at) for string in self._stop if (at := self._held.find(string)) >= 0]
        if places:
            self.stopped = True
            shown, self._held = self._held[: min(places)[1]], ""
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
