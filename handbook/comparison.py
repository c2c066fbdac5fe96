"""The figures in `docs/comparison.md`, from what `make bench` and `make quality` measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

from handbook.links import ROOT
from handbook.pages import with_told
from handbook.records import figure, table

PAGE = ROOT / "docs" / "comparison.md"
_MARKS = ("<!-- figures: begin -->", "<!-- figures: end -->")
_PEERS = ("llama-cvector-generator", "repeng")
# Those that llama.cpp has a part in; the page of results has all.
_SECTIONS = ("extraction", "decode", "memory", "serving", "going back")


def with_figures(text: str) -> str:
    """The page, with what was measured last between its two marks."""
    return with_told(text, "\n".join([*_speed(), "", *_reach()]), _MARKS)


def _speed() -> Iterator[str]:
    measured = json.loads((ROOT / "bench" / "results.json").read_text(encoding="utf-8"))
    yield from ("| measured | localsteer | llama.cpp | |", "|---|---|---|---|")
    for section in _SECTIONS:
        title = measured[section]["section"]["title"]
        for one in measured[section]["section"]["comparisons"]:
            if one["other"].startswith("llama-"):
                unit = one["unit"]
                ours, theirs, ratio = (_digits(statistics.median(one[side]["values"])) for side in ("ours", "theirs", "ratio"))
                cells = (f"{title}: {one['what']}", f"{ours} {unit}", f"{one['other']}: {theirs} {unit}")
                yield f"| {' | '.join(cells)} | {ratio}, {one['ratio_is']} |"


def _reach() -> Iterator[str]:
    rows = [row for row in table(ROOT / "bench" / "quality" / "DEMO.md", "Swing") if any(row[peer] for peer in _PEERS)]
    columns = ("system prompt", "fresh", "calibrated", *_PEERS)
    yield from (f"| concept | instrument | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns))
    for row in rows:
        yield f"| {row['concept']} | {row['instrument']} | {' | '.join(row[column].strip('*') for column in columns)} |"
    better = 0
    for row in rows:
        ours = figure(row["calibrated"])
        theirs = [found.value for peer in _PEERS if (found := figure(row[peer])) is not None]
        better += ours is not None and bool(theirs) and ours.value >= max(theirs)
    yield ""
    yield (
        f"Both peers' vectors were tried for {len(rows)} concepts so far; in {better} of them the calibrated vector of "
        "localsteer goes at least as far as the better one."
    )


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
