from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
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
