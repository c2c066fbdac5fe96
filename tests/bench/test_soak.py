from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from bench.soak import KINDS, MARKERS, Look, report, slope
from handbook.pages import RELIABILITY, told_between


def test_a_slope_is_of_the_last_two_thirds_and_for_an_hour() -> None:
    assert slope(list(range(9)), [100.0, 50.0, *[7.0] * 7]) == pytest.approx(0.0)
    minutes = [1.2 * minute for minute in range(60)]
    assert slope(minutes, minutes) == pytest.approx(60.0)


def test_the_table_tells_what_there_was_at_four_times_and_how_it_rises() -> None:
    first = Look(0.0, 200.0, 20.0, 8.0, 50.0, 60.0, 0.5)
    looks = [replace(first, minute=minute, memory=200.0 + minute) for minute in range(12)]
    told = report(looks, Counter({"steered": 7, "bad": 3}), Counter(), threads=2)
    assert "| memory, MiB | 200.0 | 203.0 | 207.0 | 211.0 | +60.00 |" in told
    assert "| threads | 8.0 | 8.0 | 8.0 | 8.0 | +0.00 |" in told
    assert "10 requests" in told
    assert "7 steered, 3 bad" in told
    assert "none failed" in told
    assert "**2 failed**" in report(looks, Counter(), Counter({"bad: was answered by 500": 2}), threads=2)


def test_it_has_a_place_on_the_page() -> None:
    assert "python -m bench.soak" in told_between(RELIABILITY.read_text(encoding="utf-8"), MARKERS)[1]


def test_every_kind_of_request_has_a_share() -> None:
    assert all(weight > 0 for _, weight in KINDS.values())
