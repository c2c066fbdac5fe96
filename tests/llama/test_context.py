from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from localsteer.errors import ModelError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from tests.conftest import LOGIT_NOISE, ROUNDING, ROW_NOISE, Floats, TinyModel, next_tokens, random_rows, random_tokens, run_alone

PROMPT = random_tokens(24, seed=1)


def last_logits(context: Context, tokens: Sequence[int]) -> Floats:
    """Run a prompt from an empty cache."""
    context.clear()
    context.decode(Batch.of_one_sequence(tokens, start=0))
    return context.logits(len(tokens) - 1).copy()


# Batches


def test_the_parts_of_a_batch_keep_the_sequences_of_shared_tokens() -> None:
    batch = Batch(
        tokens=np.array([5, 6, 7, 8, 9], np.int32),
        positions=np.array([0, 1, 1, 2, 2], np.int32),
        sequence_counts=np.array([3, 2, 1, 1, 2], np.int32),
        sequence_ids=np.array([0, 1, 2, 0, 1, 2, 2, 0, 1], np.int32),
        outputs=np.array([0, 0, 1, 0, 1], np.int8),
    )
    parts = [
        (part.tokens.tolist(), part.positions.tolist(), part.sequence_counts.tolist(), part.sequence_ids.tolist())
        for part in batch.split(2)
    ]
    assert parts == [
        ([5, 6], [0, 1], [3, 2], [0, 1, 2, 0, 1]),
        ([7, 8], [1, 2], [1, 1], [2, 2]),
        ([9], [2], [2], [0, 1]),
    ]
    assert [part.outputs.tolist() for part in batch.split(2)] == [[0, 0], [1, 0], [1]]


def test_a_part_asks_for_no_more_logits_than_told() -> None:
    batch = Batch.of_one_sequence(range(8), start=0)
    batch.outputs[:] = [1, 0, 1, 1, 1, 0, 0, 1]
    assert [part.tokens.tolist() for part in batch.split(4, 2)] == [[0, 1, 2], [3, 4, 5, 6], [7]]
    assert [part.tokens.tolist() for part in batch.split(8, 1)] == [[0, 1], [2], [3], [4, 5, 6], [7]]
    assert [len(part) for part in batch.split(3, 8)] == [3, 3, 2]


def test_only_the_last_token_of_a_sequence_asks_for_logits() -> None:
    assert Batch.of_one_sequence([4, 5, 6], start=7).outputs.tolist() == [0, 0, 1]
    assert Batch.of_one_sequence([4, 5, 6], start=7).positions.tolist() == [7, 8, 9]
    assert not Batch.of_one_sequence([4, 5, 6], start=7, last_output=False).outputs.any()


# The native control vector


def test_a_control_vector_moves_its_block_by_its_row_and_no_block_below(steerable: Model) -> None:
    tap = ResidualTap(steerable.n_layer, steerable.n_embd)
    tap.watch(range(steerable.n_layer))
    batch = Batch.of_one_sequence(PROMPT, start=0)
    batch.outputs[:] = 1
    with Context(steerable, n_ctx=64, n_outputs=len(PROMPT), tap=tap) as context:
        context.decode(batch)
        before = [tap.rows(layer) for layer in range(steerable.n_layer)]
        for layer in range(1, steerable.n_layer):
            added = random_rows(steerable, [layer], seed=layer)
            context.set_control_vector(added)
            context.clear()
            context.decode(batch)
            np.testing.assert_allclose(tap.rows(layer) - before[layer], np.tile(added[layer], (len(PROMPT), 1)), atol=ROUNDING)
            for below in range(layer):
                np.testing.assert_array_equal(tap.rows(below), before[below])


def test_a_zero_vector_changes_nothing(steerable: Model) -> None:
    with Context(steerable, n_ctx=64) as context:
        before = last_logits(context, PROMPT)
        context.set_control_vector(np.zeros((steerable.n_layer, steerable.n_embd), np.float32))
        np.testing.assert_array_equal(last_logits(context, PROMPT), before)


def test_no_vector_gives_back_the_very_logits_of_before(steerable: Model) -> None:
    with Context(steerable, n_ctx=64) as context:
        before = last_logits(context, PROMPT)
        context.set_control_vector(random_rows(steerable, range(1, steerable.n_layer), seed=2))
        assert np.abs(last_logits(context, PROMPT) - before).max() > 1
        context.set_control_vector(None)
        np.testing.assert_array_equal(last_logits(context, PROMPT), before)


def test_a_vector_of_fewer_layers_leaves_nothing_of_a_wider_one(steerable: Model) -> None:
    wide = random_rows(steerable, range(1, steerable.n_layer), seed=3)
    for layer in range(1, steerable.n_layer):
        narrow = random_rows(steerable, [layer], seed=4)
        with Context(steerable, n_ctx=64) as context:
            context.set_control_vector(narrow)
            alone = last_logits(context, PROMPT)
        with Context(steerable, n_ctx=64) as context:
            context.set_control_vector(wide)
            context.set_control_vector(narrow)
            np.testing.assert_array_equal(last_logits(context, PROMPT), alone)


