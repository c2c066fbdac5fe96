from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from localsteer.errors import ModelError
from localsteer.llama import library
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from tests.conftest import (
    LOGIT_NOISE,
    ROUNDING,
    ROW_NOISE,
    Floats,
    TinyModel,
    next_tokens,
    random_basis,
    random_edit,
    random_rows,
    random_tokens,
    run_alone,
)

PROMPT = random_tokens(24, seed=1)


def removal(model: Model, layer: int, basis: Floats) -> Edit:
    return Edit(np.zeros((model.n_layer, model.n_embd), np.float32), {layer: basis})


def native_logits(model: Model, tokens: Sequence[int], added: Floats) -> Floats:
    with Context(model, n_ctx=512) as context:
        context.set_control_vector(added)
        context.decode(Batch.of_one_sequence(tokens, start=0))
        return context.logits(len(tokens) - 1).copy()


# Reading


def test_prompts_longer_than_a_ubatch_give_the_same_rows(steerable: Model) -> None:
    tokens = random_tokens(70, seed=2)
    tap = ResidualTap(steerable.n_layer, steerable.n_embd)
    tap.watch(range(steerable.n_layer))
    batch = Batch.of_one_sequence(tokens, start=0)
    batch.outputs[:] = 1
    parts: list[list[Floats]] = []
    with Context(steerable, n_ctx=128, n_ubatch=16, n_outputs=16, tap=tap) as context:
        for part in batch.split(16):
            context.decode(part)
            parts.append([tap.rows(layer) for layer in range(steerable.n_layer)])
    assert [len(rows[0]) for rows in parts] == [16, 16, 16, 16, 6]
    whole = run_alone(steerable, tokens)
    for layer in range(steerable.n_layer):
        together = np.concatenate([rows[layer] for rows in parts])
        np.testing.assert_allclose(together, whole.rows[layer], atol=ROW_NOISE)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba"])
def test_stopping_gives_the_same_rows_and_computes_nothing_above(tiny_model: TinyModel, architecture: str) -> None:
    model = tiny_model(architecture)
    read: list[list[Floats]] = []
    nodes: list[set[bytes]] = []
    for stop in (False, True):
        tap = ResidualTap(model.n_layer, model.n_embd)
        tap.watch((1, 2), stop=stop)
        nodes.append(computed_nodes(tap))
        with Context(model, n_ctx=64, tap=tap) as context:
            context.decode(Batch.of_one_sequence(PROMPT, start=0))
        read.append([tap.rows(1), tap.rows(2)])
    np.testing.assert_array_equal(read[1], read[0])
    assert {b"l_out-3", b"result_output"} <= nodes[0]
    assert not {b"l_out-3", b"result_output"} & nodes[1]


def computed_nodes(tap: ResidualTap) -> set[bytes]:
    """Will hold the names of all nodes that llama.cpp comes to in the decodes of this tap."""
    ggml = library.ggml_base()
    callback = tap.callback
    names: set[bytes] = set()

    def spy(tensor: int, ask: bool, user_data: int | None) -> bool:
        if ask:
            names.add(ggml.ggml_get_name(tensor))
        return bool(callback(tensor, ask, user_data))

    tap.callback = type(callback)(spy)
    return names


def test_the_last_block_shows_the_rows_of_the_tokens_that_ask_for_logits(steerable: Model) -> None:
    last = steerable.n_layer - 1
    wanted = [2, 7, 23]
    batch = Batch.of_one_sequence(PROMPT, start=0)
    batch.outputs[wanted] = 1
    tap = ResidualTap(steerable.n_layer, steerable.n_embd)
    tap.watch([last])
    with Context(steerable, n_ctx=64, n_outputs=3, tap=tap) as context:
        context.decode(batch)
        rows = tap.rows(last)
    whole = run_alone(steerable, PROMPT).rows[last]
    assert len(rows) in (len(wanted), len(PROMPT))
    np.testing.assert_allclose(rows if len(rows) == len(wanted) else rows[wanted], whole[wanted], atol=ROW_NOISE)


