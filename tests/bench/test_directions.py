"""Ways to build a direction: what each of them is, on a random model; and how the page compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import directions, methods_page
from bench.directions import DIRECTIONS, Direction
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.layers import readable_layers
from localsteer.building.refusal import read_refusal
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.activations import read_activations
from localsteer.reading.listening import Heard
from localsteer.reading.prompt import answer_prompt
from localsteer.reading.span import Span
from localsteer.vector.control_vector import ControlVector, Floats

QUESTIONS = ("Who are you?", "Where is it?", "What is new?", "How far is it?")
OPENING = "It is one o'clock"


def contrast_of(pairs: tuple[Pair, ...]) -> Contrast:
    return Contrast("c", "", "p", "n", pairs)


def prompt(persona: str, question: str, opening: str) -> Prompt:
    return Prompt((Message("system", persona), Message("user", question)), opening)


PAIRS = tuple(
    Pair(prompt("Be glad.", question, opening), prompt("Be grim.", question, opening))
    for opening in (OPENING, "I say")
    for question in QUESTIONS
)
CONTRAST = contrast_of(PAIRS)


def plain(model: Model, contrast: Contrast = CONTRAST) -> ControlVector:
    settings = ExtractionSettings(position="last", layers=(1, model.n_layer - 1), dose=False, keep_refusal=True)
    return extract(model, contrast, settings)


def built(way: str, model: Model) -> Direction:
    return DIRECTIONS[way](model, CONTRAST, plain(model))


def of_half(model: Model, kept: list[int]) -> Floats:
    return directions.estimate_of(plain(model, contrast_of(tuple(PAIRS[place] for place in kept))))


def test_moved_by_all_deltas_the_one_pole_comes_where_the_other_is(tiny: Model) -> None:
    found = built("sequential deltas", tiny)
    layers = list(plain(tiny).layers)
    # As they are shared out, the deltas have kept their lengths beside each other.
    rows = directions.at_relative_dose_1(found, plain(tiny))
    times = [np.linalg.norm(rows[layer]) / np.linalg.norm(found[0][layer]) for layer in layers]
    np.testing.assert_allclose(times, times[0], rtol=1e-4)

    def mean(prompts: list[Prompt], edit: Edit | None = None) -> Floats:
        spans = []
        for one in prompts:
            tokens = tuple(tiny.tokenize(one.render(tiny)))
            # What stands before the opening, as a chat template begins an answer, is not moved, but for its last token.
            opening = len(tiny.tokenize(one.opening, add_special=False))
            spans.append(Span(tokens, edit=edit, edited_from=len(tokens) - opening - 1))
        found: Floats = read_activations(tiny, spans, layers).values.mean(axis=0)
        return found

    negative = [pair.negative for pair in PAIRS]
    wanted, before = mean([pair.positive for pair in PAIRS]), mean(negative)
    # What is read of a layer is what its block gives, before that is moved itself.
    left = np.linalg.norm(mean(negative, Edit(found[0])) + found[0][layers] - wanted, axis=1)
    assert (left < 0.1 * np.linalg.norm(before - wanted, axis=1)).all()


def test_pairs_are_chosen_by_what_their_personas_answer(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By how much less likely each answer is under the other persona: one pole alone would choose other questions."""
    less_likely = np.array([[3.0, 1.0, 2.0, np.nan], [-9.0, 0.5, 1.0, 1.0]])

    def entropies(model: Model, heard: list[Heard]) -> NDArray[np.float64]:
        own, others = heard[:8], heard[8:]
        asked = [answer_prompt(model, getattr(PAIRS[at], pole).messages) for pole in ("positive", "negative") for at in range(4)]
        assert [one.prompt for one in own] == asked
        assert [one.prompt for one in others] == [*asked[4:], *asked[:4]]
        assert all(one.said is other.said for one, other in zip(own, others, strict=True))
        likely = np.full(8, 2.0)
        return np.concatenate([likely, likely + less_likely.ravel()])

    monkeypatch.setattr(directions, "cross_entropies", entropies)
    found, shares = built("the half of the pairs whose answers show it most", tiny)
    assert shares is None
    # The first question loses by its negative answer; the last one, of which one answer is empty, shows nothing.
    np.testing.assert_allclose(found, of_half(tiny, [1, 2, 5, 6]), rtol=1e-3, atol=1e-3)


