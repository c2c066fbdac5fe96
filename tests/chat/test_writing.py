"""Texts while they are written: however they come, what is shown at the end is the same, once."""

from __future__ import annotations

import random
import re

import pytest

from localsteer.chat.writing import MarkdownWriting, RawWriting, Writing
from tests.chat.test_markdown import TEXT

TEXTS = (
    TEXT,
    "Just a word",
    "\n\n  \n",
    "1. a\n\n2. b\n   - c\n   - d\n3. e\n\nAfter.\n",
    "```\n" + "\n".join(f"line {number}" for number in range(50)),
    '```python\n"""a\nlong\nstring"""\nx = 1\n```\nText behind it.\n\n```\nb\n```\n',
    "> quoted\n> more\n\n***\n\nSetext\n======\n\n    code\n",
    "\u661f\u661f\u661f **\U0001f437** e\u0301 " * 20,
    "a" * 300 + " " + "b" * 300,
    "<div>\nhtml\n</div>\n\n[a]: http://example.com\n",
)


def shown(writing: Writing, pieces: list[str], width: int = 40) -> tuple[str, list[str]]:
    """All that was drawn for good, and what grew after each piece."""
    drawn, growing = "", []
    for piece in pieces:
        writing.push(piece)
        drawn += writing.finished(width)
        growing.append(writing.growing(width))
    return drawn + growing[-1], growing


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_one_empty_line_stands_between_blocks() -> None:
    drawn = plain(shown(MarkdownWriting(), ["One\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nTwo\n\n# Three\n\n- four\n\nFive\n"])[0])
    lines = [line.strip() for line in drawn.split("\n")]
    assert lines == ["One", "", "a  b", "────", "1  2", "", "Two", "", "Three", "", "• four", "", "Five", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_shown_does_not_depend_on_the_pieces(text: str) -> None:
    whole, _ = shown(MarkdownWriting(), [text])
    rng = random.Random(1)
    for longest in (1, 3, 30):
        pieces, place = [], 0
        while place < len(text):
            pieces.append(text[place : place + rng.randint(1, longest)])
            place += len(pieces[-1])
        assert plain(shown(MarkdownWriting(), pieces)[0]) == plain(whole)


def test_lines_of_code_and_items_are_finished_one_by_one() -> None:
    for lines in (["```\n", *(f"{number}\n" for number in range(99))], [f"{number}. item\n" for number in range(1, 99)]):
        _, growing = shown(MarkdownWriting(), lines)
        assert max(len(tail.split("\n")) for tail in growing) <= 4


def test_code_is_coloured_as_what_it_is() -> None:
    code = '```python\ndef f():\n    """Text\n    def in it"""\n    return 1\n```\n'
    first, _, inner, _ = shown(MarkdownWriting(), code.splitlines(keepends=True))[0].splitlines()
    keyword = re.search(r"\x1b\[[0-9;]*m(?=def)", first)
    assert keyword is not None
    assert keyword[0] not in inner


def test_a_raw_text_is_shown_as_it_stands() -> None:
    text = "# a **b**\n\n\tc\nlast"
    drawn, growing = shown(RawWriting(), list(text))
    assert drawn == f"{text}\n"
    assert growing[2] == "# a\n"
    assert shown(RawWriting(), ["\u661f" * 30])[1] == ["\u661f" * 20 + "\n" + "\u661f" * 10 + "\n"]
