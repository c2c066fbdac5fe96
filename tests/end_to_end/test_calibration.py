"""A calibration of the real model: it comes to its end, and its dose holds on questions that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from bench.questions import question_sets
from localsteer.calibration import calibrate
from localsteer.calibration.calibrate import CalibrationSettings, Calibrator
from localsteer.calibration.effort import Effort
from localsteer.concepts.concept_file import load_concept
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.scoring import Scored, answer_nll
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import POLES
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector, write_vector
from tests.end_to_end.conftest import HAPPY, document

CONCEPT = load_concept(HAPPY)
QUICK = CalibrationSettings(quick=True)
# Enough to be run, too little to be measured with: a tenth of the tokens of QUICK, on four questions.
SHORT = Effort(max_tokens=8, unsteered=4, persona=2, curve=1, prompt=1, anchored=1)


@pytest.mark.models
def test_a_calibration_finds_a_dose_for_either_pole(
    demo: Model, happy: ControlVector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calibrate, "QUICK", SHORT)
    concept = replace(CONCEPT, held_out=CONCEPT.held_out[:4])
    # So few answers may show no effect: the dose is the one that spends the budget, as for a concept that has no instrument.
    made = Calibrator(demo, happy, concept, CalibrationSettings(quick=True, by_cost=True, budget=0.5)).run()
    write_vector(made.vector, tmp_path / "happy.gguf")
    found = read_vector(tmp_path / "happy.gguf").provenance.calibration
    assert found is not None
    assert found.to_json() == made.calibration.to_json()
    for pole in POLES:
        dose = found.sides[pole, "response"].dose
        assert dose is not None
        assert 0 < dose < 3.2


@dataclass(frozen=True)
class Outcome:
    vader: float
    nll: float


def measure(model: Model, plan: Plan | None = None, systems: Sequence[str] = ()) -> Outcome:
    """30 answers of 36 tokens to 20 questions of which neither the concept nor the calibration knows."""
    requests, bare = [], []
    for number in range(30):
        question = Message("user", question_sets()["everyday"][number % 20])
        system = [Message("system", systems[number % len(systems)])] if systems else []
        prompt = prompt_tokens(model, [*system, question])
        requests.append(Request(prompt, plan, Sampling(seed=9000 + number), max_tokens=36))
        bare.append(prompt_tokens(model, [question]))
    answers = generate_many(model, requests)
    analyzer = SentimentIntensityAnalyzer()
    vader = [analyzer.polarity_scores(answer.text)["compound"] for answer in answers]
    nll = answer_nll(model, [Scored(prompt, answer.tokens) for prompt, answer in zip(bare, answers, strict=True)])
    return Outcome(float(np.mean(vader)), float(np.nanmean(nll)))


@pytest.fixture(scope="module")
def outcomes(demo: Model, happy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    path = tmp_path_factory.mktemp("calibrated") / "happy.gguf"
    document("calibrate", happy_file, "-m", "demo", "--quick", "-o", path)
    vector = read_vector(path)

    def plan(expression: str) -> Plan:
        return resolve(parse_steering(expression), demo.fingerprint, lambda _name: vector)

    happy_personas, sad_personas = zip(*CONCEPT.personas, strict=True)
    return {
        "unsteered": measure(demo),
        "+1": measure(demo, plan("happy")),
        "-1": measure(demo, plan("-happy")),
        "asked to be happy": measure(demo, systems=happy_personas),
        "asked to be sad": measure(demo, systems=sad_personas),
    }


@pytest.mark.models
@pytest.mark.parametrize("strength", ["+1", "-1"])
def test_the_calibrated_dose_holds_on_other_questions(outcomes: dict[str, Outcome], strength: str) -> None:
    # Even the quick one: within twice the budget. Its standard error is about 0.1 nats, that of this measurement 0.04.
    assert outcomes[strength].nll - outcomes["unsteered"].nll < 2 * QUICK.budget


@pytest.mark.models
def test_it_moves_sentiment_at_least_as_far_as_a_system_prompt(outcomes: dict[str, Outcome]) -> None:
    unsteered = outcomes["unsteered"].vader
    # Measured on 40 answers: +0.34 against +0.09, and -0.53 against -0.17; a mean here has a standard error of 0.05 and 0.1.
    assert outcomes["+1"].vader - unsteered >= max(0.0, outcomes["asked to be happy"].vader - unsteered)
    assert outcomes["-1"].vader - unsteered <= min(0.0, outcomes["asked to be sad"].vader - unsteered)
    assert outcomes["+1"].vader - outcomes["-1"].vader >= 0.6
