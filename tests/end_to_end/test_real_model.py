"""What a person with a model of a usual size sees, without calibrating anything: LOCALSTEER_REAL_MODEL names the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from bench.instruments import INSTRUMENTS
from bench.models import real_model
from bench.quality.asking import ask
from bench.questions import question_sets
from localsteer.building.extraction import extract
from localsteer.building.refusal import refuses
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import shipped_folder
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(real_model() is None, reason="LOCALSTEER_REAL_MODEL names no model"),
]


@pytest.fixture(scope="module")
def real() -> Iterator[Model]:
    path = real_model()
    assert path is not None
    with Model(path) as model:
        yield model


def test_strength_one_of_french_is_french(real: Model) -> None:
    contrast = load_concept(shipped_folder() / "french" / "concept.yaml")
    vector = extract(real, contrast)
    plan = resolve(parse_steering("french"), real.fingerprint, lambda _name: vector)
    instrument = INSTRUMENTS["french"]
    questions = question_sets()[instrument.questions]
    answers = ask(real, contrast, questions, count=20, max_tokens=instrument.max_tokens, plan=plan)
    # A probability in percent. 18 and 19 of 20 as measured.
    assert sum(instrument.score(text, question) > 90 for text, question in zip(answers.texts, questions, strict=True)) >= 16


def test_sad_is_sad_and_does_not_refuse(real: Model) -> None:
    contrast = load_concept(shipped_folder() / "happy" / "concept.yaml")
    vector = extract(real, contrast)
    plan = resolve(parse_steering("-happy"), real.fingerprint, lambda _name: vector)
    questions = question_sets()["everyday"]
    plain, sad = (ask(real, contrast, questions, count=20, max_tokens=36, plan=one) for one in (None, plan))
    assert sum(map(refuses, sad.texts)) <= sum(map(refuses, plain.texts)) + 1
    analyzer = SentimentIntensityAnalyzer()
    before, after = (np.mean([analyzer.polarity_scores(text)["compound"] for text in one.texts]) for one in (plain, sad))
    assert after < before - 0.2
