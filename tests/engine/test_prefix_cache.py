from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from localsteer.engine.prefix_cache import KVCache
from localsteer.errors import ModelError
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from tests.conftest import LOGIT_NOISE, ROW_NOISE, Floats, TinyModel, random_basis, random_edit, random_tokens, run_alone

PROMPT = random_tokens(24, seed=1)
# What comes after it where something is taken back and written anew.
OTHER = random_tokens(8, seed=2)


def cache_for(model: Model, *, tapped: bool = False, n_ctx: int = 256, n_ubatch: int = 512) -> KVCache:
    tap = ResidualTap(model.n_layer, model.n_embd) if tapped else None
    n_seq = 2 if model.sequences_share_tokens else 1
    return KVCache(Context(model, n_ctx=n_ctx, n_seq=n_seq, n_ubatch=n_ubatch, tap=tap))


def logits_of(cache: KVCache, tokens: Sequence[int], edit: Edit | None = None) -> Floats:
    return cache.context.logits(cache.run(tokens, edit)).copy()


def assert_as_fresh(model: Model, cache: KVCache, tokens: Sequence[int], edits: Sequence[Edit | None]) -> None:
    """The cache holds these tokens, and the one after them is predicted as if they had just been computed under these edits."""
    assert (cache.tokens, cache.edits) == (list(tokens), list(edits))
    fresh = run_alone(model, (*tokens, 65), [*edits, None], read=False).logits[-1]
    np.testing.assert_allclose(logits_of(cache, [65]), fresh, atol=LOGIT_NOISE)


@pytest.fixture
def cache(tiny: Model) -> Iterator[KVCache]:
    cache = cache_for(tiny)
    with cache.context:
        yield cache


# What is kept


def test_the_longest_common_beginning_is_kept(cache: KVCache, tiny: Model) -> None:
    cache.run(PROMPT, None)
    wanted = (*PROMPT[:10], *OTHER)
    assert cache.keep_common(wanted, [None] * len(wanted)) == 10
    cache.run(OTHER, None)
    assert_as_fresh(tiny, cache, wanted, [None] * len(wanted))


def test_nothing_is_dropped_from_a_cache_that_goes_on(cache: KVCache) -> None:
    cache.run(PROMPT, None)
    longer = (*PROMPT, *OTHER)
    assert cache.keep_common(longer, [None] * len(longer)) == len(PROMPT)
    assert cache.tokens == list(PROMPT)


def test_only_what_was_computed_under_the_same_steering_is_kept(cache: KVCache, tiny: Model) -> None:
    edit, equal = random_edit(tiny, seed=3), random_edit(tiny, seed=3)
    cache.run(PROMPT[:6], None)
    cache.run(PROMPT[6:], edit)
    edits = [None] * 6 + [edit] * 18
    assert cache.keep_common(PROMPT, edits) == 24
    assert cache.keep_common(PROMPT, [*edits[:20], equal, *edits[21:]]) == 20
    assert cache.keep_common(PROMPT, [None] * 24) == 6
    assert cache.keep_common(PROMPT, [edit] * 24) == 0
    assert (cache.tokens, cache.edits) == ([], [])


def test_a_recurrent_model_keeps_all_or_nothing(tiny_model: TinyModel) -> None:
    cache = cache_for(tiny_model("mamba"))
    with cache.context:
        cache.run(PROMPT, None)
        assert cache.keep_common((*PROMPT, 65), [None] * 25) == 24
        assert cache.keep_common(PROMPT[:-1], [None] * 23) == 0
        assert cache.tokens == []
        cache.run(PROMPT, None)
        assert_as_fresh(cache.context.model, cache, PROMPT, [None] * 24)


# What is cut


@pytest.mark.parametrize("length", [0, 5, 9, 17, 24])
def test_a_cut_leaves_what_comes_before_as_it_was_computed(steerable: Model, length: int) -> None:
    # Parts longer and shorter than a ubatch, and a removal, which only the tap can do.
    zero = np.zeros((steerable.n_layer, steerable.n_embd), np.float32)
    parts = ((PROMPT[:5], None), (PROMPT[5:15], random_edit(steerable, seed=3)))
    removal = Edit(zero, {2: random_basis(steerable, 8, seed=4)})
    edits = [edit for tokens, edit in (*parts, (PROMPT[15:], removal)) for _ in tokens]
    cache = cache_for(steerable, tapped=True, n_ubatch=4)
    with cache.context:
        for token, edit in zip(PROMPT, edits, strict=True):
            cache.run([token], edit)
        cache.cut(length)
        assert_as_fresh(steerable, cache, PROMPT[:length], edits[:length])


