from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsteer.chat.conversation import Conversation
from localsteer.engine.generate import Generator
from localsteer.engine.request import Answer, Request
from localsteer.errors import LocalsteerError
from localsteer.llama.chat_template import Message
from localsteer.llama.control_tokens import TextGuard
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.llama.template_tokens import TemplateTokens
from localsteer.policy.classifier import Classifier, Observer, Seen
from localsteer.policy.condition import parse_condition
from localsteer.policy.controller import Controller
from localsteer.policy.policy import Policy, Rule
from localsteer.policy.probe_classifier import ProbeClassifier
from localsteer.reading.prompt import latest_message, prompt_tokens
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.control_vector import ControlVector
from tests.conftest import ROW_NOISE, run_alone
from tests.tiny_models import CHATML_TEMPLATE, write_tiny_model

SAMPLING = Sampling(seed=5)


def push(model: Model, expression: str = "push.gguf") -> Plan:
    added = np.zeros((model.n_layer, model.n_embd), np.float32)
    added[1:] = 5 * np.random.default_rng(0).standard_normal(added[1:].shape)
    vector = ControlVector({layer: added[layer] for layer in range(1, model.n_layer)})
    return resolve(parse_steering(expression), model.fingerprint, lambda _name: vector)


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
    assert [(one.role, one.content) for one in conversation.turns[:-1]] == [(one.role, one.content) for one in turns]
    # The first question at least is still in the cache; a steered answer in it is not, for it is read unsteered now.
    assert second.answer.timing.reused_tokens >= len(prompt_tokens(tiny, turns[:1])) - 1
    assert second.answer.tokens == fresh_answer(tiny, turns, plan, 8)


def test_steering_may_change_between_turns(tiny: Model) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=8)
        first = conversation.ask("Hello")
        conversation.plan = push(tiny)
        second = conversation.ask("Hello")
        turns = [Message("user", "Hello"), Message("assistant", first.text.strip()), Message("user", "Hello")]
        assert second.answer.tokens == fresh_answer(tiny, turns, conversation.plan, 8)


def test_answers_side_by_side_leave_the_conversation_as_it_is(tiny: Model) -> None:
    heard = ["", "", ""]

    def tell(number: int, piece: str) -> None:
        heard[number] += piece

    with Generator(tiny) as generator:
        plan, opposite = push(tiny), push(tiny, "-push.gguf")
        conversation = Conversation(generator, plan=plan, sampling=SAMPLING, max_tokens=6)
        assert conversation.side_by_side([opposite, None, plan]) == []
        exchange = conversation.ask("Hello")
        before = list(conversation.turns)
        against, without, steered = conversation.side_by_side([opposite, None, plan], on_text=tell)
        assert conversation.turns == before
        again = conversation.side_by_side([None], "Hello", should_stop=lambda: True)
        assert [answer.finish_reason for answer in again] == ["interrupted"]
        following = conversation.ask("And now?")
    assert steered.tokens == exchange.answer.tokens != without.tokens != against.tokens
    assert without.tokens == fresh_answer(tiny, [Message("user", "Hello")], None, 6)
    assert heard == [against.text, without.text, steered.text]
    # What the conversation had read is still there.
    turns = [Message("user", "Hello"), Message("assistant", exchange.text), Message("user", "And now?")]
    assert following.answer.timing.reused_tokens >= len(prompt_tokens(tiny, turns[:1])) - 1
    assert following.answer.tokens == fresh_answer(tiny, turns, plan, 6)


def test_what_was_asked_last_is_taken_back(tiny: Model) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=6)
        assert conversation.take_back() is None
        first = conversation.ask("Hello")
        conversation.ask("More")
        assert conversation.take_back() == "More"
        assert [turn.content for turn in conversation.turns] == ["Hello", first.text]
        assert conversation.ask("More", seed=9).answer.seed == 9


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


