"""Knobs as sliders that fill the terminal: which key does what, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.data_structures import Point
from prompt_toolkit.formatted_text import ANSI, StyleAndTextTuples
from prompt_toolkit.formatted_text.base import AnyFormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import Dimension, FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.styles import Style
from rich.text import Text

from localsteer.chat.knobs import FURTHEST, MEASURED, Knobs, is_fixed, warning
from localsteer.chat.markdown import ansi
from localsteer.chat.session import STEP, Session
from localsteer.steering.expression import Term

# Beside STEP.
_LEAP = 0.5
# Columns: a mark, the strength, and what is at the right: doses, or that there are none yet.
_MARK, _STRENGTH, _RIGHT = 2, 6, 18
_NARROW = 56
_WARNINGS = {"strong": "text may suffer", "too-strong": "text may fall apart"}
_NOT_BUILT = "built at first use"
_SHORT = "Enter keeps, Esc leaves all as it was, ? tells the keys"
_LONG = "↑↓ choose, ←→ by 0.1, Shift or PgUp/PgDn by 0.5, 0 off"
_STYLE = Style.from_dict(
    {
        "dim": "fg:ansibrightblack",
        "on": "fg:ansicyan",
        "strong": "fg:ansiyellow bold",
        "too-strong": "fg:ansired bold",
        "chosen": "bold",
    }
)


def turn_knobs(session: Session) -> None:
    """Let the user turn knobs, and steer as they are set where that is to be kept.

    Raises:
        LocalsteerError: there is no terminal, or what is set is refused; the steering stays as it was then.
    """
    knobs = Knobs(session)
    session.screen.run_full_screen(application(knobs), knobs.preview, knobs.leave)
    if knobs.kept and knobs.steering != session.steering:
        session.steer(knobs.steering)


def application(knobs: Knobs) -> Application[None]:
    """The knobs on the whole terminal, until they are kept or left."""
    drawn = _Drawing(knobs)
    shown: Application[None] = Application(
        layout=Layout(drawn.layout()), key_bindings=drawn.keys(), style=_STYLE, full_screen=True, min_redraw_interval=0.03
    )
    # Esc alone is a key here; half a second of waiting for what may follow it is felt.
    shown.ttimeoutlen = 0.05
    knobs.redraw = shown.invalidate
    return shown


def slider(strength: float, cells: int) -> StyleAndTextTuples:
    """A scale from -2 to 2 with marks at -1, 0 and 1, filled from 0 to the strength; one cell for each fragment.

    Args:
        strength: beyond the ends it is drawn at them.
        cells: its length, a multiple of 4 and 1.
    """
    middle = cells // 2
    at = middle + round(min(max(strength / FURTHEST, -1.0), 1.0) * middle)
    marks = {middle: "┃", middle // 2: "┊", middle + middle // 2: "┊"}
    fragments: StyleAndTextTuples = []
    for cell in range(cells):
        filled = strength != 0 and min(middle, at) <= cell <= max(middle, at)
        beyond = abs(cell - middle) > middle * MEASURED / FURTHEST
        style = "class:dim" if not filled else "class:strong" if beyond else "class:on"
        character = "●" if cell == at and strength else marks.get(cell, "━" if filled else "─")
        fragments.append((style, character))
    return fragments


class _Drawing:
    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._long = False

    # ---- keys

    def keys(self) -> KeyBindings:
        keys, knobs = KeyBindings(), self._knobs

        def bind(action: Callable[[], None], *names: str) -> None:
            for name in names:
                keys.add(name)(lambda _event: action())

        bind(lambda: knobs.choose(-1), "up")
        bind(lambda: knobs.choose(1), "down")
        bind(lambda: knobs.choose(-len(knobs.terms)), "home")
        bind(lambda: knobs.choose(len(knobs.terms)), "end")
        bind(lambda: knobs.turn(-STEP), "left")
        bind(lambda: knobs.turn(STEP), "right")
        bind(lambda: knobs.turn(-_LEAP), "s-left", "pagedown")
        bind(lambda: knobs.turn(_LEAP), "s-right", "pageup")
        bind(knobs.reset, "0")
        bind(self._toggle, "?")

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            if not knobs.weigh()[1]:
                knobs.leave(keep=True)
                event.app.exit()

        @keys.add("escape")
        @keys.add("q")
        @keys.add("c-c")
        @keys.add("c-d")
        @keys.add("<sigint>")
        def _(event: KeyPressEvent) -> None:
            knobs.leave()
            event.app.exit()

        return keys

    def _toggle(self) -> None:
        self._long = not self._long

    # ---- what is drawn

    def layout(self) -> HSplit:
        """The sum, the knobs (which scroll), the chosen one in words, the answer, and what can be done."""
        knobs = self._knobs
        rows = FormattedTextControl(
            self._rows, focusable=True, show_cursor=False, get_cursor_position=lambda: Point(0, knobs.chosen)
        )
        high = len(knobs.terms)
        return HSplit(
            [
                _line(self._sum),
                _line(self._heading),
                Window(rows, height=Dimension(min=1, preferred=high, max=high)),
                Window(FormattedTextControl(self._worth), height=self._worth_height),
                _line(lambda: [("class:chosen", f"> {' '.join(knobs.question.split())}")]),
                Window(FormattedTextControl(self._said), height=Dimension(min=1, preferred=6), wrap_lines=True),
                Window(
                    FormattedTextControl(self._foot), height=Dimension(min=1, max=3), wrap_lines=True, dont_extend_height=True
                ),
            ]
        )

    def _worth_height(self) -> Dimension:
        """Always as much, so that nothing leaps when another knob is chosen."""
        lines = 3 if self._width >= 80 else 4
        return Dimension(min=0, preferred=lines, max=lines)

    @property
    def _width(self) -> int:
        return get_app().output.get_size().columns

    def _columns(self) -> tuple[int, int, int]:
        """How wide the names, the sliders and what is at the right are."""
        width = self._width
        names = min(max(len(term.vector) for term in self._knobs.terms), 20 if width >= 80 else 12)
        right = _RIGHT if width >= _NARROW else 0
        left = width - _MARK - names - 1 - 1 - _STRENGTH - (right + 1 if right else 0)
        return names, min(max((left - 1) // 4 * 4 + 1, 9), 41), right

    def _sum(self) -> StyleAndTextTuples:
        steering, (dose, _) = self._knobs.steering, self._knobs.weigh()
        warned = warning(steering)
        told = [] if dose is None else [f"relative dose {dose:.2f}"]
        told += [_WARNINGS[warned]] if warned else []
        shown: StyleAndTextTuples = [(f"class:{warned or 'on'}", f"{', '.join(told)}  ")] if told else []
        return [*shown, ("class:chosen", str(steering) or "unsteered")]

    def _heading(self) -> StyleAndTextTuples:
        names, cells, right = self._columns()
        scale = [" "] * (cells + 2)
        for number, place in ((-2, 0), (-1, cells // 4), (0, cells // 2), (1, cells // 2 + cells // 4), (2, cells - 1)):
            start = place + (number >= 0)
            scale[start : start + len(str(number))] = str(number)
        # One to the left, so that a number's last digit stands above its mark.
        text = " " * (_MARK + names) + "".join(scale) + " " * (_STRENGTH + 1) + ("doses of -1 and 1" if right else "")
        return [("class:dim", text)]

    def _rows(self) -> StyleAndTextTuples:
        fragments: StyleAndTextTuples = []
        for number, term in enumerate(self._knobs.terms):
            fragments += [*self._row(term, chosen=number == self._knobs.chosen), ("", "\n")]
        return fragments[:-1]

    def _row(self, term: Term, *, chosen: bool) -> StyleAndTextTuples:
        names, cells, right = self._columns()
        style = "class:chosen" if chosen else ""
        mark = (style, "> " if chosen else "  ")
        if is_fixed(term):
            return [mark, ("class:dim", f"{term}, which stays as it is")]
        name = term.vector if len(term.vector) <= names else f"…{term.vector[1 - names :]}"
        strength = f"{term.strength:+g}" if term.strength else "0"
        beyond = abs(term.strength) > MEASURED
        shown = "class:strong" if beyond else "class:on" if term.strength else "class:dim"
        row: StyleAndTextTuples = [mark, (style, f"{name:<{names}} "), *slider(term.strength, cells)]
        row.append((shown, f" {strength + ('!' if beyond else ''):>{_STRENGTH}}"))
        return [*row, ("class:dim", f" {self._doses(term.vector)}")] if right else row

    def _doses(self, name: str) -> str:
        if not self._knobs.is_built(name):
            return _NOT_BUILT
        return "  ".join("none" if dose is None else f"{dose:.2f}" for dose in self._knobs.doses(name))

    def _worth(self) -> AnyFormattedText:
        return _wrapped(self._knobs.worth(), self._width)

    def _said(self) -> AnyFormattedText:
        return _wrapped(self._knobs.said or ("…" if self._knobs.stale else ""), self._width, "dim" if self._knobs.stale else "")

    def _foot(self) -> StyleAndTextTuples:
        knobs = self._knobs
        if problem := knobs.problem or knobs.weigh()[1]:
            return [("class:too-strong", problem)]
        if knobs.building:
            return [("class:on", knobs.building)]
        return [("class:dim", _LONG if self._long else _SHORT)]


def _line(text: Callable[[], StyleAndTextTuples]) -> Window:
    return Window(FormattedTextControl(text), height=1)


def _wrapped(text: str, width: int, style: str = "") -> ANSI:
    """Between words."""
    return ANSI(ansi(Text(text, style), width).rstrip("\n"))
