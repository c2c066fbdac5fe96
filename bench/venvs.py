"""Virtual environments for programs that are no dependency of ours: made once, kept in the user's cache folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from bench.tools import ToolsError


def tool_folder(name: str) -> Path:
    """Where what belongs to a foreign program is kept."""
    return user_cache_path("localsteer") / "bench-tools" / name


def is_made(name: str) -> bool:
    """Whether the environment of that name is there, so that nothing need be fetched."""
    return (tool_folder(name) / "finished").exists()


def venv_python(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment that holds these packages; it is made anew where the requirements have changed.

    Raises:
        ToolsError: a package cannot be had.
    """
    folder = tool_folder(name)
    python = folder / "bin" / "python"
    _make(
        name,
        requirements,
        [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
        ],
    )
    return python


def node_folder(name: str, packages: Sequence[str]) -> Path:
    """A folder in whose `node_modules` these npm packages are.

    Raises:
        ToolsError: there is no npm, or a package cannot be had.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ToolsError("npm is missing. Install Node.js.")
    folder = tool_folder(name)
    _make(name, packages, [[npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]])
    return folder


def _make(name: str, requirements: Sequence[str], commands: Sequence[Sequence[str]]) -> None:
    """Run the commands, unless they have succeeded with the same requirements before."""
    folder = tool_folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp, wanted = folder / "finished", "\n".join(requirements)
    with FileLock(folder.with_suffix(".lock")):
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        print(f"installing {', '.join(requirements)} into a folder of their own ...", file=sys.stderr, flush=True)
        for command in commands:
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
            if result.returncode:
                tail = "\n".join(result.stdout.splitlines()[-5:])
                raise ToolsError(f"{tail}\n{' '.join(command)} failed.")
        stamp.write_text(wanted)
