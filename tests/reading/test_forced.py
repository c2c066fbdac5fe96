from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest

from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampler, Sampling
from localsteer.reading.forced import ForcedReader, Reading, Said
from localsteer.reading.scoring import Scored
from tests.conftest import LOGIT_NOISE, Floats, random_tokens, run_alone

STEM, PERSONA = random_tokens(20, seed=1), random_tokens(7, seed=9)
ANSWERS = (random_tokens(8, seed=3), random_tokens(12, seed=4), random_tokens(8, seed=3), ())
TEXTS = tuple(Scored(prompt, answer) for prompt, answer in zip((STEM, STEM, (*STEM, 65), STEM), ANSWERS, strict=True))
PERSONAS = tuple(Scored((*PERSONA, *text.prompt), text.answer) for text in TEXTS)
WORDS = 20
# Half precision of what is kept, times logits of some tens.
KEPT_NOISE = 0.02


def said_by(model: Model, persona: Scored) -> Said:
    """An answer with the likeliest words at each of its places."""
    places = []
    for logprobs in logprobs_alone(model, persona):
        likeliest = np.argsort(-logprobs)[:WORDS]
        places.append([(int(word), float(logprobs[word])) for word in likeliest])
    return Said.of(persona.answer, places)


def reader_of(model: Model, compared: Collection[int] = ()) -> ForcedReader:
    return ForcedReader(model, [text.prompt for text in TEXTS], [said_by(model, persona) for persona in PERSONAS], compared)


def edit_of(model: Model) -> Edit:
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    rows[1] = 3 * np.random.default_rng(1).normal(size=model.n_embd)
    return Edit(rows)


def logprobs_alone(model: Model, text: Scored, edit: Edit | None = None, *, steer_prompt: bool = False) -> Floats:
    """(n_answer, n_vocab) of what may stand at each place of the answer, from the definition."""
    first = 0 if steer_prompt else len(text.prompt) - 1
    tokens = (*text.prompt, *text.answer)
    edits = [edit if place >= first else None for place in range(len(tokens))]
    logits = run_alone(model, tokens, edits, read=False).logits[len(text.prompt) - 1 : -1].astype(np.float64)
    shown: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return shown


@pytest.mark.parametrize("steer_prompt", [False, True])
def test_the_gain_is_by_how_much_the_persona_is_nearer_and_the_kl_how_far_one_is_from_unsteered(
    tiny: Model, steer_prompt: bool
) -> None:
    edit = edit_of(tiny)
    reader = reader_of(tiny, range(1, 4))
    reading = Reading(edit, range(4), steer_prompt)
    (first,) = reader.under([reading])
    assert np.isnan(first.kl)
    (found,) = reader.under([reading])
    np.testing.assert_allclose(found.gain, first.gain, atol=LOGIT_NOISE)
    kls = []
    for number, (text, persona) in enumerate(zip(TEXTS, PERSONAS, strict=True)):
        if not text.answer:
            assert np.isnan(found.gain[number])
            continue
        wanted = np.exp(logprobs_alone(tiny, persona))
        wanted[wanted < np.sort(wanted)[:, [-WORDS]]] = 0
        wanted /= wanted.sum(axis=1, keepdims=True)
        before, after = (logprobs_alone(tiny, text, one, steer_prompt=steer_prompt) for one in (None, edit))
        gain = (wanted * (after - before)).sum(axis=1).mean()
        assert found.gain[number] == pytest.approx(gain, abs=LOGIT_NOISE)
        if number in (1, 2):
            kls += (np.exp(after) * (after - before)).sum(axis=1).tolist()
    assert found.kl == pytest.approx(np.mean(kls), rel=0.05)
    assert found.kl > 0.1
    assert np.nanmax(abs(found.gain)) > 2 * LOGIT_NOISE


def test_nothing_gains_nothing_and_more_leads_further(tiny: Model) -> None:
    reader = reader_of(tiny, range(4))
    readings = [Reading(edit_of(tiny).scaled(factor), range(4)) for factor in (1.0, 0.0, 2.0)]
    reader.under(readings[:1])
    one, none, twice = reader.under(readings)
    assert none.kl == pytest.approx(0, abs=0.005)
    np.testing.assert_allclose(none.gain[:3], 0, atol=KEPT_NOISE)
    assert none.kl < one.kl < twice.kl


def test_each_edit_is_read_over_the_answers_that_are_named(tiny: Model) -> None:
    reader = reader_of(tiny)
    (all_of_them,) = reader.under([Reading(edit_of(tiny), range(4))])
    some, nothing = reader.under([Reading(edit_of(tiny), (2, 0)), Reading(edit_of(tiny).scaled(2), ())])
    np.testing.assert_allclose(some.gain, all_of_them.gain[[2, 0]], atol=LOGIT_NOISE)
    assert not len(nothing.gain)
    assert np.isnan([all_of_them.kl, nothing.kl]).all()


