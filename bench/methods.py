"""Ways to build a direction, side by side at equal terms: each is dosed by the same own answers and the same rule.

Run as `python -m bench.methods [--model demo|base|real] [--what WHAT] [CONCEPT ...]`. What is compared of directions, at
the dose that the rule finds: how much likelier a pole's own answers become than the other pole's (teacher-forced on held-out
questions, nats a token, both poles added up), how far that leads from the unsteered model (KL), and how likely a refusal begins.
Records are kept in `bench/methods.json`; one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import methods_page
from bench.capped import capped
from bench.directions import DIRECTIONS, PLAIN, Direction, at_relative_dose_1, estimate_of
from bench.limits import limits
from bench.long_answers import long_answers
from bench.models import base_model, demo_model, real_model
from bench.places import places
from localsteer.building.dosing import Doser
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.own_answers import OwnAnswers
from localsteer.building.refusal import chances_of_refusal, refusal_openings
from localsteer.building.voices import voices
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import shipped_folder
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.files.atomic import atomic_path
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.forced import Reading, Said
from localsteer.reading.listening import Heard, cross_entropies
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import OTHER, POLES, SIGN
from localsteer.vector.control_vector import ControlVector, Floats

CONCEPTS = ("happy", "french", "formal", "pirate", "calm", "confident")
MODELS: Mapping[str, Callable[[], Path | None]] = {"demo": demo_model, "base": base_model, "real": real_model}
_RECORDS = Path(__file__).parent / "methods.json"
_SEED, _OTHER_SEED = 5, 6
_NATURAL = "natural layer weights"
# As all tables but that of the places are, whatever a concept is read by today.
_AT_LAST = ExtractionSettings(position="last", dose=False)
# Times the dose of strength 1: for the first tokens of an answer, and for the rest of it.
_SCHEDULES = {"1, 1": (1.0, 1.0), "1.4, 0.7": (1.4, 0.7), "1.4, 0.35": (1.4, 0.35), "1, 0": (1.0, 0.0)}
_FIRST, _LENGTH, _SCHEDULED = 8, 28, 12


def _natural_shares(doser: Doser, plain: ControlVector, unit: Floats, dose: float) -> Mapping[int, float]:
    """Of each layer: gain over KL when it is steered alone, shrunk half-way toward equal."""
    own, worth = doser.own, {}
    reader = own.reader
    readings = []
    for layer in plain.layers:
        alone = np.zeros_like(unit)
        alone[layer] = unit[layer] * len(plain.layers)
        for pole in POLES:
            numbers = [*own.read[pole][:4], *own.read[OTHER[pole]][:4]]
            readings.append(Reading(Edit(alone, scale=SIGN[pole] * dose / 4), numbers))
    found = iter(reader.under(readings))
    for layer in plain.layers:
        gains, kls = [], []
        for _ in POLES:
            one = next(found)
            half = len(one.gain) // 2
            gains.append(float(one.gain[:half].mean() - one.gain[half:].mean()))
            kls.append(one.kl)
        worth[layer] = max(0.0, float(np.mean(gains))) / max(float(np.mean(kls)), 1e-4)
    total = sum(worth.values()) or 1.0
    return {layer: 0.5 / len(worth) + 0.5 * value / total for layer, value in worth.items()}


def _measured(model: Model, doser: Doser, plain: ControlVector, direction: Direction) -> dict[str, Any]:
    rows = at_relative_dose_1(direction, plain)
    start = time.perf_counter()
    dosed = doser.dose(ControlVector(rows, replace(plain.provenance, estimate=None)))
    dosing = dosed.provenance.dosing
    assert dosing is not None
    prompts = voices(model, None, 10).start["positive"]
    edits = [None, *(Edit(dosed.at(SIGN[pole], "response").rows(model.n_layer)) for pole in POLES)]
    refused = chances_of_refusal(model, refusal_openings(model), prompts, edits)
    record: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "refused unsteered": round(float(refused[0]), 3)}
    for place, pole in enumerate(POLES):
        side = dosing.sides[pole]
        record[pole] = {
            "dose": round(side.dose["response"], 3),
            "ratio": round(side.ratio.mean, 3),
            "kl": round(side.kl, 3),
            "coherence": round(side.coherence, 3),
            "refused": round(float(refused[1 + place]), 3),
        }
    return record


def _ways(model: Model, name: str, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Ways to build a direction, and to weigh its layers."""
    if {*DIRECTIONS, _NATURAL} <= set(known):
        return
    contrast = load_concept(shipped_folder() / name / "concept.yaml")
    plain = extract(model, contrast, replace(_AT_LAST, keep_refusal=True))
    found = dict(known)
    with Doser(model, contrast, seed=_SEED) as doser:
        for way, build in DIRECTIONS.items():
            if way not in found:
                found[way] = _measured(model, doser, plain, build(model, contrast, plain))
                yield way, found[way]
        if _NATURAL not in found:
            dose = float(np.mean([found[PLAIN][pole]["dose"] for pole in POLES]))
            with Doser(model, contrast, seed=_OTHER_SEED) as other:  # not by the answers that it is judged by
                shares = _natural_shares(other, plain, plain.rows(model.n_layer), dose)
            yield _NATURAL, _measured(model, doser, plain, (estimate_of(plain), shares))


