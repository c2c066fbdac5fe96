from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError
from localsteer.generation import Generator, Request
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.scoring import Scored, answer_nll
from tests.conftest import TinyModel, random_tokens, run_alone

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
