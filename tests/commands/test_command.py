from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
