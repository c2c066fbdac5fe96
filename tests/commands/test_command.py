from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from localsteer.commands import command
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector
from tests.commands.runner import CONCEPT, assert_one_clear_line, run
from tests.conftest import TinyPath


def test_an_unknown_command_is_answered_with_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "genrate")
    assert result.code == 2
    assert "Did you mean generate?" in result.err
    assert "Did you mean" not in run(capfd, "xyz").err


def test_ctrl_c_is_told_in_a_line_from_the_first_moment_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: Any) -> int:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal's handler raises")

    monkeypatch.setattr(os, "open", interrupted)
    result = run(capfd, "--version")
    assert (result.code, result.out, result.err) == (130, "", "localsteer: interrupted\n")


def commands_with_a_model(group: click.Group = command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands_with_a_model(found, *path, name)
        elif any(option.name == "model" for option in found.params):
            yield (*path, name), found


def test_every_command_that_takes_a_model_takes_it_in_the_same_ways() -> None:
    commands = dict(commands_with_a_model())
    assert {("generate",), ("vectors", "list"), ("vectors", "import"), ("export", "bake"), ("policy", "fit")} <= commands.keys()
    for path, found in commands.items():
        assert {"model", "gpu_layers", "threads", "rpc"} <= {option.name for option in found.params}, path


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "Hello"),
        ("chat",),
        ("extract", "CONCEPT", "-o", "OUT"),
        ("calibrate", "VECTOR", "-o", "OUT"),
        ("export", "bake", "VECTOR", "-o", "OUT"),
        ("export", "llama-cpp", "VECTOR", "-o", "OUT"),
        ("vectors", "build", "happy", "-o", "DIR"),
        ("vectors", "import", "VECTOR", "-o", "OUT"),
        ("models", "show"),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_every_command_that_opens_a_model_asks_the_rpc_servers(
    arguments: tuple[str, ...], tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud.yaml").write_text(CONCEPT)
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), tmp_path / "push.gguf")
    places = {
        "CONCEPT": tmp_path / "loud.yaml",
        "VECTOR": tmp_path / "push.gguf",
        "OUT": tmp_path / "out.gguf",
        "DIR": tmp_path / "vectors",
    }
    given = [places.get(argument, argument) for argument in arguments]
    result = run(capfd, *given, "-m", tiny_path("llama"), "--rpc", "no-address")
    assert_one_clear_line(result, "RPC")
    assert not (tmp_path / "out.gguf").exists()


def test_hints_are_for_the_model_that_was_given(tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pasted without -m they would calibrate, or build for, the default model."""
    model = tmp_path / "my model.gguf"
    model.symlink_to(tiny_path("llama"))
    vector = tmp_path / "push.gguf"
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), vector)
    result = run(capfd, "generate", "Hello", "-n", "2", "-s", vector, "--anchored", "-m", model)
    assert f"`localsteer calibrate {vector} --anchored -m '{model}'`" in result.err
    result = run(capfd, "vectors", "show", "happy", "-m", model)
    assert_one_clear_line(result, f"`localsteer vectors build happy -m '{model}'`")
    # What is asked of the default model is for that.
    assert f"`localsteer calibrate {vector} --concept FILE`" in run(capfd, "vectors", "show", vector).err


@pytest.mark.parametrize(
    ("name", "hint"), [("HAPPY", "Did you mean happy?"), ("Hapy", "Did you mean happy"), ("SAD", '"-happy"')]
)
def test_a_name_in_capitals_is_answered_with_the_nearest(
    name: str, hint: str, tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_one_clear_line(run(capfd, "generate", "Hello", "-s", name, "-m", tiny_path("llama")), hint)


@pytest.mark.parametrize(("variables", "escapes"), [({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_that_knows_no_escape_codes_gets_none(
    variables: dict[str, str],
    escapes: bool,
    tiny_path: TinyPath,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert ("\x1b" in run(capfd, "generate", "Hello", "-n", "2", "-m", tiny_path("llama")).err) == escapes


@pytest.mark.skipif(os.name == "nt", reason="signals are raised otherwise there")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_as_ctrl_c_does(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default it would end Python at once, and leave a temporary file."""
    number = signal.Signals[name]
    vector = tmp_path / "push.gguf"
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), vector)
    monkeypatch.setattr("localsteer.vector.file.write_out", lambda _writer: os.kill(os.getpid(), number))
    assert signal.getsignal(number) == signal.SIG_DFL
    result = run(capfd, "vectors", "combine", f"0.5 {vector}", "-o", tmp_path / "half.gguf")
    assert (result.code, result.out, result.err) == (128 + number, "", "")
    assert list(tmp_path.iterdir()) == [vector]
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.skipif(os.name == "nt", reason="signals are raised otherwise there")
def test_a_second_signal_does_not_end_the_clean_up_of_the_first_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hang-up of a terminal may follow the end of a session."""
    vector = tmp_path / "push.gguf"
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), vector)
    cleaned: list[str] = []

    def write(_writer: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append("all")

    monkeypatch.setattr("localsteer.vector.file.write_out", write)
    assert run(capfd, "vectors", "combine", f"0.5 {vector}", "-o", tmp_path / "half.gguf").code == 128 + signal.SIGTERM
    assert cleaned == ["all"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal there")
def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(capfd, "vectors", "list", "--json").code == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
