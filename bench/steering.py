"""Calibrated doses on questions they have not seen, and the effect at equal coherence cost beside the peers' vectors.

Run as `python -m bench.steering` (part of `make bench`); writes `bench/STEERING.md` and `bench/steering.json`. Measurements are
kept in the user's cache until it is through, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from bench import budget, peers
from bench.concepts import FRESH_QUESTIONS, concept_texts
from bench.fresh import FRESH_SEED, Answers, ask
from bench.measure import MeasurementError
from bench.models import demo_model
from bench.report import describe_machine
from bench.tools import ToolsError
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.calibration.calibrate import Calibrated, CalibrationSettings, Calibrator
from localsteer.calibration.effort import THOROUGH
from localsteer.calibration.fits import Values
from localsteer.calibration.laboratory import Laboratory
from localsteer.calibration.search import Search
from localsteer.calibration.shapes import Directions, Shape
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.errors import CalibrationError, LocalsteerError
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.calibration import POLES, SIGN, Interval, Mode

_ANSWERS = 40
# The unsteered answers that every cost is measured against: their chance error is in all figures alike, so there are more of them
# (the mean of 40 has a standard error of 0.03 nats).
_REFERENCE_ANSWERS = 120
# The peers' comparison costs some 6 minutes a concept on two cores.
PEER_CONCEPTS = ("happy", "formal")


@dataclass(frozen=True)
class FreshDose:
    """One calibrated side on fresh questions and seeds."""

    concept: str
    pole: str
    strength: float
    mode: Mode
    cost: Interval
    vader: float


@dataclass(frozen=True)
class Rival:
    """Effect at the budget of one way to steer, toward one pole."""

    concept: str
    pole: str
    name: str
    shape: str
    effect: Interval
    advantage: Interval | None
    """Of ours over it, bootstrapped over the same questions; None for ours itself."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.steering", description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", nargs="*", choices=list(concept_texts()), help="only these; nothing is written then")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    try:
        _bench(options.concepts, options.threads)
    except (LocalsteerError, ToolsError, MeasurementError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _bench(only: Sequence[str] | None, threads: int | None) -> None:
    machine = describe_machine()
    folder = user_cache_path("localsteer") / "bench-steering"
    results: dict[str, list[Any]] = {"fresh": [], "personas": [], "rivals": [], "failures": []}
    with Model(demo_model(), threads=threads) as model:
        for name, text in concept_texts().items():
            if only and name not in only:
                continue
            _say(f"{name}: calibrating")
            contrast = parse_concept(text, name)
            try:
                calibrated = Calibrator(
                    model, extract(model, contrast, ExtractionSettings(dose=False)), contrast, folder=folder / "calibration"
                ).run()
            except CalibrationError as error:
                results["failures"].append(f"{name}: {error}")
                continue
            _say(f"{name}: fresh questions")
            fresh = replace(contrast, held_out=FRESH_QUESTIONS)
            results["fresh"] += _fresh_doses(model, fresh, calibrated)
            results["personas"] += _personas(model, fresh) if name == "happy" else []
            if name in PEER_CONCEPTS:
                _say(f"{name}: beside the peers")
                results["rivals"] += _rivals(model, text, fresh, calibrated, folder)
        page = _page(machine, model.name, results)
    print(page)
    if not only:
        here = Path(__file__).parent
        (here / "STEERING.md").write_text(page, encoding="utf-8")
        raw = {"where": machine, **{key: [_plain(value) for value in values] for key, values in results.items()}}
        (here / "steering.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)


def _vader(answers: Answers) -> float:
    analyzer = SentimentIntensityAnalyzer()
    return float(np.mean([analyzer.polarity_scores(text)["compound"] for text in answers.texts]))


@functools.cache
def _unsteered(model: Model) -> Answers:
    """The same for all concepts."""
    return ask(model, FRESH_QUESTIONS, count=_REFERENCE_ANSWERS, max_tokens=THOROUGH.max_tokens)


def _fresh_doses(model: Model, contrast: Contrast, calibrated: Calibrated) -> list[FreshDose]:
    reference = _unsteered(model)
    found = [FreshDose(contrast.name, "", 0.0, "response", reference.cost(reference), _vader(reference))]
    names = {"positive": contrast.positive, "negative": contrast.negative}
    for (pole, mode), side in calibrated.calibration.sides.items():
        # Steering the prompt as well is measured for one concept: it costs another two minutes each.
        if side.dose is None or (mode == "prompt" and contrast.name != "happy"):
            continue
        expression = "vector" if pole == "positive" else "-vector"
        plan = resolve(parse_steering(expression), model.fingerprint, lambda _name: calibrated.vector, mode)
        answers = ask(model, FRESH_QUESTIONS, count=_ANSWERS, max_tokens=THOROUGH.max_tokens, plan=plan)
        found.append(FreshDose(contrast.name, names[pole], SIGN[pole], mode, answers.cost(reference), _vader(answers)))
    return found


def _personas(model: Model, contrast: Contrast) -> list[FreshDose]:
    """The prompt baseline: the same questions under the personas as system prompts."""
    reference = _unsteered(model)
    found = []
    for index, (pole, name) in enumerate(zip(POLES, (contrast.positive, contrast.negative), strict=True)):
        systems = [pair[index] for pair in contrast.personas]
        answers = ask(model, FRESH_QUESTIONS, count=_ANSWERS, max_tokens=THOROUGH.max_tokens, systems=systems)
        found.append(FreshDose(contrast.name, name, SIGN[pole], "response", answers.cost(reference), _vader(answers)))
    return found


def _rivals(model: Model, text: str, fresh: Contrast, calibrated: Calibrated, folder: Path) -> list[Rival]:
    provenance = calibrated.vector.provenance
    assert provenance.estimate is not None
    assert provenance.hidden_norm is not None
    own = Directions.of(provenance.estimate, provenance.hidden_norm)
    laboratory = Laboratory(model, own, fresh, seed=FRESH_SEED, max_tokens=budget.EFFORT.max_tokens, folder=folder / "rivals")
    settings = CalibrationSettings()
    first = calibrated.findings.shapes["positive"][0].shape
    chosen = {
        pole: next(
            one.shape
            for one in calibrated.findings.shapes[pole]
            if (one.shape.layers, one.shape.profile)
            == (calibrated.calibration.sides[pole, "response"].layers, calibrated.calibration.sides[pole, "response"].profile)
        )
        for pole in POLES
    }
    ours = {shape: budget.search(laboratory, own, shape, settings) for shape in {first, *chosen.values()}}
    theirs: dict[str, tuple[Search, Shape]] = {}
    for name, vector in peers.peer_vectors(model, text).items():
        shape = peers.peer_shape(vector)
        theirs[name] = budget.search(laboratory, budget.directions_of(vector, own.hidden), shape, settings), shape
    names = {"positive": fresh.positive, "negative": fresh.negative}
    rivals = []
    for pole in POLES:
        best, best_drawn = ours[chosen[pole]].effect_at_budget(pole, chosen[pole])
        rivals.append(_rival(fresh.name, names[pole], "localsteer, calibrated", chosen[pole], best, best_drawn))
        others = {"localsteer, all layers": (ours[first], first), **theirs}
        for name, (search, shape) in others.items():
            effect, drawn = search.effect_at_budget(pole, shape)
            gain = Interval(best - effect, *map(float, np.quantile(best_drawn - drawn, (0.025, 0.975))))
            rivals.append(_rival(fresh.name, names[pole], name, shape, effect, drawn, gain))
    return rivals


def _rival(
    concept: str, pole: str, name: str, shape: Shape, effect: float, drawn: Values, advantage: Interval | None = None
) -> Rival:
    interval = Interval(effect, *map(float, np.quantile(drawn, (0.025, 0.975))))
    return Rival(concept, pole, name, str(shape), interval, advantage)


def _page(machine: dict[str, str], model: str, results: dict[str, list[Any]]) -> str:
    most = CalibrationSettings().budget
    lines = [
        "# What calibrated doses do, and how the peers' vectors compare",
        "",
        "Written by `make bench` (`python -m bench.steering`); edits are lost.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in {**machine, "Model": model}.items()),
        "",
        "## Calibrated doses on fresh questions",
        "",
        f"{_ANSWERS} answers of {THOROUGH.max_tokens} tokens to {len(FRESH_QUESTIONS)} questions that neither a concept nor a "
        f"calibration has seen, other seeds. Cost in nats a token with its 95 % interval; the budget is {most:g}.",
        "",
        "| concept | strength | steered | cost | VADER |",
        "|---|---|---|---|---|",
    ]
    for one in results["fresh"]:
        toward = f"{one.strength:+.0f} ({one.pole})" if one.strength else "0"
        lines.append(f"| {one.concept} | {toward} | {one.mode} | {_text(one.cost)} | {one.vader:+.2f} |")
    for one in results["personas"]:
        lines.append(f"| {one.concept} | system prompt ({one.pole}) | | {_text(one.cost)} | {one.vader:+.2f} |")
    steered = [one.cost.mean for one in results["fresh"] if one.strength]
    lines += [
        "",
        f"Mean cost {np.mean(steered):.3f}, highest {max(steered):.3f} (asked: a mean of at most {most + 0.05:g}, none above "
        f"{2 * most:g}). VADER is shown for all; only happy - sad is about sentiment, and it was never used in choosing.",
        "",
        "## At equal coherence cost",
        "",
        "Effect at the budget on the same fresh questions, in units of the prompt baseline where the model follows it (see "
        "docs/calibration.md). Each vector has its own best strength, searched with 52 answers a pole; the peers' vectors are "
        "made from the same prompts by the peers' own programs and keep their own layers and lengths. The last column is ours "
        "less theirs, bootstrapped over the same questions.",
        "",
        "| concept | toward | vector | layers | effect | calibrated, less this |",
        "|---|---|---|---|---|---|",
    ]
    for rival in results["rivals"]:
        gain = "" if rival.advantage is None else _text(rival.advantage)
        lines.append(f"| {rival.concept} | {rival.pole} | {rival.name} | {rival.shape} | {_text(rival.effect)} | {gain} |")
    names = dict.fromkeys(rival.name for rival in results["rivals"] if rival.advantage is not None)
    for name in names:
        gains = [rival.advantage.mean for rival in results["rivals"] if rival.name == name]
        lines += ["", f"Mean over {len(gains)} concepts and poles, calibrated less {name}: {np.mean(gains):+.2f}."]
    lines += [f"\n{text}" for text in results["failures"]]
    return "\n".join(lines) + "\n"


def _text(interval: Interval) -> str:
    return f"{interval.mean:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def _plain(value: Any) -> Any:
    return {name: _plain(item) for name, item in vars(value).items()} if hasattr(value, "__dataclass_fields__") else value


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
