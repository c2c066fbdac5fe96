from __future__ import annotations

import numpy as np
import pytest

from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.forced import ForcedReader
from localsteer.reading.scoring import Scored
from tests.conftest import LOGIT_NOISE, Floats, random_tokens, run_alone

STEM = random_tokens(20, seed=1)
TEXTS = (
    Scored(STEM, random_tokens(8, seed=3)),
    Scored(STEM, random_tokens(12, seed=4)),
    Scored((*STEM, 65), random_tokens(8, seed=3)),
    Scored(STEM, ()),
)


def edit_of(model: Model) -> Edit:
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    rows[1] = 3 * np.random.default_rng(1).normal(size=model.n_embd)
    return Edit(rows)


def logprobs_alone(model: Model, text: Scored, edit: Edit | None, *, steer_prompt: bool = False) -> Floats:
    """(n_answer, n_vocab) of what may stand at each place of the answer, from the definition."""
    first = 0 if steer_prompt else len(text.prompt) - 1
    tokens = (*text.prompt, *text.answer)
    edits = [edit if place >= first else None for place in range(len(tokens))]
    logits = run_alone(model, tokens, edits, read=False).logits[len(text.prompt) - 1 : -1].astype(np.float64)
    shown: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return shown


@pytest.mark.parametrize("steer_prompt", [False, True])
def test_the_gain_is_that_of_the_definition_and_the_kl_that_of_the_texts_that_are_compared(
    tiny: Model, steer_prompt: bool
) -> None:
    edit = edit_of(tiny)
    found = ForcedReader(tiny, TEXTS, range(1, 4)).under([(edit, range(4))], steer_prompt=steer_prompt)[0]
    kls = []
    for number, text in enumerate(TEXTS):
        if not text.answer:
            assert np.isnan(found.gain[number])
            continue
        before, after = (logprobs_alone(tiny, text, one, steer_prompt=steer_prompt) for one in (None, edit))
        rows = np.arange(len(text.answer)), list(text.answer)
        np.testing.assert_allclose(found.gain[number], (after[rows] - before[rows]).mean(), atol=LOGIT_NOISE)
        if number in (1, 2):
            kls += (np.exp(after) * (after - before)).sum(axis=1).tolist()
    assert found.kl == pytest.approx(np.mean(kls), rel=0.05)
    assert found.kl > 0.1


def test_a_stronger_edit_is_another_reading_of_the_same_texts(tiny: Model) -> None:
    reader = ForcedReader(tiny, TEXTS, range(4))
    one, none, twice = reader.under([(edit_of(tiny).scaled(factor), range(4)) for factor in (1.0, 0.0, 2.0)])
    assert none.kl == pytest.approx(0, abs=0.005)
    np.testing.assert_allclose(none.gain[:3], 0, atol=LOGIT_NOISE)
    assert none.kl < one.kl < twice.kl
    some = reader.under([(edit_of(tiny), (2, 0)), (edit_of(tiny).scaled(2), ())])
    np.testing.assert_allclose(some[0].gain, one.gain[[2, 0]], atol=LOGIT_NOISE)
    assert not len(some[1].gain)


def test_without_texts_to_compare_there_is_no_kl(tiny: Model) -> None:
    assert np.isnan(ForcedReader(tiny, TEXTS).under([(edit_of(tiny), range(4))])[0].kl)
