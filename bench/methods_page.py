"""The page of `bench.methods`, from all that is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.capped import at_equal_kl
from bench.directions import PLAIN
from bench.long_answers import LONG
from bench.long_answers import WAYS as LONG_WAYS
from bench.quality.ways import UNSTEERED
from localsteer.vector.calibration import POLES

# Nats a token. A ratio of confident on SmolLM2-135M, 0.07 at strength 1, is 0.01 there by other answers of the same personas.
_LEAST_RATIO = 0.12
_LEAST_KL = 0.001
# Of the system prompt's effect, below which a constant dose does too little to be compared with: English on SmolLM2-135M, -0.16.
_LEAST_EFFECT = 0.2
_PROSE = Path(__file__).parent / "methods_prose.md"
_PAGE = Path(__file__).parent / "METHODS.md"
_SCHEDULE, _CAP, _LIMITS, _PLACE = "schedule", "cap", "limits", "read at"
_CONSTANT = f"{_SCHEDULE} 1, 1"
# As `bench.limits` names them.
_LEAST, _STEPS = ("0", "0.001", "0.003", "0.01"), ("2", "3", "6")

Concepts = Mapping[str, Mapping[str, Any]]
"""By concept and way, what was measured."""


def write(records: Mapping[str, Concepts]) -> None:
    """The page, from what was measured of each model."""
    lines = _PROSE.read_text(encoding="utf-8").splitlines()
    for model, concepts in records.items():
        lines += ["", f"## {model}"]
        for table in (_compared, _directions, _places, _falling_off, _schedules, _caps, _costs, _refusals, _loops):
            lines += table(concepts)
    _PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Nothing without a row."""
    body = ["| " + " | ".join(row) + " |" for row in rows]
    return ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header), *body] if body else []


def _ways(concepts: Concepts, *, scheduled: bool) -> list[str]:
    every = dict.fromkeys(
        way for own in concepts.values() for way in own if way not in (_CAP, _LIMITS, LONG) and not way.startswith(_PLACE)
    )
    return [way for way in every if way.startswith(_SCHEDULE) == scheduled]


def _compared(concepts: Concepts) -> list[str]:
    """Each way over all concepts, as so many times the mean difference."""
    rows = []
    for way in _ways(concepts, scheduled=False):
        measured = [own for own in concepts.values() if way != PLAIN and {PLAIN, way} <= set(own)]
        factors = [_mean_factors(own[way], own[PLAIN]) for own in measured if _shown(own[PLAIN])]
        if factors:
            rows.append([way, str(len(factors)), *map(_mean, zip(*factors, strict=True))])
    return _table(["way", "concepts", "ratio", "root of KL", "ratio at equal KL"], rows)


def _shown(plain: Mapping[str, Any]) -> list[str]:
    """The poles at which the mean difference does enough to be compared with."""
    return [pole for pole in POLES if plain[pole]["ratio"] >= _LEAST_RATIO]


def _mean_factors(one: Mapping[str, Any], plain: Mapping[str, Any]) -> NDArray[np.float64]:
    """Of ratio, root of KL, and ratio at equal KL: mean over the poles. A ratio grows about as the dose, KL as its square."""
    found = []
    for pole in _shown(plain):
        ratio, cost = (
            one[pole]["ratio"] / plain[pole]["ratio"],
            np.sqrt(max(one[pole]["kl"], 0.001) / max(plain[pole]["kl"], 0.001)),
        )
        found.append((ratio, cost, ratio / cost))
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    return mean


def _mean(factors: Sequence[float]) -> str:
    """With its standard error over the concepts, whose two poles are one direction."""
    if len(factors) == 1:
        return f"{factors[0]:.2f}"
    return f"{np.mean(factors):.2f} ± {np.std(factors, ddof=1) / np.sqrt(len(factors)):.2f}"


def _directions(concepts: Concepts) -> list[str]:
    ways = _ways(concepts, scheduled=False)

    def cell(one: Mapping[str, float] | None) -> str:
        return f"{one['dose']:.2f} / {one['ratio']:+.2f} / {one['kl']:.2f} / {one['refused']:.3f}" if one else ""

    table = _by_way(concepts, ways, cell)
    plain = [own[PLAIN] for own in concepts.values() if PLAIN in own]
    unsteered = [one["refused unsteered"] for one in plain if "refused unsteered" in one]
    return [*table, "", f"Unsteered, a refusal begins with a chance of {np.mean(unsteered):.3f}."] if unsteered else table