@pytest.mark.parametrize("controlled", [False, True])
def test_past_the_end_of_the_context_the_prefix_is_reused(tiny: Model, controller: Controller, controlled: bool) -> None:
    """A turn reads what is left of the conversation anew, at most half of the context, and the next ones go on from there."""
    n_ctx, n_turns = 512, 30
    with Generator(tiny, n_ctx=n_ctx) as generator:
        conversation = Conversation(
            generator,
            system="Be brief.",
            controller=controller if controlled else None,
            sampling=SAMPLING,
            max_tokens=10,
        )
        reading, left_out, reused = [], [], []
        for number in range(n_turns):
            timing = conversation.ask(f"Question number {number}").answer.timing
            reading.append(timing.prompt_tokens)
            reused.append(timing.reused_tokens)
            left_out.append(conversation.dropped_turns)
    dropping = [turn for turn in range(1, n_turns) if left_out[turn] > left_out[turn - 1]]
    assert len(dropping) >= 2
    # Half of 500 tokens is 4 turns of these and more.
    assert min(np.diff(dropping)) >= 4
    system = len(tiny.tokenize("<|im_start|>system\nBe brief.<|im_end|>\n"))
    for turn in range(1, n_turns):
        if turn in dropping:
            assert reading[turn] <= n_ctx // 2
            assert reused[turn] >= system
        else:
            assert reading[turn] < 80  # the last answer and the question
            assert reused[turn] + reading[turn] > reused[turn - 1] + reading[turn - 1]
    # And no more is dropped than that: a quarter of the context at least is still said.
    assert min(one + other for one, other in zip(reading[dropping[0] :], reused[dropping[0] :], strict=True)) > n_ctx // 4


def test_a_conversation_is_tokenised_once_a_turn(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    tokenize = TemplateTokens.tokenize

    def counting(self: TemplateTokens, prompt: str, guard: TextGuard | None) -> list[int]:
        texts.append(prompt)
        return tokenize(self, prompt, guard)

    monkeypatch.setattr(TemplateTokens, "tokenize", counting)
    counts = []
    with Generator(tiny, n_ctx=512) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=4)
        for number in range(40):
            texts.clear()
            before = conversation.dropped_turns
            conversation.ask(f"Question number {number}")
            if conversation.dropped_turns == before:
                counts.append(len(texts))
            else:
                assert len(texts) < 8
    assert set(counts) == {1}


def test_a_long_message_drops_what_is_said_for_itself_alone(tiny: Model) -> None:
    """One that is refused leaves the conversation as it is, and so does one that is only compared."""
    with Generator(tiny, n_ctx=256) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=10)
        for number in range(3):
            conversation.ask(f"Question {number}")
        before = (list(conversation.turns), conversation.dropped_turns)
        assert before[1] == 0
        with pytest.raises(LocalsteerError):
            conversation.ask("x" * 500)
        conversation.side_by_side([None], "x" * 180)
        assert (conversation.turns, conversation.dropped_turns) == before
        conversation.ask("x" * 180)
        assert conversation.dropped_turns == 6


NO_EMPTY_TURN = (
    "{% for message in messages %}"
    "{% if not message['content'] %}{{ raise_exception('a turn needs content') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


def test_after_an_answer_without_text_the_next_message_is_answered(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "strict.gguf", chat_template=NO_EMPTY_TURN)
    with Model(path, threads=1) as strict, Generator(strict) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=4)
        first = conversation.ask("Hello")
        assert conversation.ask("Are you", should_stop=lambda: True).answer.tokens == ()
        assert [turn.content for turn in conversation.turns] == ["Hello", first.text.strip()]
        assert len(conversation.side_by_side([None])) == 1
        again = conversation.ask("Are you there?")
        assert [turn.content for turn in conversation.turns[2:]] == ["Are you there?", again.text.strip()]


ONE_AT_A_TIME = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0]['content'] }}"


def test_what_the_template_refuses_can_be_taken_up_and_back(tiny: Model, tmp_path: Path) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=4)
        conversation.ask("Hello")
        turns = conversation.turns * 2
    path = write_tiny_model(tmp_path / "strict.gguf", chat_template=ONE_AT_A_TIME)
    with Model(path, threads=1) as strict, Generator(strict) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=4)
        conversation.take_up(turns)
        assert conversation.prompt_length == 0
        assert conversation.take_back() == "Hello"
        assert len(conversation.turns) == 2


