"""A page for each model, one that says how it stands on all of them, and the table of the library: all from the records."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.quality.records import MODELS, Record, all_records, count, count_beyond_chance
from bench.quality.retention import records_of
from bench.quality.ways import ANCHORED, BOTH, CALIBRATED, FRESH, NULL, PEERS, PROMPT, UNSTEERED, WAYS
from localsteer.concepts.names import shipped_folder
from localsteer.files.atomic import atomic_path
from localsteer.vector.calibration import POLES, Interval, Pole
from localsteer.vector.file import read_vector

_HERE = Path(__file__).parent
_OVERVIEW = _HERE.parent / "QUALITY.md"
_QUOTED = 3
# Of anchored answers: an effect worth comparing, in units of the system prompt's, and what counts as risen.
_FELT, _RISEN = 0.2, 1.1
# Points above unsteered answers that count as refusing more.
_MORE_REFUSED = 5.0

_INTRODUCTION = f"""\
Written by `make quality`; edits are lost. Every concept on questions that no prompt, dosing or calibration holds, with other
seeds, at strength 1 and -1, steering the response:

- **{UNSTEERED}**: nothing at all.
- **{PROMPT}**: the personas of the concept file as system prompts.
- **{FRESH}**: our vector as it is built and dosed at first use, in seconds.
- **{CALIBRATED}**: the same, calibrated by `localsteer calibrate --by-cost`.
- **{BOTH}**: that and the system prompt together.
- **{NULL}**: our construction with the labels of half of the pairs exchanged, at the dose that leads as many nats away from the
  unsteered model as the fresh vector does (KL along the personas' answers). What it does is chance.
- **{PEERS[0]}** (mean) and **{PEERS[1]}** (its default, PCA): their own vectors from the very same prompts, with their own layers
  and lengths, dosed and calibrated as ours are, on the same questions.
- **{ANCHORED}**: calibrated, with `--anchored` (docs/steering.md).

A way that a table has no column for was not measured on that model. What is measured:

- *Swing*: the mean of an instrument that had no part in making or dosing any vector (a lexicon, a formula, a classifier) toward
  the positive pole less that toward the negative one, with its 95 % interval (bootstrap over the questions).
- *Effect*: how much likelier answers are in the voice of their pole than in that of the other one, by the model under the
  personas, both poles added up; 1 is what the system prompts do.
- *Cost*: nats a token that an answer is less likely than unsteered ones to its question or, in the voice of its pole, than the
  prompted ones, on the mean over the answers, whichever is less.
- *Off topic*: of how much likelier unsteered answers are after their own question than after another one, the share that is lost.
- *Refused*: per cent of the answers that say that they will not answer, by English phrases: of French ones none is counted.
- *Speaks of itself as a model*: per cent of the answers in which it does, in English ("As an AI language model, I don't ...").
- *Wrong way*: per cent of the questions whose answers toward the positive pole score below those toward the negative one.
"""


def write() -> None:
    """All pages."""
    overview = ["# What the concepts of the library do", "", *_INTRODUCTION.splitlines(), ""]
    for which, title in MODELS.items():
        records = all_records(which)
        if records:
            page = _HERE / f"{which.upper()}.md"
            _put(page, _page(which, title, records))
            overview += [f"## {title}: {records[0].document['model']}", "", f"All of it: [{page.name}](quality/{page.name})", ""]
            overview += [*_verdicts(which, records), "", *_swings(records), ""]
    _put(_OVERVIEW, overview)
    if instructed := all_records("demo"):
        _put(shipped_folder() / "README.md", _library(instructed))


def _put(path: Path, lines: Iterable[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _page(which: str, title: str, records: Sequence[Record]) -> Iterator[str]:
    yield from (f"# {title}: {records[0].document['model']}", "", "How this is measured: [QUALITY.md](../QUALITY.md).", "")
    yield from (*_verdicts(which, records), "", "## Swing", "", *_swings(records), "")
    yield from ("## Effect, of the system prompts'", "")
    yield from _table(records, _effect)
    heard = sorted({len(record.heard(way, pole)["plain"]) for record in records for way in record.ways for pole in POLES})
    yield from (
        "",
        "In brackets: nats a token, of the system prompts and where these move the model the wrong way. This, the cost and being "
        f"off topic are of the first {' or '.join(map(str, heard))} answers toward each pole, which are heard again; the "
        "instrument reads all.",
        "",
    )
    yield from ("## Cost toward + / -, nats a token", "", *_table(records, _cost), "")
    yield from ("## Off topic toward + / -, per cent", "", *_table(records, _poles(_off_topic, 100, ".0f")), "")
    for title, share in (("Refused", Record.refused), ("Speaks of itself as a model", Record.disclaimed)):
        table = _table(records, _poles(share, 100, ".0f"), unsteered=functools.partial(_unsteered, share))
        yield from (f"## {title} toward + / -, per cent", "", *table, "")
    yield from ("## Wrong way, per cent", "", *_table(records, lambda record, way: f"{100 * record.wrong(way):.0f}"), "")
    yield from ("## Relative dose toward + / -", "", *_table(records, _doses), "")
    yield from _retention(which)
    for record in records:
        yield from _concept(record)
    yield from ("## Measured by", "", *_machines(records))


# ---- how it stands


def _verdicts(which: str, records: Sequence[Record]) -> Iterator[str]:
    def of(found: tuple[int, int]) -> str:
        return f"**{found[0]} of {found[1]}**"

    half, chance = count(records, FRESH, [PROMPT], 0.5), count_beyond_chance(records, FRESH)
    yield f"- fresh at least half as far as the system prompt (swing): {of(half)}; further than chance goes: {of(chance)}"
    shares = [record.share(FRESH, pole) for record in records if FRESH in record.ways for pole in POLES]
    known = [share for share in shares if not math.isnan(share)]
    yield f"- fresh at least half as far toward a single pole: {of((sum(share >= 0.5 for share in known), len(known)))} poles"
    backward = [record.name for record in records if record.swing(PROMPT).mean <= 0]
    for way in (FRESH, CALIBRATED, ANCHORED):
        prompted, peered = count(records, way, [PROMPT]), count(records, way, PEERS)
        if prompted[1]:
            alone = ", ".join(f"as {peer} {of(count(records, way, [peer]))}" for peer in PEERS)
            beside = f"; as the better peer: {of(peered)} ({alone})" if peered[1] else ""
            yield f"- {way} at least as far as the system prompt: {of(prompted)}{beside}"
    if sure := [one for one in records if {ANCHORED, CALIBRATED} <= set(one.ways) and one.swing(CALIBRATED).low > 0]:
        times = np.median([one.swing(ANCHORED).mean / one.swing(CALIBRATED).mean for one in sure])
        yield (
            f"- anchored at least as far as calibrated: {of(count(records, ANCHORED, [CALIBRATED]))}; {times:.2f} times as far "
            f"(median of the {len(sure)} whose swing is beyond doubt)"
        )
    if backward:
        yield f"- where the system prompts themselves lead the wrong way: {', '.join(backward)}"
    yield f"- prompt and calibrated together at least as far as the system prompt: {of(count(records, BOTH, [PROMPT]))}"
    for way in (PROMPT, FRESH, CALIBRATED, ANCHORED):
        some = [record for record in records if way in record.ways]
        if some:
            before = 100 * np.mean([record.refused(UNSTEERED, None) for record in some])
            mean = 100 * np.mean([record.refused(way, pole) for record in some for pole in POLES])
            more = [told for record in some for pole in POLES if (told := _refused_more(record, way, pole))]
            where = f"; more than {_MORE_REFUSED:.0f} points above: {', '.join(more)}" if more else ""
            yield f"- refused, {way}: {mean:.1f} per cent of all answers, unsteered {before:.1f}{where}"
    compared = [way for way in (FRESH, CALIBRATED, ANCHORED, *PEERS, NULL) if any(way in record.ways for record in records)]
    if alike := [record for record in records if set(compared) <= set(record.ways)]:
        costs = {way: np.nanmean([record.cost(way, pole) for record in alike for pole in POLES]) for way in compared}
        told = ", ".join(f"{way} {cost:.2f}" for way, cost in costs.items())
        yield f"- mean cost of {len(alike)} concepts, nats a token: {told}"
    if retained := records_of(which):
        sides_of = [side for one in retained.values() for side in one["sides"].values()]
        loss, prompted_loss = (float(np.mean([side[key] for side in sides_of])) for key in ("loss", "prompt loss"))
        one = next(iter(retained.values()))
        yield (
            f"- retention: fresh, the right letter of {one['questions']} questions loses {loss:.3f} nats; of {one['prompted']} "
            f"of them under the system prompts, {prompted_loss:.3f} ({len(sides_of)} sides)"
        )


def _refused_more(record: Record, way: str, pole: Pole) -> str:
    """A side whose answers are refused more often than unsteered ones; nothing for another one."""
    now, before = (100 * share for share in (record.refused(way, pole), record.refused(UNSTEERED, None)))
    return f"{record.name}, {pole} ({now:.0f} beside {before:.0f})" if round(now - before, 3) > _MORE_REFUSED else ""


def _swings(records: Sequence[Record]) -> Iterator[str]:
    columns = _measured(records)
    yield from _head(("concept", "instrument", "n", UNSTEERED, *columns))
    for record in records:
        ways = list(record.ways)
        best = max(ways, key=lambda way: record.swing(way).mean)
        texts = {way: f"**{_text(record.swing(way))}**" if way == best else _text(record.swing(way)) for way in ways}
        plain = f"{record.scores(UNSTEERED, None).mean():.2f}"
        n = str(len(record.scores(PROMPT, "positive")))
        yield _row(record.name, record.instrument.name, n, plain, *(texts.get(way, "") for way in columns))


def _table(
    records: Sequence[Record], cell: Callable[[Record, str], str], unsteered: Callable[[Record], str] | None = None
) -> Iterator[str]:
    columns = _measured(records)
    yield from _head(("concept", *((UNSTEERED,) if unsteered is not None else ()), *columns))
    for record in records:
        ways = set(record.ways)
        first = [unsteered(record)] if unsteered is not None else []
        yield _row(record.name, *first, *(cell(record, way) if way in ways else "" for way in columns))


def _measured(records: Sequence[Record]) -> list[str]:
    """The ways that any concept was measured by."""
    return [way for way in WAYS if any(way in record.ways for record in records)]


def _poles(value: Callable[[Record, str, Pole], float], times: float = 1, form: str = ".2f") -> Callable[[Record, str], str]:
    def cell(record: Record, way: str) -> str:
        return " / ".join(format(times * value(record, way, pole), form) for pole in POLES)

    return cell


def _effect(record: Record, way: str) -> str:
    effect, prompted = record.effect(way), record.effect(PROMPT)
    if way == PROMPT or prompted.mean <= 0:
        return f"({_text(effect)})"
    low, mean, high = (value / prompted.mean for value in (effect.low, effect.mean, effect.high))
    return _text(Interval(mean, low, high))


def _cost(record: Record, way: str) -> str:
    # What a prompt makes a model say is what the cost in the voice of a pole is measured from.
    return "" if way == PROMPT else _poles(Record.cost)(record, way)


def _off_topic(record: Record, way: str, pole: Pole) -> float:
    unsteered = record.relevance(UNSTEERED, None)
    return 1 - record.relevance(way, pole) / unsteered if unsteered > 0 else float("nan")


def _unsteered(share: Callable[[Record, str, Pole | None], float], record: Record) -> str:
    return f"{100 * share(record, UNSTEERED, None):.0f}"


def _doses(record: Record, way: str) -> str:
    doses = [record.dose(way, pole) for pole in POLES]
    return " / ".join("-" if dose is None else f"{dose:.2f}" for dose in doses)


def _retention(which: str) -> Iterator[str]:
    records = records_of(which)
    if not records:
        return
    questions, prompted, given = (next(iter(records.values()))[key] for key in ("questions", "prompted", "given"))
    yield from (
        "## Retention",
        "",
        f"By how much the log probability of the right letter among the four falls, in nats ({questions} multiple-choice "
        "questions, the worked examples of MMLU that the lm-eval package ships; less than 0 is a gain), at strength 1 and -1 of "
        f"the fresh vector and under the system prompt ({prompted} of them); and per cent of {given} instructions that are "
        "followed, of those whose answers a program checks (`bench/instructions.yaml`; each side has its own, the unsteered "
        "model the same).",
        "",
        *_head(("concept", "toward", "loss", "loss, system prompt", "followed", "unsteered", "system prompt")),
    )
    keys = ("followed", "followed unsteered", "followed under the prompt")
    sides = [(name, pole, side) for name, one in records.items() for pole, side in one["sides"].items()]
    for name, pole, side in sides:
        followed = (f"{100 * side[key]:.0f}" for key in keys)
        yield _row(name, pole, f"{side['loss']:+.3f}", f"{side['prompt loss']:+.3f}", *followed)
    means = [float(np.mean([side[key] for _, _, side in sides])) for key in ("loss", "prompt loss", *keys)]
    yield _row("mean", "", *(f"{value:+.3f}" for value in means[:2]), *(f"{100 * value:.0f}" for value in means[2:]))
    yield ""


def _concept(record: Record) -> Iterator[str]:
    instrument = record.instrument
    yield from (
        f"## {record.name}",
        "",
        f"{record.document['description']} Instrument: {instrument.name}: {instrument.unit} ({instrument.source}); questions: "
        f"{instrument.questions}; up to {instrument.max_tokens} tokens.",
        "",
        *_head(("way", *record.document["poles"])),
        _row(UNSTEERED, _score(record, UNSTEERED, None), ""),
        *(_row(way, *(_score(record, way, pole) for pole in POLES)) for way in record.ways),
        "",
        "<details><summary>Sample answers</summary>",
        "",
    )
    for way, error in record.failed.items():
        yield from (f"{way}: {error}", "")
    for number, question in enumerate(record.questions[:_QUOTED]):
        yield from (f"**{question}**", "", f"- {UNSTEERED}: {_quoted(record.texts(UNSTEERED, None)[number])}")
        for way in record.ways:
            for pole, name in zip(POLES, record.document["poles"], strict=True):
                yield f"- {way}, {name}: {_quoted(record.texts(way, pole)[number])}"
        yield ""
    yield from ("</details>", "")


def _score(record: Record, way: str, pole: Pole | None) -> str:
    scores = record.scores(way, pole)
    return f"{scores.mean():.2f} ± {scores.std() / math.sqrt(len(scores)):.2f}"


def _machines(records: Sequence[Record]) -> Iterator[str]:
    found: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for way, by in record.machines():
            found.setdefault(by, {}).setdefault(record.name, set()).add(way)
    for by, concepts in found.items():
        every = len({way for ways in concepts.values() for way in ways})
        said = [name if len(ways) == every else f"{name} ({', '.join(sorted(ways))})" for name, ways in concepts.items()]
        yield f"- {by}: {', '.join(said)}"


# ---- the library


def _library(records: Sequence[Record]) -> Iterator[str]:
    yield from (
        "# The concept library",
        "",
        "Written by `make quality`; edits are lost. Use any of them by name on any model: "
        '`localsteer chat -m MODEL -s "0.7 concise"`. The vector is built and dosed at first use and kept; for the demo model a '
        "calibrated one lies here.",
        "",
        "The figures are of the demo model, on questions that nothing was fitted on: the *swing* of an independent instrument "
        "from strength -1 to 1, alone and with `--anchored`, beside that from one system prompt to the other. More, and for "
        "larger models: [bench/QUALITY.md](../bench/QUALITY.md).",
        "",
        *_head(("name", "+", "-", "instrument", "swing", ANCHORED, "system prompts", "cost at +1 / -1", "")),
    )
    yield from _rows_of_library(records)
    yield from ("", *_of_anchored(records))


def _of_anchored(records: Sequence[Record]) -> Iterator[str]:
    """What anchoring does by the calibrations that the shipped vectors carry."""
    effects, doses, rising = [], [], []
    files = [file for record in records for file in (shipped_folder() / record.name).glob("*.gguf")]
    for calibration in (read_vector(file).provenance.calibration for file in files):
        if calibration is None or "anchored" not in calibration.modes:
            continue
        for pole in POLES:
            anchored, plain = (calibration.sides[pole, mode] for mode in ("anchored", "response"))
            if anchored.dose is None or anchored.effect is None or plain.dose is None or plain.effect is None:
                continue
            rising.append(anchored.curve[-1].effect.mean >= _RISEN * anchored.curve[0].effect.mean)
            if plain.shown and plain.effect > _FELT:
                effects.append(anchored.effect / plain.effect)
                doses.append(anchored.dose / plain.dose)
    if effects:
        yield (
            f"Of the {len(effects)} sides that show an effect of more than {_FELT:g}, anchored answers have "
            f"{np.median(effects):.2f} times the effect of others at {np.median(doses):.2f} times the dose (medians; more than "
            f"theirs for {sum(effect > 1 for effect in effects)}). From the weakest to the strongest dose measured their effect "
            f"rises by less than a tenth, or falls, for {rising.count(False)} of {len(rising)} sides."
        )


def _rows_of_library(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        ways, swings = set(record.ways), {}
        for way in (CALIBRATED, ANCHORED, PROMPT):
            doubt = "" if way not in ways or way == PROMPT or record.swing(way).low > 0 else " (not shown beyond doubt)"
            swings[way] = f"{_text(record.swing(way))}{doubt}" if way in ways else ""
        costs = _poles(Record.cost)(record, CALIBRATED) if CALIBRATED in ways else ""
        pages = [("report", "REPORT.md"), *([(ANCHORED, "ANCHORED.md")] if ANCHORED in ways else [])]
        links = ", ".join(f"[{name}]({record.name}/{page})" for name, page in pages)
        poles = record.document["poles"]
        cells = (record.name, *poles, record.instrument.unit, swings[CALIBRATED], swings[ANCHORED], swings[PROMPT], costs, links)
        yield _row(*cells)


# ---- text


def _head(headers: Sequence[str]) -> Iterator[str]:
    yield from (_row(*headers), "|" + "---|" * len(headers))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _text(interval: Interval) -> str:
    return f"{interval.mean:+.2f} ({interval.low:.2f}..{interval.high:.2f})"


def _quoted(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
