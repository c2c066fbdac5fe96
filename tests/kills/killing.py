"""One kill: a command is run in a fresh folder and killed; what it leaves is looked at, and it is run again."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import pty
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from xml.etree import ElementTree

import psutil

from localsteer.chat.history import History
from localsteer.chat.transcript import load_transcript
from localsteer.concepts.concept_file import load_concept
from localsteer.errors import LocalsteerError
from localsteer.files.gguf_header import open_header
from localsteer.vector.file import read_vector
from tests.kills.jobs import Job, Setting, ask_and_end, environment, talk
from tests.kills.program import Run

# Seconds that a program may take to end once it is asked to, and its children to end behind it: a model that is being tried may
# take half of that of a processor.
PATIENCE = 20.0
_TRIES = 8
# Longer than any of the commands takes.
_LONGEST = 120.0
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.kills.killing"])
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Ran:
    """A command that has ended.

    Attributes:
        code: as of subprocess.
        said: on stdout and stderr.
        seconds: that it took.
        left: processes that it had started, and which did not end behind it.
        stuck: it did not end when it was asked to.
        late: it had ended before it could be killed.
    """

    code: int
    said: str
    seconds: float
    left: int = 0
    stuck: bool = False
    late: bool = False


@dataclass(frozen=True)
class Normal:
    """What a command does that nobody kills.

    Attributes:
        seconds: that it takes.
        changes: of the disk.
        before: files, and what they hold, before it.
        after: and after it.
    """

    seconds: float
    changes: int
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]


@dataclass(frozen=True)
class Killed:
    """What came of a kill.

    Attributes:
        job: the name of the command.
        signal: by which.
        moment: after so many seconds, or before so many changes of the disk.
        late: the command had ended by itself.
        torn: files that are neither old nor new, or that nobody can read.
        litter: what lies there behind the next run that should not, and what does not that should.
        again: what is wrong with that run; "" where it did it.
        behind: what was left running, or was stuck.
        said: a traceback, or the like.
    """

    job: str
    signal: signal.Signals
    moment: str
    late: bool
    torn: tuple[str, ...] = ()
    litter: tuple[str, ...] = ()
    again: str = ""
    behind: str = ""
    said: str = ""

    @property
    def faults(self) -> str:
        """All that is wrong, in a line."""
        found = {"torn": self.torn, "litter": self.litter, "again": self.again, "behind": self.behind, "said": self.said}
        return "; ".join(f"{name}: {what}" for name, what in found.items() if what)


class Bench:
    """Where a command is run again and again, always in the same folder, made anew each time.

    Args:
        setting: what it starts from.
        folder: where the folder is made.
        job: the command.
    """

    def __init__(self, setting: Setting, folder: Path, job: Job) -> None:
        self._setting, self._job = setting, job
        self._box, self._notes, self._start = folder / "box", folder / "notes", folder / f"start-{job.name.replace('/', ' ')}"
        self._made = setting.first
        if job.before:
            self._renew()
            for arguments in job.before:
                done = self._run(arguments, signal.SIGKILL)
                assert done.code == 0, done.said
            shutil.copytree(self._box, self._start)
            self._made = self._start
        self._renew()
        before = files_of(self._box)
        done = self._run(job.arguments, signal.SIGKILL)
        assert done.code == 0, f"{job.name}: {done.said}"
        self.normal = Normal(done.seconds, self._notes.stat().st_size, before, files_of(self._box))

    def kill(self, number: signal.Signals, *, after: float | None = None, before: int = 0) -> Killed:
        """Kill it, look, and run it again. A kill that comes too late, behind the command, is tried again a little earlier.

        Args:
            number: of the signal.
            after: seconds.
            before: or the change of the disk, counted from 1.
        """
        for _ in range(_TRIES):
            self._renew()
            ran = self._run(self._job.arguments, number, before=before, after=after)
            if not ran.late:
                break
            after, before = after and after * 0.7, max(1, before - 1) if before else 0
        moment = f"after {after:.2f} s" if after is not None else f"before change {before}"
        torn = tuple(name for name, data in files_of(self._box).items() if not self._is_whole(name, data))
        goes_on = self._job.goes_on(self._box)
        behind = " ".join([*(["stuck"] if ran.stuck else []), *([f"{ran.left} processes"] if ran.left else [])])
        again = self._run(self._job.arguments, signal.SIGKILL)
        files = files_of(self._box)
        names = files.keys() ^ self.normal.after.keys()
        torn += tuple(f"{name}, then" for name, data in files.items() if not self._is_whole(name, data))
        refused = self._job.ends_refused and again.code == 1 and "is there already" in again.said
        wrong = ""
        if again.code != 0 and not refused:
            wrong = f"exit code {again.code}: {again.said.strip()[-300:]}"
        elif goes_on not in again.said:
            wrong = f"it begins anew, and does not say: {goes_on}"
        # Before `main` Python itself tells of Ctrl-C.
        said = "Traceback" if "Traceback" in ran.said + again.said and ", in main\n" in ran.said + again.said else ""
        return Killed(self._job.name, number, moment, ran.late, torn, tuple(sorted(names)), wrong, behind, said)

    def _renew(self) -> None:
        shutil.rmtree(self._box, ignore_errors=True)
        shutil.copytree(self._made, self._box)

    def _is_whole(self, name: str, data: bytes) -> bool:
        path = self._box / name
        # What a database holds lies in two files.
        if path.suffix != ".db" and data in (self.normal.before.get(name), self.normal.after.get(name)):
            return True
        # Temporary files, and what SQLite keeps beside a database: nobody reads them under these names.
        if path.name.startswith(".") or path.name.endswith(("-wal", "-shm")):
            return True
        read = _READERS.get(path.name) or _READERS.get(path.suffix)
        if read is None:
            return False
        try:
            read(path)
        except (LocalsteerError, ValueError, sqlite3.Error, ElementTree.ParseError):
            return False
        return True

    # ---- running

    def _run(self, arguments: tuple[str, ...], number: int, *, before: int = 0, after: float | None = None) -> Ran:
        """Run something to its end, or kill it: after some seconds, or before a change of the disk."""
        is_job = arguments is self._job.arguments
        folder = self._notes.parent
        given, told, said = (folder / name for name in ("stdin", "stdout", "stderr"))
        for file, text in ((given, self._job.lines if is_job else ""), (told, ""), (said, ""), (self._notes, "")):
            file.write_text(text)
        own = environment(self._box, self._job)
        with contextlib.ExitStack() as stack:
            drive: Callable[[], None] | None = None
            streams = (given, told, said)
            if is_job and self._job.terminal:
                ours, theirs = pty.openpty()
                stack.callback(os.close, ours)
                terminal = Path(os.ttyname(theirs))
                streams = (terminal, terminal, said)
                drive = functools.partial(talk, ours, self._job.lines)
            run = Run(self._box, self._setting.given(arguments), own, streams, self._notes, before, number)
            process = _FORKS.Process(target=run)
            began = time.monotonic()
            process.start()
            if is_job and self._job.serves:
                drive = functools.partial(ask_and_end, process, told)
            driving = threading.Thread(target=drive, daemon=True) if drive is not None else None
            if driving is not None:
                driving.start()
            late = _ended(process, after if after is not None else _LONGEST)
            stuck = not late and not self._end(process, number)
            seconds = time.monotonic() - began
            if is_job and self._job.terminal:
                os.close(theirs)
            if driving is not None:
                driving.join(PATIENCE)
        if after is None:
            late = self._notes.stat().st_size < before
        assert process.exitcode is not None
        return Ran(process.exitcode, told.read_text() + said.read_text(errors="replace"), seconds, self._left(), stuck, late)

    def _end(self, process: BaseProcess, number: int) -> bool:
        """Send the signal; whether it ended by that."""
        _send(process, number)
        if self._job.terminal and number == signal.SIGINT and not _ended(process, 1.0):
            # A chat takes Ctrl-C for a wish to stop what it does; closing the terminal ends it.
            _send(process, signal.SIGHUP)
        if _ended(process, PATIENCE):
            return True
        process.kill()
        process.join()
        return False

    def _left(self) -> int:
        """Processes that are still there in its folder after some time; they are ended."""
        alive = [one for one in psutil.process_iter() if _is_in(one, self._box)]
        _, alive = psutil.wait_procs(alive, PATIENCE)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        return len(alive)


def get_ready() -> None:
    """Start the process that all others are forked from, which takes seconds."""
    process = _FORKS.Process(target=os.getpid)
    process.start()
    process.join()


def _send(process: BaseProcess, number: int) -> None:
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _ended(process: BaseProcess, patience: float) -> bool:
    process.join(patience)
    return process.exitcode is not None


def _is_in(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return Path(process.cwd()).is_relative_to(folder)
    return False


def files_of(folder: Path) -> dict[str, bytes]:
    """All files, by their names in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- whole files


