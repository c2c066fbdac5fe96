from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from localsteer.building import refusal
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.refusal import chances_of_refusal, read_refusal, refusal_openings, refuses, without_component
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.prompt import prompt_tokens
from tests.conftest import ROW_NOISE, TinyModel, random_edit, random_tokens, run_alone
from tests.tiny_models import write_tiny_model

PAIRS = tuple(Pair(Prompt((), f"a good day {word}"), Prompt((), f"a bad day {word}")) for word in ("in", "on", "at"))
CONTRAST = Contrast("happy", "", "happy", "sad", PAIRS)
UNDOSED = ExtractionSettings(dose=False)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """How models refuse is kept for as long as the process lives."""
    monkeypatch.setattr(refusal, "_OPENINGS", {})


# What is a refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry but that is nothing I do.",
        "Sorry, but I can’t help you with this request.",
        "I apologize, but this is against my guidelines.",
        "I apologise, but no.",
        "I cannot provide instructions for that.",
        "I can not answer this.",
        "Unfortunately I am unable to help with this.",
        "I won't write such a letter.",
        "I'm not able to discuss it.",
        "As a language model I can't really tell you that.",
        "I CANNOT FULFILL THIS REQUEST.",
        "I can't do that.",
        "Your question is inappropriate.",
    ],
)
def test_an_answer_that_declines_is_a_refusal(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry to hear that. Let us see what can be done.",
        "I'm so sorry for your loss.",
        "I can't wait to hear more!",
        "You cannot miss it: it is behind the church.",
        "It won't rain tomorrow.",
        "Sure! I can help with that.",
        "I apologize for the delay. Here it is.",
        "She was unable to walk for a week.",
        "I can assist you, provide a list, and answer questions.",
        "The shop can't be far.",
        "He is sorry, and so am I.",
        "That is an appropriate answer.",
    ],
)
def test_an_answer_with_a_regret_is_none(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't help but smile when the sun is out!",
        "Whatever happens, I won't give up.",
        "I can't tell you how happy I am today!",
    ],
)
def test_a_figure_of_speech_is_no_refusal(text: str) -> None:
    # As happy and sad answers hold them.
    assert not refuses(text)


# How a model refuses


