from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.scoring import Scored, answer_nll, reread
from tests.conftest import ROW_NOISE, TinyModel, random_tokens, run_alone

STEM = random_tokens(20, seed=1)
OTHER = random_tokens(9, seed=2)
PAIRS = (
    Scored(STEM, random_tokens(8, seed=3)),
    Scored(STEM, random_tokens(30, seed=4)),
    Scored((*STEM, *OTHER), random_tokens(5, seed=5)),
    Scored(STEM, (*OTHER, *random_tokens(5, seed=5))),  # the tokens of the one before, split elsewhere
    Scored(OTHER, (65,)),
    Scored((65,), random_tokens(200, seed=6)),
    Scored(STEM, random_tokens(8, seed=3)),
)
# Measured: 0.002 at most (gemma3).
NLL_NOISE = 0.01


def nll_alone(model: Model, pair: Scored) -> float:
    """From the definition, one sequence at a time."""
    logits = run_alone(model, (*pair.prompt, *pair.answer)).logits.astype(np.float64)
    chosen = [logits[len(pair.prompt) - 1 + place, token] for place, token in enumerate(pair.answer)]
    sums = np.log(np.exp(logits[len(pair.prompt) - 1 : -1]).sum(axis=1))
    return float(np.mean(sums - chosen))


def test_answers_score_as_each_alone(steerable: Model) -> None:
    scores: NDArray[np.float64] = answer_nll(steerable, PAIRS)
    np.testing.assert_allclose(scores, [nll_alone(steerable, pair) for pair in PAIRS], atol=NLL_NOISE)


def test_an_architecture_that_cannot_be_steered_can_be_scored(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    with Generator(model) as generator:
        likely = generator.generate(Request(STEM, sampling=Sampling(temperature=0), max_tokens=8)).tokens
    scores = answer_nll(model, [Scored(STEM, likely), Scored(STEM, random_tokens(8, seed=3))])
    assert scores[0] < scores[1] - 1


def test_an_empty_answer_has_no_score(tiny: Model) -> None:
    scores = answer_nll(tiny, [Scored(STEM, ()), Scored(STEM, OTHER)])
    assert np.isnan(scores[0])
    assert scores[1] == pytest.approx(nll_alone(tiny, Scored(STEM, OTHER)), abs=NLL_NOISE)


def test_answers_beyond_a_batch_of_trees_are_scored(tiny: Model) -> None:
    pairs = [Scored(random_tokens(4, seed=seed), random_tokens(4, seed=seed + 1000)) for seed in range(150)]
    scores = answer_nll(tiny, pairs)
    for number in (0, 75, 149):
        assert scores[number] == pytest.approx(nll_alone(tiny, pairs[number]), abs=NLL_NOISE)


def test_nothing_to_score_gives_nothing(tiny: Model) -> None:
    assert answer_nll(tiny, []).shape == (0,)


@pytest.mark.parametrize("answer", [(), (65, 66)])
def test_an_answer_without_a_prompt_is_refused(tiny: Model, answer: tuple[int, ...]) -> None:
    with pytest.raises(LocalsteerError, match="empty prompt"):
        answer_nll(tiny, [PAIRS[0], Scored((), answer)])


# What an answer leaves in the residual stream


@pytest.mark.parametrize("layers", ["all", "last", "some, backwards"])
def test_answers_leave_the_activations_that_each_leaves_alone(steerable: Model, layers: str) -> None:
    last = steerable.n_layer - 1
    read = {"all": list(range(last + 1)), "last": [last], "some, backwards": [last, 1]}[layers]
    found = reread(steerable, PAIRS, read)
    assert found.values.shape == (len(PAIRS), len(read), steerable.n_embd)
    for number, pair in enumerate(PAIRS):
        alone = run_alone(steerable, (*pair.prompt, *pair.answer))
        for column, layer in enumerate(read):
            rows = alone.rows[layer][len(pair.prompt) :]
            np.testing.assert_allclose(found.values[number, column], rows.mean(axis=0), atol=ROW_NOISE)
            assert found.norms[number, column] == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=0.01)


def test_reading_activations_does_not_change_the_scores(steerable: Model) -> None:
    scores = reread(steerable, PAIRS, range(steerable.n_layer)).nll
    np.testing.assert_allclose(scores, answer_nll(steerable, PAIRS), atol=NLL_NOISE)


def test_activations_of_answers_beyond_a_batch_of_trees(tiny: Model) -> None:
    pairs = [Scored(random_tokens(4, seed=seed), random_tokens(4, seed=seed + 1000)) for seed in range(150)]
    found = reread(tiny, pairs, [2, 3])
    for number in (0, 75, 149):
        alone = run_alone(tiny, (*pairs[number].prompt, *pairs[number].answer))
        for column, layer in enumerate((2, 3)):
            np.testing.assert_allclose(found.values[number, column], alone.rows[layer][4:].mean(axis=0), atol=ROW_NOISE)


def test_an_empty_answer_leaves_nothing_and_spoils_no_other(tiny: Model) -> None:
    found = reread(tiny, [Scored(STEM, ()), Scored(STEM, OTHER)], [1, 3])
    assert np.isnan(found.values[0]).all()
    assert np.isnan(found.norms[0]).all()
    assert np.isfinite(found.values[1]).all()
    rows = run_alone(tiny, (*STEM, *OTHER)).rows[3][len(STEM) :]
    np.testing.assert_allclose(found.values[1, 1], rows.mean(axis=0), atol=ROW_NOISE)


def test_without_layers_there_are_no_activations(tiny: Model) -> None:
    found = reread(tiny, PAIRS)
    assert found.values.shape == (len(PAIRS), 0, tiny.n_embd)
    assert found.norms.shape == (len(PAIRS), 0)
    assert reread(tiny, [], [1, 2]).values.shape == (0, 2, tiny.n_embd)


def test_activations_of_an_architecture_that_does_not_show_them_are_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match="residual stream"):
        reread(tiny_model("plamo2"), PAIRS, [1])