def test_reset_forgets_the_turns_and_keeps_the_system_message(tiny: Model) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, system="Be brief.", sampling=SAMPLING, max_tokens=6)
        first = conversation.ask("Hello")
        conversation.ask("More")
        conversation.reset()
        assert conversation.ask("Hello").answer.tokens == first.answer.tokens


# A policy


@pytest.fixture
def controller(tiny: Model) -> Controller:
    """Pushes while the user talks of pigs, and goes on about it until they talk of hens."""
    policy = Policy(
        {"pigs": Talk(name="pigs", watch="prompt", threshold=1.0, release=0.5)},
        (Rule("push", parse_condition("pigs"), push(tiny)),),
    )
    return Controller(policy)


class Talk(Classifier):
    """1 where there are pigs, 0 where there are hens, and 0.7 otherwise."""

    def observer(self) -> Observer:
        return Talked()


class Talked(Observer):
    def observe(self, seen: Seen) -> float:
        return 1.0 if "pig" in seen.message else 0.0 if "hen" in seen.message else 0.7


def actions(controller: Controller) -> list[str]:
    return [decision.action for decision in controller.decisions]


def test_the_policy_hears_the_users_message_and_steers_the_answer_to_it(tiny: Model, controller: Controller) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, system="Speak of pigs.", controller=controller, sampling=SAMPLING, max_tokens=8)
        heard = []
        for message in ("A hen", "A pig", "And now?", "A hen"):
            turns = [Message("system", "Speak of pigs."), *conversation.turns, Message("user", message)]
            answer = conversation.ask(message)
            heard += actions(controller)
            plan = push(tiny) if heard[-1] == "fire" else None
            assert answer.answer.tokens == fresh_answer(tiny, turns, plan, 8)
    # The system message and what was said before are not the user's latest message.
    assert heard == ["pass", "fire", "fire", "pass"]


@pytest.mark.parametrize("again", [False, True])
def test_what_is_taken_back_the_policy_has_not_heard(tiny: Model, controller: Controller, again: bool) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, controller=controller, sampling=SAMPLING, max_tokens=4)

        def heard(message: str) -> list[str]:
            conversation.ask(message)
            return actions(controller)

        assert heard("A hen") == ["pass"]
        assert heard("A pig") == ["fire"]
        assert heard("And now?") == ["fire"]
        if again:
            with conversation.last_taken_back():
                assert heard("A hen") == ["pass"]
            assert heard("And now?") == ["pass"]
            conversation.take_back()
        conversation.take_back()
        assert actions(controller) == []
        assert heard("What of it?") == ["fire"]
        for _ in range(2):
            conversation.take_back()
        assert heard("And now?") == ["pass"]


def test_a_message_that_is_not_kept_the_policy_has_not_heard(tiny: Model, controller: Controller) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, controller=controller, sampling=SAMPLING, max_tokens=4)
        conversation.ask("A hen")
        conversation.ask("A pig", should_stop=lambda: True)
        with pytest.raises(KeyboardInterrupt):
            conversation.ask("A pig", on_text=insistent)
        conversation.ask("And now?")
    assert actions(controller) == ["pass"]


def insistent(_piece: str, _reasoning: bool) -> None:
    raise KeyboardInterrupt


def test_what_fails_to_take_the_place_of_an_answer_leaves_it_there(tiny: Model, controller: Controller) -> None:
    with Generator(tiny, n_ctx=128) as generator:
        conversation = Conversation(generator, controller=controller, sampling=SAMPLING, max_tokens=4)
        conversation.ask("A pig")
        before = conversation.turns, conversation.latest, conversation.prompt_length
        with pytest.raises(LocalsteerError), conversation.last_taken_back():
            conversation.ask("hen " * 200)
        with conversation.last_taken_back():
            conversation.ask("A hen", should_stop=lambda: True)
        assert (conversation.turns, conversation.latest, conversation.prompt_length) == before
        conversation.ask("And now?")
    assert actions(controller) == ["fire"]


