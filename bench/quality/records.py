"""What was measured, as it is kept beside the pages: a file for each concept and model, with every answer in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench.instruments import INSTRUMENTS, Instrument
from bench.quality.asking import PLACES
from bench.quality.ways import NULL, PROMPT, UNSTEERED, WAYS
from bench.questions import question_sets
from localsteer.building.refusal import refuses
from localsteer.calibration.fits import Values, mean_interval
from localsteer.files.atomic import atomic_path
from localsteer.vector.calibration import POLES, SIGN, Interval, Pole

FOLDER = Path(__file__).parent / "records"
# "As an AI language model, I don't have a garden": English, as most instruct models have learnt to say it.
_DISCLAIMER = re.compile(
    r"\b(?:(?:language|machine learning) model|artificial intelligence|computer program|(?:digital|virtual|ai) assistant|"
    r"(?:as|am|i['’]m)(?: just)? an ai)\b",
    re.IGNORECASE,
)
MODELS = {"demo": "The demo model", "base": "A base model", "real": "A real model"}


@dataclass(eq=False)
class Record:
    """One concept on one model.

    Attributes:
        path: its file.
        document: what that holds: what was asked, and by way and pole the answers.
    """

    path: Path
    document: dict[str, Any]

    @classmethod
    def of(cls, model: str, concept: str) -> Record:
        """That of a concept on "demo", "base" or "real"; empty where nothing was measured."""
        path = FOLDER / model / f"{concept}.json"
        return cls(path, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})

    def keep(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.document, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    def begin(self, about: Mapping[str, Any], *, asked: str) -> None:
        """Say what this is about and what is asked; answers to anything else are forgotten."""
        ways = self.document.get("ways", {}) if self.document.get("asked") == asked else {}
        self.document = {**about, "asked": asked, "ways": ways}

    def has(self, way: str, pole: Pole | None, key: str, answers: int) -> bool:
        """Whether so many answers of a way are there, made in just this way."""
        side = self._side(way, pole)
        return side is not None and side.get("key") == key and len(side["texts"]) >= answers

    def put(self, way: str, pole: Pole | None, side: Mapping[str, Any]) -> None:
        """Keep the answers of a way: toward a pole, or none for those without steering."""
        if pole is None:
            self.document["ways"][way] = dict(side)
            return
        found = self.document["ways"].setdefault(way, {})
        found.pop("error", None)
        found[pole] = dict(side)

    def fail(self, way: str, error: str) -> None:
        """Keep that there is no such way, and why."""
        self.document["ways"][way] = {"error": error}

    def _side(self, way: str, pole: Pole | None) -> Any:
        found = self.document.get("ways", {}).get(way)
        return found.get(pole) if found is not None and pole is not None else found

    # ---- what it says

    @property
    def name(self) -> str:
        """The concept."""
        return str(self.document["concept"])

    @property
    def instrument(self) -> Instrument:
        """What scores the answers."""
        return INSTRUMENTS[self.document["instrument"]]

    @property
    def questions(self) -> tuple[str, ...]:
        """What was asked."""
        return question_sets()[self.instrument.questions]

    @property
    def ways(self) -> tuple[str, ...]:
        """Those of which both poles are measured, without the unsteered one."""
        found: dict[str, Any] = self.document["ways"]
        return tuple(way for way in WAYS if all(pole in found.get(way, {}) for pole in POLES))

    @property
    def failed(self) -> dict[str, str]:
        """Those that there are none of, and why."""
        return {way: found["error"] for way, found in self.document["ways"].items() if "error" in found}

    def texts(self, way: str, pole: Pole | None) -> list[str]:
        """The answers."""
        return list(self._side(way, pole)["texts"])

    def dose(self, way: str, pole: Pole) -> float | None:
        """The relative dose; None for a system prompt."""
        found: float | None = self._side(way, pole)["dose"]
        return found

    def machines(self) -> Iterator[tuple[str, str]]:
        """Each way with what it was measured by."""
        ways: dict[str, Any] = self.document["ways"]
        for way in (UNSTEERED, *self.ways):
            for side in [ways[way]] if way == UNSTEERED else [ways[way][pole] for pole in POLES]:
                yield way, side["by"]

    def scores(self, way: str, pole: Pole | None) -> Values:
        """(n,) what the instrument reads in each answer."""
        key = (way, pole)
        if key not in self._scored:
            asked = self.questions
            found = [self.instrument.score(text, asked[number % len(asked)]) for number, text in enumerate(self.texts(way, pole))]
            self._scored[key] = np.array(found, np.float64)
        return self._scored[key]

    @cached_property
    def _scored(self) -> dict[tuple[str, Pole | None], Values]:
        return {}

    def swing(self, way: str) -> Interval:
        """How far apart a way takes the instrument's means: toward + less toward -."""
        both = less(self.scores(way, "positive"), self.scores(way, "negative"))
        return mean_interval(both, self._turns(len(both)), 0)

    def wrong(self, way: str) -> float:
        """Share of questions whose answers a way moves the wrong way round, on the mean."""
        both = less(self.scores(way, "positive"), self.scores(way, "negative"))
        turns = self._turns(len(both))
        return float(np.mean([both[turns == question].mean() < 0 for question in np.unique(turns)]))

    def refused(self, way: str, pole: Pole | None) -> float:
        """Share of answers that are none."""
        return float(np.mean([refuses(text) for text in self.texts(way, pole)]))

    def disclaimed(self, way: str, pole: Pole | None) -> float:
        """Share of answers in which the model speaks of itself as one."""
        return float(np.mean([_DISCLAIMER.search(text) is not None for text in self.texts(way, pole)]))

    def heard(self, way: str, pole: Pole | None) -> dict[str, Values]:
        """(n,) by place, how unlikely the answers are there, nats a token; NaN for an empty one."""
        rows = np.array(self._side(way, pole)["heard"], np.float64).reshape(-1, len(PLACES))
        return dict(zip(PLACES, rows.T, strict=True))

    def effect(self, way: str) -> Interval:
        """How much likelier answers are in the voice of their own pole than in the other's, toward both, nats a token."""
        toward, other = (self._toward(way, pole) for pole in POLES)
        both = less(toward, -other)
        return mean_interval(both, self._turns(len(both)), 0)

    def _toward(self, way: str, pole: Pole) -> Values:
        heard = self.heard(way, pole)
        found: Values = SIGN[pole] * (heard["negative"] - heard["positive"])
        return found

    def cost(self, way: str, pole: Pole) -> float:
        """Coherence cost, nats a token.

        On the mean above unsteered answers to the same questions or, in the voice of the pole, above what that one says itself,
        whichever is less.
        """
        heard = self.heard(way, pole)
        plain = np.nanmean(less(heard["plain"], self.heard(UNSTEERED, None)["plain"]))
        voiced = np.nanmean(less(heard[pole], self.heard(PROMPT, pole)[pole]))
        return float(np.fmin(plain, voiced))

    def relevance(self, way: str, pole: Pole | None) -> float:
        """How much likelier answers are after their own question than after another one, nats a token."""
        heard = self.heard(way, pole)
        return float(np.nanmean(heard["elsewhere"] - heard["plain"]))

    def share(self, way: str, pole: Pole) -> float:
        """How far a way moves the instrument toward a pole, 1 as far as the system prompt; NaN where that one does not."""
        unsteered, prompted, moved = (
            float(np.mean(self.scores(*key))) for key in ((UNSTEERED, None), (PROMPT, pole), (way, pole))
        )
        far = prompted - unsteered
        return (moved - unsteered) / far if far * SIGN[pole] > 0 else float("nan")

    def _turns(self, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
        return np.arange(count, dtype=np.intp) % len(self.questions)


def all_records(model: str) -> list[Record]:
    """Those of a model with all that the tables begin with, by name."""
    found = [Record.of(model, name) for name in sorted(path.stem for path in (FOLDER / model).glob("*.json"))]
    return [record for record in found if UNSTEERED in record.document["ways"] and PROMPT in record.ways]


def count(records: Sequence[Record], way: str, others: Sequence[str], share: float = 1.0) -> tuple[int, int]:
    """For how many concepts a way goes as far as each of some others, or a share of it, and of how many.

    As far is to move the instrument the right way, and at least by as much. A way that a concept has none of does not.
    """
    known = [record for record in records if set(others) <= set(record.ways) and (way in record.ways or way in record.failed)]

    def is_as_far(record: Record) -> bool:
        own = record.swing(way).mean
        return own > 0 and own >= share * max(record.swing(other).mean for other in others)

    return sum(way in record.ways and is_as_far(record) for record in known), len(known)


def count_beyond_chance(records: Sequence[Record], way: str) -> tuple[int, int]:
    """For how many concepts a way goes further than the null goes in either direction, and of how many."""
    known = [record for record in records if {way, NULL} <= set(record.ways)]
    return sum(record.swing(way).mean > abs(record.swing(NULL).mean) for record in known), len(known)


def less(values: Values, reference: Values) -> Values:
    """The difference of what was measured of the same questions; where one has more of them, those are left out."""
    count = min(len(values), len(reference))
    return values[:count] - reference[:count]
