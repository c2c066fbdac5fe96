from __future__ import annotations

from collections.abc import Iterator

import pytest

from localsteer.engine.prefix_cache import PrefixCache
from localsteer.engine.slots import Slot, Slots
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from tests.conftest import random_tokens

TALK = random_tokens(60, seed=1)


@pytest.fixture
def context(tiny: Model) -> Iterator[Context]:
    with Context(tiny, n_ctx=512, n_seq=3) as made:
        yield made


def answered(slots: Slots, context: Context, prompt: tuple[int, ...]) -> Slot:
    """A slot that read a prompt and is free again."""
    slot, shared = slots.take(prompt, None)
    context.decode(Batch.of_one_sequence(prompt[shared:], start=shared, sequence=slot.sequence))
    slot.written.add(prompt[shared:], None)
    slot.free = True
    return slot


@pytest.mark.parametrize(("shared", "goes_on"), [(25, False), (29, False), (30, True), (45, True)])
def test_while_others_answer_a_talk_goes_on_from_half_of_it_and_is_left_alone_below(
    context: Context, shared: int, goes_on: bool
) -> None:
    """What merely begins alike gets a sequence of its own, which shares that beginning."""
    slots = Slots(context, PrefixCache(0))
    talk = answered(slots, context, TALK)
    busy, _ = slots.take(random_tokens(20, seed=2), None)
    assert busy is not talk
    slot, found = slots.take((*TALK[:shared], *random_tokens(20, seed=3)), None)
    assert found == shared
    assert (slot is talk) == goes_on
    assert talk.written.tokens == list(TALK[:shared] if goes_on else TALK)


@pytest.mark.parametrize("shared", [0, 10])
def test_a_talk_that_main_memory_cannot_keep_is_not_driven_out_by_another_one(context: Context, shared: int) -> None:
    slots = Slots(context, PrefixCache(0))
    talk = answered(slots, context, TALK)
    other = answered(slots, context, (*TALK[:shared], *random_tokens(40, seed=3)))
    assert other is not talk
    assert talk.written.tokens == list(TALK)
    again, found = slots.take((*TALK, 65), None)
    assert (again, found) == (talk, len(TALK))


def test_a_talk_that_main_memory_keeps_gives_its_cells_to_the_next_one(context: Context) -> None:
    """So that the next one finds the cells as it would alone; it comes back from there."""
    cache = PrefixCache(2**24)
    slots = Slots(context, cache)
    talk = answered(slots, context, TALK)
    other = answered(slots, context, (*TALK[:10], *random_tokens(40, seed=3)))
    assert other is talk
    assert len(cache) == 1
    _, found = slots.take((*TALK, 65), None)
    assert found == len(TALK)
