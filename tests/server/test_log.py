"""What is said again and again does not fill the log."""

from __future__ import annotations

import logging

import pytest

from localsteer.server import log
from localsteer.server.log import Sparing


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    logger = logging.getLogger("tests.sparing")
    monkeypatch.setattr(logger, "filters", [Sparing()])
    return logger


def test_ten_thousand_times_the_same_are_fourteen_lines(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10_000):
        logger.error("%s went wrong", number)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 14
    assert lines[0] == "0 went wrong"
    assert lines[-1] == "8191 went wrong (8,192 times; not all are written)"


def test_another_line_and_another_exception_are_news(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    for error in (ValueError("x"), ValueError("y"), KeyError("z"), ValueError("w")):
        logger.error("failed", exc_info=error)
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [ValueError, ValueError, KeyError]


def test_after_a_while_it_is_news_again(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_FORGOTTEN", 0.0)
    for _ in range(5):
        logger.error("failed")
    assert [record.getMessage() for record in caplog.records] == ["failed"] * 5
