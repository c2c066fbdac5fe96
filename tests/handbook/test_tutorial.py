"""The tutorial, command by command, as a reader types them: what it says they show, they show."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from handbook.links import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"
# The first steered answer: what everybody tries. All of it takes minutes.
QUICK = 1
_SHOWS = re.compile(r"<!-- shows: (.*) -->")
_PATIENCE = 300.0

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl")


@dataclass(frozen=True)
class Step:
    """A block of commands, and what must be in what they print."""

    commands: str
    shows: tuple[str, ...]


def steps() -> list[Step]:
    """Every block of commands; of each there must be said what it shows."""
    found: list[Step] = []
    tokens = MarkdownIt().parse(TUTORIAL.read_text(encoding="utf-8"))
    for token, behind in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "fence" and token.info == "sh":
            said = _SHOWS.search(behind.content) if behind is not None and behind.type == "html_block" else None
            assert said is not None, f"What does this show? {token.content}"
            found.append(Step(token.content, tuple(said.group(1).split(" | "))))
    return found


class Reader:
    """Somebody who types the commands in a folder of their own, one block after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        programs = folder / "bin"
        programs.mkdir()
        threads = " --threads 1" if "PYTEST_XDIST_WORKER" in os.environ else ""
        program = programs / "localsteer"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "cli.py"}" "$@"{threads}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self._environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
        self._server: subprocess.Popen[str] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])

    def type(self, commands: str) -> str:
        """What they print; a server goes on running."""
        commands = commands.replace("8080", self._port)
        if commands.startswith("localsteer serve"):
            return self._serve(f"exec {commands.strip()} --port {self._port}").replace(self._port, "8080")
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return f"{done.stdout}\n{done.stderr}"

    def _serve(self, command: str) -> str:
        log = self._folder / "serve.log"
        with log.open("w") as file:
            self._server = subprocess.Popen(
                ["bash", "-c", command], cwd=self._folder, env=self._environment, stdout=file, stderr=file, text=True
            )
        until = time.monotonic() + _PATIENCE
        while f":{self._port}" not in log.read_text():
            assert self._server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        return log.read_text()

    def leave(self) -> None:
        """End what still runs."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(_PATIENCE)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.leave()


@pytest.mark.parametrize("count", [QUICK, pytest.param(None, marks=pytest.mark.models)])
def test_every_command_shows_what_the_tutorial_says(reader: Reader, count: int | None) -> None:
    for step in steps()[:count]:
        printed = reader.type(step.commands)
        for shown in step.shows:
            assert shown in printed, f"{step.commands}\n{printed}"
