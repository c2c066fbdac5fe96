from __future__ import annotations

import pytest

from localsteer.chat.reflow import reflows


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-256color"}, False),
        ({"TERM": "linux"}, False),
        ({"TERM": "xterm-256color", "VTE_VERSION": "7600"}, True),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/tmux-0/default,1,0"}, True),
        ({"TERM": "xterm-kitty"}, True),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, True),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "unheard-of"}, False),
        ({"TERM": "screen-256color", "STY": "1.pts", "VTE_VERSION": "7600"}, False),
        ({"TERM": "xterm-256color", "XTERM_VERSION": "XTerm(390)", "VTE_VERSION": "7600"}, False),
        ({"TERM": "screen-256color", "TMUX": "/tmp/tmux-0/default,1,0", "XTERM_VERSION": "XTerm(390)"}, True),
        ({"TERM": "eterm-color", "INSIDE_EMACS": "29.1,term:0.96", "TMUX": "/tmp/tmux-0/default,1,0"}, False),
        ({}, False),
    ],
)
def test_terminals_that_break_lines_anew_are_known(environment: dict[str, str], expected: bool) -> None:
    assert reflows(environment) is expected
