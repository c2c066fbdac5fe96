"""The audit log: every decision a JSON line, appended at once: a killed process loses at most the line that it is writing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from localsteer.errors import PolicyError
from localsteer.vector.calibration import without_nan

Action = Literal["pass", "fire", "release", "rewind", "rewinds exhausted", "limited", "error"]
# A rule came to steer, or would have taken tokens back.
FIRED: tuple[Action, ...] = ("fire", "rewind", "rewinds exhausted")

# Within a process one line is written after the other: a look at the end of the file must not fall into somebody's writing.
_writing = threading.Lock()

# How each of our lines begins. Nothing behind it is asked for: a full disk may have cut the line short.
_OURS = re.compile(rb'\{"time": "[^"]*", "conversation": "[^"]*", "answer": \d')
_LONGEST_BEGINNING = 200

logger = logging.getLogger("localsteer")


@dataclass(frozen=True)
class Decision:
    """One decision.

    Attributes:
        time: ISO 8601, UTC.
        conversation: identity of the conversation.
        answer: number of the answer in it, from 1.
        position: tokens of the answer so far; 0 is right after the prompt.
        rule: the rule that it is about; empty for an error, which may concern several.
        action: "pass" (looked at, and not fired), "fire", "release", "rewind" (fired, and the latest tokens were taken back),
            "rewinds exhausted" (would have been a rewind, but the answer had its share), "limited" (what is added in all is held
            at the largest dose; told once in an answer), or "error".
        classifier: the one that decided.
        score: its score; None where it has none.
        threshold: what it was compared with.
        strength: 1 where the rule steers from here on (at the end of its ramp), else 0.
        steer: the rule's expression.
        detail: what went wrong, how many tokens were taken back, or the dose that it would have been.
        text: the message, or the answer so far; empty unless the policy asks for texts.
    """

    time: str
    conversation: str
    answer: int
    position: int
    rule: str
    action: Action
    classifier: str
    score: float | None
    threshold: float
    strength: float
    steer: str
    detail: str = ""
    text: str = ""

    def __str__(self) -> str:
        """For people: what, when, why."""
        when = "after the prompt" if self.position == 0 else f"at token {self.position}"
        what = {"pass": "did not fire", "fire": "fired", "release": "released"}.get(self.action, self.action)
        score = "" if self.score is None else f" {self.score:.2f}"
        why = f"{self.classifier}{score}, true from {self.threshold:.2f}"
        detail = f"; {self.detail}" if self.detail else ""
        return f"policy: {f'{self.rule} ' if self.rule else ''}{what} {when} ({why}{detail})"

    def document(self) -> dict[str, Any]:
        """For JSON; empty texts are left out."""
        document: dict[str, Any] = without_nan(asdict(self))
        return {key: value for key, value in document.items() if value != ""}


class AuditLog:
    """A file of JSON lines that is rotated by size when a line is written.

    Each line is written by one call, to a file opened for it: several processes may share a log, and a log that was renamed or
    removed by someone else begins anew. A policy can name any file of its user's: what is no audit log is neither written to nor
    replaced.

    Args:
        path: the file; made where there is none.
        max_bytes: a line that would make the file larger goes into a new one.
        files: how many older ones are kept, as `.1` (the latest), `.2` ...

    Raises:
        PolicyError: it cannot be written, or it (or an older one) is something else than an audit log.
    """

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.files = files
        self._failed = False
        try:
            os.close(self._open())
            self._refuse_foreign()
        except OSError as error:
            raise PolicyError(f"The audit log {path} cannot be written: {error.strerror}.") from error

    def write(self, decision: Decision) -> None:
        """Append a decision. A disk that is full does not end the answer; it is said once."""
        try:
            with _writing:
                self._append(json.dumps(decision.document(), ensure_ascii=True, allow_nan=False).encode() + b"\n")
        except (OSError, PolicyError) as error:
            if not self._failed:
                reason = error.strerror if isinstance(error, OSError) else error.message
                logger.warning("the audit log %s cannot be written: %s", self.path, reason)
            self._failed = True

    def _append(self, line: bytes) -> None:
        if self._is_full(len(line)):
            self._rotate()
        handle = self._open()
        try:
            # Another process may have been killed in the middle of a line.
            os.write(handle, line if self._is_complete(handle) else b"\n" + line)
        finally:
            os.close(handle)

    def _is_full(self, more: int) -> bool:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return False
        return size > 0 and size + more > self.max_bytes

    def _open(self) -> int:
        _refuse_foreign(self.path)
        # Only its owner may read it: it may hold what people said.
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    @staticmethod
    def _is_complete(handle: int) -> bool:
        if os.lseek(handle, 0, os.SEEK_END) == 0:
            return True
        os.lseek(handle, -1, os.SEEK_END)
        return os.read(handle, 1) == b"\n"

    def _refuse_foreign(self) -> None:
        for number in range(self.files + 1):
            _refuse_foreign(self._numbered(number))

    def _rotate(self) -> None:
        self._refuse_foreign()
        for number in range(self.files, 0, -1):
            with contextlib.suppress(FileNotFoundError):  # not there yet, or another process was faster
                self._numbered(number - 1).replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path


def _refuse_foreign(path: Path) -> None:
    """Make sure that a file is an audit log, or empty, or not there.

    Raises:
        PolicyError: it is something else.
    """
    try:
        # A device or a pipe is not even opened.
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                beginning = file.read(_LONGEST_BEGINNING)
            if not beginning or _OURS.match(beginning):
                return
    except FileNotFoundError:
        return
    raise PolicyError(
        f"{path} is no audit log of localsteer's, so it is left alone.",
        hint="Let `audit:` name a file that is not there yet, or an older audit log.",
    )
