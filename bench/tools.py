"""llama.cpp's own programs, built from the very source that the installed llama-cpp-python was built from.

The llama-cpp-python sdist vendors the whole llama.cpp tree. Its wheel holds the libraries only, so the programs to
measure against are compiled here, with the flags that the wheel gets by default, and kept in the user's cache folder.
`python -m bench.tools` builds what is missing and prints where the programs are.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

PROGRAMS = ("llama-bench", "llama-completion", "llama-cvector-generator", "llama-server", "ggml-rpc-server")
# What most sections of `make bench` run, and the end-to-end tests; some run llama-server, or the RPC server, as well, and
# `make quality` runs llama-cvector-generator alone.
MEASURED = PROGRAMS[:3]

# GGML_NATIVE is left at its default, as in the wheel. The web page of llama-server would be fetched from the network.
CONFIGURATION = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    # Another backend beside the CPU's; with it the libraries here can stand in for those of an RPC build of the wheel.
    "GGML_RPC": "ON",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}


class ToolsError(Exception):
    """The programs could not be built."""


def llama_programs(names: Sequence[str] = MEASURED) -> dict[str, Path]:
    """Where each of these programs is, built first where it has to be (many minutes; instant from then on).

    Raises:
        ToolsError: a build tool is missing, or a step failed.
    """
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "lock"):
        finished = _finished(home)
        if not set(names) <= finished:
            cmake, ninja = _build_tool("cmake"), _build_tool("ninja")
            _compile(_source(home), home / "build", cmake, ninja, names)
            _mark_finished(home, finished | set(names))
    return {name: _program(home, name) for name in names}


def built_programs() -> dict[str, Path]:
    """Where the programs are that are built already, by name."""
    home = _home()
    return {name: _program(home, name) for name in PROGRAMS if name in _finished(home)}


def _home() -> Path:
    return user_cache_path("localsteer") / "bench-tools" / _version()


def _version() -> str:
    return importlib.metadata.version("llama-cpp-python")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which ends with the process: two builds in one folder would spoil each other."""
    import fcntl  # not on Windows, where the tests import this module too

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _program(home: Path, name: str) -> Path:
    return home / "build" / "bin" / name


def _finished(home: Path) -> set[str]:
    """The programs whose build is known to have ended well: a file in `bin` alone may be half-linked."""
    stamp = home / "finished.json"
    names: list[str] = json.loads(stamp.read_text()) if stamp.exists() else []
    return {name for name in names if _program(home, name).exists()}


def _mark_finished(home: Path, names: set[str]) -> None:
    partial = home / "finished.json.partial"
    partial.write_text(json.dumps(sorted(names)))
    partial.replace(home / "finished.json")


def source_folder() -> Path:
    """Where the llama.cpp tree of the sdist is, once `_source` has unpacked it."""
    return _home() / "source"


def _source(home: Path) -> Path:
    """The llama.cpp tree of the sdist: downloaded and unpacked aside, then renamed, so it is whole or absent."""
    source = home / "source"
    if not source.exists():
        with tempfile.TemporaryDirectory(dir=home, prefix="unpack-") as folder:
            requirement = f"llama-cpp-python=={_version()}"
            download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
            _run([*download, "-d", folder, requirement], "downloading the llama-cpp-python sdist")
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            (tree,) = Path(folder).glob("*/vendor/llama.cpp")
            tree.rename(source)
    return source


def _compile(source: Path, build: Path, cmake: str, ninja: str, names: Sequence[str]) -> None:
    """Configure and build. Ninja redoes a step that was cut off; make would take its half-written output for done."""
    options = [f"-D{key}={value}" for key, value in CONFIGURATION.items()]
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    _run([cmake, "-S", str(source), "-B", str(build), *generator, *options], "configuring llama.cpp")
    jobs = str(os.cpu_count() or 1)
    command = ["nice", cmake, "--build", str(build), "-j", jobs, "--target", *names]
    _run(command, "compiling llama.cpp's programs (10 to 20 minutes on two cores, once)")


def _build_tool(name: str) -> str:
    """The machine's cmake or ninja, or the one that the PyPI package of that name put beside the interpreter."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise ToolsError(f"{name} is missing. Install it with `{Path(sys.executable).name} -m pip install {name}`.")
    return path


def _run(command: list[str], what: str) -> None:
    """Run a step silently; on failure show the end of what it said."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode:
        tail = "\n".join(result.stdout.splitlines()[-30:])
        raise ToolsError(f"{tail}\n{what} failed (exit code {result.returncode}).")


def main() -> int:
    try:
        for name, path in llama_programs(PROGRAMS).items():
            print(f"{name}\t{path}")
    except ToolsError as error:
        print(f"bench.tools: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
