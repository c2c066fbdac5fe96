"""A model whose layers are on another machine (here: in another process) is read and steered as one at hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.tools import built_programs

pytestmark = pytest.mark.models

ROOT = Path(__file__).parents[2]
_BUILT = built_programs()  # looked up before each test gets an empty home of its own

# The noise floor of quantised activations, 2 % of a hidden state; seen here, where both sides are the same CPU, were 0 and 0.
_FLOOR = 0.02
_LOGIT_FLOOR = 0.3


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Path]]:
    """An RPC server, and the libraries that were built with it."""
    if "ggml-rpc-server" not in _BUILT:
        pytest.skip("ggml-rpc-server is not built: `make bench-tools` does it")
    program = _BUILT["ggml-rpc-server"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(program), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            assert process.poll() is None, "ggml-rpc-server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}", program.parent
    finally:
        process.terminate()
        process.wait()


def run(model: Path, output: Path, libraries: Path, *servers: str) -> Mapping[str, NDArray[np.float32]]:
    command = [sys.executable, "-m", "tests.end_to_end.rpc_worker", str(model), str(output), *servers]
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(libraries)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(np.load(output))


def test_layers_elsewhere_are_read_and_steered_alike(server: tuple[str, Path], demo_path: Path, tmp_path: Path) -> None:
    address, libraries = server
    here = run(demo_path, tmp_path / "here.npz", libraries)
    there = run(demo_path, tmp_path / "there.npz", libraries, address)
    assert (float(here["remote"]), float(there["remote"])) == (0, 1)
    for name in ("unsteered", "native", "tapped"):
        print(f"{name}: logits {np.abs(there[name] - here[name]).max():.3f} apart")
        assert np.abs(there[name] - here[name]).max() < _LOGIT_FLOOR, name
    assert np.abs(here["native"] - here["unsteered"]).max() > 10 * _LOGIT_FLOOR
    for name in ("rows 10", "rows 20"):
        distance = np.linalg.norm(there[name] - here[name], axis=1) / np.linalg.norm(here[name], axis=1)
        print(f"{name}: {distance.max():.4f} apart")
        assert distance.max() < _FLOOR, name
    # Where two readings agree at all (docs/concepts.md).
    for layer in range(14, 24):
        one, two = here["estimate"][layer], there["estimate"][layer]
        assert float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two))) > 0.98, layer
