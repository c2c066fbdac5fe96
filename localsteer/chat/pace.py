"""How often what grows on a screen is drawn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

# Seconds between two drawings of what grows; the eye reads no faster.
_REDRAW = 0.125
# And times what one took: no token comes meanwhile, and the prompt around it takes as much again of a core that computes. On two
# cores, eight a second made an answer of a 1.5B model 7 % slower (none: 0 %), and the three of /compare 35 %.
_SHARE = 60.0
_SELDOM = 0.5  # seconds at most: a drawing may have waited for something else


class Pace:
    """How often something that grows is drawn: the more seldom the longer that takes."""

    def __init__(self) -> None:
        self._due = 0.0

    @contextlib.contextmanager
    def drawing(self) -> Iterator[bool]:
        """Around a drawing; whether it is time for one."""
        begun = time.monotonic()
        yield (is_due := begun >= self._due)
        if is_due:
            end = time.monotonic()
            self._due = end + min(max(_REDRAW, _SHARE * (end - begun)), _SELDOM)