def test_pairs_are_chosen_by_how_they_lie_beside_the_others(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their lengths, and whatever lies in layers that are not steered."""
    layers = readable_layers(tiny.n_layer)
    shape = (len(PAIRS), len(layers), tiny.n_embd)
    positive, negative = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    positive[:, :, 0] = 1
    odd = [1, 3, 4, 6]
    positive[odd, :, 1] = np.array([50, -50, 50, -50])[:, None]
    monkeypatch.setattr(directions, "_read", lambda *_: (positive, negative))
    found, _ = built("the half of the pairs that shows it most", tiny)
    np.testing.assert_allclose(found[list(layers)], np.eye(tiny.n_embd)[[0] * len(layers)])


def test_what_is_taken_out_of_a_direction_is_gone(tiny: Model) -> None:
    layers = list(plain(tiny).layers)
    refusal = read_refusal(tiny, layers)
    spared = built("less refusal", tiny)[0][layers]
    without = built("less 10 principal components of neutral text", tiny)[0][layers]
    before = directions.estimate_of(plain(tiny))[layers]
    for place, layer in enumerate(layers):
        top = np.linalg.eigh(directions._covariance(tiny)[layer])[1][:, -10:]
        for taken, rest in ((refusal[place][:, None], spared[place]), (top, without[place])):
            size = np.linalg.norm(taken) * np.linalg.norm(before[place])
            assert np.linalg.norm(taken.T @ before[place]) > 1e-2 * size
            assert np.linalg.norm(taken.T @ rest) < 1e-4 * size  # float32


def side(ratio: float, kl: float) -> dict[str, float]:
    return {"dose": 1.0, "ratio": ratio, "kl": kl, "refused": 0.0}


def both(ratio: float, kl: float, other_ratio: float, other_kl: float) -> dict[str, Any]:
    return {"refused unsteered": 0.034, "positive": side(ratio, kl), "negative": side(other_ratio, other_kl)}


def test_ways_are_compared_at_equal_kl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Twice the ratio at four times the KL is no gain. A pole at which the mean difference does nothing tells nothing."""
    page = tmp_path / "page.md"
    monkeypatch.setattr(methods_page, "_PAGE", page)
    happy = {"dearer": both(1.0, 0.4, 0.6, 0.8), "mean difference": both(0.5, 0.1, 0.3, 0.2), "one": both(1.0, 0.1, -0.3, 0.2)}
    calm = {"mean difference": both(0.5, 0.1, 0.01, 0.2), "dearer": both(1.5, 0.1, 0.6, 0.8)}
    unmeasured = {"dearer": both(9.0, 0.1, 9.0, 0.2)}
    methods_page.write({"a model": {"happy": happy, "calm": calm, "formal": unmeasured}})
    text = page.read_text(encoding="utf-8")
    # Happy: 2 and 2 times the ratio, at 2 and 2 times the root of KL; calm, of one pole: 3, 1.
    assert "\n| dearer | 2 | 2.50 ± 0.50 | 1.50 ± 0.50 | 2.00 ± 1.00 |\n" in text
    # Twice the ratio toward one pole, and as much the wrong way toward the other.
    assert "\n| one | 1 | 0.50 | 1.00 | 0.50 |\n" in text
    assert "| mean difference | 2 |" not in text
    assert "a refusal begins with a chance of 0.034" in text


def test_a_schedule_is_compared_with_the_constant_dose_where_that_does_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(methods_page, "_PAGE", tmp_path / "page.md")

    def at(effect: float, cost: float) -> dict[str, float]:
        return {"effect": effect, "cost under the persona": cost, "relevance": 1.0}

    happy = {
        "schedule 1, 1": {"positive": at(1.0, 0.3), "negative": at(-0.1, 0.3)},
        "schedule 2, 0": {"positive": at(1.5, 0.2), "negative": at(5.0, 9.0)},
    }
    calm = {
        "schedule 1, 1": {"positive": at(1.0, 0.3), "negative": at(2.0, 0.3)},
        "schedule 2, 0": {"positive": at(0.5, 0.4), "negative": at(1.0, 0.6)},
    }
    methods_page.write({"a model": {"happy": happy, "calm": calm, "formal": {"schedule 2, 0": happy["schedule 2, 0"]}}})
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "\n| schedule 2, 0 | 2 | 1.00 ± 0.50 | 0.05 ± 0.15 |\n" in text
    assert "| schedule 1, 1 | 2 |" not in text


def test_whitening_is_undone_by_the_covariance(tiny: Model) -> None:
    found, before = built("(S + lI)^-1 d", tiny)[0], directions.estimate_of(plain(tiny))
    for layer, covariance in directions._covariance(tiny).items():
        ridge = np.trace(covariance) / len(covariance)
        np.testing.assert_allclose(
            covariance @ found[layer] + ridge * found[layer], before[layer], atol=1e-3 * np.abs(before[layer]).max()
        )