def test_how_much_of_the_context_is_used_goes_back_with_what_was_said(tiny: Model) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, sampling=SAMPLING, max_tokens=6)
        conversation.ask("Hello")
        one, turns = conversation.prompt_length, list(conversation.turns)
        conversation.ask("And more of that, please")
        two = conversation.prompt_length
        conversation.take_back()
        assert one <= conversation.prompt_length < two
        conversation.take_back()
        assert conversation.prompt_length == 0
        conversation.take_up(turns)
        assert one <= conversation.prompt_length < two


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """All requests that are answered."""
    requests: list[Request] = []
    generate = Generator.generate

    def remember(self: Generator, request: Request, **more: Any) -> Answer:
        requests.append(request)
        return generate(self, request, **more)

    monkeypatch.setattr(Generator, "generate", remember)
    return requests


def message_in(request: Request) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """What stands before the message, the message, and what stands behind it."""
    assert request.message is not None
    start, stop = request.message
    return request.prompt[:start], request.prompt[start:stop], request.prompt[stop:]


@pytest.mark.parametrize("system", [None, "Speak of pigs."])
def test_the_policy_is_told_where_the_message_stands(
    tiny: Model, controller: Controller, asked: list[Request], system: str | None
) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, system=system, controller=controller, sampling=SAMPLING, max_tokens=8)
        for message in ("A hen", "7 pigs~", "A hen", "~"):
            before = [*([Message("system", system)] if system else []), *conversation.turns]
            conversation.ask(message)
            head = "".join(f"<|im_start|>{one.role}\n{one.content}<|im_end|>\n" for one in before) + "<|im_start|>user\n"
            parts = (head, message, "<|im_end|>\n<|im_start|>assistant\n")
            assert message_in(asked[-1]) == tuple(tuple(tiny.tokenize(part)) for part in parts)


def test_the_message_is_found_where_the_oldest_turns_were_dropped(
    tiny: Model, controller: Controller, asked: list[Request]
) -> None:
    with Generator(tiny, n_ctx=128) as generator:
        conversation = Conversation(generator, system="Be brief.", controller=controller, sampling=SAMPLING, max_tokens=10)
        for number in range(6):
            conversation.ask(f"Question number {number}")
            assert message_in(asked[-1])[1] == tuple(tiny.tokenize(f"Question number {number}"))
        assert conversation.dropped_turns >= 2


def test_the_message_is_found_in_a_talk_with_a_base_model(tmp_path: Path, asked: list[Request]) -> None:
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as base, Generator(base) as generator:
        talk = Talk(name="pigs", watch="prompt", threshold=1.0, release=0.5)
        policy = Policy({"pigs": talk}, (Rule("push", parse_condition("pigs"), push(base)),))
        conversation = Conversation(generator, system="Go on.", controller=Controller(policy), sampling=SAMPLING, max_tokens=8)
        for message in ("A hen", "the pigs", "7~"):
            conversation.ask(message)
            before, found, behind = message_in(asked[-1])
            # The space before it may be part of its first token.
            assert base.detokenize(list(found)).lstrip() == message
            assert base.detokenize(list(before)).rstrip().endswith("User:")
            assert base.detokenize(list(behind)) == "\nAssistant:"


def test_a_conversation_without_a_policy_looks_for_no_message(tiny: Model, asked: list[Request]) -> None:
    with Generator(tiny) as generator:
        Conversation(generator, sampling=SAMPLING, max_tokens=2).ask("A hen")
    assert asked[-1].message is None