def test_a_vector_may_change_between_the_tokens_of_a_sequence(steerable: Model) -> None:
    added = random_rows(steerable, range(1, steerable.n_layer), seed=5)
    with Context(steerable, n_ctx=64) as context:
        context.set_control_vector(added)
        context.decode(Batch.of_one_sequence(PROMPT[:-1], start=0))
        context.set_control_vector(None)
        context.decode(Batch.of_one_sequence(PROMPT[-1:], start=len(PROMPT) - 1))
        steered_prompt = context.logits(0).copy()
        context.set_control_vector(added)
        steered_all = last_logits(context, PROMPT)
        context.set_control_vector(None)
        unsteered = last_logits(context, PROMPT)
    assert np.abs(steered_prompt - steered_all).max() > 1
    assert np.abs(steered_prompt - unsteered).max() > 5 * LOGIT_NOISE


def test_a_vector_of_the_wrong_shape_or_with_a_row_for_block_0_is_refused(tiny: Model) -> None:
    with Context(tiny, n_ctx=64) as context:
        with pytest.raises(ValueError, match="shape"):
            context.set_control_vector(np.zeros((tiny.n_layer - 1, tiny.n_embd), np.float32))
        with pytest.raises(ValueError, match="control vector"):
            context.set_control_vector(random_rows(tiny, [0], seed=6))


# Sequences


def test_sequences_of_one_batch_do_not_see_each_other(transformer: Model) -> None:
    prompts = [random_tokens(length, seed=length) for length in (9, 5, 13)]
    # Token by token in turns, and backwards: what belongs to whom must not depend on the order.
    order = sorted(((place, number) for number, prompt in enumerate(prompts) for place in range(len(prompt))), reverse=True)
    order.sort(key=lambda item: item[0])
    batch = Batch(
        tokens=np.array([prompts[number][place] for place, number in order], np.int32),
        positions=np.array([place for place, _ in order], np.int32),
        sequence_counts=np.ones(len(order), np.int32),
        sequence_ids=np.array([number for _, number in order], np.int32),
        outputs=np.ones(len(order), np.int8),
    )
    tap = ResidualTap(transformer.n_layer, transformer.n_embd)
    tap.watch(range(transformer.n_layer))
    alone = [run_alone(transformer, prompt) for prompt in prompts]
    with Context(transformer, n_ctx=64, n_seq=3, n_outputs=len(order), tap=tap) as context:
        context.decode(batch)
        for row, (place, number) in enumerate(order):
            np.testing.assert_allclose(context.logits(row), alone[number].logits[place], atol=LOGIT_NOISE)
            for layer in range(transformer.n_layer):
                np.testing.assert_allclose(tap.rows(layer)[row], alone[number].rows[layer][place], atol=ROW_NOISE)


def test_the_end_of_a_sequence_can_be_taken_back_and_written_anew(transformer: Model) -> None:
    # Far more than gemma3's sliding window of 64 tokens, and than the 256 cells that llama.cpp would make for one.
    first = random_tokens(450, seed=7)
    second = (*first[:100], *random_tokens(20, seed=8))
    with Context(transformer, n_ctx=512, n_ubatch=64) as context:
        for part in Batch.of_one_sequence(first, start=0).split(64):
            context.decode(part)
        assert context.forget(0, 100)
        context.decode(Batch.of_one_sequence(second[100:], start=100))
        np.testing.assert_allclose(context.logits(19), run_alone(transformer, second).logits[-1], atol=LOGIT_NOISE)


def test_a_recurrent_model_cannot_take_back_its_last_tokens(tiny_model: TinyModel) -> None:
    with Context(tiny_model("mamba"), n_ctx=64) as context:
        context.decode(Batch.of_one_sequence(PROMPT, start=0))
        assert not context.forget(0, 10)
        assert context.forget(0)


def test_a_copied_sequence_goes_on_by_itself(steerable: Model) -> None:
    one, other = random_tokens(6, seed=9), random_tokens(6, seed=10)
    with Context(steerable, n_ctx=128, n_seq=2) as context:
        context.decode(Batch.of_one_sequence(PROMPT, start=0))
        context.copy_sequence(0, 1)
        for place in range(6):
            position = len(PROMPT) + place
            context.decode(next_tokens([one[place], other[place]], [position, position], [0, 1]))
        for row, tokens in enumerate((one, other)):
            alone = run_alone(steerable, (*PROMPT, *tokens)).logits[-1]
            np.testing.assert_allclose(context.logits(row), alone, atol=LOGIT_NOISE)


