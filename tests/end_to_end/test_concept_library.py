"""Every shipped name, on a model that answers and on one that only goes on with a text."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from localsteer.building.cache import cache_path
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.library import loader
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.names import concepts, find_concept
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve

# Every vector of the library is built here, for two models.
pytestmark = pytest.mark.models

NAMES = sorted(name for name, concept in concepts().items() if concept.shipped)


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "library-data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "library-cache"))


# A calibrated dose is the strongest one that keeps the text whole: where it does little, as that of french on the demo model, one
# answer may stay as it was.
QUESTIONS = ("How was your day?", "What is a good breakfast?", "Tell me about the sea.")


def answers(model: Model, expression: str) -> list[str]:
    plan = resolve(parse_steering(expression), model.fingerprint, loader(model))
    prompts = [prompt_tokens(model, [Message("user", question)]) for question in QUESTIONS]
    found = generate_many(model, [Request(prompt, plan, Sampling(temperature=0, seed=0), 24) for prompt in prompts])
    return [answer.text for answer in found]


@pytest.fixture(scope="module")
def unsteered(demo: Model, gemma: Model) -> dict[str, list[str]]:
    return {"demo": answers(demo, ""), "gemma": answers(gemma, "")}


@pytest.mark.parametrize("kind", ["demo", "gemma"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_steers_any_model(name: str, kind: str, unsteered: dict[str, list[str]], request: pytest.FixtureRequest) -> None:
    steered = answers(request.getfixturevalue(kind), f"1 {name}")
    assert all(text.strip() for text in steered)
    assert steered != unsteered[kind]


HALVED = [name for name in NAMES if "crossing: half" in find_concept(name).source()]


@pytest.mark.parametrize("name", HALVED)
def test_half_a_crossing_reads_almost_the_same_direction(name: str, demo: Model) -> None:
    source = find_concept(name).source()
    vector = extract(demo, parse_concept(source, name), ExtractionSettings(dose=False))
    half = vector.provenance.estimate
    full = extract(
        demo, parse_concept(source.replace("crossing: half", "crossing: full"), name), ExtractionSettings(dose=False)
    ).provenance.estimate
    assert half is not None
    assert full is not None
    steered = list(vector.layers)
    cosines = (half * full).sum(axis=1)[steered] / (np.linalg.norm(half, axis=1) * np.linalg.norm(full, axis=1))[steered]
    print(
        f"{name}: cosine {np.median(cosines):.4f} (median), {cosines.min():.4f} (least), of the layers that a fresh vector steers"
    )
    # bullets: 0.9984, concise: 0.9992. The personas of honest differ little, and fewer pairs tell less: 0.928.
    assert cosines.min() > (0.9 if name == "honest" else 0.99)


def test_the_second_use_builds_nothing(gemma: Model, caplog: pytest.LogCaptureFixture) -> None:
    steps: list[str] = []
    load = loader(gemma, lambda what, _done, _total: steps.append(what))
    load("polite")
    steps.clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load("polite")
    assert not steps
    assert not caplog.records


def test_a_vector_that_was_cut_short_is_built_again(gemma: Model) -> None:
    load = loader(gemma)
    whole = load("polite")
    file = cache_path("polite", find_concept("polite").source(), gemma.fingerprint.content)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert load("polite").layers == whole.layers
    assert file.read_bytes() == data
