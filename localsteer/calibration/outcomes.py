"""Trials, what came of them, and the files in which that is kept, so that an interrupted calibration goes on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from localsteer.files.json_values import build, read_json
from localsteer.vector.calibration import Mode, Pole, without_nan

logger = logging.getLogger("localsteer")


@dataclass(frozen=True)
class Trial:
    """One answer to be measured.

    Attributes:
        number: tells which question (modulo their count) and which seed. Equal numbers share both, so that two
            steerings are compared on the same chances.
        dose: relative dose; negative toward the negative pole; 0 for no steering.
        mode: what is steered, and whether the unsteered model has a say in it.
        persona: answer under this pole's persona as a system prompt.
        long: a long answer, of which only is known whether it ends in a loop.
    """

    number: int
    dose: float = 0.0
    mode: Mode = "response"
    persona: Pole | None = None
    long: bool = False

    @property
    def key(self) -> str:
        """What the measurement is filed under."""
        return f"{self.number}|{self.dose:+.5f}|{self.mode}|{'long' if self.long else self.persona}"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial. What an answer would have been given by is told in nats a token, NaN for an empty answer.

    Attributes:
        text: the answer.
        tokens: its length.
        ended: whether it ended by itself.
        plain: how unlikely the unsteered model finds it after its question.
        elsewhere: after another question.
        positive: in the voice of the positive pole.
        negative: in that of the negative one.
        distinct: share of distinct 3-grams of tokens; 1 for an answer too short to repeat one, 0 for none at all.
        refused: whether it says that it will not answer.
        loops: whether it ends in saying the same again and again.
    """

    text: str
    tokens: int
    ended: bool
    plain: float
    elsewhere: float
    positive: float
    negative: float
    distinct: float
    refused: bool
    loops: bool = False

    @property
    def ratio(self) -> float:
        """How much likelier it is in the voice of the positive pole."""
        return self.negative - self.positive

    @property
    def relevance(self) -> float:
        """How much likelier it is after its own question."""
        return self.elsewhere - self.plain

    def under(self, pole: Pole) -> float:
        """How unlikely it is in the voice of a pole."""
        return self.positive if pole == "positive" else self.negative


@dataclass(eq=False)
class Outcomes(Mapping[str, Outcome]):
    """Outcomes by the keys of their trials, those of earlier runs included.

    Attributes:
        folder: where they are kept, a line for each; None keeps them in memory alone.
        steered: the file of those that depend on a vector.
        unsteered: that of the others, which is shared by vectors where it has another name.
        fresh: forget what an earlier run has left there.
    """

    folder: Path | None
    steered: str
    unsteered: str
    fresh: bool = False
    _known: dict[str, Outcome] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        for name in {self.steered, self.unsteered}:
            path = self.folder / name
            if self.fresh:
                with contextlib.suppress(OSError):  # where it cannot be removed, nothing can be kept, and that is told then
                    path.unlink(missing_ok=True)
            if path.is_file():
                self._load(path.read_text(encoding="utf-8", errors="replace"))

    def __getitem__(self, key: str) -> Outcome:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _load(self, text: str) -> None:
        for line in text.splitlines():
            try:
                key, values = read_json(line)
                self._known[str(key)] = build(Outcome, values)
            except (ValueError, TypeError):
                continue  # the line at which an interrupted run was cut off

    def add(self, outcomes: Mapping[Trial, Outcome]) -> None:
        """Keep what came of trials; where it cannot be written, a warning says so and memory has to do."""
        self._known |= {trial.key: outcome for trial, outcome in outcomes.items()}
        if self.folder is None:
            return
        lines: dict[str, str] = {}
        for trial, outcome in outcomes.items():
            name = self.steered if trial.dose else self.unsteered
            lines[name] = lines.get(name, "") + json.dumps([trial.key, without_nan(asdict(outcome))]) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in lines.items():
                with (self.folder / name).open("ab+") as file:
                    file.write(b"\n" * _is_cut_off(file) + text.encode())
        except OSError as error:
            logger.warning("measurements cannot be kept in %s: %s", self.folder, error.strerror)
            self.folder = None


def _is_cut_off(file: BinaryIO) -> bool:
    """Whether a run that was killed has left half a line at the end."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
