"""What every concept of the library does, by an instrument that had no part in making it, beside prompting, the peers and chance.

Run as `python -m bench.quality` (`make quality`), for all models that there are: LOCALSTEER_REAL_MODEL=FILE adds one of a size
that people use. Everything is kept in `bench/quality/records` as soon as it is measured, with all answers: an interrupted run
goes on, an instrument may be mended without asking again, and what depends on something that has changed is asked anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import yaml

from bench.instruments import INSTRUMENTS
from bench.measure import MeasurementError
from bench.models import base_model, demo_model, real_model
from bench.quality import pages, retention
from bench.quality.asking import ask, asked_by
from bench.quality.records import MODELS, Record
from bench.quality.size import FULL, QUICK, Size
from bench.quality.ways import UNSTEERED, WAYS, Ways
from bench.questions import question_sets
from bench.report import describe_machine
from bench.tools import ToolsError
from localsteer.concepts.names import shipped_folder
from localsteer.errors import CalibrationError, LocalsteerError
from localsteer.llama.model import Model
from localsteer.vector.calibration import POLES

# For the smallest base model, those whose instrument tells most about raw text; for a model ten times as large as the demo one,
# where a concept takes half an hour, those whose instrument tells most in 20 answers.
_BASE = ("happy", "calm", "polite", "french", "pirate", "enthusiastic")
_REAL = ("happy", "french", "pirate", "formal", "confident", "enthusiastic", "simple", "cautious")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", help="only these; the pages are written from all that is measured")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="only this one")
    parser.add_argument("--way", action="append", choices=WAYS, help="only this one; the others stay as they are")
    parser.add_argument("--quick", action="store_true", help="half of the answers")
    parser.add_argument("--only", choices=["concepts", "retention", "pages"], help="leave out the rest")
    parser.add_argument("--threads", type=int, help="two processes, of different models, with a thread each get more done")
    options = parser.parse_args()
    paths = {"demo": demo_model, "base": base_model, "real": real_model}
    size = QUICK if options.quick else FULL
    try:
        for which in options.model or paths if options.only != "pages" else ():
            path = paths[which]()
            if path is None:
                _say("LOCALSTEER_REAL_MODEL names no model, so it is left out")
                continue
            names = options.concepts or {"demo": _shipped(), "base": _BASE, "real": _REAL if options.quick else _shipped()}[which]
            with Model(path, threads=options.threads) as model:
                if options.only != "retention":
                    for name in names:
                        _measure(model, which, name, options.way or WAYS, size)
                        pages.write()
                if options.only != "concepts" and model.chat_template is not None:
                    retention.measure(model, which, names, size)
        pages.write()
    except (LocalsteerError, ToolsError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _shipped() -> Sequence[str]:
    return sorted(file.parent.name for file in shipped_folder().glob("*/concept.yaml"))


def _measure(model: Model, which: str, name: str, ways: Sequence[str], size: Size) -> None:
    """One concept, as far as it is not measured already."""
    steering = Ways.of(model, name)
    contrast = steering.contrast
    instrument = INSTRUMENTS[yaml.safe_load(contrast.source)["instrument"]]
    questions = question_sets()[instrument.questions]
    record = Record.of(which, name)
    record.begin(
        {
            "concept": name,
            "description": contrast.description,
            "poles": [contrast.positive, contrast.negative],
            "instrument": instrument.name,
            "model": model.name,
        },
        asked=asked_by(model, contrast, questions, instrument.max_tokens),
    )
    machine = describe_machine()
    by = f"{machine['CPU']}, llama-cpp-python {machine['llama-cpp-python']}, localsteer {machine['localsteer']}"
    with steering:
        for way, pole in [(UNSTEERED, None), *((way, pole) for way in ways for pole in POLES)]:
            try:
                key = "" if pole is None else steering.key(way)
                if record.has(way, pole, key, size.answers):
                    continue
                plan = steering.plan(way, pole) if pole is not None else None
            except CalibrationError as error:
                _say(f"{name}, {way}: {error.message}")
                record.fail(way, error.message)
                record.keep()
                continue
            except (ToolsError, MeasurementError) as error:  # a peer's, on this machine: the others go on
                _say(f"{name}, {way}: {error}")
                continue
            given = ask(
                model,
                contrast,
                questions,
                count=size.answers,
                heard=size.heard,
                max_tokens=instrument.max_tokens,
                plan=plan,
                systems=steering.systems(way, pole) if pole is not None else (),
            )
            dose = plan.relative_dose if plan is not None else None
            record.put(way, pole, {"key": key, "dose": dose, "by": by, "texts": given.texts, "heard": given.heard})
            record.keep()
            _say(f"{model.name}, {name}: {way}{f', {pole}' if pole is not None else ''}: {record.scores(way, pole).mean():.2f}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
