"""Every shipped name, on a model that answers and on one that only goes on with a text."""

from __future__ import annotations

import logging

import pytest

from localsteer.generation import Generator, Request, prompt_tokens
from localsteer.library import concepts, find_concept, loader
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.steering import parse_steering, resolve
from localsteer.vector_cache import cache_path

NAMES = sorted(name for name, concept in concepts().items() if concept.shipped)


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "library-data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "library-cache"))


def answer(model: Model, expression: str) -> str:
    plan = resolve(parse_steering(expression), model.fingerprint, loader(model))
    prompt = prompt_tokens(model, [Message("user", "How was your day?")])
    with Generator(model) as generator:
        return generator.generate(Request(prompt, plan, Sampling(temperature=0), 16)).text


@pytest.fixture(scope="module")
def unsteered(demo: Model, gemma: Model) -> dict[str, str]:
    return {"demo": answer(demo, ""), "gemma": answer(gemma, "")}


@pytest.mark.parametrize("kind", ["demo", "gemma"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_steers_any_model(name: str, kind: str, unsteered: dict[str, str], request: pytest.FixtureRequest) -> None:
    steered = answer(request.getfixturevalue(kind), f"1 {name}")
    assert steered.strip()
    assert steered != unsteered[kind]


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
