from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampler, Sampling, fresh_seed
from tests.conftest import Floats, random_tokens

PROMPT = random_tokens(12, seed=1)
# Every token has its share, and nothing is filtered.
OPEN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)


@pytest.fixture(scope="module")
def context(tiny: Model) -> Iterator[Context]:
    """The prompt has been read: row 11 holds the logits of what follows."""
    with Context(tiny, n_ctx=64) as context:
        context.decode(Batch.of_one_sequence(PROMPT, start=0))
        yield context


def draws(context: Context, settings: Sampling, count: int) -> list[int]:
    with Sampler(settings, context.model) as sampler:
        return [sampler.sample(context, len(PROMPT) - 1) for _ in range(count)]


def logits_of(context: Context) -> Floats:
    return context.logits(len(PROMPT) - 1)


def probabilities(context: Context) -> Floats:
    weights = np.exp(logits_of(context) - logits_of(context).max())
    shares: Floats = weights / weights.sum()
    return shares


def test_temperature_0_takes_the_most_likely_token(context: Context) -> None:
    assert set(draws(context, Sampling(temperature=0, seed=3), 20)) == {int(logits_of(context).argmax())}


def test_the_same_seed_draws_the_same_tokens(context: Context) -> None:
    first = draws(context, Sampling(temperature=2, seed=3), 20)
    assert draws(context, Sampling(temperature=2, seed=3), 20) == first
    assert draws(context, Sampling(temperature=2, seed=4), 20) != first
    assert len(set(first)) > 1


def test_tokens_come_as_often_as_they_are_likely(context: Context) -> None:
    counts = np.bincount(draws(context, OPEN, 4000), minlength=context.model.n_vocab)
    # Six standard deviations of a share of 4,000 draws.
    np.testing.assert_allclose(counts / 4000, probabilities(context), atol=0.05)


def test_temperature_divides_the_logits(context: Context) -> None:
    counts = np.bincount(draws(context, replace(OPEN, temperature=3.0), 4000), minlength=context.model.n_vocab)
    flat = np.exp(logits_of(context) / 3 - logits_of(context).max() / 3)
    np.testing.assert_allclose(counts / 4000, flat / flat.sum(), atol=0.05)
    assert (counts > 0).sum() > 150


def test_top_k_keeps_the_k_most_likely(context: Context) -> None:
    drawn = set(draws(context, replace(OPEN, temperature=5.0, top_k=3), 300))
    assert drawn == set(np.argsort(logits_of(context))[-3:].tolist())


def test_top_p_keeps_the_most_likely_up_to_their_summed_probability(context: Context) -> None:
    order = np.argsort(-logits_of(context))
    sums = np.cumsum(probabilities(context)[order])
    kept = set(order[: int(np.searchsorted(sums, 0.7)) + 1].tolist())
    assert 1 < len(kept) < 100
    # The filter comes before the temperature, so a high one shows all that is kept.
    assert set(draws(context, replace(OPEN, temperature=20.0, top_p=0.7), 3000)) == kept


def test_min_p_keeps_what_is_not_too_unlikely(context: Context) -> None:
    shares = probabilities(context) / probabilities(context).max()
    kept = set(np.flatnonzero(shares >= 0.05).tolist())
    assert 1 < len(kept) < 100
    assert set(draws(context, replace(OPEN, temperature=20.0, min_p=0.05), 3000)) == kept


def test_the_repeat_penalty_looks_back_64_tokens(context: Context) -> None:
    never_again = draws(context, Sampling(temperature=0, repeat_penalty=1e6, seed=1), 66)
    assert never_again[:65] == np.argsort(-logits_of(context))[:65].tolist()
    assert never_again[65] == never_again[0]


def test_a_mild_repeat_penalty_divides_the_logit(context: Context) -> None:
    logits = logits_of(context)
    first, second = np.argsort(-logits)[:2].tolist()
    ratio = float(logits[first] / logits[second])
    assert draws(context, Sampling(temperature=0, repeat_penalty=ratio * 1.01, seed=1), 2) == [first, second]
    assert draws(context, Sampling(temperature=0, repeat_penalty=ratio * 0.99, seed=1), 2) == [first, first]


@pytest.mark.parametrize("seed", [None, -1, 2**32 - 1, 2**40])
def test_a_seed_that_llama_cpp_would_not_take_as_it_is_is_refused(tiny: Model, seed: int | None) -> None:
    with pytest.raises(LocalsteerError, match="seed"):
        Sampler(Sampling(seed=seed), tiny)


def test_fresh_seeds_differ() -> None:
    seeds = {fresh_seed() for _ in range(10)}
    assert len(seeds) == 10
    assert all(0 <= seed < 2**31 for seed in seeds)