def test_rows_are_read_before_their_own_edit_and_after_those_below(steerable: Model) -> None:
    added = random_rows(steerable, [2], seed=3)
    before = run_alone(steerable, PROMPT)
    after = run_alone(steerable, PROMPT, [Edit(added)] * len(PROMPT))
    np.testing.assert_array_equal(after.rows[2], before.rows[2])
    assert np.abs(after.rows[3] - before.rows[3]).max() > 1


def test_layers_may_be_watched_in_turns(tiny: Model) -> None:
    whole = run_alone(tiny, PROMPT)
    tap = ResidualTap(tiny.n_layer, tiny.n_embd)
    with Context(tiny, n_ctx=64, tap=tap) as context:
        for layer in (0, 2, 1):
            tap.watch([layer])
            context.clear()
            context.decode(Batch.of_one_sequence(PROMPT, start=0))
            np.testing.assert_allclose(tap.rows(layer), whole.rows[layer], atol=ROW_NOISE)


# Adding


def test_an_edit_of_all_tokens_does_what_the_native_control_vector_does(steerable: Model) -> None:
    for layers in ([1], [steerable.n_layer - 1], range(1, steerable.n_layer)):
        added = random_rows(steerable, layers, seed=4)
        edited = run_alone(steerable, PROMPT, [Edit(added)] * len(PROMPT)).logits
        native = native_logits(steerable, PROMPT, added)
        np.testing.assert_allclose(edited[-1], native, atol=ROUNDING)
        assert np.abs(run_alone(steerable, PROMPT).logits[-1] - native).max() > 1


def test_only_the_tokens_with_an_edit_change(transformer: Model) -> None:
    last = transformer.n_layer - 1
    edit = Edit(random_rows(transformer, [last], seed=5))
    edited = {3, 11, 23}
    before = run_alone(transformer, PROMPT).logits
    after = run_alone(transformer, PROMPT, [edit if place in edited else None for place in range(len(PROMPT))]).logits
    moved = np.abs(after - before).max(axis=1)
    assert {place for place in range(len(PROMPT)) if moved[place] > 1} == edited
    assert moved[sorted(set(range(len(PROMPT))) - edited)].max() < ROUNDING


def test_four_sequences_with_four_strengths_equal_the_four_alone(steerable: Model) -> None:
    direction = random_rows(steerable, range(1, steerable.n_layer), seed=6)
    strengths = (-1.0, 0.25, 0.5, 1.5)
    prompts = [random_tokens(length, seed=length) for length in (11, 20, 20, 5)]
    edits = [Edit(direction * np.float32(strength)) for strength in strengths]
    tap = ResidualTap(steerable.n_layer, steerable.n_embd)
    with Context(steerable, n_ctx=256, n_seq=4, tap=tap) as context:
        for number, (prompt, edit) in enumerate(zip(prompts, edits, strict=True)):
            tap.edit([edit] * (len(prompt) - 1))
            context.decode(Batch.of_one_sequence(prompt[:-1], start=0, sequence=number))
        tap.edit(edits)
        ends = [len(prompt) - 1 for prompt in prompts]
        context.decode(next_tokens([prompt[-1] for prompt in prompts], ends, range(4)))
        for row, (prompt, edit) in enumerate(zip(prompts, edits, strict=True)):
            np.testing.assert_allclose(context.logits(row), native_logits(steerable, prompt, edit.added), atol=LOGIT_NOISE)


def test_an_edit_in_the_last_block_reaches_its_own_token_where_few_ask_for_logits(steerable: Model) -> None:
    last = steerable.n_layer - 1
    edits = [Edit(random_rows(steerable, [last], seed=place)) for place in range(len(PROMPT))]
    wanted = [5, 6, 23]
    batch = Batch.of_one_sequence(PROMPT, start=0)
    batch.outputs[wanted] = 1
    tap = ResidualTap(steerable.n_layer, steerable.n_embd)
    tap.edit(edits)
    with Context(steerable, n_ctx=64, n_outputs=3, tap=tap) as context:
        context.decode(batch)
        for place in wanted:
            alone = native_logits(steerable, PROMPT[: place + 1], edits[place].added)
            np.testing.assert_allclose(context.logits(place), alone, atol=LOGIT_NOISE)


