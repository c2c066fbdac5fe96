"""The plots of the documentation, drawn from what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from handbook.links import ROOT
from handbook.records import Figure, figure, pair, table
from handbook.svg import curves, strips

FOLDER = ROOT / "docs" / "plots"
_QUALITY = ROOT / "bench" / "quality"
_PAGES = {
    "135M (SmolLM2)": _QUALITY / "DEMO.md",
    "270M, base (Gemma 3)": _QUALITY / "BASE.md",
    "1.5B (Qwen2.5 Coder)": _QUALITY / "REAL.md",
}
# One that is a mood, one that is a register, one that is a language, and one that is a role.
_CURVES = ("happy", "formal", "french", "pirate")
_RESPONSE = "Measurements, response only"


def plots() -> Mapping[str, str]:
    """All of them, by the names of their files."""
    return {
        "doses.svg": doses(),
        "curves.svg": dose_response(),
        "effects.svg": effects(),
        "layers.svg": layers(),
    }


def doses() -> str:
    """The relative doses of strength 1 (to the right) and -1 (to the left) of fresh vectors, by concept and model."""
    pages = [
        {row["concept"]: pair(row["fresh"]) for row in table(page, "Relative dose toward + / -")} for page in _PAGES.values()
    ]
    rows = {name: [_poles(page[name]) if name in page else [] for page in pages] for name in pages[0]}
    return strips("What strength 1 and -1 come to, as built", "relative dose, toward - and +", rows, list(_PAGES))


def _poles(doses: tuple[float, float]) -> list[Figure]:
    positive, negative = doses
    return [Figure(value, value, value) for value in (-negative, positive) if not math.isnan(value)]


def effects() -> str:
    """How far strength 1 and -1 take the answers on the demo model, in units of the system prompts' effect."""
    ways = ("fresh", "calibrated")
    rows = {
        row["concept"]: [_one(row[way]) for way in ways]
        for row in table(_PAGES["135M (SmolLM2)"], "Effect, of the system prompts'")
    }
    return strips(
        "Effect from strength -1 to 1, 135M model",
        "of the effect of the system prompts (1), with 95 % intervals",
        rows,
        ways,
        (0, 1),
    )


def _one(cell: str) -> list[Figure]:
    found = figure(cell)
    return [found] if found is not None else []


def dose_response() -> str:
    """Effect and cost of sampled answers over the dose, both poles, as calibration measured them on the demo model."""
    effect: dict[str, list[tuple[float, float]]] = {}
    cost: dict[str, list[tuple[float, float]]] = {}
    for name in _CURVES:
        points = sorted(_measured(ROOT / "vectors" / name / "REPORT.md"))
        effect[name] = [(dose, value) for dose, value, _ in points]
        cost[name] = [(dose, value) for dose, _, value in points]
    panels = {"effect, of the system prompt's": effect, "coherence cost, nats a token": cost}
    return curves("Dose and response, 135M model", "relative dose, toward - and +", panels)


def _measured(report: Path) -> Iterator[tuple[float, float, float]]:
    """Signed dose, effect and cost of each point of a calibration, the unsteered one among them."""
    yield 0.0, 0.0, 0.0
    for row in table(report, _RESPONSE):
        effect, cost = figure(row["effect (95 %)"]), figure(row["cost (95 %)"])
        if row["dose"] and effect is not None and cost is not None:
            yield math.copysign(float(row["dose"]), float(row["strength"])), effect.value, cost.value


def layers() -> str:
    """What steering some layers gains at the same coherence cost, on the demo model."""
    found = json.loads((ROOT / "bench" / "layers.json").read_text(encoding="utf-8"))
    ranges = dict.fromkeys(way for one in found.values() for way in one["gain"])
    rows = {way: [_gain(one["gain"].get(way)) for one in found.values()] for way in ranges if "weights" not in way}
    return strips("Which layers are steered, 135M model", "gain at a coherence cost of 0.25, nats a token", rows, list(found))


def _gain(value: float | None) -> list[Figure]:
    return [] if value is None else [Figure(value, value, value)]