def _scheduled(model: Model, name: str, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Sampled answers whose first tokens get a stronger dose than the rest: what falls off is said to cost less."""
    contrast = load_concept(shipped_folder() / name / "concept.yaml")
    todo = [way for way in _SCHEDULES if f"schedule {way}" not in known]
    if not todo:
        return
    dosed = extract(model, contrast, replace(_AT_LAST, dose=True))
    dosing = dosed.provenance.dosing
    assert dosing is not None
    unit = dosed.rows(model.n_layer) / np.float32(dosing.unit)
    bare = voices(model, contrast, _SCHEDULED).start["positive"]
    own = voices(model, contrast, _SCHEDULED).own

    def answer(prompts: Sequence[tuple[int, ...]], edit: Edit | None, tokens: int, seed: int) -> list[tuple[int, ...]]:
        plan = Plan(Steering(), edit, 1.0) if edit is not None else None
        asked = [Request(one, plan, Sampling(seed=seed + number), tokens) for number, one in enumerate(prompts)]
        return [one.tokens for one in generate_many(model, asked)]

    def listened(answers: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        said = [Said.exactly(one) for one in answers]
        places = [bare, [*bare[3:], *bare[:3]], own["positive"], own["negative"]]
        heard = [Heard(prompt, one) for prompts in places for prompt, one in zip(prompts, said, strict=True)]
        return cross_entropies(model, heard).reshape(len(places), -1)

    plain = listened(answer(bare, None, _LENGTH, 100))
    voiced = {pole: listened(answer(own[pole], None, _LENGTH, 100)) for pole in POLES}
    shifts = {pole: float(np.nanmean((voiced[pole][3] - voiced[pole][2]) - (plain[3] - plain[2]))) for pole in POLES}
    for way in todo:
        first, rest = _SCHEDULES[way]
        record = {}
        for place, pole in enumerate(POLES):
            dose = SIGN[pole] * dosing.sides[pole].dose["response"]
            begun = answer(bare, Edit(unit, scale=first * dose), _FIRST, 100)
            going = [prompt + one for prompt, one in zip(bare, begun, strict=True)]
            ended = answer(going, Edit(unit, scale=rest * dose) if rest else None, _LENGTH - _FIRST, 500)
            whole = [one + other if len(one) == _FIRST else one for one, other in zip(begun, ended, strict=True)]
            found = listened(whole)
            shift = float(np.nanmean((found[3] - found[2]) - (plain[3] - plain[2])))
            record[pole] = {
                "effect": round(shift / shifts[pole], 2),
                "cost under the persona": round(float(np.nanmean(found[2 + place]) - np.nanmean(voiced[pole][2 + place])), 2),
                "cost": round(float(np.nanmean(found[0]) - np.nanmean(plain[0])), 2),
                "relevance": round(float(np.nanmean(found[1] - found[0])), 2),
                "samples": [model.detokenize(list(one)) for one in whole[:4]],
            }
        yield f"schedule {way}", record


def _of_dosed(
    way: str, measure: Callable[[Model, OwnAnswers, ControlVector], Any], model: Model, name: str, known: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """What is measured of a vector as it is built and dosed."""
    if way in known:
        return
    contrast = load_concept(shipped_folder() / name / "concept.yaml")
    with Doser(model, contrast, seed=_SEED) as doser:
        yield way, measure(model, doser.own, doser.dose(extract(model, contrast, _AT_LAST)))


_WHAT: Mapping[str, Callable[[Model, str, Mapping[str, Any]], Iterator[tuple[str, Any]]]] = {
    "directions": _ways,
    "schedules": _scheduled,
    "cap": functools.partial(_of_dosed, "cap", capped),
    "limits": functools.partial(_of_dosed, "limits", limits),
    "places": places,
    "long": long_answers,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", default=CONCEPTS)
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--what", choices=list(_WHAT), default="directions", help="see bench/METHODS.md")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    for key in options.model or MODELS:
        path = MODELS[key]()
        if path is None:
            continue
        with Model(path, threads=options.threads) as model:
            for name in options.concepts:
                known = _records().get(model.name, {}).get(name, {})
                for way, record in _WHAT[options.what](model, name, known):
                    print(model.name, name, way, json.dumps(record), file=sys.stderr, flush=True)
                    _keep(model.name, name, way, record)
    methods_page.write(_records())
    return 0


def _records() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_RECORDS.read_text(encoding="utf-8")) if _RECORDS.exists() else {}
    return found


def _keep(model: str, concept: str, way: str, record: Any) -> None:
    """One more record beside what other processes have kept meanwhile."""
    records = _records()
    records.setdefault(model, {}).setdefault(concept, {})[way] = record
    with atomic_path(_RECORDS) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
