"""What is measured through the Python API, in a process of its own: prints one JSON document.

Run by `bench.sections`, as `python -m bench.worker decode MODEL VECTOR ...`, likewise `anchored` and `policy`, or
`... tap MODEL ...`, `... dosing MODEL --concept NAME ...` or `... calibration MODEL --concept NAME ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.concepts import concept_texts
from localsteer.building.dosing import dose
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.calibration.calibrate import CalibrationSettings, Calibrator
from localsteer.concepts.concept_file import parse_concept
from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.llama.sampling import Sampling
from localsteer.policy.classifier import Classifier
from localsteer.policy.condition import parse_condition
from localsteer.policy.controller import Controller
from localsteer.policy.pattern_classifier import RuleClassifier, Search
from localsteer.policy.policy import Policy, Rule
from localsteer.policy.probe_classifier import ProbeClassifier, projection
from localsteer.steering.expression import Steering, Term
from localsteer.steering.plan import resolve
from localsteer.vector.calibration import POLES
from localsteer.vector.file import read_vector

# Continued greedily, this goes on far beyond what is measured, steered or not.
ENDLESS_PROMPT = "A list of all the whole numbers, in order: 1, 2, 3, 4, 5, 6, 7, 8, 9,"
DECODES_PER_TIMING = 32


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.worker")
    parser.add_argument("what", choices=["decode", "anchored", "policy", "tap", "dosing", "calibration"])
    parser.add_argument("model", type=Path)
    parser.add_argument("vector", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--concept")
    options = parser.parse_args()
    with Model(options.model, threads=options.threads) as model:
        if options.what == "decode":
            answer: object = _decode(model, options.vector, options.tokens, options.repeats)
        elif options.what == "anchored":
            answer = _anchored(model, options.vector, options.tokens, options.repeats)
        elif options.what == "policy":
            answer = _policy(model, options.vector, options.tokens, options.repeats)
        elif options.what == "tap":
            answer = _tap(model, options.tokens, options.repeats)
        elif options.what == "dosing":
            answer = _dosing(model, options.concept, options.repeats)
        else:
            answer = _calibration(model, options.concept, options.repeats)
    print(json.dumps(answer))
    return 0


def _decode(model: Model, vector: Path, n_tokens: int, repeats: int) -> dict[str, list[float]]:
    """Tokens a second, steered, unsteered and steered with default sampling in turns, after one of each that is not counted."""
    plan = resolve(Steering((Term(str(vector)),)), model.fingerprint, read_vector)
    prompt = tuple(model.tokenize(ENDLESS_PROMPT))
    greedy = Request(prompt, plan, Sampling(temperature=0.0, seed=0), n_tokens)
    ways = {"steered": greedy, "unsteered": replace(greedy, plan=None), "sampled": replace(greedy, sampling=Sampling(seed=0))}
    return _speeds(model, ways, repeats)


def _anchored(model: Model, vector: Path, n_tokens: int, repeats: int) -> dict[str, list[float]]:
    """Tokens a second, steered with default sampling, anchored and not, in turns, after one of each that is not counted."""
    plan = resolve(Steering((Term(str(vector)),)), model.fingerprint, read_vector)
    free = Request(tuple(model.tokenize(ENDLESS_PROMPT)), plan, Sampling(seed=0), n_tokens)
    return _speeds(
        model, {"free": free, "anchored": replace(free, plan=replace(plan, mode="anchored"), mode="anchored")}, repeats
    )


def _speeds(model: Model, ways: Mapping[str, Request], repeats: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    with Generator(model) as generator:
        for _ in range(repeats + 1):
            for name, request in ways.items():
                answer = generator.generate(request, on_text=lambda _text: None)
                # The first token needs no decode of its own, so there is one less than tokens. A sampled answer may end early.
                if len(answer.tokens) < request.max_tokens // 4:
                    raise RuntimeError(f"the {name} answer ended after {len(answer.tokens)} tokens")
                speeds[name].append((len(answer.tokens) - 1) / answer.timing.answer_seconds)
    return {name: values[1:] for name, values in speeds.items()}


def _policy(model: Model, vector: Path, n_tokens: int, repeats: int) -> dict[str, list[float]]:
    """Tokens a second under policies that do not fire and under none, in turns, after one of each that is not counted."""
    plan = resolve(Steering((Term(str(vector)),)), model.fingerprint, read_vector)
    words = ("password", "secret", "confidential", "credentials", "passphrase", "account number", "private key", "token")
    searches = (*Search.for_words(words), Search.for_pattern(r"(?i)api[_ -]?key"), Search.for_pattern(r"\b\d{3}-\d{2}-\d{4}\b"))
    probe = ProbeClassifier(
        name="probe",
        watch="output",
        threshold=math.inf,
        release=math.inf,
        layer=model.n_layer // 2,
        weights=projection(np.random.default_rng(0).standard_normal(model.n_embd)),
        bias=0.0,
        window=16,
    )
    ways: dict[str, Classifier | None] = {
        "none": None,
        "rules": RuleClassifier(name="rules", watch="output", searches=searches),
        "prompt probe": replace(probe, watch="prompt"),
        "output probe": probe,
    }
    controllers = {
        name: Controller(Policy({one.name: one}, (Rule("rule", parse_condition(one.name), plan),)))
        for name, one in ways.items()
        if one is not None
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    prompt = tuple(model.tokenize(ENDLESS_PROMPT))
    request = Request(prompt, sampling=Sampling(temperature=0.0, seed=0), max_tokens=n_tokens)
    with contextlib.ExitStack() as stack:
        # Each has its own: a context that was once given a tap keeps it.
        generators = {name: stack.enter_context(Generator(model)) for name in ways}
        for _ in range(repeats + 1):
            for name, generator in generators.items():
                gate = controllers[name].answer(ENDLESS_PROMPT) if name in controllers else None
                answer = generator.generate(request, gate=gate, on_text=lambda _text: None)
                if len(answer.tokens) < n_tokens or (gate is not None and any(one.action != "pass" for one in gate.decisions)):
                    raise RuntimeError(f"the answer under {name} ended early, or the policy fired")
                speeds[name].append((len(answer.tokens) - 1) / answer.timing.answer_seconds)
    return {name: values[1:] for name, values in speeds.items()}


def _tap(model: Model, n_tokens: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of a prefill and of a decoded token, reading and not reading, in turns, after an uncounted round."""
    tap = ResidualTap(model.n_layer, model.n_embd)
    n_ctx = n_tokens + DECODES_PER_TIMING
    times: dict[str, dict[str, list[float]]] = {kind: {"read": [], "plain": []} for kind in ("prefill", "decode")}
    with Context(model, n_ctx=n_ctx) as plain, Context(model, n_ctx=n_ctx, tap=tap) as tapped:
        for _ in range(repeats + 1):
            for side, context in {"read": tapped, "plain": plain}.items():
                context.clear()
                tap.watch(range(model.n_layer))
                times["prefill"][side].append(_milliseconds(partial(_prefill, context, n_tokens)))
                tap.watch([model.n_layer // 2])
                total = _milliseconds(partial(_decode_tokens, context, n_tokens))
                times["decode"][side].append(total / DECODES_PER_TIMING)
    return {kind: {side: values[1:] for side, values in sides.items()} for kind, sides in times.items()}


def _prefill(context: Context, n_tokens: int) -> None:
    tokens = _some_tokens(context.model, n_tokens)
    for part in Batch.of_one_sequence(tokens, start=0).split(context.n_ubatch):
        context.decode(part)
        _wait(context, part)


def _decode_tokens(context: Context, start: int) -> None:
    for offset, token in enumerate(_some_tokens(context.model, DECODES_PER_TIMING)):
        batch = Batch.of_one_sequence([token], start=start + offset)
        context.decode(batch)
        _wait(context, batch)


def _wait(context: Context, batch: Batch) -> None:
    """Ask for the logits, if there are any: that waits until the computation is over, wherever it runs."""
    if batch.outputs[-1]:
        context.logits(len(batch) - 1)


def _some_tokens(model: Model, count: int) -> Sequence[int]:
    tokens = model.tokenize(ENDLESS_PROMPT)
    return (tokens * (count // len(tokens) + 1))[:count]


def _milliseconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def _dosing(model: Model, name: str, repeats: int) -> dict[str, list[float]]:
    """Seconds for the personas' answers and for the dosing after them, and the doses; another seed each time."""
    contrast = parse_concept(concept_texts()[name], name)
    vector = extract(model, contrast, ExtractionSettings(dose=False))
    found: dict[str, list[float]] = {"personas": [], "dosing": [], "positive": [], "negative": []}
    for seed in range(repeats):
        start = time.perf_counter()
        answered = [start]

        def tell(what: str, done: int, total: int, answered: list[float] = answered) -> None:
            if what == "dosing" and done == 0:
                answered.append(time.perf_counter())

        dosing = dose(model, vector, contrast, seed=seed, progress=tell).provenance.dosing
        assert dosing is not None
        found["personas"].append(answered[-1] - start)
        found["dosing"].append(time.perf_counter() - answered[-1])
        for pole in POLES:
            found[pole].append(dosing.sides[pole].dose["response"])
    return found


def _calibration(model: Model, name: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of a calibration after a dosing, the doses, and the relative width of the effect's interval; a seed each time."""
    contrast = parse_concept(concept_texts()[name], name)
    vector = extract(model, contrast, ExtractionSettings(dose=False))
    found: dict[str, list[float]] = {"dosing": [], "seconds": [], "positive": [], "negative": [], "width": []}
    for seed in range(repeats):
        calibrator = Calibrator(model, vector, contrast, CalibrationSettings(seed=seed, by_cost=True))
        start = time.perf_counter()
        _ = calibrator.dosed
        dosed = time.perf_counter()
        calibration = calibrator.run().calibration
        found["dosing"].append(dosed - start)
        found["seconds"].append(time.perf_counter() - dosed)
        for pole in POLES:
            side = calibration.sides[pole, "response"]
            found[pole].append(side.dose or math.nan)
            if side.between is not None and side.effect:
                found["width"].append((side.between[1] - side.between[0]) / side.effect)
    return found


if __name__ == "__main__":
    sys.exit(main())
