from __future__ import annotations

from types import SimpleNamespace

import pytest

from localsteer.chat.pace import Pace


@pytest.mark.parametrize(
    ("cost", "pause"),
    [(0.0, 0.125), (0.001, 0.125), (0.005, 0.3), (0.1, 0.5), (30.0, 0.5)],
    ids=["free", "cheap", "dear", "at most half a second", "waited for an editor"],
)
def test_what_grows_is_drawn_the_more_seldom_the_longer_that_takes(
    cost: float, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("localsteer.chat.pace.time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace()
    with pace.drawing() as is_due:
        assert is_due  # the first piece is seen at once
        now += cost
    ended = now
    for after, expected in [(0.0, False), (pause - 0.001, False), (pause + 0.001, True)]:
        now = ended + after
        with pace.drawing() as is_due:
            assert is_due is expected
