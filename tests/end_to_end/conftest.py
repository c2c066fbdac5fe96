"""The two real quantised models, the program as a process of its own, and the vector that the tests below share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bench.models import base_model, demo_model
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector

ROOT = Path(__file__).parents[2]
HAPPY = ROOT / "vectors" / "happy" / "concept.yaml"
# One of two workers, on two cores: the threads of one would wait for those of the other.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else None


def cli(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that opens a model."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    if THREADS is not None:
        command += ["--threads", str(THREADS)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def document(*arguments: str | Path) -> Any:
    """What a command says with --json."""
    result = cli(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def demo_path() -> Path:
    return demo_model()


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    return base_model()


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path, threads=THREADS) as model:
        yield model


@pytest.fixture(scope="session")
def gemma(gemma_path: Path) -> Iterator[Model]:
    with Model(gemma_path, threads=THREADS) as model:
        yield model


@pytest.fixture(scope="session")
def happy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """happy as `localsteer extract` builds it for the demo model, once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    path = (folder if THREADS is None else folder.parent) / "happy.gguf"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            result = cli("extract", HAPPY, "-m", "demo", "-o", path)
            assert result.returncode == 0, result.stderr
            assert "96 pairs" in result.stdout
    return path


@pytest.fixture(scope="session")
def happy(happy_file: Path) -> ControlVector:
    return read_vector(happy_file)