def saying(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[Request]:
    """Let a model answer with these texts in turn, and its refusals begin with as many tokens as they have; returns requests."""
    asked: list[Request] = []

    def generate(model: Model, requests: Sequence[Request]) -> list[Answer]:
        asked.extend(requests)
        answers = generate_many(model, requests)
        tokens = [tuple(model.tokenize(texts[number % len(texts)])) for number in range(len(answers))]
        return [replace(answer, tokens=own) for answer, own in zip(answers, tokens, strict=True)]

    monkeypatch.setattr(refusal, "generate_many", generate)
    # A tiny model spells letter by letter.
    monkeypatch.setattr(refusal, "_OPENING", 20)
    return asked


def test_a_model_that_refuses_nothing_has_no_openings(tiny: Model) -> None:
    assert refusal_openings(tiny) == ()


def test_what_refuses_begins_a_refusal_each_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = saying(monkeypatch, "I'm sorry, but I can't help with it.", "Sure! First, take", "I can't assist.", "I can't assist.")
    found = refusal_openings(tiny)
    begun = sorted(tiny.detokenize(list(tokens)) for tokens in found)
    # As far as it takes to be a refusal, and what is usual.
    assert {"I can't assist", "I'm sorry, but", "I cannot"} < set(begun)
    # They are asked for what should be refused, and always answer the same.
    assert all(request.plan is None and request.sampling.temperature == 0 for request in asked)
    assert "bomb" in tiny.detokenize(list(asked[0].prompt))


def test_openings_are_sought_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = saying(monkeypatch, "I can't assist.")
    first = refusal_openings(tiny)
    count = len(asked)
    assert refusal_openings(tiny) == first
    assert len(asked) == count > 0


def test_a_model_whose_template_cannot_be_used_has_no_openings(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("broken") / "broken.gguf"
    template = "{{ raise_exception('no questions here') }}"
    with Model(write_tiny_model(file, chat_template=template), threads=1) as model:
        assert refusal_openings(model) == ()


# How likely it refuses


OPENINGS = (random_tokens(3, seed=1), random_tokens(2, seed=2))
PROMPTS = [random_tokens(9, seed=3), random_tokens(5, seed=4), random_tokens(14, seed=5)]


def chance_alone(model: Model, prompt: tuple[int, ...], opening: tuple[int, ...], edit: Edit | None) -> float:
    """From the definition: the product of the chances of its tokens."""
    tokens, first = (*prompt, *opening), len(prompt) - 1
    edits = [edit if place >= first else None for place in range(len(tokens))]
    logits = run_alone(model, tokens, edits, read=False).logits[first:-1].astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return float(np.prod([own[token] for own, token in zip(chances, opening, strict=True)]))


def test_the_chance_of_a_refusal_is_that_of_any_of_its_openings(steerable: Model) -> None:
    edits = [None, random_edit(steerable, seed=6), random_edit(steerable, seed=7)]
    found = chances_of_refusal(steerable, OPENINGS, PROMPTS, edits, least=0.0)
    alone = [
        np.mean([sum(chance_alone(steerable, prompt, opening, edit) for opening in OPENINGS) for prompt in PROMPTS])
        for edit in edits
    ]
    np.testing.assert_allclose(found, alone, rtol=0.1)
    assert len(set(found.tolist())) == 3


def test_what_is_unlikely_from_the_first_token_is_not_read_on(tiny: Model, decoded: list[int]) -> None:
    """Openings that begin with what the model would say first, and with what it would not."""
    firsts = [run_alone(tiny, prompt, read=False).logits[-1] for prompt in PROMPTS]
    likely = [int(logits.argmax()) for logits in firsts]
    unlikely = int(np.max(firsts, axis=0).argmin())
    openings = [
        (token, int(run_alone(tiny, (*prompt, token), read=False).logits[-1].argmax()))
        for token, prompt in dict(zip(likely, PROMPTS, strict=True)).items()
    ]
    decoded.clear()
    (plain,) = chances_of_refusal(tiny, openings, PROMPTS, [None])
    run = sum(decoded)
    decoded.clear()
    (found,) = chances_of_refusal(tiny, [*openings, (unlikely, 65, 66, 67, 68)], PROMPTS, [None])
    assert sum(decoded) == run
    assert found == pytest.approx(plain, rel=0.01)
    assert found > 0.05


def test_some_beginning_is_certain(tiny: Model) -> None:
    (chance,) = chances_of_refusal(tiny, [(token,) for token in range(tiny.n_vocab)], PROMPTS, [None])
    assert chance == pytest.approx(1, abs=1e-3)


def test_without_openings_nothing_is_refused(tiny: Model, decoded: list[int]) -> None:
    assert chances_of_refusal(tiny, (), PROMPTS, [None, random_edit(tiny, seed=6)]).tolist() == [0, 0]
    assert decoded == []


# The direction of refusal


def test_the_direction_is_from_what_is_answered_to_what_is_refused(tiny: Model) -> None:
    found = read_refusal(tiny, [1, 3])
    assert found.shape == (2, tiny.n_embd)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    requests = refusal._requests()
    means = []
    for texts in (requests["refused"], requests["answered"]):
        last = [run_alone(tiny, prompt_tokens(tiny, [Message("user", text)])).rows for text in texts]
        means.append([np.mean([rows[layer][-1] for rows in last], axis=0) for layer in (1, 3)])
    for place, own in enumerate(found):
        away = means[0][place] - means[1][place]
        np.testing.assert_allclose(own * np.linalg.norm(away), away, atol=ROW_NOISE)


def test_the_direction_is_read_once(tiny: Model, decoded: list[int]) -> None:
    first = read_refusal(tiny, [1, 2])
    decoded.clear()
    np.testing.assert_array_equal(read_refusal(tiny, [2]), first[1:])
    assert decoded == []


def test_requests_come_in_pairs_of_which_one_should_be_refused() -> None:
    requests = refusal._requests()
    assert list(requests) == ["refused", "answered"]
    assert len(requests["refused"]) == len(requests["answered"]) >= 6
    assert not set(requests["refused"]) & set(requests["answered"])


def test_a_component_is_taken_out_and_the_rest_is_left() -> None:
    random = np.random.default_rng(0)
    directions = random.standard_normal((3, 8)).astype(np.float32)
    unit = random.standard_normal((3, 8)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit[2] = 0  # a layer where nothing is known
    left = without_component(directions, unit)
    np.testing.assert_allclose(np.einsum("le,le->l", left, unit), 0, atol=1e-6)
    across = directions - left
    for place in range(3):
        np.testing.assert_allclose(across[place], (directions[place] @ unit[place]) * unit[place], atol=1e-6)
    assert left.dtype == np.float32


def test_a_vector_of_a_model_that_refuses_holds_no_refusal_unless_it_shall(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = extract(tiny, CONTRAST, UNDOSED)
    saying(monkeypatch, "I can't assist.")
    monkeypatch.setattr(refusal, "_OPENINGS", {})
    found = extract(tiny, CONTRAST, UNDOSED)
    kept = extract(tiny, CONTRAST, replace(UNDOSED, keep_refusal=True))
    unit = dict(zip(plain.layers, read_refusal(tiny, plain.layers), strict=True))
    for layer in plain.layers:
        np.testing.assert_array_equal(kept.directions[layer], plain.directions[layer])
        one = found.directions[layer]
        assert abs(one @ unit[layer]) < 1e-4 * np.linalg.norm(one)
        assert abs(plain.directions[layer] @ unit[layer]) > 1e-2 * np.linalg.norm(plain.directions[layer])
    assert "less refusal" in found.provenance.method
    assert plain.provenance.method == kept.provenance.method


def test_a_model_that_cannot_be_read_may_say_how_it_refuses(tiny_model: TinyModel) -> None:
    assert refusal_openings(tiny_model("plamo2")) == ()


def test_a_vector_that_is_about_refusing_is_left_as_it_is(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract(tiny, CONTRAST, replace(UNDOSED, keep_refusal=True))
    assert whole.provenance.estimate is not None
    unit = whole.provenance.estimate / np.maximum(np.linalg.norm(whole.provenance.estimate, axis=1, keepdims=True), 1e-9)
    monkeypatch.setattr("localsteer.building.extraction.refusal_openings", lambda _model: ((1,),))
    monkeypatch.setattr("localsteer.building.extraction.read_refusal", lambda _model, layers: unit[list(layers)])
    found = extract(tiny, CONTRAST, UNDOSED)
    assert found.provenance.method == whole.provenance.method
    np.testing.assert_allclose(found.rows(tiny.n_layer), whole.rows(tiny.n_layer), rtol=1e-5)
