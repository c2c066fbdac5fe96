from __future__ import annotations

import numpy as np
import pytest

from localsteer.errors import ModelError
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.forced import Said
from localsteer.reading.listening import Heard, cross_entropies
from localsteer.reading.scoring import Scored, answer_nll
from tests.conftest import TinyModel, random_edit, random_tokens, run_alone

STEM, OTHER = random_tokens(20, seed=1), random_tokens(9, seed=2)
ANSWER, LONG = random_tokens(6, seed=3), random_tokens(30, seed=4)
# Means over the words and tokens of an answer that is read in a differently composed batch.
NOISE = 0.01


def said(tokens: tuple[int, ...], seed: int = 0, words: int = 5) -> Said:
    """Some words at each place, each with a chance of its own."""
    random = np.random.default_rng(seed)
    drawn = [random.choice(256, size=words, replace=False).tolist() for _ in tokens]
    return Said.of(tokens, [[(word, -float(random.exponential())) for word in place] for place in drawn])


def heard_alone(model: Model, heard: Heard) -> float:
    """From the definition, one answer at a time."""
    tokens = (*heard.prompt, *heard.said.tokens)
    first = len(heard.prompt) - 1
    edits = [heard.edit if place >= first else None for place in range(len(tokens))]
    logits = run_alone(model, tokens, edits, read=False).logits[first:-1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    places = [
        sum(chance * own[word] for word, chance in zip(words, chances, strict=True))
        for own, words, chances in zip(logprobs, heard.said.words.tolist(), heard.said.chances.tolist(), strict=True)
    ]
    return float(-np.mean(places))


def test_answers_are_heard_as_each_alone(steerable: Model) -> None:
    edit = random_edit(steerable, seed=5)
    answer, other_words, long, one = said(ANSWER), said(ANSWER, seed=1), said(LONG), said((65,))
    heard = [
        Heard(STEM, answer),
        Heard(STEM, other_words),  # the same tokens, said by another speaker
        Heard(STEM, answer, edit),
        Heard(STEM, answer, edit.scaled(-0.5)),
        Heard((*STEM, *OTHER), answer),
        Heard(STEM, long, edit),
        Heard(OTHER, one),
        Heard((65,), long),
        Heard(STEM, answer),
    ]
    found = cross_entropies(steerable, heard)
    assert found.shape == (len(heard),)
    np.testing.assert_allclose(found, [heard_alone(steerable, one) for one in heard], atol=NOISE)
    # They are told apart by more than noise.
    assert np.std(found[:5]) > 5 * NOISE


def test_tokens_that_stand_for_themselves_are_scored(tiny: Model) -> None:
    found = cross_entropies(tiny, [Heard(prompt, Said.exactly(answer)) for prompt in (STEM, OTHER) for answer in (ANSWER, LONG)])
    nll = answer_nll(tiny, [Scored(prompt, answer) for prompt in (STEM, OTHER) for answer in (ANSWER, LONG)])
    np.testing.assert_allclose(found, nll, atol=NOISE)


def test_no_other_listener_finds_it_likelier_than_the_speaker(tiny: Model) -> None:
    # The cross-entropy of all that may be said is least for who says it.
    edit = random_edit(tiny, seed=5)
    tokens = (*STEM, *LONG)
    edits = [edit if place >= len(STEM) - 1 else None for place in range(len(tokens))]
    logits = run_alone(tiny, tokens, edits, read=False).logits[len(STEM) - 1 : -1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    speaker = Said.of(LONG, [list(enumerate(own.tolist())) for own in logprobs])
    own, *others = cross_entropies(tiny, [Heard(STEM, speaker, edit), Heard(STEM, speaker), Heard(OTHER, speaker, edit)])
    assert all(own < other - NOISE for other in others)


def test_an_empty_answer_is_not_heard_and_spoils_no_other(tiny: Model) -> None:
    found = cross_entropies(tiny, [Heard(STEM, Said.exactly(())), Heard(STEM, said(ANSWER)), Heard(OTHER, Said.exactly(()))])
    assert np.isnan(found).tolist() == [True, False, True]
    assert found[1] == pytest.approx(heard_alone(tiny, Heard(STEM, said(ANSWER))), abs=NOISE)
    assert np.isnan(cross_entropies(tiny, [Heard(STEM, Said.exactly(()))])).all()


def test_answers_beyond_a_batch_of_trees_are_heard(tiny: Model) -> None:
    heard = [Heard(random_tokens(4, seed=seed), said(random_tokens(4, seed=seed + 1000), seed)) for seed in range(150)]
    found = cross_entropies(tiny, heard)
    for number in (0, 75, 149):
        assert found[number] == pytest.approx(heard_alone(tiny, heard[number]), abs=NOISE)


def test_nothing_heard_gives_nothing(tiny: Model) -> None:
    assert cross_entropies(tiny, []).shape == (0,)


def test_a_model_that_cannot_be_steered_listens_unless_it_should_be(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    assert np.isfinite(cross_entropies(model, [Heard(STEM, said(ANSWER))])).all()
    with pytest.raises(ModelError, match="residual stream"):
        cross_entropies(model, [Heard(STEM, said(ANSWER), Edit(np.ones((model.n_layer, model.n_embd), np.float32)))])