def _gguf(path: Path) -> None:
    with open_header(path, LocalsteerError, kind="file") as header:
        architecture = header.text("general.architecture")
        for tensor in header.tensors.values():
            header.tensor_bytes(tensor)
    if architecture == "controlvector":
        read_vector(path)


def _lines(path: Path) -> None:
    """A line that was cut off at the end belongs to no file of ours that is written at once, but to those that grow."""
    text = path.read_text()
    for line in text.splitlines()[: None if text.endswith("\n") else -1]:
        json.loads(line)


def _database(path: Path) -> None:
    """A copy of it: who opens it takes in what a killed process has left beside it, and the next run shall do that."""
    with tempfile.TemporaryDirectory() as folder:
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, folder)
        copied = Path(folder) / path.name
        with contextlib.closing(sqlite3.connect(copied)) as opened:
            (found,) = opened.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise ValueError(found)
        with History(copied) as history:
            for entry in history.entries():
                history.read(entry.id)


_READERS: dict[str, Callable[[Path], object]] = {
    ".gguf": _gguf,
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": _lines,
    ".yaml": load_concept,
    ".db": _database,
    ".svg": ElementTree.parse,
    ".png": lambda path: path.read_bytes().rindex(b"IEND", -12),
    "kept.json": load_transcript,
    "kept.md": lambda path: path.read_text().index("# Hi"),
    "chat-lines": lambda path: path.read_text(),
}
