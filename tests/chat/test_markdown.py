"""Markdown for a terminal."""

from __future__ import annotations

import re

from prompt_toolkit.formatted_text import ANSI, to_formatted_text
from rich.text import Text

from localsteer.chat.markdown import ansi, blocks, code_blocks, fragments, highlighted, rendered

TEXT = """# Title

A *paragraph*
of two lines.

- one
- two
  more
- three

~~~python title
x = 1

y = 2
~~~

| a | b |
|---|---|
| 1 | 2 |
"""


def plain(text: str, width: int = 40) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", ansi(rendered(text), width))


def test_blocks_are_those_that_stand_in_no_other_one() -> None:
    found = blocks(TEXT)
    assert [block.text.split("\n")[0] for block in found] == ["# Title", "A *paragraph*", "- one", "~~~python title", "| a | b |"]
    assert all(TEXT[block.start :].startswith(block.text) for block in found)
    assert TEXT[found[2].last_item :].startswith("- three")
    assert (found[3].code, found[3].language, found[3].closed) == (("x = 1", "", "y = 2"), "python", True)
    assert blocks("") == []


def test_a_fence_is_open_until_it_is_closed() -> None:
    for text, code, closed in (
        ("```", (), False),
        ("```\n", (), False),
        ("```\na", ("a",), False),
        ("```\na\n``", ("a", "``"), False),
        ("```\na\n```", ("a",), True),
        ("```\na\n````", ("a",), True),
        ("````\n```\n", ("```",), False),
        ("  ```\n  a\n    b\n c\n", ("a", "  b", "c"), False),
    ):
        (block,) = blocks(text)
        assert (block.code, block.closed) == (code, closed), text


def test_an_item_without_text_is_not_the_last_one() -> None:
    assert blocks("- a\n-")[0].last_item == 0
    assert blocks("- a\n- b")[0].last_item == 4
    assert blocks("- a\n  - b")[0].last_item == 0


def test_the_code_of_all_blocks() -> None:
    assert code_blocks("```\na\n\nb\n```\n\n- in a list:\n  ```c\n  int x;\n  ```\n\nText\n\n    indented\n") == [
        "a\n\nb",
        "int x;",
        "indented",
    ]


def test_code_is_shown_without_spaces_up_to_the_margin() -> None:
    assert plain("```python\nx = 1\n\n\ty = 2\n```") == "x = 1\n\n    y = 2\n"
    assert [line.plain for line in highlighted(("a", "", "b", ""), "nosuchlanguage")] == ["a", "", "b", ""]


def test_headings_stand_at_the_left_and_html_as_it_is() -> None:
    assert plain("# Title").rstrip() == "Title"
    assert plain("a vector<int> and <b>x</b>").rstrip() == "a vector<int> and <b>x</b>"
    assert "http://example.com" in plain("[a link](http://example.com)")


def test_an_entity_is_no_command_to_the_terminal() -> None:
    assert "\x1b[2J" not in ansi(rendered("&#27;[2J &#x9b;2J &#7;"), 40)
    assert "\x07" not in ansi(rendered("&#7;"), 40)


def test_a_link_is_no_command_to_the_terminal() -> None:
    for text in (
        "<https://x.example/%1B]52;c;aGk%1B%5C>",
        "[here](https://x.example/%1B]52;c;aGk%07)",
        "![it](https://x/%1B%5B2J)",
    ):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", plain(text, 200)), text


def test_fragments_are_few_and_say_what_the_terminal_would_have_read() -> None:
    drawn = ansi(Text.assemble("plain ", ("red", "red"), " tail \N{CJK UNIFIED IDEOGRAPH-597D}\nnext"), 40)
    of_characters = to_formatted_text(ANSI(drawn))
    of_runs = fragments(drawn)
    assert [(part[0], letter) for part in of_runs for letter in part[1]] == [(part[0], part[1]) for part in of_characters]
    assert len(of_runs) == 3