def test_no_edits_give_back_the_very_logits_of_before(tiny: Model) -> None:
    tap = ResidualTap(tiny.n_layer, tiny.n_embd)
    batch = Batch.of_one_sequence(PROMPT, start=0)
    with Context(tiny, n_ctx=64, tap=tap) as context:
        context.decode(batch)
        before = context.logits(len(PROMPT) - 1).copy()
        for end in ([], [None] * len(PROMPT)):
            tap.edit([random_edit(tiny, seed=7)] * len(PROMPT))
            context.clear()
            context.decode(batch)
            assert np.abs(context.logits(len(PROMPT) - 1) - before).max() > 1
            tap.edit(end)
            context.clear()
            context.decode(batch)
            np.testing.assert_array_equal(context.logits(len(PROMPT) - 1), before)


def test_a_new_edit_is_not_taken_for_an_old_one(tiny: Model) -> None:
    # A freed Edit's id is soon that of a new one.
    tap = ResidualTap(tiny.n_layer, tiny.n_embd)
    added = random_rows(tiny, [2], seed=8)
    with Context(tiny, n_ctx=64, tap=tap) as context:
        for strength in range(20):
            tap.edit([Edit(added * np.float32(strength))])
            context.clear()
            context.decode(Batch.of_one_sequence([65], start=0))
            native = native_logits(tiny, [65], added * np.float32(strength))
            np.testing.assert_allclose(context.logits(0), native, atol=ROUNDING * 10)


def test_edits_that_change_places_act_on_the_other_sequence(tiny: Model) -> None:
    edits = [random_edit(tiny, seed=9), random_edit(tiny, seed=10)]
    tap = ResidualTap(tiny.n_layer, tiny.n_embd)
    with Context(tiny, n_ctx=64, n_seq=2, tap=tap) as context:
        for order in (edits, edits[::-1]):
            tap.edit(order)
            context.clear()
            context.decode(next_tokens([65, 65], [0, 0], [0, 1]))
            for row, edit in enumerate(order):
                np.testing.assert_allclose(context.logits(row), native_logits(tiny, [65], edit.added), atol=LOGIT_NOISE)


# Removing


@pytest.mark.parametrize("rank", [1, 3])
def test_removal_is_the_addition_of_what_each_token_lacks(steerable: Model, rank: int) -> None:
    plain = run_alone(steerable, PROMPT)
    for layer in range(1, steerable.n_layer):
        basis = random_basis(steerable, rank, seed=layer)
        by_hand = []
        for hidden in plain.rows[layer]:
            added = np.zeros((steerable.n_layer, steerable.n_embd), np.float32)
            for direction in basis:
                added[layer] -= np.dot(hidden, direction) * direction
            by_hand.append(Edit(added))
        expected = run_alone(steerable, PROMPT, by_hand)
        removed = run_alone(steerable, PROMPT, [removal(steerable, layer, basis)] * len(PROMPT))
        np.testing.assert_allclose(removed.logits, expected.logits, atol=LOGIT_NOISE)
        for above in range(layer + 1, steerable.n_layer):
            np.testing.assert_allclose(removed.rows[above], expected.rows[above], atol=ROW_NOISE)
        assert np.abs(removed.logits - plain.logits).max() > 5 * LOGIT_NOISE


def test_nothing_along_a_removed_direction_passes_its_block(steerable: Model) -> None:
    # Whatever llama.cpp itself adds along the direction below the removal makes no difference above.
    basis = random_basis(steerable, 1, seed=11)
    flood = np.zeros((steerable.n_layer, steerable.n_embd), np.float32)
    flood[2] = 30 * basis[0]
    logits = []
    tap = ResidualTap(steerable.n_layer, steerable.n_embd)
    with Context(steerable, n_ctx=64, tap=tap) as context:
        for edits in ([], [removal(steerable, 2, basis)] * len(PROMPT)):
            tap.edit(edits)
            for added in (None, flood):
                context.clear()
                context.set_control_vector(added)
                context.decode(Batch.of_one_sequence(PROMPT, start=0))
                logits.append(context.logits(len(PROMPT) - 1).copy())
    assert np.abs(logits[1] - logits[0]).max() > 1
    np.testing.assert_allclose(logits[3], logits[2], atol=LOGIT_NOISE)