def test_a_long_prompt_goes_through_in_parts(steerable: Model) -> None:
    tokens = random_tokens(50, seed=11)
    batch = Batch.of_one_sequence(tokens, start=0)
    batch.outputs[[3, 31, 32]] = 1
    logits: dict[int, Floats] = {}
    with Context(steerable, n_ctx=64, n_ubatch=16) as context:
        for part in batch.split(16):
            context.decode(part)
            for asked in np.flatnonzero(part.outputs):
                logits[int(part.positions[asked])] = context.logits(int(asked)).copy()
    alone = run_alone(steerable, tokens).logits
    assert sorted(logits) == [3, 31, 32, 49]
    for place, row in logits.items():
        np.testing.assert_allclose(row, alone[place], atol=LOGIT_NOISE)


# From one context to another


def read(context: Context, tokens: Sequence[int], *, start: int = 0) -> None:
    """Run tokens one by one, as an answer is read."""
    for place, token in enumerate(tokens, start):
        context.decode(Batch.of_one_sequence([token], start=place))


def test_a_restored_sequence_gives_the_very_logits_of_the_next_token(steerable: Model) -> None:
    # Longer than gemma3's sliding window of 64 tokens.
    prompt = random_tokens(150, seed=12)
    with Context(steerable, n_ctx=256, n_seq=2) as one, Context(steerable, n_ctx=512, n_seq=3) as other:
        one.decode(Batch.of_one_sequence(prompt, start=0))
        assert one.sequence_bytes(0) == one.sequence_state(0).nbytes
        assert other.restore_sequence(0, one.sequence_state(0))
        for context in (one, other):
            read(context, (65, 66), start=150)
        np.testing.assert_array_equal(other.logits(0), one.logits(0))
        np.testing.assert_allclose(one.logits(0), run_alone(steerable, (*prompt, 65, 66)).logits[-1], atol=LOGIT_NOISE)


def test_a_sequence_can_be_restored_under_another_number_beside_others(transformer: Model) -> None:
    with Context(transformer, n_ctx=256, n_seq=2) as context:
        read(context, PROMPT)
        context.decode(Batch.of_one_sequence(random_tokens(30, seed=14), start=0, sequence=1))
        state = context.sequence_state(0)
        read(context, [65], start=len(PROMPT))
        expected = context.logits(0).copy()
        assert context.restore_sequence(1, state)
        context.decode(Batch.of_one_sequence([65], start=len(PROMPT), sequence=1))
        np.testing.assert_allclose(context.logits(0), expected, atol=LOGIT_NOISE)


def test_a_sequence_that_does_not_fit_leaves_the_context_usable(tiny: Model, capfd: pytest.CaptureFixture[str]) -> None:
    with Context(tiny, n_ctx=512, n_seq=2) as large, Context(tiny, n_ctx=256, n_seq=2) as small:
        fresh = last_logits(small, PROMPT)
        large.decode(Batch.of_one_sequence(random_tokens(300, seed=15), start=0))
        small.clear()
        assert not small.restore_sequence(0, large.sequence_state(0))
        np.testing.assert_array_equal(last_logits(small, PROMPT), fresh)
    assert capfd.readouterr().err == ""


# What cannot be done


def test_logits_that_were_not_asked_for_are_an_error(tiny: Model, capfd: pytest.CaptureFixture[str]) -> None:
    with Context(tiny, n_ctx=64) as context:
        context.decode(Batch.of_one_sequence(PROMPT, start=0))
        with pytest.raises(ValueError, match="token 3"):
            context.logits(3)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("count", [0, 17])
def test_a_batch_must_fit_one_ubatch(tiny: Model, count: int) -> None:
    with Context(tiny, n_ctx=64, n_ubatch=16) as context, pytest.raises(ValueError, match=f"{count} tokens"):
        context.decode(Batch.of_one_sequence([1] * count, start=0, last_output=False))


def test_a_full_context_says_so_and_stays_usable(tiny: Model, capfd: pytest.CaptureFixture[str]) -> None:
    with Context(tiny, n_ctx=256) as context:
        fresh = last_logits(context, PROMPT)
        context.decode(Batch.of_one_sequence([1] * 200, start=len(PROMPT)))
        with pytest.raises(ModelError, match=r"256 tokens.*--context"):
            context.decode(Batch.of_one_sequence([1] * 100, start=len(PROMPT) + 200))
        np.testing.assert_array_equal(last_logits(context, PROMPT), fresh)
    assert capfd.readouterr().err == ""


def test_a_token_outside_the_vocabulary_is_an_error(tiny: Model, capfd: pytest.CaptureFixture[str]) -> None:
    with Context(tiny, n_ctx=64) as context, pytest.raises(ModelError, match=f"{tiny.path}.*{tiny.n_vocab}"):
        context.decode(Batch.of_one_sequence([1, tiny.n_vocab], start=0))
    assert capfd.readouterr().err == ""


def test_a_context_that_llama_cpp_cannot_make_is_an_error(tiny: Model, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=str(tiny.path)):
        Context(tiny, n_ctx=64, n_seq=100_000)
    assert capfd.readouterr().err == ""


def test_a_context_may_be_closed_twice(tiny: Model) -> None:
    with Context(tiny, n_ctx=64) as context:
        context.close()
