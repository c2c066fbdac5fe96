"""Two kinds of plots as small SVG files: the same figures always give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from handbook.records import Figure

# Told apart by those who see few colours (Okabe and Ito 2008), and by their marks.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_MARKS = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-3.5,-3.5h7v7h-7z", "M0,-5l5,5l-5,5l-5,-5z", "M0,-5l4.5,8h-9z")
_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 640, 110, 14, 44, 20, 40


def strips(
    title: str,
    axis: str,
    rows: Mapping[str, Sequence[Iterable[Figure]]],
    series: Sequence[str],
    lines: Iterable[float] = (0.0,),
) -> str:
    """A row for each name; in it the points of each series, with their intervals.

    Args:
        title: above the plot.
        axis: what the numbers are.
        rows: by name, for each series its points.
        series: their names.
        lines: numbers that a line is drawn at.
    """
    values = [end for row in rows.values() for points in row for one in points for end in (one.low, one.high)]
    ticks = _ticks(min([*values, *lines]), max([*values, *lines]))
    height = _TOP + _ROW * len(rows) + _BOTTOM
    across = _Scale(ticks[0], ticks[-1], _LEFT, _WIDTH - _RIGHT)
    body = [*_across(axis, ticks, across, _TOP, height - _BOTTOM), *_legend(series)]
    body += [_line(across(at), _TOP, across(at), height - _BOTTOM, "#000") for at in lines]
    for number, (name, row) in enumerate(rows.items()):
        middle = _TOP + _ROW * (number + 0.5)
        body.append(_text(_LEFT - 8, middle + 4, name, "end"))
        for place, points in enumerate(row):
            y = middle + 5 * (place - (len(series) - 1) / 2)
            for one in points:
                if one.high > one.low:
                    body.append(_line(across(one.low), y, across(one.high), y, _COLOURS[place]))
                body.append(_mark(across(one.value), y, place))
    return _page(title, height, body)


def curves(title: str, across: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """Lines over the same numbers, a panel for each name.

    Args:
        title: above the plot.
        across: what the numbers along the bottom are.
        panels: by what is drawn upward, for each line its points.
    """
    series = list(next(iter(panels.values())))
    numbers = [x for lines in panels.values() for points in lines.values() for x, _ in points]
    ticks = _ticks(min(numbers), max(numbers))
    tall, gap = 150, 44
    height = _TOP + len(panels) * (tall + gap) - gap + 16 + _BOTTOM
    scale = _Scale(ticks[0], ticks[-1], _LEFT, _WIDTH - _RIGHT)
    body = [*_legend(series)]
    for number, (upward, lines) in enumerate(panels.items()):
        top = _TOP + 16 + number * (tall + gap)
        last = number == len(panels) - 1
        body += _across(across if last else "", ticks, scale, top, top + tall)
        levels = _ticks(*(bound(y for points in lines.values() for _, y in points) for bound in (min, max)))
        up = _Scale(levels[0], levels[-1], top + tall, top)
        for level in levels:
            body += [
                _line(_LEFT, up(level), _WIDTH - _RIGHT, up(level), "#ddd"),
                _text(_LEFT - 8, up(level) + 4, f"{level:g}", "end"),
            ]
        body.append(_text(_LEFT, top - 6, upward, "start"))
        for place, points in enumerate(lines.values()):
            path = " ".join(f"{scale(x):.1f},{up(y):.1f}" for x, y in points)
            body.append(f'<polyline points="{path}" fill="none" stroke="{_COLOURS[place]}" stroke-width="1.5"/>')
            body += [_mark(scale(x), up(y), place) for x, y in points]
    return _page(title, height, body)


class _Scale:
    """From numbers to places in the picture."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._step = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._step


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold both, some five to ten."""
    unit = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if (high - low) / (unit * factor) <= 8)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _across(axis: str, ticks: Sequence[float], scale: _Scale, top: float, bottom: float) -> Iterator[str]:
    for tick in ticks:
        yield _line(scale(tick), top, scale(tick), bottom, "#ddd")
        yield _text(scale(tick), bottom + 15, f"{tick:g}", "middle")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 32, axis, "middle")


def _legend(series: Sequence[str]) -> Iterator[str]:
    x = float(_LEFT)
    for place, name in enumerate(series):
        yield _mark(x + 4, 28, place)
        yield _text(x + 13, 32, name, "start")
        x += 30 + 6.2 * len(name)


def _mark(x: float, y: float, place: int) -> str:
    return f'<path d="{_MARKS[place]}" transform="translate({x:.1f},{y:.1f})" fill="{_COLOURS[place]}"/>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _page(title: str, height: float, body: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" font-family="sans-serif" font-size="11">'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    heading = f'<text x="{_LEFT}" y="14" font-size="13" font-weight="bold">{escape(title)}</text>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, heading, *body, "</svg>"]) + "\n"
