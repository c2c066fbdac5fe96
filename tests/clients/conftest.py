"""`localsteer serve` as a process of its own, and programs that know nothing of it, each in an environment of its own."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.models import demo_model, real_model
from bench.tools import ToolsError
from bench.venvs import node_folder, venv_python

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 300  # seconds for all that one client asks; 40 with the real model on two cores
# Alone on two cores, or one of two workers there.
THREADS = ["--threads", "1"] if "PYTEST_XDIST_WORKER" in os.environ else []


@dataclass(frozen=True)
class Served:
    """A server, and the model's name there."""

    url: str
    model: str


@contextmanager
def serving(model: Path, name: str) -> Iterator[Served]:
    """`localsteer serve` with this model."""
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "serve",
        "-m",
        str(model),
        "--alias",
        name,
        "--port",
        "0",
        "--json",
        *THREADS,
    ]
    process = subprocess.Popen([*command, "--context", "2048", "--parallel", "2"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = "".join(itertools.takewhile(lambda line: line != "}\n", process.stdout)) + "}"
        yield Served(json.loads(told)["url"], name)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Served]:
    with serving(demo_model(), "demo") as served:
        yield served


@pytest.fixture(scope="session")
def real_server() -> Iterator[Served]:
    """A model of a usual size, which knows how to call tools."""
    model = real_model()
    if model is None:
        pytest.skip("LOCALSTEER_REAL_MODEL names no model")
    with serving(model, "real") as served:
        yield served


@dataclass(frozen=True)
class Client:
    """A program that asks the server, and tells what it got.

    Attributes:
        command: runs it, but for the server's address and the model's name.
        folder: where it runs.
    """

    command: Sequence[str]
    folder: Path

    def ask(self, served: Served, *flags: str) -> Any:
        """What it tells on its last line."""
        result = subprocess.run(
            [*self.command, served.url, served.model, *flags],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])


def python_client(program: str, *requirements: str) -> Client:
    """A program in Python with these packages; the test is skipped where one of them cannot be had."""
    try:
        python = venv_python(f"client-{program.replace('_', '-')}", requirements)
    except ToolsError as error:
        pytest.skip(str(error))
    return Client([str(python), str(PROGRAMS / f"with_{program}.py")], PROGRAMS)


def node_client(program: str, *packages: str) -> Client:
    """A program in JavaScript, copied to where its packages are; the test is skipped where one of them cannot be had."""
    try:
        folder = node_folder(f"client-node-{program.replace('_', '-')}", packages)
    except ToolsError as error:
        pytest.skip(str(error))
    shutil.copy(PROGRAMS / f"with_{program}.mjs", folder)
    return Client(["node", f"with_{program}.mjs"], folder)
