"""What strength 1 of a fresh vector does on each model: built, dosed, asked, and nothing calibrated. Writes `bench/FRESH.md`.

Run as `python -m bench.fresh_dose`; LOCALSTEER_REAL_MODEL=FILE adds that model. With `--calibrated` the vector is calibrated
besides, and asked alone and together with the system prompt. What is measured already is kept: an interrupted run goes on, and
only vectors that have changed are measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.fresh import ask
from bench.instruments import INSTRUMENTS, Instrument
from bench.models import base_model, demo_model, real_model
from bench.questions import question_sets
from bench.report import describe_machine
from localsteer.building.dosing import dose
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.refusal import refuses
from localsteer.calibration.calibrate import CalibrationSettings, Calibrator
from localsteer.calibration.effort import FACTORS
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.contrast import Contrast, Pair
from localsteer.concepts.names import shipped_folder
from localsteer.files.atomic import atomic_path
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.steering.expression import Steering, parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import POLES, SIGN, Pole
from localsteer.vector.control_vector import ControlVector, Floats

CONCEPTS = ("happy", "french", "pirate", "formal", "confident", "enthusiastic", "simple", "cautious")
ANSWERS = 20
_RECORDS = Path(__file__).with_name("fresh.json")
_PAGE = Path(__file__).with_name("FRESH.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fresh_dose", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", default=CONCEPTS)
    parser.add_argument("--model", choices=["demo", "base", "real"], action="append", help="only this one")
    parser.add_argument("--calibrated", action="store_true", help="calibrate the vectors, and measure that, too")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    paths = {"demo": demo_model(), "base": base_model(), "real": real_model()}
    for which in options.model or paths:
        path = paths[which]
        if path is None:
            print("bench: LOCALSTEER_REAL_MODEL names no model, so it is left out", file=sys.stderr)
            continue
        with Model(path, threads=options.threads) as model:
            for name in options.concepts:
                _measure(model, name, calibrated=options.calibrated)
                _write_page(json.loads(_RECORDS.read_text(encoding="utf-8")))
    _write_page(json.loads(_RECORDS.read_text(encoding="utf-8")))
    return 0


def _measure(model: Model, name: str, *, calibrated: bool) -> None:
    """One concept, as far as it is not measured already; the record is kept at once."""
    file = shipped_folder() / name / "concept.yaml"
    contrast = load_concept(file)
    instrument = INSTRUMENTS[yaml.safe_load(file.read_text(encoding="utf-8"))["instrument"]]
    start = time.perf_counter()
    plain = extract(model, contrast, ExtractionSettings(dose=False))
    built = time.perf_counter()
    marks: list[float] = []
    vector = dose(
        model,
        plain,
        contrast,
        progress=lambda what, done, _: marks.append(time.perf_counter()) if (what, done) == ("dosing", 0) else None,
    )
    seconds = {"extraction": built - start, "personas": marks[0] - built, "dosing": time.perf_counter() - marks[0]}
    records = json.loads(_RECORDS.read_text(encoding="utf-8")) if _RECORDS.exists() else {}
    digest = hashlib.sha256(b"".join(vector.at(SIGN[pole]).rows(model.n_layer).tobytes() for pole in POLES)).hexdigest()[:16]
    concepts = records.setdefault(model.name, {})
    if concepts.get(name, {}).get("vector") != digest:
        concepts[name] = {
            "vector": digest,
            "instrument": instrument.name,
            "seconds": seconds,
            "machine": describe_machine(),
            "ways": _ways(model, contrast, vector, instrument),
            "dosing": vector.provenance.dosing.document() if vector.provenance.dosing is not None else None,
        }
        _keep(records)
    settings = CalibrationSettings(by_cost=True)
    asked = repr((settings, settings.effort, FACTORS))
    if calibrated and concepts[name].get("calibrated by") != asked:
        start = time.perf_counter()
        made = Calibrator(model, vector, contrast, settings).run()
        concepts[name]["seconds"]["calibration"] = time.perf_counter() - start
        concepts[name]["ways"] |= _calibrated_ways(model, contrast, made.vector, instrument, concepts[name]["ways"])
        concepts[name]["calibration"] = made.calibration.document()
        concepts[name]["calibrated by"] = asked
        _keep(records)


def _keep(records: dict[str, Any]) -> None:
    with atomic_path(_RECORDS) as temporary:
        temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")


def _ways(model: Model, contrast: Contrast, vector: ControlVector, instrument: Instrument) -> dict[str, Any]:
    """What the instrument reads of answers to questions that nothing was built or dosed on."""
    null, read = _null(model, contrast, vector), partial(_read, model, instrument)
    ways = {"unsteered": read()}
    for place, pole in enumerate(POLES):
        plan = _plan(model, vector, pole)
        rows = vector.at(SIGN[pole]).rows(model.n_layer)
        lengths = np.linalg.norm(rows, axis=1)[:, None]
        edit = Edit((null * lengths * np.float32(SIGN[pole])).astype(np.float32))
        ways[f"system prompt, {pole}"] = read(systems=[pair[place] for pair in contrast.personas])
        ways[f"strength 1, {pole}"] = read(plan)
        ways[f"null, {pole}"] = read(Plan(Steering(), edit, plan.relative_dose))
        print(f"{model.name} {contrast.name} {pole}: {_line(ways, pole)}", flush=True)
    return ways


def _calibrated_ways(
    model: Model, contrast: Contrast, vector: ControlVector, instrument: Instrument, known: dict[str, Any]
) -> dict[str, Any]:
    """Likewise, calibrated: alone, and together with the system prompt."""
    ways: dict[str, Any] = {}
    for place, pole in enumerate(POLES):
        plan = _plan(model, vector, pole)
        ways[f"calibrated, {pole}"] = _read(model, instrument, plan)
        ways[f"prompt and calibrated, {pole}"] = _read(model, instrument, plan, [pair[place] for pair in contrast.personas])
        print(f"{model.name} {contrast.name} {pole}: {_line(known | ways, pole)}", flush=True)
    return ways


def _read(model: Model, instrument: Instrument, plan: Plan | None = None, systems: Sequence[str] = ()) -> dict[str, Any]:
    questions = question_sets()[instrument.questions]
    answers = ask(model, questions, count=ANSWERS, max_tokens=instrument.max_tokens, plan=plan, systems=systems)
    scores = [instrument.score(text, questions[number % len(questions)]) for number, text in enumerate(answers.texts)]
    return {"scores": scores, "refused": sum(map(refuses, answers.texts)), "texts": answers.texts}


def _plan(model: Model, vector: ControlVector, pole: Pole) -> Plan:
    return resolve(parse_steering("vector" if SIGN[pole] > 0 else "-vector"), model.fingerprint, lambda _: vector)


def _null(model: Model, contrast: Contrast, vector: ControlVector) -> Floats:
    """Unit directions by our own construction, with the labels of half of the pairs exchanged."""
    swapped = np.random.default_rng(0).permutation(len(contrast.pairs)) % 2
    pairs = tuple(Pair(one.negative, one.positive) if swap else one for one, swap in zip(contrast.pairs, swapped, strict=True))
    layers = (vector.layers[0], vector.layers[-1])
    shuffled = dataclasses.replace(contrast, pairs=pairs)
    rows = extract(model, shuffled, ExtractionSettings(layers=layers, dose=False)).rows(model.n_layer)
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    unit: Floats = (rows / lengths).astype(np.float32)
    return unit


def share(ways: dict[str, Any], way: str, pole: str) -> float:
    """How far a way moves the instrument, 1 as far as the system prompt; NaN where that one moves it the wrong way."""
    moved = {name: float(np.mean(ways[name]["scores"])) for name in (way, f"system prompt, {pole}", "unsteered")}
    far = moved[f"system prompt, {pole}"] - moved["unsteered"]
    return (moved[way] - moved["unsteered"]) / far if far * SIGN[pole] > 0 else float("nan")  # type: ignore[index]


def _share(ways: dict[str, Any], way: str, pole: str) -> str:
    part = share(ways, way, pole)
    return "-" if part != part else f"{part:.2f}"


def _line(ways: dict[str, Any], pole: str) -> str:
    parts = [f"{name} {np.mean(ways[name]['scores']):.2f}" for name in ways if name == "unsteered" or name.endswith(pole)]
    return f"{', '.join(parts)}; share {share(ways, f'strength 1, {pole}', pole):.2f}"


def _write_page(records: dict[str, Any]) -> None:
    lines = [
        "# Strength 1 of a fresh vector",
        "",
        f"Built and dosed on the model, not calibrated; {ANSWERS} answers a way to questions that nothing was built or dosed on,",
        "at strength 1 and -1, beside the system prompt of the concept's personas, and a null (the same construction with the",
        "labels of half of the pairs exchanged, as long at each layer). Scores are those of the concept's independent instrument",
        "([QUALITY.md](QUALITY.md)); a share is of the way that the system prompt goes, where it goes anywhere. Calibrated, and",
        "together with the system prompt, where that was measured (`--calibrated`). `make fresh`",
        "",
    ]
    for model, concepts in records.items():
        lines += [f"## {model}", ""]
        headers = ["concept", "pole", "relative dose", "unsteered", "system prompt", "strength 1", "null", "share"]
        headers += ["calibrated", "its share", "prompt and calibrated", "refusals (unsteered, prompt, strength 1, calibrated)"]
        lines += [f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
        for name, one in concepts.items():
            ways = one["ways"]
            for pole in POLES:
                columns = [f"system prompt, {pole}", f"strength 1, {pole}", f"null, {pole}"]
                scores = [f"{np.mean(ways[way]['scores']):.2f}" for way in ("unsteered", *columns)]
                calibrated = f"calibrated, {pole}"
                known = [way for way in ("unsteered", *columns[:2], calibrated) if way in ways]
                refusals = ", ".join(str(ways[way]["refused"]) for way in known)
                dosed = one["dosing"]["sides"][pole]["dose"]["response"]
                cells = [name, pole, f"{dosed:.2f}", *scores, _share(ways, columns[1], pole)]
                if calibrated in ways:
                    both = ways[f"prompt and {calibrated}"]["scores"]
                    cells += [
                        f"{np.mean(ways[calibrated]['scores']):.2f}",
                        _share(ways, calibrated, pole),
                        f"{np.mean(both):.2f}",
                    ]
                else:
                    cells += ["", "", ""]
                cells.append(refusals)
                lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "Seconds: extraction, the personas' answers, dosing, calibration; and what was measured.", ""]
        for name, one in concepts.items():
            seconds = ", ".join(f"{value:.1f}" for value in one["seconds"].values())
            lines.append(f"- {name}: {seconds}; {one['machine']['localsteer']}")
        lines.append("")
    _PAGE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