def test_a_probe_scores_the_latest_message_of_a_conversation(tiny: Model, asked: list[Request]) -> None:
    weights = np.random.default_rng(4).standard_normal(tiny.n_embd)
    probe = ProbeClassifier(
        name="probe", watch="prompt", threshold=np.inf, release=np.inf, layer=2, weights=weights, bias=0.5, window=4
    )
    controller = Controller(Policy({"probe": probe}, (Rule("push", parse_condition("probe"), push(tiny)),)))
    with Generator(tiny) as generator:
        conversation = Conversation(generator, controller=controller, sampling=SAMPLING, max_tokens=8)
        for message in ("Hello there", "And now?", "And now?"):
            turns = [*conversation.turns, Message("user", message)]
            answer = conversation.ask(message)
            assert answer.answer.tokens == fresh_answer(tiny, turns, None, 8)
            rows = run_alone(tiny, prompt_tokens(tiny, turns)).rows[2][slice(*latest_message(tiny, turns))]
            assert controller.latest is not None
            assert controller.latest.scores["probe"] == pytest.approx(probe.score(rows.mean(axis=0)), abs=10 * ROW_NOISE)


def test_a_steering_of_ones_own_is_on_beside_the_policy(tiny: Model, controller: Controller) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, plan=push(tiny), controller=controller, sampling=SAMPLING, max_tokens=8)
        assert conversation.ask("A hen").answer.tokens == fresh_answer(tiny, [Message("user", "A hen")], push(tiny), 8)
        conversation.reset()
        twice = push(tiny, "2 push.gguf")
        assert conversation.ask("A pig").answer.tokens == fresh_answer(tiny, [Message("user", "A pig")], twice, 8)


def test_a_comparison_goes_without_the_policy(tiny: Model, controller: Controller) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, controller=controller, sampling=SAMPLING, max_tokens=8)
        answer = conversation.ask("A pig")
        before = list(controller.decisions)
        (unsteered,) = conversation.side_by_side([None])
    assert controller.decisions == before
    assert unsteered.tokens == fresh_answer(tiny, [Message("user", "A pig")], None, 8) != answer.answer.tokens


def test_reset_begins_a_conversation_anew_for_the_policy_too(tiny: Model, controller: Controller) -> None:
    with Generator(tiny) as generator:
        conversation = Conversation(generator, controller=controller, sampling=SAMPLING, max_tokens=4)
        conversation.ask("A pig")
        conversation.ask("And now?")
        (before,) = controller.decisions
        conversation.reset()
        assert controller.decisions == []
        conversation.ask("And now?")
        (after,) = controller.decisions
    # What the user said before is forgotten, and so is that a classifier was true of it.
    assert (before.action, after.action) == ("fire", "pass")
    assert (before.answer, after.answer) == (2, 1)
    assert before.conversation != after.conversation


def test_a_policy_may_end_the_answer(tiny: Model, controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Talked, seen: Seen) -> float:
        raise ValueError("it is tired")

    monkeypatch.setattr(Talked, "observe", fail)
    with Generator(tiny) as generator:
        controller.policy = replace(controller.policy, on_error="stop")
        conversation = Conversation(generator, controller=controller, sampling=SAMPLING, max_tokens=8)
        answer = conversation.ask("A pig")
        assert (answer.answer.finish_reason, answer.answer.tokens) == ("policy", ())
        assert conversation.turns == []  # an answer without text is not kept, nor what it answers
        controller.policy = replace(controller.policy, on_error="pass")
        assert conversation.ask("A pig").answer.finish_reason == "length"


def test_the_model_is_told_the_day_on_which_the_conversation_began(tmp_path: Path) -> None:
    dated = CHATML_TEMPLATE.replace("{% if add", "{{ strftime_now('%d %b %Y') }} {{ date_string }}{% if add")
    with Model(write_tiny_model(tmp_path / "dated.gguf", chat_template=dated), threads=1) as model, Generator(model) as generator:
        today = Conversation(generator, max_tokens=2)
        assert str(datetime.now().year) in model.detokenize(list(today.ask("Hello").request.prompt))
        then = Conversation(generator, max_tokens=2, now=datetime(2031, 2, 3))
        assert "03 Feb 2031 03 Feb 2031" in model.detokenize(list(then.ask("Hello").request.prompt))
