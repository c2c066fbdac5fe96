from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.door_report import HEAD, MARKS, pytest_terminal_summary, tried, with_rows

TABLE = "\n".join([*HEAD, "| b | 7 | 0 | yesterday |", "| c | 9 | 0 | yesterday |"])
PAGE = f"Before.\n{MARKS[0]}\n{TABLE}\n{MARKS[1]}\nAfter.\n"


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
    table = with_rows(TABLE, found, "today")
    assert table.splitlines() == [
        *HEAD,
        "| a | 1,000 | 0 | today |",
        "| b | 20 | **1 or more** | today |",
        "| c | 9 | 0 | yesterday |",
        "| d | 1 | **1 or more** | today |",
    ]
    assert with_rows(table, found, "today") == table


def test_where_a_test_fails_that_names_no_door_the_page_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is where a worker dies."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setenv("LOCALSTEER_DOORS", str(page))
    said: list[str] = []
    passed = SimpleNamespace(user_properties=[("door", ("b", 400))])
    died = SimpleNamespace(user_properties=[], nodeid="test_x.py::test_y")
    for kind in ("failed", "error"):
        stats = {"passed": [passed], kind: [died]}
        pytest_terminal_summary(SimpleNamespace(stats=stats, write_line=lambda line, red: said.append(line)))
        assert page.read_text() == PAGE
        assert "test_x.py::test_y failed" in said.pop()
    pytest_terminal_summary(SimpleNamespace(stats={"passed": [passed]}))
    assert "| b | 400 | 0 |" in page.read_text()
