"""What `make demo` and `make test` say while they install."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import install

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine on which nothing of llama.cpp was ever compiled, and which has no programs at all."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin"), "PIP_CACHE_DIR": str(tmp_path / "cache")}


def add_program(environment: dict[str, str], name: str) -> None:
    program = Path(environment["PATH"]) / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps its compiler off the PATH")
def test_without_a_compiler_it_is_said_what_to_install_before_pip_runs(bare: dict[str, str]) -> None:
    advice = install.compiler_advice(bare)
    assert advice is not None
    assert len(advice.splitlines()) == 1
    assert "build-essential" in advice
    assert "WHEELS=INDEX" in advice
    add_program(bare, "cc")  # of C alone
    assert install.compiler_advice(bare) is not None
    add_program(bare, "clang++")
    assert install.compiler_advice(bare) is None


@pytest.mark.skipif(os.name == "nt", reason="as above")
def test_no_compiler_is_needed_for_what_is_compiled(bare: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert install.compiler_advice({**bare, "WHEELS": "https://wheels.example/cpu"}) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())  # it is installed
    assert install.compiler_advice(bare) is None


@pytest.mark.skipif(os.name == "nt", reason="as above")
def test_a_compiler_that_is_named_must_be_there(bare: dict[str, str]) -> None:
    add_program(bare, "cc")
    add_program(bare, "c++")
    assert install.compiler_advice({**bare, "CXX": "my-compiler -O2"}) is not None
    add_program(bare, "my-compiler")
    assert install.compiler_advice({**bare, "CXX": "my-compiler -O2"}) is None


@pytest.mark.skipif(os.name == "nt", reason="as above")
def test_make_stops_there(tmp_path: Path) -> None:
    """The program itself, in a Python that has no llama.cpp."""
    environment = {"PATH": "/nowhere", "PIP_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-S", str(ROOT / "install.py"), "demo"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("llama.cpp is compiled when llama-cpp-python is installed, and no C++ compiler was found")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_venv_that_was_begun_and_failed_is_begun_again(tmp_path: Path) -> None:
    """Where Debian's python3-venv is missing, a .venv is left that has no pip in it."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = -m ] || exit 1\nmkdir -p "$3/bin" && ln -s "$0" "$3/bin/python" && echo begun\nexit 1\n'
    )
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    for _ in range(2):
        command = ["make", "demo", f"PYTHON={python}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode != 0
        assert "begun" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("  [57/243] Building CXX object vendor/llama.cpp/src/llama.cpp.o\n", "compiling llama.cpp: 57 of 243"),
        ("  [ 45%] Building C object ggml/ggml.c.o\n", "compiling llama.cpp: 45 %"),
        ("  Building wheel for llama-cpp-python (pyproject.toml): started\n", "building llama-cpp-python"),
        ("Collecting jinja2>=3.1.6 (from localsteer==0.1.0)\n", "looking for jinja2"),
        ("Installing collected packages: a, b\n", "installing"),
        ("  -- Found OpenMP_C: -fopenmp\n", None),
    ],
)
def test_how_far_it_is(line: str, told: str | None) -> None:
    assert install.step(line) == told


def test_wheels_that_are_compiled_already_are_taken_whatever_source_is_newer() -> None:
    command = install.pip_command("demo", "https://example.org/whl")
    place = command.index("--extra-index-url")
    assert command[place : place + 4] == ["--extra-index-url", "https://example.org/whl", "--only-binary", "llama-cpp-python"]
    assert "--only-binary" not in install.pip_command("demo", None)
