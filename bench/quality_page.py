"""`QUALITY.md` and `vectors/README.md`, from one record for each concept and model in `bench/quality/`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import peers
from bench.fresh import Answers
from bench.instruments import Instrument
from bench.measure import MeasurementError
from localsteer.calibration.fits import Values, mean_interval
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import shipped_folder
from localsteer.files.atomic import atomic_path
from localsteer.llama.model import Model
from localsteer.vector.calibration import POLES, Interval, Pole

_HERE = Path(__file__).parent
_RECORDS = _HERE / "quality"
_SAMPLES = 3
# Of the records that there are, nats a token of plain likelihood: calibration did not yet read answers under the persona.
_BUDGET = 0.25
# What is compared, in the order of the columns.
PROMPT, OURS, ANCHORED, PEERS = "system prompt", "localsteer", "localsteer, anchored", peers.NAMES
WAYS = (PROMPT, OURS, ANCHORED, *PEERS)


def write_record(
    model: Model,
    contrast: Contrast,
    instrument: Instrument,
    questions: Sequence[str],
    answers: Mapping[tuple[str, Pole], Answers],
    unsteered: Answers,
    doses: Mapping[str, Mapping[Pole, float]],
    problem: str,
    machine: Mapping[str, str],
) -> None:
    """Score everything and keep it beside the pages.

    Ways without answers stay as an earlier measurement left them, if that asked the same in the same way.

    Args:
        model: the model that answered.
        contrast: the concept.
        instrument: scores.
        questions: what was asked, in turns.
        answers: by way and pole.
        unsteered: the answers without steering.
        doses: relative dose of each peer's best strength, by pole.
        problem: why our vector is not calibrated; empty where it is.
        machine: where this was measured.

    Raises:
        MeasurementError: a way was never measured.
    """
    reference = _scores(instrument, questions, unsteered)
    ways: dict[str, dict[str, Any]] = {}
    for (name, pole), found in answers.items():
        scores = _scores(instrument, questions, found)
        ways.setdefault(name, {})[pole] = {
            "score": vars(mean_interval(scores, found.questions, 0)),
            "cost": vars(found.cost(unsteered)),
            "dose": doses.get(name, {}).get(pole),
            "samples": [text.strip() for text in found.texts[:_SAMPLES]],
            "scores": [round(float(score), 4) for score in scores],
        }
    for poles in ways.values():
        poles["machine"] = dict(machine)
        both = [np.array(poles[pole]["scores"]) for pole in POLES]
        turns = np.arange(len(both[0]), dtype=np.intp) % len(questions)
        poles["swing"] = vars(mean_interval(both[0] - both[1], turns, 0))
    record = {
        "concept": contrast.name,
        "poles": [contrast.positive, contrast.negative],
        "description": contrast.description,
        "source": hashlib.sha256(contrast.source.encode()).hexdigest(),
        "model": model.name,
        "is_base": model.chat_template is None,
        "problem": problem,
        "instrument": {"name": instrument.name, "unit": instrument.unit, "source": instrument.source},
        "questions": {"set": instrument.questions, "count": len(questions), "sampled": list(questions[:_SAMPLES])},
        "max_tokens": instrument.max_tokens,
        "unsteered": {
            "score": vars(mean_interval(reference, unsteered.questions, 0)),
            "samples": [text.strip() for text in unsteered.texts[:_SAMPLES]],
            "answers": len(unsteered.texts),
        },
        "ways": ways,
        "machine": dict(machine),
    }
    _RECORDS.mkdir(exist_ok=True)
    path = _record(contrast.name, base=model.chat_template is None)
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        same = ("model", "poles", "source", "instrument", "questions", "max_tokens")
        if all(earlier[key] == record[key] for key in same):
            for name, way in earlier["ways"].items():
                ways.setdefault(name, {"machine": earlier["machine"], **way})
    if missing := [name for name in (PROMPT, OURS, *PEERS) if name not in ways]:
        raise MeasurementError(f"{contrast.name}: {', '.join(missing)} must be measured first, or anew.")
    record["ways"] = {name: ways[name] for name in WAYS if name in ways}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _record(name: str, *, base: bool) -> Path:
    return _RECORDS / f"{name}{'.base' if base else ''}.json"


def recorded_answers(name: str, *, base: bool) -> int:
    """How many answers toward each pole the record of a concept has, in the way with the most; 0 where there is none."""
    path = _record(name, base=base)
    if not path.exists():
        return 0
    ways = json.loads(path.read_text(encoding="utf-8"))["ways"].values()
    return max(len(way[pole]["scores"]) for way in ways for pole in POLES)


def _scores(instrument: Instrument, questions: Sequence[str], answers: Answers) -> Values:
    asked = [questions[index] for index in answers.questions]
    scores = [instrument.score(text, question) for text, question in zip(answers.texts, asked, strict=True)]
    return np.array(scores, np.float64)


# ---- pages


@dataclass(frozen=True)
class Row:
    """A concept on a model, as the tables need it."""

    record: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.record["concept"])

    def swing(self, way: str) -> Interval:
        """Mean score toward + less that toward -."""
        return Interval(**self.record["ways"][way]["swing"])

    def cost(self, way: str, pole: str) -> Interval:
        return Interval(**self.record["ways"][way][pole]["cost"])

    def score(self, way: str, pole: str) -> Interval:
        return Interval(**self.record["ways"][way][pole]["score"])

    def moves(self, way: str = OURS) -> bool:
        """Whether a way of ours moves the instrument beyond doubt."""
        return way in self.ways and self.swing(way).low > 0

    @property
    def best_peer(self) -> Interval:
        return max((self.swing(peer) for peer in PEERS), key=lambda swing: swing.mean)

    @property
    def best_of_ours(self) -> Interval:
        return max((self.swing(way) for way in (OURS, ANCHORED)), key=lambda swing: swing.mean)

    @property
    def ways(self) -> tuple[str, ...]:
        """Those that were measured."""
        return tuple(way for way in WAYS if way in self.record["ways"])


def write_pages() -> None:
    """Both pages, from all records."""
    rows = [Row(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(_RECORDS.glob("*.json"))]
    instructed = [row for row in rows if not row.record["is_base"]]
    for path, lines in ((_HERE / "QUALITY.md", _quality(rows)), (shipped_folder() / "README.md", _library(instructed))):
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quality(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "# What the concepts of the library do",
        "",
        "Written by `make quality`; edits are lost. Every concept on questions that neither its prompts nor its calibration "
        "hold, with other seeds; scored by an instrument that had no part in making or calibrating the vector.",
        "",
        "- **system prompt**: the personas of the concept file as system prompts.",
        "- **localsteer**: the calibrated vector at strength 1 and -1, steering the response.",
        "- **localsteer, anchored**: the same with `--anchored` (docs/steering.md): drawn are only tokens that sampling (top-k "
        "40, top-p 0.95, min-p 0.05) leaves of the unsteered model's predictions as well. All draw with the same settings, the "
        "unsteered reference included, so anchored answers at strength 0 are the unsteered ones.",
        "- **llama-cvector-generator** (mean) and **repeng** (its default, PCA): their own vectors from the very same prompts, "
        f"at their own best strength inside the same coherence budget ({_BUDGET:g} nats a token), found by our search on "
        "the calibration's questions, with their own layers and lengths.",
        "",
        "A *swing* is the instrument's mean toward the positive pole less that toward the negative one, with its 95 % interval "
        "(bootstrap over the questions). *Cost* is in nats a token against unsteered answers.",
        "",
        "No vector or dose has seen these questions or instruments, but decisions have been made after measuring here:",
        "",
        "- Calibration begins with all layers because, for some of these concepts and on their held-out questions, that did "
        "better than the middle half, with which a first measurement had fallen short of its aim.",
        "- Anchored answers draw what the filters of both models keep: with those of the unsteered model alone, happy and pirate "
        "had been measured (+0.91, +1.26).",
        "- Their doses come from 16 answers each. Those from 8 had spent 0.21 of the budget of 0.25, as measured here, and won "
        "over the better peer for 10 concepts.",
        "- concise has openings of its own for each pole since it had been measured not to move (-1.43; anchored -3.17). Which "
        "ones was decided by the probability of an end after each sentence of answers to the calibration's questions.",
        "- Building some had taken over 15 seconds on a slow machine, the slowest 25: bullets, concise and honest are crossed in "
        "half since, and cautious, honest and simple have fewer questions. Before, and anchored, bullets had measured +16.83 and "
        "+38.00, concise +17.45 and +17.62, cautious +2.22 and +3.19 (ahead of the better peer), simple +7.82 and +7.06, honest "
        "+17.50 and +7.50, and in half but with all of its questions +6.25 and +11.25. Everything of these five was measured "
        "anew, the peers too, whose vectors come from the same fewer prompts.",
        "- On the demo model calm, cautious, confident, creative, enthusiastic, honest, pirate and respectful have 80 answers "
        "toward each pole, in all ways, because after 40 the better of our ways and the better peer were less than a standard "
        "error apart. Anchored answers had won over the better peer for 9 concepts then, those without an anchor for 7, the "
        "better of both for 12. The first 40 anchored answers were kept (not those of cautious and honest, which were measured "
        "anew after that); all others of these eight were drawn anew, on another processor, where the same seeds give other "
        "answers.",
        "",
    )
    for is_base, title in ((False, "The demo model"), (True, "A base model (raw text continuation)")):
        some = [row for row in rows if row.record["is_base"] == is_base]
        if some:
            yield from _model_section(title, some)
    for row in rows:
        yield from _concept_section(row)


def _model_section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    yield from (f"## {title}: {rows[0].record['model']}", "")
    headers = ("concept", "instrument", *WAYS, "ours moves it")
    yield from ("| " + " | ".join(headers) + " |", "|" + "---|" * len(headers))
    for row in rows:
        best = max(row.ways, key=lambda way: row.swing(way).mean)
        texts = {way: f"**{_text(row.swing(way))}**" if way == best else _text(row.swing(way)) for way in row.ways}
        swings = [texts.get(way, "") for way in WAYS]
        verdict = "yes" if row.moves() else "anchored" if row.moves(ANCHORED) else "**no**"
        verdict += ", not calibrated" if row.record["problem"] else ""
        yield "| " + " | ".join((row.name, row.record["instrument"]["name"], *swings, verdict)) + " |"
    yield ""
    for way in (OURS, ANCHORED):
        measured = [row for row in rows if way in row.ways]
        prompted = sum(row.swing(way).mean >= row.swing(PROMPT).mean for row in measured)
        peered = sum(row.swing(way).mean >= row.best_peer.mean for row in measured)
        moved = sum(row.moves(way) for row in measured)
        if measured:
            yield (
                f"Of {len(measured)} concepts {way} moves its instrument at least as far as the system prompt for "
                f"**{prompted}**, and at least as far as the better of the two peers for **{peered}**; beyond doubt for {moved}."
            )
            yield ""
    if both := [row for row in rows if OURS in row.ways and ANCHORED in row.ways]:
        prompted = sum(row.best_of_ours.mean >= row.swing(PROMPT).mean for row in both)
        peered = sum(row.best_of_ours.mean >= row.best_peer.mean for row in both)
        close = [row.name for row in both if _is_close(row.best_of_ours, row.best_peer)]
        yield (
            f"The better of our two ways, picked after measuring as that of the two peers is: of {len(both)} concepts at least "
            f"as far as the system prompt for **{prompted}**, and as the better peer for **{peered}**. "
            f"Less than a standard error apart from that peer: {', '.join(close) or 'none'}."
        )
        yield ""
    costs = [(way, [row.cost(way, pole).mean for row in rows if way in row.ways for pole in POLES]) for way in WAYS[1:]]
    means = ", ".join(f"{way} {np.mean(values):.2f}" for way, values in costs if values)
    yield from (f"Mean cost: {means} (budget {_BUDGET:g}).", "", "Measured on:", "")
    yield from _machines(rows)
    yield ""


def _is_close(one: Interval, other: Interval) -> bool:
    """Whether two means differ by less than the standard error of their difference."""
    # A 95 % interval is 2 * 1.96 standard errors wide.
    errors = [(interval.high - interval.low) / 3.92 for interval in (one, other)]
    return abs(one.mean - other.mean) < math.hypot(*errors)


def _machines(rows: Sequence[Row]) -> Iterator[str]:
    """Which ways were measured where, and by which version."""
    found: dict[tuple[str, str], list[str]] = {}
    for way in WAYS:
        for row in rows:
            if way in row.ways:
                machine = row.record["ways"][way].get("machine", row.record["machine"])
                version = f"llama-cpp-python {machine['llama-cpp-python']}, localsteer {machine['localsteer']}"
                found.setdefault((way, f"{machine['CPU']}, {version}"), []).append(row.name)
    shared: dict[tuple[str, str], list[str]] = {}
    for (way, machine), names in found.items():
        shared.setdefault((machine, ", ".join(names)), []).append(way)
    for (machine, concepts), ways in shared.items():
        yield f"- {', '.join(ways)} of {concepts}: {machine}"


def _concept_section(row: Row) -> Iterator[str]:
    record = row.record
    instrument = record["instrument"]
    yield from (
        f"## {row.name}{' (base model)' if record['is_base'] else ''}",
        "",
        f"{record['description']} Instrument: {instrument['name']}: {instrument['unit']} ({instrument['source']}); questions: "
        f"{record['questions']['set']}; up to {record['max_tokens']} tokens.",
        "",
    )
    if record["problem"]:
        yield from (f"Not calibrated, so this is the dose that it was built with: {record['problem']}", "")
    if not (row.moves() or row.moves(ANCHORED)):
        yield from ("**It does not move its instrument beyond doubt on this model.**", "")
    yield from ("| way | toward | score | cost | n |", "|---|---|---|---|---|")
    unsteered = record["unsteered"]
    yield f"| unsteered | | {_text(Interval(**unsteered['score']))} | | {unsteered['answers']} |"
    for way, poles in record["ways"].items():
        for pole, name in zip(POLES, record["poles"], strict=True):
            count = len(poles[pole]["scores"])
            yield f"| {way} | {name} | {_text(row.score(way, pole))} | {_text(row.cost(way, pole))} | {count} |"
    yield from ("", "<details><summary>Sample answers</summary>", "")
    for index, question in enumerate(record["questions"]["sampled"]):
        yield from (f"**{question}**", "", f"- unsteered: {_quoted(unsteered['samples'][index])}")
        for way, poles in record["ways"].items():
            for pole, name in zip(POLES, record["poles"], strict=True):
                yield f"- {way}, {name}: {_quoted(poles[pole]['samples'][index])}"
        yield ""
    yield from ("</details>", "")


def _library(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "# The concept library",
        "",
        "Written by `make quality`; edits are lost. Use any of them by name on any model: "
        '`localsteer chat -m MODEL -s "0.7 concise"`. The vector is built at first use and kept; for the demo model a '
        "calibrated one lies here.",
        "",
        "The figures are of the demo model, on questions that nothing was fitted on: the *swing* of an independent instrument "
        "from strength -1 to 1, alone and with `--anchored`, beside that from one system prompt to the other. More: "
        "[bench/QUALITY.md](../bench/QUALITY.md).",
        "",
        "| name | + | - | instrument | swing | anchored | system prompts | cost at +1 / -1 | anchored | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    )
    for row in rows:
        record = row.record
        positive, negative = record["poles"]
        swings, costs = {}, {}
        for way in (OURS, ANCHORED):
            doubt = "" if row.moves(way) else " (does not move it)"
            swings[way] = f"{_text(row.swing(way))}{doubt}" if way in row.ways else ""
            costs[way] = " / ".join(f"{row.cost(way, pole).mean:+.2f}" for pole in POLES) if way in row.ways else ""
        prompt = _text(row.swing(PROMPT))
        unit = record["instrument"]["unit"]
        cells = (row.name, positive, negative, unit, swings[OURS], swings[ANCHORED], prompt, costs[OURS], costs[ANCHORED])
        anchored = f", [anchored]({row.name}/ANCHORED.md)" if ANCHORED in row.ways else ""
        yield "| " + " | ".join(cells) + f" | [report]({row.name}/REPORT.md){anchored} |"


def _text(interval: Interval) -> str:
    return f"{interval.mean:+.2f} ({interval.low:.2f}..{interval.high:.2f})"


def _quoted(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
