"""Ways to build a direction: what each of them is, on a random model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import directions, methods_page
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.layers import readable_layers
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.activations import read_activations
from localsteer.reading.span import Span
from localsteer.vector.control_vector import ControlVector, Floats


def contrast() -> Contrast:
    def prompt(persona: str, number: int) -> Prompt:
        return Prompt((Message("system", persona), Message("user", f"Say {number % 2}.")), f"It is {number} o'clock")

    return Contrast("c", "", "p", "n", tuple(Pair(prompt("Be glad.", n), prompt("Be grim.", n)) for n in range(8)))


def plain(model: Model) -> ControlVector:
    settings = ExtractionSettings(position="last", layers=(1, model.n_layer - 1), dose=False, keep_refusal=True)
    return extract(model, contrast(), settings)


def test_moved_by_all_deltas_the_one_pole_comes_where_the_other_is(tiny: Model) -> None:
    found, shares = directions.DIRECTIONS["sequential deltas"](tiny, contrast(), plain(tiny))
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    positive, negative = np.split(np.array(directions._prompts(tiny, contrast()), object), 2)
    layers = list(shares)
    # The opening is "It is N o'clock": what stands before it, as a chat template begins an answer, is not moved.
    moved = [
        Span(tuple(one), edit=Edit(found), edited_from=len(one) - len(tiny.tokenize("It is 1 o'clock", add_special=False)) - 1)
        for one in negative
    ]

    def mean(spans: list[Span]) -> Floats:
        found: Floats = read_activations(tiny, spans, layers).values.mean(axis=0)
        return found

    wanted, before = (mean([Span(tuple(one)) for one in pole]) for pole in (positive, negative))
    # What is read of a layer is what its block gives, before that is moved itself.
    left = np.linalg.norm(mean(moved) + found[layers] - wanted, axis=1) / np.linalg.norm(before - wanted, axis=1)
    assert (left < 0.1).all()


def test_pairs_are_chosen_by_what_their_personas_answer(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two questions, the one whose answers are likelier under their own persona by two nats."""

    def entropies(_model: Model, heard: list[Any]) -> np.ndarray:
        own, other = np.zeros(4), np.array([2.0, 0.0, 2.0, 0.0])
        assert len(heard) == 8
        assert [one.prompt for one in heard[4:]] == [heard[at].prompt for at in (2, 3, 0, 1)]
        return np.concatenate([own, other])

    monkeypatch.setattr(directions, "cross_entropies", entropies)
    found, shares = directions.DIRECTIONS["the half of the pairs whose answers show it most"](tiny, contrast(), plain(tiny))
    assert shares is None
    first = Contrast("c", "", "p", "n", contrast().pairs[::2])
    layers = list(readable_layers(tiny.n_layer))
    settings = ExtractionSettings(position="last", layers=(layers[0], layers[-1]), dose=False, keep_refusal=True)
    wanted = directions.estimate_of(extract(tiny, first, settings))
    np.testing.assert_allclose(found[layers], wanted[layers], rtol=1e-3, atol=1e-4)


def test_ways_are_compared_at_equal_kl(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Twice the ratio at four times the KL is no gain; what leads nowhere is counted, and not compared."""

    def side(ratio: float, kl: float) -> dict[str, float]:
        return {"dose": 1.0, "ratio": ratio, "kl": kl, "refused": 0.0}

    first = {"positive": side(0.5, 0.1), "negative": side(0.3, 0.2)}
    dearer = {"positive": side(1.0, 0.4), "negative": side(0.6, 0.8)}
    better = {"positive": side(1.0, 0.1), "negative": side(-0.1, 0.2)}
    page = tmp_path / "page.md"
    monkeypatch.setattr(methods_page, "_PAGE", page)
    methods_page.write({"a model": {"happy": {"mean difference": first, "dearer": dearer, "better": better}}})
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(("| dearer", "| better"))]
    assert rows[0] == "| dearer | 2 of 2 | 2.00 (2.00..2.00) | 2.00 (2.00..2.00) | 1.00 (1.00..1.00) |"
    assert rows[1].startswith("| better | 1 of 2 | 2.00 ")
