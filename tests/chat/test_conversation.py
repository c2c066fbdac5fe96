from __future__ import annotations

import numpy as np
import pytest

from localsteer.chat.conversation import Conversation
from localsteer.errors import LocalsteerError
from localsteer.generation import Generator, Request, prompt_tokens
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.steering import Plan, parse_steering, resolve
from localsteer.vector import ControlVector

SAMPLING = Sampling(seed=5)


def push(model: Model) -> Plan:
    added = np.zeros((model.n_layer, model.n_embd), np.float32)
    added[1:] = 5 * np.random.default_rng(0).standard_normal(added[1:].shape)
    vector = ControlVector({layer: added[layer] for layer in range(1, model.n_layer)})
    return resolve(parse_steering("push.gguf"), model.fingerprint, lambda _name: vector)


def fresh_answer(model: Model, turns: list[Message], plan: Plan | None, max_tokens: int) -> tuple[int, ...]:
    with Generator(model) as generator:
        return generator.generate(Request(prompt_tokens(model, turns), plan, SAMPLING, max_tokens)).tokens


@pytest.mark.parametrize("steered", [False, True])
def test_a_second_turn_reuses_the_first_and_answers_as_a_fresh_run(tiny: Model, steered: bool) -> None:
    plan = push(tiny) if steered else None
    with Generator(tiny) as generator:
        conversation = Conversation(generator, plan=plan, sampling=SAMPLING, max_tokens=8)
        first = conversation.ask("Hello there")
        second = conversation.ask("And now?")
    turns = [Message("user", "Hello there"), Message("assistant", first.text.strip()), Message("user", "And now?")]
    assert conversation.turns[:-1] == turns
    # The first question at least is still in the cache; a steered answer in it is not, for it is read unsteered now.
    assert second.timing.reused_tokens >= len(prompt_tokens(tiny, turns[:1])) - 1
    assert second.tokens == fresh_answer(tiny, turns, plan, 8)


def test_steering_may_change_between_turns(tiny: Model) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=8)
        first = conversation.ask("Hello")
        conversation.plan = push(tiny)
        second = conversation.ask("Hello")
        turns = [Message("user", "Hello"), Message("assistant", first.text.strip()), Message("user", "Hello")]
        assert second.tokens == fresh_answer(tiny, turns, conversation.plan, 8)


def test_compare_leaves_the_conversation_as_it_is(tiny: Model) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, plan=push(tiny), sampling=SAMPLING, max_tokens=6)
        assert conversation.compare() == []
        answer = conversation.ask("Hello")
        before = list(conversation.turns)
        compared = conversation.compare()
        assert conversation.turns == before
    assert [title for title, _ in compared] == ["-push.gguf", "unsteered", "push.gguf"]
    assert compared[2][1].tokens == answer.tokens
    assert compared[1][1].tokens == fresh_answer(tiny, [Message("user", "Hello")], None, 6)


def test_the_oldest_turns_make_room(tiny: Model) -> None:
    with Generator(tiny, n_ctx=128) as generator:
        conversation = Conversation(generator, system="Be brief.", sampling=SAMPLING, max_tokens=10)
        for number in range(6):
            conversation.ask(f"Question number {number}")
        assert len(conversation.turns) == 12
        assert conversation.dropped_turns >= 2
        with pytest.raises(LocalsteerError, match="context"):
            conversation.ask("x" * 500)
        assert len(conversation.turns) == 12


def test_reset_forgets_the_turns_and_keeps_the_system_message(tiny: Model) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, system="Be brief.", sampling=SAMPLING, max_tokens=6)
        first = conversation.ask("Hello")
        conversation.ask("More")
        conversation.reset()
        assert conversation.ask("Hello").tokens == first.tokens
