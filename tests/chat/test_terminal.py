"""The chat from a pipe, as a user with a script has it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localsteer.vector import ControlVector
from localsteer.vector_file import write_vector
from tests.commands.runner import Result, run

TinyPath = Callable[[str], Path]
Chat = Callable[..., Result]


@pytest.fixture
def chat(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    def talk(*lines: str, options: tuple[str, ...] = ()) -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run(capfd, "chat", "-m", tiny_path("llama"), "-n", "6", "--seed", "2", *options)

    return talk


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    path = tmp_path / "push.gguf"
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), path)
    return path


def test_answers_each_line_until_the_input_ends(chat: Chat) -> None:
    one = chat("Hello")
    assert one.code == 0
    assert one.out.strip()
    assert chat("Hello", "", "Again").out.startswith(one.out)


def test_quit_ends_before_the_next_line(chat: Chat) -> None:
    assert chat("/quit", "Hello").out == ""


def test_steer_changes_and_shows_the_steering(chat: Chat, vector: Path) -> None:
    plain = chat("Hello").out
    steered = chat("Hello", options=("-s", str(vector))).out
    assert plain != steered
    result = chat("/steer", f"/steer {vector}", "Hello", "/reset", "/steer off", "Hello")
    assert result.out.startswith("Steering: unsteered\n")
    assert f"Steering: {vector}" in result.out
    assert steered in result.out
    assert result.out.endswith(f"Steering: unsteered\n{plain}")


def test_a_mistake_is_said_and_the_chat_goes_on(chat: Chat) -> None:
    result = chat("/steer 0.5 hapy", "/steer 1 happy sad", "/ster x", "/compare", "Hello")
    assert result.code == 0
    assert "Did you mean happy?" in result.err
    assert "^" in result.err
    assert "Did you mean /steer?" in result.err
    assert "nothing to compare" in result.err
    assert result.out == chat("Hello").out


def test_compare_shows_three_ways(chat: Chat, vector: Path) -> None:
    result = chat("Hello", "/compare", options=("-s", str(vector)))
    assert result.out.count("unsteered") == 1
    assert result.out.count("push.gguf") >= 2


def test_system_message_is_set_and_removed(chat: Chat) -> None:
    result = chat("/system You are a pirate.", "/system", "/system off")
    assert result.out == "System message: You are a pirate.\nSystem message: You are a pirate.\nSystem message: none\n"
    assert chat("Hello").out != chat("/system You are a pirate.", "Hello").out.partition("\n")[2]


def test_help_lists_every_command(chat: Chat) -> None:
    out = chat("/help").out
    for name in ("/steer", "/compare", "/system", "/reset", "/quit"):
        assert name in out
