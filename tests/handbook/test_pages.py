from __future__ import annotations

from pathlib import Path

import pytest

from handbook.pages import keep, told_between

MARKS = ("<!-- begin -->", "<!-- end -->")


def test_what_is_told_stands_between_the_marks_once(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(["before", *MARKS, "behind", ""]))
    for told in ("once\n", "twice"):
        keep(told, page, MARKS)
    assert page.read_text() == f"before\n{MARKS[0]}\ntwice\n{MARKS[1]}\nbehind\n"


@pytest.mark.parametrize("text", ["nothing", MARKS[0], MARKS[1] + MARKS[0], "".join(MARKS * 2)])
def test_a_page_without_one_place_for_it_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="no one place"):
        keep("told", page, MARKS)
    with pytest.raises(ValueError, match="no one place"):
        told_between(text, MARKS)
    assert page.read_text() == text
