"""What every concept of the library does, by an instrument that had no part in making it, beside prompting and the peers.

Run as `python -m bench.quality` (`make quality`). A concept without a vector that is calibrated for the demo model gets one
first, with its report. Answers are kept in the user's cache, so that an interrupted run goes on and that an instrument
may be mended without asking again; one whose prompts or vector changed is asked anew. `bench.quality_page` writes the pages.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from platformdirs import user_cache_path

from bench import peers, quality_page
from bench.fresh import Answers, ask
from bench.instruments import INSTRUMENTS, Instrument
from bench.measure import MeasurementError
from bench.models import base_model, demo_model
from bench.questions import question_sets
from bench.report import describe_machine
from bench.tools import ToolsError
from localsteer.building.ahead import Shelf
from localsteer.calibration.calibrate import Calibrated, CalibrationSettings, Calibrator, measurements_folder
from localsteer.calibration.effort import FACTORS, THOROUGH
from localsteer.calibration.report import write_report
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import LibraryConcept, shipped_folder
from localsteer.errors import CalibrationError, LocalsteerError, VectorError
from localsteer.files.atomic import atomic_path
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import DEFAULT_BUDGET, POLES, SIGN, Mode, Pole
from localsteer.vector.control_vector import ControlVector

_REPORT = "REPORT.md"
ANSWERS = 40
REFERENCE_ANSWERS = 80
PROMPT, OURS, ANCHORED = quality_page.PROMPT, quality_page.OURS, quality_page.ANCHORED
_ANCHORED_REPORT = "ANCHORED.md"
_SCOPES: dict[str, Mode] = {OURS: "response", ANCHORED: "anchored"}
# Of the answers in the cache: counted up when the same concept would be asked in another way.
_VERSION = 1
# For the smallest base model: those whose instrument tells most about raw text.
BASE_CONCEPTS = ("happy", "calm", "polite", "french", "pirate", "enthusiastic")


@dataclass(frozen=True)
class Way:
    """One way to move the answers: the system prompt, ours at 1 or a peer's at its best strength, toward one pole."""

    name: str
    pole: Pole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", help="only these; the pages are written from all that is measured")
    parser.add_argument("--base", action="store_true", help="on the base model; its vectors are built and kept in the cache")
    parser.add_argument("--way", action="append", choices=quality_page.WAYS, help="only this one; the others stay as they are")
    parser.add_argument(
        "--answers",
        type=int,
        help=f"toward each pole, in whole rounds of the questions; by default as many as the page has, or else {ANSWERS}; "
        "those kept count",
    )
    parser.add_argument("--threads", type=int, help="two processes with a thread each get more done than one with two")
    options = parser.parse_args()
    count = options.answers
    if count is not None and (count < 1 or any(count % len(questions) for questions in question_sets().values())):
        parser.error(f"--answers: give whole rounds of the questions, such as {ANSWERS}.")
    try:
        with Model(base_model() if options.base else demo_model(), threads=options.threads) as model:
            for name in options.concepts or (BASE_CONCEPTS if options.base else _shipped_names()):
                answers = count or quality_page.recorded_answers(name, base=options.base) or ANSWERS
                _measure_concept(model, name, options.way or quality_page.WAYS, answers)
                quality_page.write_pages()
    except (LocalsteerError, ToolsError, MeasurementError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _shipped_names() -> Sequence[str]:
    return sorted(file.parent.name for file in shipped_folder().glob("*/concept.yaml"))


def _measure_concept(model: Model, name: str, ways: Sequence[str], count: int) -> None:
    """Answers from the cache or anew, scored; the record beside the pages."""
    concept = LibraryConcept(name, shipped_folder() / name, shipped=True)
    source = concept.source()
    contrast = parse_concept(source, name)
    instrument = INSTRUMENTS[yaml.safe_load(source)["instrument"]]
    vector, problem = _calibrated(model, concept)
    answers, doses = _answers(model, name, source, contrast, vector, instrument, ways, count)
    quality_page.write_record(
        model,
        contrast,
        instrument,
        question_sets()[instrument.questions],
        {(way.name, way.pole): found for way, found in answers.items()},
        _unsteered(model, instrument.questions, instrument.max_tokens),
        doses,
        problem,
        describe_machine(),
    )


# ---- our vector


def _calibrated(model: Model, concept: LibraryConcept) -> tuple[ControlVector, str]:
    """The calibrated vector: for the demo model the shipped one, with its report; for another one that of the user's cache.

    Returns:
        The vector, and why it could not be calibrated (empty where it is).
    """
    ships = model.path == demo_model()
    shelf = Shelf.for_model(model.path, shipped_folder() if ships else None)
    place = shelf.look(concept)
    if place.to_build:
        _say(f"{concept.name}: building")
        place = shelf.build(place, model)

    def calibrate(vector: ControlVector, contrast: Contrast) -> ControlVector:
        _say(f"{concept.name}: calibrating")
        result = Calibrator(model, vector, contrast, CalibrationSettings(by_cost=True), folder=measurements_folder()).run()
        if ships:
            _write_report(result, concept.folder)
        return result.vector

    def anchor(vector: ControlVector, contrast: Contrast) -> ControlVector:
        _say(f"{concept.name}: calibrating anchored answers")
        settings = CalibrationSettings(by_cost=True, anchored=True)
        result = Calibrator(model, vector, contrast, settings, folder=measurements_folder()).run()
        if ships:
            _write_report(result, concept.folder, _ANCHORED_REPORT)
        return result.vector

    if place.to_calibrate:
        place = shelf.calibrate(place, calibrate)
    if place.found is None or not isinstance(place.error, CalibrationError | None):
        raise place.error or VectorError(f"{concept.name} has no vector.")
    vector = place.found.vector
    if place.error is None and not _is_anchored(vector):
        anchored = shelf.calibrate(place, anchor)
        if anchored.found is None or anchored.error is not None:
            raise anchored.error or VectorError(f"{concept.name} has no vector.")
        vector = anchored.found.vector
    if place.error is not None and ships:
        text = f"# {concept.name}: not calibrated on {model.name}\n\n{place.error.message}\n"
        (concept.folder / _REPORT).write_text(text, encoding="utf-8")
    return vector, place.error.message if place.error is not None else ""


def _is_anchored(vector: ControlVector) -> bool:
    """Whether it has doses for anchored answers."""
    calibration = vector.provenance.calibration
    return calibration is not None and "anchored" in calibration.modes


def _write_report(result: Calibrated, folder: Path, page: str = _REPORT) -> None:
    with tempfile.TemporaryDirectory(prefix="localsteer-bench-") as name:
        write_report(result, Path(name))
        shutil.copy(Path(name, "report.md"), folder / page)
        for plot in Path(name).glob("*.svg"):
            shutil.copy(plot, folder)


# ---- answers


def _answers(
    model: Model,
    name: str,
    source: str,
    contrast: Contrast,
    vector: ControlVector,
    instrument: Instrument,
    ways: Sequence[str],
    count: int,
) -> tuple[dict[Way, Answers], dict[str, dict[Pole, float]]]:
    """What each way makes the model answer, and the relative dose of each peer's best strength."""
    questions = question_sets()[instrument.questions]
    parts = [_VERSION, model.fingerprint.content, source, questions, instrument.max_tokens]
    file = user_cache_path("localsteer") / "bench-quality" / f"{name}-{_digest(json.dumps(parts).encode())}.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"doses": {}, "answers": {}}

    search = _digest(repr((THOROUGH, FACTORS, DEFAULT_BUDGET)).encode())
    doses: dict[str, dict[Pole, float]] = kept["doses"].setdefault(search, {})

    found = {}
    plans: dict[str, dict[Pole, Plan]] = {}
    for way in (Way(way, pole) for way in ways for pole in POLES):
        key = f"{way.name}|{way.pole}"
        if way.name in _SCOPES:
            key += f"|{_digest(vector.at(SIGN[way.pole], _SCOPES[way.name]).rows(model.n_layer).tobytes())}"
        elif way.name != PROMPT:
            key += f"|{search}"
        one = kept["answers"].setdefault(key, {"texts": [], "nll": []})
        if (there := len(one["texts"])) < count:
            _say(f"{name}: {way.name}, {getattr(contrast, way.pole)}")
            if way.name in peers.NAMES and not plans:
                plans = _peer_plans(model, source, contrast, doses)
            made = _ask(model, way, contrast, vector, plans, instrument, questions, range(there, count))
            one["texts"] += made.texts
            one["nll"] += made.nll.tolist()
            _keep(file, kept)
        found[way] = Answers(tuple(one["texts"][:count]), np.array(one["nll"][:count], np.float64), len(questions))
    return found, doses


def _ask(
    model: Model,
    way: Way,
    contrast: Contrast,
    vector: ControlVector,
    plans: dict[str, dict[Pole, Plan]],
    instrument: Instrument,
    questions: Sequence[str],
    numbers: range,
) -> Answers:
    sample = functools.partial(ask, model, questions, count=len(numbers), max_tokens=instrument.max_tokens, first=numbers.start)
    if way.name == PROMPT:
        return sample(systems=[pair[POLES.index(way.pole)] for pair in contrast.personas])
    if way.name in _SCOPES:
        expression, find = parse_steering(_expression(way.pole)), functools.partial(_only, vector)
        return sample(plan=resolve(expression, model.fingerprint, find, _SCOPES[way.name]))
    return sample(plan=plans[way.name][way.pole])


def _peer_plans(
    model: Model, source: str, contrast: Contrast, doses: dict[str, dict[Pole, float]]
) -> dict[str, dict[Pole, Plan]]:
    """Each peer's vector at its own best strength: dosed and calibrated as ours is, on the same questions.

    Args:
        model: answers.
        source: the concept as YAML text.
        contrast: the same, parsed.
        doses: filled in by peer.
    """
    plans: dict[str, dict[Pole, Plan]] = {}
    for name, rows in peers.peer_vectors(model, source).items():
        theirs = ControlVector({int(layer): rows[layer] for layer in np.flatnonzero(rows.any(axis=1))})
        settings = CalibrationSettings(by_cost=True)
        vector = Calibrator(model, theirs, contrast, settings, folder=measurements_folder()).run().vector
        plans[name] = {
            pole: resolve(parse_steering(_expression(pole)), model.fingerprint, functools.partial(_only, vector), "response")
            for pole in POLES
        }
        doses[name] = {pole: plans[name][pole].relative_dose or 0.0 for pole in POLES}
    return plans


def _expression(pole: Pole) -> str:
    return "vector" if pole == "positive" else "-vector"


def _only(vector: ControlVector, _name: str) -> ControlVector:
    return vector


@functools.cache
def _unsteered(model: Model, questions: str, max_tokens: int) -> Answers:
    """The same for all concepts that ask the same."""
    asked = question_sets()[questions]
    key = _digest(json.dumps([_VERSION, model.fingerprint.content, asked, max_tokens]).encode())
    file = user_cache_path("localsteer") / "bench-quality" / f"unsteered-{key}.json"
    if not file.exists():
        _say(f"unsteered answers to the questions {questions}")
        made = ask(model, asked, count=REFERENCE_ANSWERS, max_tokens=max_tokens)
        _keep(file, {"texts": list(made.texts), "nll": made.nll.tolist()})
    kept = json.loads(file.read_text())
    return Answers(tuple(kept["texts"]), np.array(kept["nll"], np.float64), len(asked))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _keep(file: Path, document: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
