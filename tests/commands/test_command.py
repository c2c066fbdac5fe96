from __future__ import annotations

import pytest

from tests.commands.runner import run


def test_an_unknown_command_is_answered_with_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "genrate")
    assert result.code == 2
    assert "Did you mean generate?" in result.err
    assert "Did you mean" not in run(capfd, "xyz").err
