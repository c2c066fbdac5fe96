"""A calibration of the real model: the dose holds on questions that it has not seen, and reaches further than a prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from bench.concepts import FRESH_QUESTIONS
from localsteer.calibration.calibrate import Calibrated, CalibrationSettings, Calibrator
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
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector, write_vector
from tests.end_to_end.conftest import HAPPY
from tests.end_to_end.test_commands import cli

CONCEPT = load_concept(HAPPY)
QUICK = CalibrationSettings(quick=True)


@dataclass(frozen=True)
class Outcome:
    vader: float
    nll: float


def measure(model: Model, plan: Plan | None = None, systems: Sequence[str] = ()) -> Outcome:
    """30 answers of 36 tokens to 20 questions of which neither the concept nor the calibration knows."""
    requests, bare = [], []
    for number in range(30):
        question = Message("user", FRESH_QUESTIONS[number % 20])
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
def calibrated(demo: Model, happy: ControlVector) -> Calibrated:
    return Calibrator(demo, happy, CONCEPT, QUICK).run()


@pytest.fixture(scope="module")
def outcomes(demo: Model, calibrated: Calibrated, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    path = tmp_path_factory.mktemp("calibrated") / "happy.gguf"
    write_vector(calibrated.vector, path)
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


@pytest.mark.parametrize("strength", ["+1", "-1"])
def test_the_calibrated_dose_holds_on_other_questions(outcomes: dict[str, Outcome], strength: str) -> None:
    # Even the quick one: within twice the budget. Its standard error is about 0.1 nats, that of this measurement 0.04.
    assert outcomes[strength].nll - outcomes["unsteered"].nll < 2 * QUICK.budget


def test_it_moves_sentiment_at_least_as_far_as_a_system_prompt(outcomes: dict[str, Outcome]) -> None:
    unsteered = outcomes["unsteered"].vader
    # Measured on 40 answers: +0.34 against +0.09, and -0.53 against -0.17; a mean here has a standard error of 0.05 and 0.1.
    assert outcomes["+1"].vader - unsteered >= max(0.0, outcomes["asked to be happy"].vader - unsteered)
    assert outcomes["-1"].vader - unsteered <= min(0.0, outcomes["asked to be sad"].vader - unsteered)
    assert outcomes["+1"].vader - outcomes["-1"].vader >= 0.6


def test_the_command_makes_the_same_choice_with_the_same_seed(
    calibrated: Calibrated, happy_file: Path, demo_path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "calibrated.gguf"
    answer = cli("calibrate", happy_file, "-m", demo_path, "--quick", "--json", "-o", target)
    found = json.loads(answer.stdout)
    assert found["sides"] == json.loads(calibrated.calibration.to_json())["sides"]
    assert "2,964 tokens" in answer.stderr
    assert read_vector(target).provenance.calibration is not None
