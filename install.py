"""`python install.py demo,dev`: pip installs this checkout with these extras, and what goes on is told while llama.cpp compiles.

`make demo` and `make test` run it. It needs nothing but Python. $WHEELS names an index of wheels of llama-cpp-python that are
compiled already; all that pip says goes into build/install.log.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LOG = Path("build/install.log")
_PACKAGE = "llama-cpp-python"
# What CMake looks for, of each kind the first that is there.
_COMPILERS = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}
# Seconds between two lines; a terminal's line is written anew each second.
_BETWEEN = 10.0
_LAST_LINES = 25

# What pip, Ninja and Make say, and what that means.
_STEPS = (
    (re.compile(r"\[(\d+)/(\d+)\] "), r"compiling llama.cpp: \1 of \2"),
    (re.compile(r"\[ *(\d+)%\] "), r"compiling llama.cpp: \1 %"),
    (re.compile(r"Building wheel for (\S+)"), r"building \1"),
    (re.compile(r"Installing build dependencies"), "getting what builds need"),
    (re.compile(r"Collecting ([\w.\[\]-]+)"), r"looking for \1"),
    (re.compile(r"Downloading (\S+)"), r"downloading \1"),
    (re.compile(r"Installing collected packages"), "installing"),
)


def compiler_advice(environment: Mapping[str, str]) -> str | None:
    """What to do where llama.cpp cannot be compiled, before pip says it in a thousand lines; None where it can or need not be."""
    is_there = importlib.util.find_spec("llama_cpp") is not None
    if os.name == "nt" or is_there or environment.get("WHEELS") or _has_compilers(environment):
        return None
    pip = [sys.executable, "-m", "pip", "cache", "list", _PACKAGE.replace("-", "_")]
    if b".whl" in subprocess.run(pip, capture_output=True, check=False, env=dict(environment)).stdout:
        return None  # compiled here before
    return (
        f"llama.cpp is compiled when {_PACKAGE} is installed, and no C++ compiler was found: install one (Debian and Ubuntu: "
        "`sudo apt install build-essential`, Fedora: `sudo dnf install gcc-c++`, macOS: `xcode-select --install`), or take a "
        "wheel that is compiled already: `make demo WHEELS=INDEX`; llama-cpp-python's README names the INDEX of its own wheels "
        "(docs/install.md)."
    )


def _has_compilers(environment: Mapping[str, str]) -> bool:
    if sys.platform == "darwin" and subprocess.run(["xcode-select", "-p"], capture_output=True, check=False).returncode:
        return False  # its /usr/bin/cc is there, and only asks whether it shall be installed
    wanted = (environment.get(kind, "").split()[:1] or usual for kind, usual in _COMPILERS.items())
    return all(any(shutil.which(name, path=environment.get("PATH")) for name in names) for names in wanted)


def pip_command(extras: str, wheels: str | None) -> list[str]:
    """What pip is asked for."""
    built = ["--extra-index-url", wheels, "--only-binary", _PACKAGE] if wheels else []
    options = ["--verbose", "--no-color", "--progress-bar", "off", "--disable-pip-version-check", *built]
    return [sys.executable, "-m", "pip", "install", *options, "--editable", f".[{extras}]"]


def step(line: str) -> str | None:
    """What a line of pip's, or of a build's, says of how far it is."""
    for pattern, meaning in _STEPS:
        if found := pattern.match(line.strip()):
            return found.expand(meaning)
    return None


class _Teller:
    """Says from time to time what is going on."""

    def __init__(self) -> None:
        self.now = "starting pip"
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._rewrites = sys.stdout.isatty()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Within the block."""
        thread = threading.Thread(target=self._tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            if self._rewrites:
                print("\r\x1b[K", end="", flush=True)

    def _tell(self) -> None:
        while not self._ended.wait(1.0 if self._rewrites else _BETWEEN):
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            line = f"{minutes}:{seconds:02d} {self.now}"
            print(f"\r\x1b[K{line[:78]}" if self._rewrites else line, end="" if self._rewrites else "\n", flush=True)


def main() -> int:
    """Install, and tell."""
    advice = compiler_advice(os.environ)
    if advice is not None:
        print(advice, file=sys.stderr)
        return 1
    LOG.parent.mkdir(exist_ok=True)
    teller = _Teller()
    command = pip_command(sys.argv[1], os.environ.get("WHEELS"))
    with (
        LOG.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip,
    ):
        assert pip.stdout is not None
        try:
            with teller.telling():
                for data in pip.stdout:
                    line = data.decode("utf-8", errors="replace")
                    log.write(line)
                    teller.now = step(line) or teller.now
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode:
        lines = LOG.read_text(encoding="utf-8").splitlines()[-_LAST_LINES:]
        print(*lines, f"pip failed; all that it said is in {LOG}.", sep="\n", file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main())