def test_a_cut_computes_nothing_where_the_model_can_go_back(cache: KVCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.run(PROMPT, None)
    monkeypatch.setattr(Context, "decode", lambda *_: pytest.fail("something was computed"))
    cache.cut(7)
    assert cache.tokens == list(PROMPT[:7])


# What is read


def test_the_rows_are_those_of_the_last_token_that_was_run(steerable: Model) -> None:
    alone = run_alone(steerable, (*PROMPT, 65))
    cache = cache_for(steerable, tapped=True)
    layers = range(steerable.n_layer)
    with cache.context:
        cache.watch(layers)
        for tokens, place in ((PROMPT, 23), ([65], 24)):
            cache.run(tokens, None)
            rows = cache.last_rows(layers)
            for layer in layers:
                np.testing.assert_allclose(rows[layer], alone.rows[layer][place], atol=ROW_NOISE)


# Two caches


def test_a_cache_that_matches_another_goes_on_like_it(transformer: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = random_edit(transformer, seed=3)
    one, other = cache_for(transformer), cache_for(transformer, tapped=True)
    with one.context, other.context:
        one.run(PROMPT[:10], None)
        one.run(PROMPT[10:], edit)
        # The other holds some of it, and then something else.
        other.run(PROMPT[:10], None)
        other.run(OTHER, edit)
        with monkeypatch.context() as patch:
            patch.setattr(Context, "decode", lambda *_: pytest.fail("something was computed"))
            other.match(one)
        assert (other.tokens, other.edits) == (one.tokens, one.edits)
        np.testing.assert_array_equal(logits_of(other, [65]), logits_of(one, [65]))
        # And back again.
        other.run([66], None)
        one.match(other)
        np.testing.assert_array_equal(logits_of(other, [67], edit), logits_of(one, [67], edit))
        assert_as_fresh(transformer, one, (*PROMPT, 65, 66, 67), [*[None] * 10, *[edit] * 14, None, None, edit])


def test_a_cache_that_holds_more_than_the_one_it_matches_drops_it(cache: KVCache, tiny: Model) -> None:
    shorter = cache_for(tiny)
    with shorter.context:
        shorter.run(PROMPT[:10], None)
        cache.run(PROMPT, None)
        cache.match(shorter)
        assert_as_fresh(tiny, cache, PROMPT[:10], [None] * 10)


def test_a_cache_matches_itself(cache: KVCache, tiny: Model) -> None:
    cache.run(PROMPT, None)
    cache.match(cache)
    assert_as_fresh(tiny, cache, PROMPT, [None] * 24)


def test_a_cache_that_is_too_small_to_match_another_is_empty_then(cache: KVCache, tiny: Model) -> None:
    larger = cache_for(tiny, n_ctx=512)
    tokens = random_tokens(300, seed=5)
    with larger.context:
        larger.run(tokens, None)
        cache.run(tokens[:20], None)
        with pytest.raises(ModelError, match="context of 256 tokens is full"):
            cache.match(larger)
    cache.run(PROMPT, None)
    assert_as_fresh(tiny, cache, PROMPT, [None] * 24)


def test_a_failed_run_leaves_an_empty_cache(cache: KVCache, tiny: Model) -> None:
    cache.run(PROMPT, None)
    with pytest.raises(ModelError, match="invalid token"):
        cache.run([65, tiny.n_vocab], None)
    assert (cache.tokens, cache.edits) == ([], [])
    cache.run(OTHER, None)
    assert_as_fresh(tiny, cache, OTHER, [None] * len(OTHER))


# The unsteered twin


@pytest.fixture
def anchored(tiny: Model) -> Iterator[KVCache]:
    with Context(tiny, n_ctx=256, n_seq=3, tap=ResidualTap(tiny.n_layer, tiny.n_embd)) as context:
        yield KVCache(context)


def assert_both(model: Model, cache: KVCache, edits: Sequence[Edit | None], token: int, edit: Edit | None) -> None:
    """Both rows say what the same tokens say under their own steering, and without any."""
    before = list(cache.tokens)
    steered, unsteered = cache.run_anchored(token, edit)
    rows = [cache.context.logits(row).copy() for row in (steered, unsteered)]
    alone = [
        run_alone(model, (*before, token), under, read=False).logits[-1] for under in ([*edits, edit], [None] * len(cache.tokens))
    ]
    for row, expected in zip(rows, alone, strict=True):
        np.testing.assert_allclose(row, expected, atol=LOGIT_NOISE)
    if edit is not None:
        assert np.abs(alone[0] - alone[1]).max() > 10 * LOGIT_NOISE


def test_the_twin_reads_the_same_tokens_unsteered(anchored: KVCache, tiny: Model) -> None:
    edit = random_edit(tiny, seed=3)
    anchored.run(PROMPT, None)
    edits: list[Edit | None] = [None] * len(PROMPT)
    for token in OTHER:
        assert_both(tiny, anchored, edits, token, edit)
        edits.append(edit)


def test_the_twin_follows_a_rewind(anchored: KVCache, tiny: Model) -> None:
    edit = random_edit(tiny, seed=3)
    anchored.run(PROMPT, None)
    for token in OTHER[:4]:
        anchored.run_anchored(token, edit)
    anchored.cut(len(PROMPT) + 2)
    anchored.run_anchored(OTHER[5], None)
    edits = [*[None] * len(PROMPT), edit, edit, None]
    assert_both(tiny, anchored, edits, OTHER[6], edit)


def test_the_twin_holds_the_answer_as_the_next_prompt_has_it(anchored: KVCache, tiny: Model) -> None:
    edit = random_edit(tiny, seed=3)
    anchored.run(PROMPT, None)
    for token in OTHER:
        anchored.run_anchored(token, edit)
    following = (*PROMPT, *OTHER, 70, 71)
    assert anchored.keep_common(following, [None] * len(following)) == len(PROMPT) + len(OTHER)
    assert_as_fresh(tiny, anchored, following[:-2], [None] * (len(PROMPT) + len(OTHER)))


def test_another_prompt_leaves_nothing_of_the_twin_behind(anchored: KVCache, tiny: Model) -> None:
    edit = random_edit(tiny, seed=3)
    anchored.run(PROMPT, None)
    anchored.run_anchored(OTHER[0], edit)
    another = (*PROMPT[:5], *OTHER)
    assert anchored.keep_common(another, [None] * len(another)) == 5
    anchored.run(another[5:], None)
    assert_both(tiny, anchored, [None] * len(another), 65, edit)
