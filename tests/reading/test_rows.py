from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.reading import kept
from localsteer.reading.activations import read_activations
from localsteer.reading.kept import MAX_OUTPUTS
from localsteer.reading.projection import project
from localsteer.reading.rows import read, read_means, read_tokens
from localsteer.reading.scoring import Scored, answer_nll, reread
from localsteer.reading.span import Part, Span
from localsteer.vector.control_vector import ControlVector
from tests.conftest import LOGIT_NOISE, ROW_NOISE, Floats, TinyModel, random_tokens, run_alone
from tests.tiny_models import write_tiny_model

STEM = random_tokens(20, seed=1)
SPANS = (
    Span((*STEM, *random_tokens(9, seed=2)), 3, 25),
    Span((*STEM, *random_tokens(30, seed=3)), 20),
    Span(STEM, 4, 4),  # nothing
    Span((*STEM, *random_tokens(30, seed=3)), 18, 22),
    Span((*STEM, *random_tokens(480, seed=4)), 300),
    Span((65,)),
)


@dataclass
class Asked:
    """What reading asked of llama.cpp."""

    outputs: list[int] = field(default_factory=list)
    """Of each decode."""
    tokens: list[int] = field(default_factory=list)
    """Of each decode."""
    reserved: list[int] = field(default_factory=list)
    """Rows of logits of each context."""
    stops: list[tuple[tuple[int, ...], bool]] = field(default_factory=list)
    """The layers that are read, and whether the graph ends with them."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()

    class Watched(Context):
        def __init__(self, model: Model, *, n_seq: int, n_outputs: int, **others: Any) -> None:
            found.reserved.append(max(n_seq, n_outputs))
            super().__init__(model, n_seq=n_seq, n_outputs=n_outputs, **others)

        def decode(self, batch: Batch) -> None:
            found.outputs.append(int(batch.outputs.sum()))
            found.tokens.append(len(batch))
            super().decode(batch)

    class Tap(ResidualTap):
        def watch(self, layers: Iterable[int], *, stop: bool = False) -> None:
            found.stops.append((tuple(layers), stop))
            super().watch(layers, stop=stop)

    monkeypatch.setattr(kept, "Context", Watched)
    monkeypatch.setattr(kept, "ResidualTap", Tap)
    return found


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_tiny_model(tmp_path_factory.mktemp("long") / "long.gguf", n_layer=8, n_ctx_train=2048), threads=1)


def nll_alone(logits: Floats, tokens: Sequence[int]) -> Floats:
    """(n_tokens,) from the definition; the first is not predicted."""
    wide = logits.astype(np.float64)
    sums = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
    return np.array([np.nan, *(sums[place - 1] - wide[place - 1, token] for place, token in enumerate(tokens) if place)])


def vector(model: Model, *layers: int) -> ControlVector:
    return ControlVector({layer: np.ones(model.n_embd, np.float32) for layer in layers})


# What is read


def test_the_places_of_a_span() -> None:
    assert Span((5, 6, 7)).places == range(2, 3)
    assert Span((5, 6, 7), -2).places == range(1, 3)
    assert Span((5, 6, 7), 0, 2).places == range(2)
    assert not Span((5, 6, 7), 3).places
    assert not Span(()).places


def test_every_token_is_read_as_in_a_run_of_its_own(steerable: Model) -> None:
    layers = (steerable.n_layer - 1, 1)
    found = dict(read_tokens(steerable, SPANS, layers, lambda part: np.stack([part.rows(layer) for layer in layers], axis=1)))
    means = read_means(steerable, SPANS, layers, want_nll=True)
    assert found.keys() == {0, 1, 3, 4, 5}
    for number, span in enumerate(SPANS):
        alone = run_alone(steerable, span.tokens)
        expected = np.stack([alone.rows[layer] for layer in layers], axis=1)[list(span.places)]
        if not len(expected):
            assert np.isnan(means.values[number]).all()
            assert np.isnan([*means.norms[number], means.nll[number]]).all()
            continue
        np.testing.assert_allclose(found[number], expected, atol=ROW_NOISE)
        np.testing.assert_allclose(means.values[number], expected.mean(axis=0), atol=ROW_NOISE)
        norms = np.linalg.norm(expected, axis=2).mean(axis=0)
        np.testing.assert_allclose(means.norms[number], norms, atol=ROW_NOISE)
        nll = nll_alone(alone.logits, span.tokens)[list(span.places)].mean()
        np.testing.assert_allclose(means.nll[number], nll, atol=LOGIT_NOISE)


def test_what_is_not_wanted_is_not_there(tiny: Model) -> None:
    assert np.isnan(read_means(tiny, SPANS, (1,)).nll).all()
    means = read_means(tiny, SPANS, (), want_nll=True)
    assert means.values.shape == (len(SPANS), 0, tiny.n_embd)
    assert np.isfinite(means.nll[:2]).all()


def test_the_likelihood_of_a_token_that_nothing_predicts_is_unknown_and_spoils_no_other(tiny: Model) -> None:
    spans = [Span((70, 71, 72), 0), Span((70, 71, 72), 1)]
    found = read_means(tiny, spans, (1,), want_nll=True)
    assert np.isnan(found.nll[0])
    assert np.isfinite(found.nll[1])
    assert np.isfinite(found.values).all()


def test_where_nothing_is_read_nothing_is_run(tiny: Model, asked: Asked) -> None:
    assert list(read(tiny, [], (1,))) == []
    assert list(read(tiny, [Span(STEM, 5, 5), Span(())], (1,), want_nll=True)) == []
    assert list(read(tiny, SPANS, ())) == []
    assert asked == Asked()


# What it costs


def test_nothing_behind_the_last_wanted_token_is_run(tiny: Model, asked: Asked) -> None:
    read_means(tiny, [Span((*STEM, *random_tokens(400, seed=9)), 2, 7)], (1,))
    assert asked.tokens == [7]


def test_without_likelihoods_no_logits_are_asked_for_and_no_layer_above_the_highest_run(tiny: Model, asked: Asked) -> None:
    read_activations(tiny, SPANS, (2, 1))
    project(tiny, ["in the house", "in the hen house"], {"one": vector(tiny, 1), "two": vector(tiny, 1, 2)}, n_ctx=64)
    assert asked.stops == [((2, 1), True), ((1, 2), True)]
    assert set(asked.outputs) == {0}
    assert max(asked.reserved) < 10  # one for each sequence


def test_the_last_block_asks_for_the_logits_of_what_is_read_there(tiny: Model, asked: Asked) -> None:
    read_activations(tiny, [Span((*STEM, *random_tokens(9, seed=2)), 10), Span((*STEM, 65, 66))], (1, tiny.n_layer - 1))
    assert asked.stops == [((1, tiny.n_layer - 1), True)]
    assert asked.outputs == [10 + 9 + 1]


def test_likelihoods_ask_for_the_logits_of_what_predicts_an_answer(tiny: Model, asked: Asked) -> None:
    # The last of the stem predicts both, the last of an answer nothing.
    pairs = [Scored(STEM, random_tokens(9, seed=2)), Scored(STEM, random_tokens(30, seed=3))]
    answer_nll(tiny, pairs)
    assert asked.outputs == [1 + 8 + 29]
    assert asked.stops == []
    reread(tiny, pairs, (1,))
    assert asked.outputs[1:] == [1 + 8 + 29]
    assert asked.stops == [((1,), False)]
    # The last block shows the answers' last tokens as well, if they ask for logits.
    reread(tiny, pairs, (1, tiny.n_layer - 1))
    assert asked.outputs[2:] == [1 + 9 + 30]


def test_no_decode_asks_for_more_logits_than_there_is_room_for(tiny_model: TinyModel, asked: Asked) -> None:
    for architecture in ("llama", "mamba"):
        model = tiny_model(architecture)
        spans = [Span((*STEM, *random_tokens(400, seed=seed)), 200) for seed in range(4)]
        read_means(model, spans, (model.n_layer - 1,))
        read_means(model, spans, (1,), want_nll=True)
        text = "".join(np.random.default_rng(4).choice(list("abcdfg"), 300))
        project(model, [text], {"last": vector(model, model.n_layer - 1)}, n_ctx=512)
    assert max(asked.outputs) == MAX_OUTPUTS == max(asked.reserved)


def test_prompts_before_answers_run_in_large_parts(long: Model, asked: Asked) -> None:
    answer_nll(long, [Scored(random_tokens(1024, seed=5), random_tokens(300, seed=6))])
    assert asked.tokens[:2] == [512, 512]
    assert max(asked.outputs) == MAX_OUTPUTS


def test_a_text_is_handed_out_as_soon_as_it_is_read(tiny_model: TinyModel, asked: Asked) -> None:
    spans = [Span(random_tokens(300, seed=seed), 0) for seed in range(6)]

    def keep(part: Part) -> Floats:
        return part.rows(1)

    for architecture in ("llama", "mamba"):
        asked.tokens.clear()
        decodes = []
        for number, found in read_tokens(tiny_model(architecture), spans, (1,), keep):
            assert len(found) == len(spans[number].places)
            decodes.append(sum(asked.tokens))
        assert sum(asked.tokens) == 1800
        # Never is more there that has not been handed out than a part and what a text had before it.
        assert all(run - 300 * done <= 512 + 300 for done, run in enumerate(decodes))


def test_the_mean_of_a_long_text_holds_no_more_than_a_part_of_it(long: Model) -> None:
    tokens, layers = random_tokens(2000, seed=7), range(8)
    read_means(long, [Span(tokens[:600], 0)], layers)
    tracemalloc.start()
    try:
        read_means(long, [Span(tokens, 0)], layers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(tokens) * len(layers) * long.n_embd * 4 / 2


def test_progress_is_told_after_every_part_in_tokens_that_are_run(tiny: Model) -> None:
    told: list[tuple[int, int]] = []
    spans = [Span((*STEM, *random_tokens(600, seed=seed)), 300, 500) for seed in range(2)]
    parts = list(read(tiny, spans, (1,), progress=lambda done, total: told.append((done, total))))
    assert len(parts) == len(told)
    assert told == [(512, 20 + 480 + 480), (980, 980)]


# Under an edit


def edit_of(model: Model, seed: int, *layers: int) -> Edit:
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    rows[list(layers)] = 3 * np.random.default_rng(seed).normal(size=(len(layers), model.n_embd))
    return Edit(rows)


def test_texts_are_read_each_under_an_edit_of_its_own_as_in_a_run_of_their_own(steerable: Model) -> None:
    one, other = edit_of(steerable, 1, 1), edit_of(steerable, 2, 1, 2)
    text = (*STEM, *random_tokens(30, seed=3))
    spans = [
        Span(text, 20),
        Span(text, 20, None, one),
        Span(text, 20, 40, other.scaled(-2)),
        Span(text, 20, None, one, 0),
        Span((*STEM, *random_tokens(9, seed=2)), 20, None, one),
    ]
    means = read_means(steerable, spans, (), want_nll=True)
    for number, span in enumerate(spans):
        edits = [span.edit if place in span.edited else None for place in range(len(span.tokens))]
        nll = nll_alone(run_alone(steerable, span.tokens, edits, read=False).logits, span.tokens)[list(span.places)].mean()
        np.testing.assert_allclose(means.nll[number], nll, atol=LOGIT_NOISE)
    assert min(abs(means.nll[0] - nll) for nll in means.nll[1:4]) > 2 * LOGIT_NOISE


def test_what_an_edit_leaves_alone_is_computed_once(tiny: Model, asked: Asked) -> None:
    text = (*STEM, *random_tokens(30, seed=3))
    read_means(tiny, [Span(text, 20), *(Span(text, 20, None, edit_of(tiny, seed, 1)) for seed in (1, 2, 1))], (), want_nll=True)
    # Twice the same edit is one; it begins with the last token of the stem. The last token of an answer predicts nothing.
    assert asked.tokens == [20 + 29 + 2 * 30]


def test_a_text_that_has_become_unlikely_is_not_read_on(steerable: Model, decoded: list[int]) -> None:
    """What is said most likely after a stem, and the same but for one token somewhere."""
    likely = STEM
    for _ in range(6):
        likely = (*likely, int(run_alone(steerable, likely, read=False).logits[-1].argmax()))
    texts = [likely]
    for place in (20, 22, 25):
        least = int(run_alone(steerable, likely[:place], read=False).logits[-1].argmin())
        texts.append((*likely[:place], least, *random_tokens(25 - place, seed=place)))
    spans = [Span(text, 20, None, edit) for edit in (None, edit_of(steerable, 1, 1)) for text in texts]
    decoded.clear()
    whole = read_means(steerable, spans, (), want_nll=True).nll
    all_tokens = sum(decoded)
    decoded.clear()
    found = read_means(steerable, spans, (), want_nll=True, least=1e-6).nll
    # Of the unsteered ones, the second ends before its first token of six, of which five predict another; the third two later.
    assert all_tokens - sum(decoded) >= 5 + 3
    assert np.isinf(found[1:3]).all()  # the last one's unlikely token has nothing behind it
    assert np.isfinite(found[[0, 3]]).all()
    read_on = np.isfinite(found)
    np.testing.assert_allclose(found[read_on], whole[read_on], atol=LOGIT_NOISE)
    assert (np.exp(-6 * whole[~read_on]) < 1e-6).all()


def test_a_text_becomes_unlikely_by_all_its_tokens_together(tiny: Model) -> None:
    text = STEM
    for _ in range(6):  # the second likeliest at each place
        text = (*text, int(run_alone(tiny, text, read=False).logits[-1].argsort()[-2]))
    (nll,) = read_means(tiny, [Span(text, 20)], (), want_nll=True).nll
    tokens = [read_means(tiny, [Span(text[:place], place - 1)], (), want_nll=True).nll[0] for place in range(21, 27)]
    before_last = np.exp(-sum(tokens[:5]))
    assert before_last < 0.5 * np.exp(-max(tokens))
    assert np.isinf(read_means(tiny, [Span(text, 20)], (), want_nll=True, least=before_last * 1.2).nll).all()
    found = read_means(tiny, [Span(text, 20)], (), want_nll=True, least=before_last / 1.2).nll
    np.testing.assert_allclose(found, nll, atol=LOGIT_NOISE)


def test_texts_one_of_which_goes_on_behind_what_is_read_of_another(tiny: Model) -> None:
    text = random_tokens(12, seed=3)
    spans = [Span(text[:6], 3, 6), Span(text, 3)]
    found = read_means(tiny, spans, (), want_nll=True, least=1e-200).nll
    np.testing.assert_allclose(found, read_means(tiny, spans, (), want_nll=True).nll, atol=LOGIT_NOISE)


def test_what_may_stand_at_a_place_is_told_to_all_that_read_it(tiny: Model) -> None:
    text, edit = (*STEM, 65, 66), edit_of(tiny, 1, 1)
    spans = [Span(text, 20), Span(text, 21), Span(text, 20, None, edit), Span((65,))]
    told: dict[tuple[tuple[int, ...], int], Floats] = {}

    def keep(readers: Sequence[int], place: int, logprobs: Floats) -> None:
        told[tuple(readers), place] = logprobs.copy()

    for _ in read(tiny, spans, (), want_nll=True, on_prediction=keep):
        pass
    assert told.keys() == {((0,), 20), ((0, 1), 21), ((2,), 20), ((2,), 21)}
    logits = run_alone(tiny, text).logits[19]
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    np.testing.assert_allclose(told[(0,), 20], expected, atol=LOGIT_NOISE)
    assert all(np.exp(logprobs).sum() == pytest.approx(1, abs=1e-3) for logprobs in told.values())