def _places(concepts: Concepts) -> list[str]:
    ways = [way for way in dict.fromkeys(way for own in concepts.values() for way in own) if way.startswith(_PLACE)]

    def cell(one: Mapping[str, Sequence[float]]) -> str:
        return ", ".join(f"{mean:.2f} ({low:.2f}..{high:.2f}) / {cost:.2f}" for mean, low, high, cost in one.values())

    rows = [[name, *(cell(own.get(way, {})) for way in ways)] for name, own in concepts.items() if set(ways) & set(own)]
    return _table(["concept", *ways], rows)


def _falling_off(concepts: Concepts) -> list[str]:
    """Each schedule over all concepts, beside the constant dose."""
    rows = []
    for way in _ways(concepts, scheduled=True)[1:]:
        factors = []
        for own in concepts.values():
            pairs = [(own[way][pole], own[_CONSTANT][pole]) for pole in POLES if way in own and _CONSTANT in own]
            moved = [(one, plain) for one, plain in pairs if plain["effect"] >= _LEAST_EFFECT]
            cost = "cost under the persona"
            if moved:
                ratios = [(one["effect"] / plain["effect"], one[cost] - plain[cost]) for one, plain in moved]
                factors.append(np.mean(ratios, axis=0))
        if factors:
            rows.append([way, str(len(factors)), *map(_mean, zip(*factors, strict=True))])
    return _table(["dose, times that of strength 1", "concepts", "effect, times the constant dose's", "more cost"], rows)


def _schedules(concepts: Concepts) -> list[str]:
    ways = _ways(concepts, scheduled=True)

    def cell(one: Mapping[str, float] | None) -> str:
        return f"{one['effect']:.2f} / {one['cost under the persona']:+.2f} / {one['relevance']:.2f}" if one else ""

    return _by_way(concepts, ways, cell)


def _by_way(concepts: Concepts, ways: Sequence[str], cell: Any) -> list[str]:
    measured = [(name, own) for name, own in concepts.items() if any(way in own for way in ways)]
    rows = [[name, pole, *(cell(own.get(way, {}).get(pole)) for way in ways)] for name, own in measured for pole in POLES]
    return _table(["concept", "pole", *ways], rows)


def _sides(concepts: Concepts, what: str) -> list[tuple[str, str, Any]]:
    return [(name, pole, own[what][pole]) for name, own in concepts.items() if what in own for pole in POLES]


def _caps(concepts: Concepts) -> list[str]:
    rows = []
    for name, pole, one in _sides(concepts, _CAP):
        kl, constant, capped = at_equal_kl(one)
        rows.append([name, pole, f"{kl:.3f}", f"{constant:.3f}", f"{capped:.3f}"])
    return _table(["concept", "pole", "KL", "ratio, constant", "ratio, capped"], rows)


def _costs(concepts: Concepts) -> list[str]:
    rows = []
    for name, pole, one in _sides(concepts, _LIMITS):
        mean, deviation, _ = one["costs"]["1"]
        above, _, texts = one["costs"]["1.5"]
        rows.append([name, pole, f"{one['dose']:.2f}", f"{mean:.2f} ± {deviation:.2f}", f"{above:.2f}", _quoted(texts[0])])
    return _table(["concept", "pole", "dose", "cost", "at 1.5 times the dose", "such as"], rows)


def _quoted(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _refusals(concepts: Concepts) -> list[str]:
    """Of models that refuse anything."""
    sides = [side for side in _sides(concepts, _LIMITS) if any(tokens for _, tokens in side[2]["openings"].values())]
    rows = []
    for name, pole, one in sides:
        read = ["{:.4f} / {}".format(*one["openings"][least]) for least in _LEAST]
        at = one["refused at"]
        rows.append([name, pole, f"{one['found']:.2f}", *read, " / ".join(f"{at[steps]:.2f}" for steps in _STEPS) if at else ""])
    header = ["concept", "pole", "dose", *(f"read on from {least}" for least in _LEAST)]
    return _table([*header, f"refused from, in {' / '.join(_STEPS)} steps"], rows)


def _loops(concepts: Concepts) -> list[str]:
    """How many long answers end in a loop, and how long they are."""
    measured = {name: own[LONG] for name, own in concepts.items() if LONG in own}
    rows = [
        [name, _looping(own[UNSTEERED]), *(_looping(own[way][pole]) for way in LONG_WAYS for pole in POLES)]
        for name, own in measured.items()
    ]
    return _table(["concept", UNSTEERED, *(f"{way}, {sign}" for way in LONG_WAYS for sign in "+-")], rows)


def _looping(told: Sequence[float]) -> str:
    loops, answers, tokens = told
    return f"{loops:g} of {answers:g} / {tokens:.0f}"
