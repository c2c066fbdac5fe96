from __future__ import annotations

import numpy as np
import pytest

from localsteer.errors import ModelError
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading import kept
from localsteer.reading.kept import KeptPrompts
from localsteer.reading.rows import read_means
from localsteer.reading.span import Span
from tests.conftest import LOGIT_NOISE, ROW_NOISE, TinyModel, random_tokens

STEM = random_tokens(20, seed=1)
PROMPTS = [(*STEM, *random_tokens(5, seed=seed)) for seed in (2, 3, 4)]
ANSWER = random_tokens(6, seed=5)


def edit_of(model: Model, seed: int) -> Edit:
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    rows[1] = 3 * np.random.default_rng(seed).normal(size=model.n_embd)
    return Edit(rows)


def answered(edit: Edit | None, prompts: list[tuple[int, ...]] = PROMPTS) -> list[Span]:
    return [Span(prompt + ANSWER, len(prompt), None, edit) for prompt in prompts]


def test_prompts_are_computed_once_for_all_passes(tiny: Model, decoded: list[int]) -> None:
    with KeptPrompts(tiny, PROMPTS) as prompts:
        read_means(tiny, answered(edit_of(tiny, 1)), (), want_nll=True, kept=prompts)
        # The last token of each prompt once more, for there the edit begins; the last of an answer predicts nothing.
        assert decoded == [20 + 3 * 5, 3 * (1 + 5)]
        read_means(tiny, answered(edit_of(tiny, 2)) + answered(None), (), want_nll=True, kept=prompts)
        assert decoded[2:] == [2 * 3 * (1 + 5)]


def test_a_pass_for_which_there_is_no_room_makes_it(tiny: Model, monkeypatch: pytest.MonkeyPatch, decoded: list[int]) -> None:
    monkeypatch.setattr(kept, "_ROOM", 10)
    edits = [None, *(edit_of(tiny, seed) for seed in range(14))]
    with KeptPrompts(tiny, PROMPTS) as prompts:
        for some in (edits[:2], edits, edits[:2]):
            spans = [span for edit in some for span in answered(edit)]
            found = read_means(tiny, spans, (), want_nll=True, kept=prompts).nll
            np.testing.assert_allclose(found, read_means(tiny, spans, (), want_nll=True).nll, atol=LOGIT_NOISE)
    # Beside the same without kept prompts, which reads the stem and what follows it as well.
    again = 20 + 3 * 5
    assert sum(decoded) == 2 * (2 + 15 + 2) * 3 * 6 + 2 * again + 3 * (20 + 3 * 4)


def test_a_pass_finds_what_it_finds_without_kept_prompts(steerable: Model) -> None:
    one, other = edit_of(steerable, 1), edit_of(steerable, 2)
    whole = (*STEM, *random_tokens(30, seed=6))
    passes = [
        answered(one) + answered(None),
        # A steered prompt; what is read or steered within one; what parts from one, or ends within one; and one that is not kept.
        [
            Span(PROMPTS[0] + ANSWER, len(PROMPTS[0]), None, other, 0),
            Span(PROMPTS[1] + ANSWER, 15),
            Span(PROMPTS[1] + ANSWER, 25, None, one, 10),
            Span(whole, 22),
            Span(whole, 22, 40, one),
            Span(STEM[:9], 4, None, other),
            Span(random_tokens(12, seed=7), 3, None, one),
        ],
        answered(other, [*PROMPTS, (*STEM, 65)]),
    ]
    with KeptPrompts(steerable, [*PROMPTS, STEM, ()]) as prompts:
        for spans in passes:
            found = read_means(steerable, spans, (1,), want_nll=True, kept=prompts)
            alone = read_means(steerable, spans, (1,), want_nll=True)
            np.testing.assert_allclose(found.nll, alone.nll, atol=LOGIT_NOISE)
            np.testing.assert_allclose(found.values, alone.values, atol=ROW_NOISE)
            assert len(set(np.round(found.nll, 4))) == len(spans)


def test_where_sequences_share_nothing_nothing_is_kept(tiny_model: TinyModel, decoded: list[int]) -> None:
    model = tiny_model("mamba")
    with KeptPrompts(model, PROMPTS) as prompts:
        assert prompts.n_sequences == 0
        found = read_means(model, answered(None), (), want_nll=True, kept=prompts)
    assert decoded == [20 + 5 + 5] * 3
    np.testing.assert_allclose(found.nll, read_means(model, answered(None), (), want_nll=True).nll, atol=LOGIT_NOISE)


def test_a_pass_that_fails_leaves_the_prompts_for_the_next(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_means(tiny, answered(edit_of(tiny, 1)), (), want_nll=True).nll
    with KeptPrompts(tiny, PROMPTS) as prompts:
        with monkeypatch.context() as broken:

            def decode(_: Context, __: object) -> None:
                raise ModelError("llama.cpp cannot run it.")

            broken.setattr(Context, "decode", decode)
            with pytest.raises(ModelError):
                read_means(tiny, answered(edit_of(tiny, 1)), (), want_nll=True, kept=prompts)
        found = read_means(tiny, answered(edit_of(tiny, 1)), (), want_nll=True, kept=prompts).nll
    np.testing.assert_allclose(found, expected, atol=LOGIT_NOISE)


def test_what_is_read_first_leaves_nothing_unread_above_it(tiny: Model) -> None:
    """Rows of one layer, above which nothing is computed then, and likelihoods."""
    with KeptPrompts(tiny, PROMPTS) as prompts:
        read_means(tiny, answered(edit_of(tiny, 1)), (1,), kept=prompts)
        found = read_means(tiny, answered(None), (), want_nll=True, kept=prompts).nll
    np.testing.assert_allclose(found, read_means(tiny, answered(None), (), want_nll=True).nll, atol=LOGIT_NOISE)


def test_prompts_longer_than_a_sliding_window_stay_whole(tiny_model: TinyModel) -> None:
    model = tiny_model("gemma3")
    long = [random_tokens(150, seed=seed) for seed in (9, 10)]
    spans = [Span(prompt + ANSWER, len(prompt), None, edit_of(model, 1)) for prompt in (*long, long[0][:70])]
    with KeptPrompts(model, long) as prompts:
        for _ in range(4):
            found = read_means(model, spans, (), want_nll=True, kept=prompts).nll
            np.testing.assert_allclose(found, read_means(model, spans, (), want_nll=True).nll, atol=LOGIT_NOISE)
