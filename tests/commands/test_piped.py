"""What stands on stdin while a prompt is given as well."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from localsteer.commands import piped
from localsteer.commands.piped import with_stdin
from tests.commands.runner import run
from tests.conftest import TinyPath


def given(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let a file of the system's be stdin; Python closes it with the test."""
    monkeypatch.setattr(sys, "stdin", os.fdopen(number, encoding="utf-8"))


def pipe_with(monkeypatch: pytest.MonkeyPatch, text: str) -> int:
    """Let a pipe be stdin; returns the end that its writer still holds."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    given(monkeypatch, reading)
    return writing


def test_what_is_piped_in_stands_in_front_of_the_prompt(
    tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("-m", tiny_path("llama"), "-n", "8", "--seed", "3", "--json")
    os.close(pipe_with(monkeypatch, "Notes:\nhé\n"))
    with_notes = run(capfd, "generate", "Sum up", *common)
    monkeypatch.setattr(sys, "stdin", None)
    assert with_notes.document["tokens"] == run(capfd, "generate", "Notes:\nhé\n\nSum up", *common).document["tokens"]
    assert with_notes.document["tokens"] != run(capfd, "generate", "Sum up", *common).document["tokens"]


def test_a_file_on_stdin_is_read_from_its_beginning_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("First.\nSecond.\n")
    given(monkeypatch, os.open(notes, os.O_RDONLY))
    assert with_stdin("What?") == "First.\nSecond.\n\nWhat?"
    # As `while read -r line` leaves it: the rest are its next lines.
    begun = os.open(notes, os.O_RDONLY)
    os.read(begun, len("First.\n"))
    given(monkeypatch, begun)
    assert with_stdin("What?") == "What?"
    assert os.read(begun, 100) == b"Second.\n"


def test_a_pipe_that_says_nothing_and_stays_open_is_not_waited_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piped, "_SECONDS_OF_SILENCE", 0.01)
    writing = pipe_with(monkeypatch, "")
    assert with_stdin("What?") == "What?"
    assert "pipe on stdin" in capfd.readouterr().err
    os.write(writing, b"late")
    os.close(writing)
    assert sys.stdin.read() == "late"


def test_an_empty_pipe_and_what_is_no_pipe_are_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(pipe_with(monkeypatch, ""))
    assert with_stdin("What?") == "What?"
    given(monkeypatch, os.open(os.devnull, os.O_RDONLY))
    assert with_stdin("What?") == "What?"
    sys.stdin.close()
    assert with_stdin("What?") == "What?"
    monkeypatch.setattr(sys, "stdin", None)
    assert with_stdin("What?") == "What?"
    assert capfd.readouterr().err == ""


def test_a_dash_stands_for_all_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(pipe_with(monkeypatch, "What?\n"))
    assert with_stdin("-") == "What?\n"


def test_a_socket_is_a_pipe_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Node's programs give their children."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"notes")
        ours.shutdown(socket.SHUT_WR)
        given(monkeypatch, theirs.detach())
        assert with_stdin("Sum up").startswith("notes")