# What a speaker would have said

SETTINGS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=3.0, top_p=1.0, min_p=0.0),
    Sampling(temperature=2.0, top_p=0.6, min_p=0.0),
    Sampling(temperature=2.0, top_p=1.0, min_p=0.2),
    Sampling(temperature=2.0, top_k=3, top_p=1.0, min_p=0.0),
    Sampling(temperature=2.0, top_k=12, top_p=0.8, min_p=0.1),
    Sampling(temperature=0.3, top_k=1),
]


def likeliest_of(logits: Floats, count: int) -> list[tuple[int, float]]:
    logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    return [(int(word), float(logprobs[word])) for word in np.argsort(-logprobs)[:count]]


@pytest.mark.parametrize("sampling", SETTINGS, ids=range(len(SETTINGS)))
def test_the_chances_of_what_is_drawn_are_those_of_the_sampler(tiny: Model, sampling: Sampling) -> None:
    n_draws = 4000
    with Context(tiny, n_ctx=64) as context, Sampler(replace(sampling, seed=1), tiny) as sampler:
        context.decode(Batch.of_one_sequence(STEM, start=0))
        row = len(STEM) - 1
        drawn = [sampler.sample(context, row) for _ in range(n_draws)]
        likeliest = likeliest_of(context.logits(row).astype(np.float64), sampling.top_k)
    said = Said.drawn((drawn[0],), [likeliest], sampling)
    chances = np.zeros(tiny.n_vocab)
    chances[said.words[0]] = said.chances[0]
    assert chances.sum() == pytest.approx(1)
    shares = np.bincount(drawn, minlength=tiny.n_vocab) / n_draws
    # Six standard deviations of a share.
    np.testing.assert_allclose(shares, chances, atol=0.05)
    # What the filters rule out is never drawn, and what they keep has its chance.
    assert set(np.flatnonzero(shares)) <= set(np.flatnonzero(chances))
    assert set(np.flatnonzero(chances > 0.005)) <= set(np.flatnonzero(shares))


def test_the_chances_of_a_draw_by_hand() -> None:
    places = [[(7, np.log(0.5)), (3, np.log(0.3)), (9, np.log(0.15)), (1, np.log(0.05))]]

    def chances(sampling: Sampling) -> list[float]:
        found = Said.drawn((3,), places, sampling)
        assert found.words.tolist() == [[7, 3, 9, 1]]
        return [float(chance) for chance in found.chances[0]]

    open_to_all = Sampling(temperature=1.0, top_k=4, top_p=1.0, min_p=0.0)
    assert chances(open_to_all) == pytest.approx([0.5, 0.3, 0.15, 0.05])
    sharp = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert chances(replace(open_to_all, temperature=0.5)) == pytest.approx((sharp / sharp.sum()).tolist())
    # Up to the one that reaches the sum, that one included.
    assert chances(replace(open_to_all, top_p=0.7)) == pytest.approx([0.625, 0.375, 0, 0])
    assert chances(replace(open_to_all, top_p=0.85)) == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])
    # A share of the likeliest.
    assert chances(replace(open_to_all, min_p=0.25)) == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])
    assert chances(replace(open_to_all, min_p=0.5)) == pytest.approx([0.625, 0.375, 0, 0])


def test_each_place_of_an_answer_has_its_own_words() -> None:
    said = Said.drawn(
        (5, 2), [[(5, np.log(0.9)), (4, np.log(0.1))], [(1, np.log(0.6)), (2, np.log(0.4))]], Sampling(temperature=1.0)
    )
    assert said.tokens == (5, 2)
    assert said.words.tolist() == [[5, 4], [1, 2]]
    np.testing.assert_allclose(said.chances, [[0.9, 0.1], [0.6, 0.4]], rtol=1e-5)
    logprobs = np.log(np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.1], np.float32))
    assert said.found_by(1, logprobs) == pytest.approx(0.6 * np.log(0.2) + 0.4 * np.log(0.3))


def test_tokens_may_stand_for_themselves() -> None:
    said = Said.exactly((4, 4, 2))
    assert said.tokens == (4, 4, 2)
    logprobs = np.arange(6, dtype=np.float32)
    assert [said.found_by(place, logprobs) for place in range(3)] == [4, 4, 2]


def test_nothing_said_has_no_words() -> None:
    for said in (Said.of((), []), Said.drawn((), [], Sampling()), Said.exactly(())):
        assert said.tokens == ()
        assert len(said.words) == len(said.chances) == 0
