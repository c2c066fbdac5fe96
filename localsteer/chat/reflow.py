"""A prompt in terminals that break their lines anew when they become narrower, as most of today's do.

What was drawn takes more lines then. Whoever erases as many as were drawn leaves the first ones standing, torn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.data_structures import Point
from prompt_toolkit.layout import Layout
from prompt_toolkit.layout.screen import Char
from prompt_toolkit.renderer import Renderer

# What terminals that do so tell of themselves. Others are taken for such as do not: a torn line that stays is a smaller harm than
# a line that is erased. Through ssh only TERM comes.
VARIABLES = (
    "TMUX", "VTE_VERSION", "KITTY_WINDOW_ID", "WT_SESSION", "KONSOLE_VERSION", "ALACRITTY_WINDOW_ID", "WEZTERM_PANE",
    "GHOSTTY_RESOURCES_DIR",
)  # fmt: skip
_PROGRAMS = ("iTerm.app", "Apple_Terminal", "WezTerm", "vscode", "ghostty")
_TERMS = ("tmux", "xterm-kitty", "alacritty", "foot", "xterm-ghostty")


def reflows(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal is known to break lines anew."""
    term = environment.get("TERM", "")
    if term.startswith(_TERMS):
        return True
    # GNU screen, Emacs and xterm do not, whatever they were started from and inherit of that. (tmux in an xterm is no xterm.)
    if "STY" in environment or "INSIDE_EMACS" in environment or ("XTERM_VERSION" in environment and term.startswith("xterm")):
        return False
    return any(name in environment for name in VARIABLES) or environment.get("TERM_PROGRAM") in _PROGRAMS


class ReflowingRenderer(Renderer):
    """Draws a prompt, and finds it again where the terminal has broken its lines anew."""

    def erase(self, leave_alternate_screen: bool = True) -> None:
        """Take away what was drawn."""
        self._follow()
        super().erase(leave_alternate_screen)

    def render(self, app: Application[Any], layout: Layout, is_done: bool = False) -> None:
        """Draw."""
        self._follow()
        super().render(app, layout, is_done)

    def _follow(self) -> None:
        """Where the cursor stands now, counted from the beginning of what was drawn."""
        drawn, before, columns = self._last_screen, self._last_size, self.output.get_size().columns
        if drawn is None or before is None or columns >= before.columns:
            return
        (x, y), rows = self._cursor_pos, drawn.data_buffer
        self._cursor_pos = Point(x % columns, sum(_rows(rows[row], columns) for row in range(y)) + x // columns)
        self._last_screen = None  # it is drawn anew as a whole


def _rows(line: Mapping[int, Char], columns: int) -> int:
    """Into how many a line is broken. A wide character that has no room at the end of one goes to the next."""
    last = max((x for x, char in line.items() if char.char != " "), default=0)
    rows, filled = 1, 0
    for x in range(last + 1):
        width = line[x].width if x in line else 1
        if filled + width > columns:
            rows, filled = rows + 1, 0
        filled += width
    return rows
