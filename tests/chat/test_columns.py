"""Answers side by side."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from localsteer.chat.columns import columns


def drawn(
    titles: list[str], texts: list[str], width: int, lines: int | None = None, subtitles: tuple[str, ...] = ()
) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(columns(titles, texts, width, lines=lines, subtitles=subtitles))
    return file.getvalue().rstrip("\n").split("\n")


def test_side_by_side_where_there_is_room() -> None:
    rows = drawn(["a", "b", "c"], ["one", "two", "three"], 80)
    assert rows[0].count("\u256d") == 3
    assert all(word in rows[1] for word in ("one", "two", "three"))
    assert max(map(cell_len, rows)) <= 80


def test_one_above_the_other_in_a_narrow_terminal_or_under_a_long_title() -> None:
    for titles, width in ((["a", "b", "c"], 60), (["a", "x" * 40], 80)):
        rows = drawn(titles, ["one"] * len(titles), width)
        assert [row.count("\u256d") for row in rows if "\u256d" in row] == [1] * len(titles)
        assert {cell_len(row) for row in rows} == {width}


def test_only_the_last_lines_while_they_grow() -> None:
    text = "\n".join(f"line {number}" for number in range(100))
    rows = drawn(["a", "b"], [text, ""], 80, lines=5)
    assert len(rows) == 7
    assert "line 95" in rows[1]
    assert "line 99" in rows[5]
    stacked = drawn(["a", "b"], [text, text], 40, lines=14)
    assert len(stacked) <= 14
    assert "line 99" in stacked[-2]


def test_a_very_long_line_and_wide_characters() -> None:
    for text in ("x" * 5000, "\u661f" * 3000, "\U0001f437" * 500, "word " * 900):
        rows = drawn(["a", "b"], [text, "short"], 80, lines=6)
        assert len(rows) <= 9
        assert max(map(cell_len, rows)) <= 80


def test_what_stands_below() -> None:
    assert "under b" in drawn(["a", "b"], ["one", "two"], 80, subtitles=("under a", "under b"))[-1]


@pytest.mark.parametrize("lines", [None, 6])
def test_no_letter_is_lost_of_a_word_that_is_wider_than_its_column_nor_beside_an_emoji(lines: int | None) -> None:
    text = "\U0001f38c My day was just awesome! I had a blast with my family @SensorySymphonyBeverageAndMoreOfIt42"
    rows = drawn(["a", "b", "c"], [text, "", ""], 80, lines=lines)
    inner = "".join(row.split("\u2502")[1].strip() for row in rows if row.count("\u2502") > 1)
    assert inner.replace(" ", "") == text.replace(" ", "")
