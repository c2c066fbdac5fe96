from __future__ import annotations

import pytest

from tests.door_report import HEAD, MARKS, tried, written

PAGE = f"Before.\n{MARKS[0]}{HEAD}| b | 7 | 0 | yesterday |\n| c | 9 | 0 | yesterday |\n{MARKS[1]}\nAfter.\n"


def test_tests_of_one_door_are_added_up_and_one_that_failed_is_a_fault() -> None:
    found = tried(
        [
            ([("door", ("a", 400)), ("other", 1)], "passed"),
            ([("door", ["a", 600])], "passed"),
            ([("door", ["b", 10]), ("door", ["d", 1])], "failed"),
            ([("door", ["b", 10])], "passed"),
            ([], "passed"),
        ]
    )
    assert found == {"a": (1000, False), "b": (20, True), "d": (1, True)}
    page = written(PAGE, found, "today")
    assert page == (
        f"Before.\n{MARKS[0]}{HEAD}| a | 1,000 | 0 | today |\n| b | 20 | **1 or more** | today |\n| c | 9 | 0 | yesterday |\n"
        f"| d | 1 | **1 or more** | today |\n{MARKS[1]}\nAfter.\n"
    )
    assert written(page, found, "today") == page


def test_a_page_without_a_place_for_the_table_is_left_alone() -> None:
    with pytest.raises(ValueError, match="inputs"):
        written("Nothing.\n", {"a": (1, False)}, "today")
