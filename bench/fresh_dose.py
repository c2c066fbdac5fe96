"""What strength 1 of a fresh vector does on each model: built, dosed, asked, and nothing calibrated. Writes `bench/FRESH.md`.

Run as `python -m bench.fresh_dose`; LOCALSTEER_REAL_MODEL=FILE adds that model. What is measured already is kept: an interrupted
run goes on, and only vectors that have changed are measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
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
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.contrast import Contrast, Pair
from localsteer.concepts.names import shipped_folder
from localsteer.files.atomic import atomic_path
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.steering.expression import Steering, parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import POLES, SIGN
from localsteer.vector.control_vector import ControlVector, Floats

CONCEPTS = ("happy", "french", "pirate", "formal", "confident", "enthusiastic", "simple", "cautious")
ANSWERS = 20
_RECORDS = Path(__file__).with_name("fresh.json")
_PAGE = Path(__file__).with_name("FRESH.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fresh_dose", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", default=CONCEPTS)
    parser.add_argument("--model", choices=["demo", "base", "real"], action="append", help="only this one")
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
                _measure(model, name)
    _write_page(json.loads(_RECORDS.read_text(encoding="utf-8")))
    return 0


def _measure(model: Model, name: str) -> None:
    """One concept, unless it is measured already; the record is kept at once."""
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
    own = records.setdefault(model.name, {})
    if own.get(name, {}).get("vector") == digest:
        return
    own[name] = {
        "vector": digest,
        "instrument": instrument.name,
        "seconds": seconds,
        "machine": describe_machine(),
        "ways": _ways(model, contrast, vector, instrument),
        "dosing": json.loads(vector.provenance.dosing.to_json()) if vector.provenance.dosing is not None else None,
    }
    with atomic_path(_RECORDS) as temporary:
        temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")


def _ways(model: Model, contrast: Contrast, vector: ControlVector, instrument: Instrument) -> dict[str, Any]:
    """What the instrument reads of answers to questions that nothing was built or dosed on."""
    questions = question_sets()[instrument.questions]
    null = _null(model, contrast, vector)

    def read(plan: Plan | None = None, systems: Sequence[str] = ()) -> dict[str, Any]:
        answers = ask(model, questions, count=ANSWERS, max_tokens=instrument.max_tokens, plan=plan, systems=systems)
        scores = [instrument.score(text, questions[number % len(questions)]) for number, text in enumerate(answers.texts)]
        return {"scores": scores, "refused": sum(map(refuses, answers.texts)), "texts": answers.texts}

    ways = {"unsteered": read()}
    for place, pole in enumerate(POLES):
        expression = "vector" if SIGN[pole] > 0 else "-vector"
        plan = resolve(parse_steering(expression), model.fingerprint, lambda _: vector)
        rows = vector.at(SIGN[pole]).rows(model.n_layer)
        lengths = np.linalg.norm(rows, axis=1)[:, None]
        edit = Edit((null * lengths * np.float32(SIGN[pole])).astype(np.float32))
        ways[f"system prompt, {pole}"] = read(systems=[pair[place] for pair in contrast.personas])
        ways[f"strength 1, {pole}"] = read(plan)
        ways[f"null, {pole}"] = read(Plan(Steering(), edit, plan.relative_dose))
        print(f"{model.name} {contrast.name} {pole}: {_line(ways, pole)}", flush=True)
    return ways


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
        "([QUALITY.md](QUALITY.md)); the share is of the way that the system prompt goes, where it goes anywhere. `make fresh`",
        "",
    ]
    for model, concepts in records.items():
        lines += [f"## {model}", ""]
        headers = ("concept", "pole", "relative dose", "unsteered", "system prompt", "strength 1", "null", "share")
        lines += [f"| {' | '.join(headers)} | refusals (unsteered, prompt, ours) |", "|---" * (len(headers) + 1) + "|"]
        for name, one in concepts.items():
            ways = one["ways"]
            for pole in POLES:
                columns = [f"system prompt, {pole}", f"strength 1, {pole}", f"null, {pole}"]
                scores = [f"{np.mean(ways[way]['scores']):.2f}" for way in ("unsteered", *columns)]
                refusals = ", ".join(str(ways[way]["refused"]) for way in ("unsteered", *columns[:2]))
                dosed = one["dosing"]["sides"][pole]["dose"]["response"]
                part = share(ways, columns[1], pole)
                cells = [name, pole, f"{dosed:.2f}", *scores, "-" if part != part else f"{part:.2f}", refusals]
                lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "Seconds: extraction, the personas' answers, dosing; and what was measured.", ""]
        for name, one in concepts.items():
            seconds = ", ".join(f"{value:.1f}" for value in one["seconds"].values())
            lines.append(f"- {name}: {seconds}; {one['machine']['localsteer']}")
        lines.append("")
    _PAGE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
