"""Ways to build a direction from the same prompts; `bench.methods` doses and compares them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from localsteer.building.estimators import mean_difference
from localsteer.building.layers import middle_layers, readable_layers, scale_to_dose
from localsteer.building.refusal import read_refusal, without_component
from localsteer.building.voices import Tokens
from localsteer.concepts.contrast import Contrast, Prompt
from localsteer.concepts.descriptions import everyday_questions
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.activations import read_activations
from localsteer.reading.forced import Said
from localsteer.reading.listening import Heard, cross_entropies
from localsteer.reading.prefix_tree import common_beginning
from localsteer.reading.prompt import answer_prompt
from localsteer.reading.rows import read
from localsteer.reading.span import Span
from localsteer.vector.calibration import POLES
from localsteer.vector.control_vector import ControlVector, Floats

Direction = tuple[Floats, Mapping[int, float] | None]
"""(n_layer, n_embd) of any length, and the share of the dose of each layer (None for equal ones)."""

PLAIN = "mean difference"
# The neutral text: unsteered answers of this length to everyday questions.
_NEUTRAL_TOKENS = 40
_NEUTRAL_QUESTIONS = 24
_COMPONENTS = 10
# What a pair's prompts are answered with, to see whether the trait shows in it.
_ANSWER_TOKENS = 16
_ANSWER_SEED = 4_000


def _plain(_model: Model, _contrast: Contrast, plain: ControlVector) -> Direction:
    return estimate_of(plain), None


def _less_refusal(model: Model, _contrast: Contrast, plain: ControlVector) -> Direction:
    readable = list(readable_layers(model.n_layer))
    spared = estimate_of(plain).copy()
    spared[readable] = without_component(spared[readable], read_refusal(model, readable))
    return spared, None


def _whitened(model: Model, _contrast: Contrast, plain: ControlVector) -> Direction:
    found = estimate_of(plain).copy()
    for layer in plain.layers:
        covariance = _covariance(model)[layer]
        ridge = np.trace(covariance) / len(covariance)
        found[layer] = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), found[layer].astype(np.float64))
    return found, None


def _less_components(model: Model, _contrast: Contrast, plain: ControlVector) -> Direction:
    found = estimate_of(plain).copy()
    for layer in plain.layers:
        top = np.linalg.eigh(_covariance(model)[layer])[1][:, -_COMPONENTS:]
        found[layer] -= top @ (top.T @ found[layer].astype(np.float64))
    return found, None


def _along_the_others(model: Model, contrast: Contrast, plain: ControlVector) -> Direction:
    """A pair shows the trait where its difference lies along that of the others: by the cosine, mean over the steered layers."""
    positive, negative = _read(model, contrast)
    differences = (positive - negative)[:, [readable_layers(model.n_layer).index(layer) for layer in plain.layers]]
    others = differences.sum(axis=0) - differences
    cosines = np.einsum("ple,ple->pl", differences, others) / np.linalg.norm(differences, axis=2) / np.linalg.norm(others, axis=2)
    return _of_pairs(plain, positive, negative, cosines.mean(axis=1))


def _in_the_answers(model: Model, contrast: Contrast, plain: ControlVector) -> Direction:
    """A pair shows the trait where its two personas answer its question differently: each answer is likelier under its own."""
    asked = list(dict.fromkeys((pair.positive.messages, pair.negative.messages) for pair in contrast.pairs))
    prompts = [answer_prompt(model, messages) for side in zip(*asked, strict=True) for messages in side]
    requests = [Request(one, None, Sampling(seed=_ANSWER_SEED + n), _ANSWER_TOKENS) for n, one in enumerate(prompts)]
    said = [Said.exactly(answer.tokens) for answer in generate_many(model, requests)]
    others = [*prompts[len(asked) :], *prompts[: len(asked)]]
    heard = [Heard(prompt, one) for place in (prompts, others) for prompt, one in zip(place, said, strict=True)]
    own, other = np.split(cross_entropies(model, heard), 2)
    # A persona that answers nothing shows nothing.
    shown = dict(zip(asked, np.nan_to_num(other - own).reshape(2, -1).sum(axis=0), strict=True))
    of_pairs = np.array([shown[pair.positive.messages, pair.negative.messages] for pair in contrast.pairs])
    return _of_pairs(plain, *_read(model, contrast), of_pairs)


def _sequential(model: Model, contrast: Contrast, plain: ControlVector) -> Direction:
    """At each layer the mean gap that is left where the layers below are moved already (Rodriguez et al. 2024, Mean-AcT).

    It is the gap from the negative pole to the positive one; toward the negative one the same is taken off.
    """
    positive, negative = ([getattr(pair, pole) for pair in contrast.pairs] for pole in POLES)
    prompts, norms = _tokens(model, negative), plain.provenance.hidden_norm
    assert norms is not None
    # The prompts are moved where an answer would be: from the token on that predicts the opening.
    bare = _tokens(model, [replace(one, opening="") for one in negative])
    begins = [max(0, common_beginning(*two) - 1) for two in zip(bare, prompts, strict=True)]
    wanted = read_activations(model, [Span(one) for one in _tokens(model, positive)], plain.layers).values.mean(axis=0)
    found = np.zeros_like(estimate_of(plain))
    for place, layer in enumerate(plain.layers):
        edit = Edit(found.copy())
        spans = [Span(one, edit=edit, edited_from=first) for one, first in zip(prompts, begins, strict=True)]
        found[layer] = wanted[place] - read_activations(model, spans, [layer]).values.mean(axis=0)[0]
    lengths = {layer: float(np.linalg.norm(found[layer]) / norms[layer]) for layer in plain.layers}
    return found, {layer: length / sum(lengths.values()) for layer, length in lengths.items()}


DIRECTIONS: Mapping[str, Callable[[Model, Contrast, ControlVector], Direction]] = {
    PLAIN: _plain,
    "less refusal": _less_refusal,
    "(S + lI)^-1 d": _whitened,
    f"less {_COMPONENTS} principal components of neutral text": _less_components,
    "the half of the pairs that shows it most": _along_the_others,
    "the half of the pairs whose answers show it most": _in_the_answers,
    "sequential deltas": _sequential,
}
"""By name: from a model, a contrast and the vector as it is read by default (not dosed), the direction."""


def estimate_of(plain: ControlVector) -> Floats:
    """(n_layer, n_embd): the direction as it was read, at every layer that is read."""
    assert plain.provenance.estimate is not None
    return plain.provenance.estimate


def at_relative_dose_1(direction: Direction, plain: ControlVector) -> dict[int, Floats]:
    """By layer (n_embd,), residual-stream units: the dose shared out as the direction says, or equally."""
    rows, shares = direction
    norms = plain.provenance.hidden_norm
    assert norms is not None
    equal = scale_to_dose(rows, norms, plain.layers, 1.0)
    if shares is None:
        return equal
    return {layer: row * np.float32(shares[layer] * len(shares)) for layer, row in equal.items()}


def _tokens(model: Model, prompts: Iterable[Prompt]) -> list[Tokens]:
    return [tuple(model.tokenize(prompt.render(model))) for prompt in prompts]


def _read(model: Model, contrast: Contrast) -> tuple[Floats, Floats]:
    """(n_pairs, n_readable, n_embd) of each pole, at the last token."""
    spans = [Span(one) for one in _tokens(model, contrast.prompts())]
    positive, negative = np.split(read_activations(model, spans, readable_layers(model.n_layer)).values, 2)
    return positive, negative


def _of_pairs(plain: ControlVector, positive: Floats, negative: Floats, shown: NDArray[np.floating]) -> Direction:
    """The mean difference of the half of the pairs that show most."""
    best = shown >= np.median(shown)
    found = np.zeros_like(estimate_of(plain))
    found[list(readable_layers(len(found)))] = mean_difference(positive[best], negative[best])
    return found, None


@functools.lru_cache(maxsize=1)
def _covariance(model: Model) -> Mapping[int, NDArray[np.float64]]:
    """Of neutral text, at every layer that is steered: (n_embd, n_embd) over its tokens."""
    prompts = [answer_prompt(model, [Message("user", one)]) for one in everyday_questions()[:_NEUTRAL_QUESTIONS]]
    asked = [Request(prompt, sampling=Sampling(seed=n), max_tokens=_NEUTRAL_TOKENS) for n, prompt in enumerate(prompts)]
    answers = [answer.tokens for answer in generate_many(model, asked)]
    spans = [Span(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True) if answer]
    rows: dict[int, list[Floats]] = {layer: [] for layer in middle_layers(model.n_layer)}
    for part in read(model, spans, list(rows)):
        for layer, parts in rows.items():
            parts.append(part.rows(layer).copy())
    found = {}
    for layer, parts in rows.items():
        values = np.concatenate(parts).astype(np.float64)
        values -= values.mean(axis=0)
        # A few tokens of huge norm (attention sinks) would be all of the covariance.
        norms = np.linalg.norm(values, axis=1)
        values = values[norms < 3 * np.median(norms)]
        found[layer] = values.T @ values / len(values)
    return found
