"""Where a direction is read: how far vectors read at different places move an independent instrument, and at what cost.

Asked are the concept's held-out questions, not those of `bench.quality`: what is chosen here is judged there. (The dose is found
on some of them, for each place alike.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml

from bench.instruments import INSTRUMENTS
from bench.quality.asking import ask
from bench.quality.records import Record
from bench.quality.ways import PROMPT, UNSTEERED
from localsteer.building.dosing import Doser
from localsteer.building.extraction import ExtractionSettings, Position, extract
from localsteer.calibration.effort import FACTORS
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import shipped_folder
from localsteer.errors import ContrastError
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import POLES, SIGN, Pole
from localsteer.vector.control_vector import ControlVector

_ANSWERS, _HEARD = 20, 10


@dataclass(eq=False)
class _Asked(Record):
    """Answers to other questions than those that are kept."""

    asked: tuple[str, ...] = ()

    @property
    def questions(self) -> tuple[str, ...]:
        """What was asked."""
        return self.asked


def places(model: Model, name: str, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """By place and factor, as it is measured: the instrument's swing with its interval, and the mean cost of both poles.

    Args:
        model: the model.
        name: the concept.
        known: what is measured already.
    """
    todo = [place for place in get_args(Position) if f"read at {place}" not in known]
    if not todo:
        return
    contrast = load_concept(shipped_folder() / name / "concept.yaml")
    instrument = INSTRUMENTS[yaml.safe_load(contrast.source)["instrument"]]
    record = _Asked(Path(), {"ways": {}, "instrument": instrument.name}, contrast.held_out)

    def answers(way: str, pole: Pole | None, plan: Plan | None = None) -> None:
        systems = [pair[POLES.index(pole)] for pair in contrast.personas] if way == PROMPT and pole is not None else []
        size = {"count": _ANSWERS, "heard": _HEARD, "max_tokens": instrument.max_tokens}
        given = ask(model, contrast, contrast.held_out, **size, plan=plan, systems=systems)
        record.put(way, pole, {"texts": given.texts, "heard": given.heard})

    answers(UNSTEERED, None)
    for pole in POLES:
        answers(PROMPT, pole)
    with Doser(model, contrast) as doser:
        for place in todo:
            try:
                vector = doser.dose(extract(model, contrast, ExtractionSettings(position=place, dose=False)))
            except ContrastError as error:  # a small model need not go on from every opening
                print(f"{name}, read at {place}: {error.message}", file=sys.stderr, flush=True)
                continue
            found = {}
            for factor in FACTORS[1:]:  # as a fresh vector is, and as strong as a calibration may make it
                way = f"{place} {factor}"
                for pole in POLES:
                    answers(way, pole, _plan(model, vector, SIGN[pole] * factor))
                swing = record.swing(way)
                numbers = (swing.mean, swing.low, swing.high, np.mean([record.cost(way, pole) for pole in POLES]))
                found[f"{factor:g}"] = [round(float(number), 3) for number in numbers]
            yield f"read at {place}", found


def _plan(model: Model, vector: ControlVector, strength: float) -> Plan:
    return resolve(parse_steering(f"{strength:g} vector"), model.fingerprint, lambda _: vector, "response")