def test_components_are_removed_before_a_vector_is_added(steerable: Model) -> None:
    basis = random_basis(steerable, 1, seed=12)
    added = random_rows(steerable, [2], seed=13)
    added[2] += 5 * basis[0]
    hidden = run_alone(steerable, PROMPT).rows[2]
    by_hand = []
    for row in hidden:
        rows = added.copy()
        rows[2] -= np.dot(row, basis[0]) * basis[0]
        by_hand.append(Edit(rows))
    expected = run_alone(steerable, PROMPT, by_hand).logits
    both = run_alone(steerable, PROMPT, [Edit(added, {2: basis})] * len(PROMPT)).logits
    np.testing.assert_allclose(both, expected, atol=LOGIT_NOISE)


def test_removals_in_the_last_block_reach_their_own_tokens_where_few_ask_for_logits(steerable: Model) -> None:
    last = steerable.n_layer - 1
    edits: list[Edit | None] = [None] * len(PROMPT)
    edits[4] = removal(steerable, last, random_basis(steerable, 1, seed=14))
    edits[6] = removal(steerable, last, random_basis(steerable, 2, seed=15))
    batch = Batch.of_one_sequence(PROMPT, start=0)
    wanted = [5, 6, 23]
    batch.outputs[wanted] = 1
    tap = ResidualTap(steerable.n_layer, steerable.n_embd)
    tap.edit(edits)
    expected = run_alone(steerable, PROMPT, edits).logits
    with Context(steerable, n_ctx=64, n_outputs=3, tap=tap) as context:
        context.decode(batch)
        for place in wanted:
            np.testing.assert_allclose(context.logits(place), expected[place], atol=LOGIT_NOISE)
    assert np.abs(expected[6] - run_alone(steerable, PROMPT).logits[6]).max() > 5 * LOGIT_NOISE


# What goes wrong


def test_an_architecture_without_named_block_outputs_is_an_error(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match=r"does not show the residual stream .*l_out-2"):
        run_alone(tiny_model("plamo2"), PROMPT)


def test_a_layer_that_the_model_does_not_have_is_an_error(tiny: Model) -> None:
    tap = ResidualTap(tiny.n_layer, tiny.n_embd)
    tap.watch([1, tiny.n_layer])
    with Context(tiny, n_ctx=64, tap=tap) as context, pytest.raises(ModelError, match=r"\(l_out-4\)"):
        context.decode(Batch.of_one_sequence(PROMPT, start=0))


def test_edits_must_be_as_many_as_tokens(tiny: Model) -> None:
    with pytest.raises(ValueError, match="3 edits for a batch of 24 tokens"):
        run_alone(tiny, PROMPT, [random_edit(tiny, seed=16)] * 3)


def test_what_goes_wrong_in_the_callback_is_raised_and_forgotten(tiny: Model, capfd: pytest.CaptureFixture[str]) -> None:
    tap = ResidualTap(tiny.n_layer, tiny.n_embd)
    batch = Batch.of_one_sequence(PROMPT, start=0)
    with Context(tiny, n_ctx=64, tap=tap) as context:
        context.decode(batch)
        before = context.logits(len(PROMPT) - 1).copy()
        tap.edit([removal(tiny, 2, np.ones((1, tiny.n_embd + 1), np.float32))] * len(PROMPT))
        context.clear()
        with pytest.raises(ValueError, match="mismatch"):
            context.decode(batch)
        tap.edit([])
        context.clear()
        context.decode(batch)
        np.testing.assert_array_equal(context.logits(len(PROMPT) - 1), before)
    assert capfd.readouterr().err == ""


def test_a_scaled_edit_adds_so_much_of_the_same_rows_and_removes_as_much_as_before() -> None:
    one, other = (np.full((4, 8), value, np.float32) for value in (1, 2))
    basis = {2: np.eye(8, dtype=np.float32)[:1]}
    edit = Edit(one, basis, 0.5, ((other, -2.0),))
    half = edit.scaled(0.5)
    np.testing.assert_allclose(half.added, 0.5 * edit.added)
    at_one = half.added_at(1)
    assert at_one is not None
    np.testing.assert_allclose(at_one, 0.5 * edit.added[1])
    assert half.removed is basis
    assert [rows is own for (rows, _), own in zip(half.terms, (one, other), strict=True)] == [True, True]
    assert half == edit.scaled(0.5) != edit
