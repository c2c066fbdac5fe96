"""What goes wrong inside the engine ends one answer, and leaves the others and what is kept as they were."""

from __future__ import annotations

import numpy as np
import pytest

from localsteer.engine import batch as batch_module
from localsteer.engine.answering import Answering
from localsteer.engine.batch import RunningBatch
from localsteer.engine.gate import Verdict
from localsteer.engine.generate import Generator, generate_many
from localsteer.engine.lane import Lane
from localsteer.engine.request import Answer, Request
from localsteer.errors import ModelError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from tests.conftest import TinyModel, assert_greedy, plan_of, random_basis, random_edit, random_tokens
from tests.script import Script

GREEDY = Sampling(temperature=0)
TALKS = [random_tokens(60, seed=seed) for seed in range(9)]
LONG, OTHER = random_tokens(150, seed=1), random_tokens(150, seed=2)


def ask(prompt: tuple[int, ...], max_tokens: int = 4) -> Request:
    return Request(prompt, None, GREEDY, max_tokens)


def finish(batch: RunningBatch, *lanes: Lane) -> list[Answer]:
    missing = set(lanes)
    for _ in range(4000):
        if not missing:
            return [lane.end() for lane in lanes]
        missing.difference_update(batch.step())
    raise AssertionError("answers have no end")


def answered(batch: RunningBatch, request: Request) -> Answer:
    return finish(batch, batch.join(request))[0]


def no_context(*_arguments: object, **_options: object) -> None:
    """In the place of `Context`: there is no memory for another one."""
    raise ModelError("no memory")


# Main memory


def test_what_makes_room_for_a_conversation_does_not_drive_it_out(tiny_model: TinyModel) -> None:
    for architecture in ("llama", "gemma3", "mamba"):
        with RunningBatch(tiny_model(architecture), parallel=2, n_ctx=256, cache_ram=1) as batch:
            for talk in TALKS:
                first = answered(batch, ask(talk))
            running = batch.join(ask(TALKS[0], 150))
            for _ in range(2):
                batch.step()
            for talk in TALKS[1:4]:  # each takes the other place from the one before
                answered(batch, ask(talk))
            again = ask((*TALKS[1], *first.tokens, 65))
            assert_greedy(batch.model, again.prompt, answered(batch, again).tokens)
            finish(batch, running)


def test_what_no_prompt_can_begin_with_is_not_kept(tiny: Model) -> None:
    plan = plan_of(random_edit(tiny, seed=3))
    with RunningBatch(tiny, parallel=1, n_ctx=512, cache_ram=64) as batch:
        prompts = list(TALKS[:4])
        for turn in range(4):
            for number, prompt in enumerate(prompts):
                answer = answered(batch, Request(prompt, plan, GREEDY, 40))
                # Only the prompt was read unsteered; the answer is steered, and read again.
                assert answer.timing.prompt_tokens <= (60 if turn == 0 else 40 + 10 + 1)
                prompts[number] = (*prompt, *answer.tokens, *TALKS[turn + 4][:10])


# No memory for another context


def test_a_context_that_cannot_be_made_ends_the_answer_that_needs_it(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    removal = plan_of(Edit(np.zeros((tiny.n_layer, tiny.n_embd), np.float32), {1: random_basis(tiny, 1, seed=1)}))
    steered = Request(TALKS[1], plan_of(random_edit(tiny, seed=3, norm=20.0)), GREEDY, 4)
    with RunningBatch(tiny, parallel=2, n_ctx=256) as batch:
        answered(batch, steered)
        monkeypatch.setattr(batch_module, "Context", no_context)
        with pytest.raises(ModelError, match="no memory"):
            answered(batch, Request(TALKS[2], removal, GREEDY, 4))
        # Nothing of the one before is left in what llama.cpp adds.
        assert_greedy(tiny, TALKS[0], answered(batch, ask(TALKS[0], 6)).tokens)


def test_a_generator_that_could_not_be_widened_can_be_later(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    lively = Sampling(temperature=0, min_p=0.2)
    anchored = Request(TALKS[0], plan_of(random_edit(tiny, seed=3, norm=6.0), mode="anchored"), lively, 6)
    with Generator(tiny, n_ctx=256) as generator:
        generator.generate(ask(TALKS[1]))
        with monkeypatch.context() as patch:
            patch.setattr(batch_module, "Context", no_context)
            with pytest.raises(ModelError, match="no memory"):
                generator.generate(anchored)
        assert len(generator.generate(anchored).tokens) == 6


# One answer's mistake


def test_a_mistake_behind_a_decode_ends_its_own_answer(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    anchored = Request(TALKS[0], plan_of(random_edit(tiny, seed=3), mode="anchored"), Sampling(temperature=0, min_p=0.2), 6)

    def fail(_batch: RunningBatch, _lane: Lane) -> None:
        raise MemoryError("no room")

    with RunningBatch(tiny, parallel=3, n_ctx=256) as batch:
        lane = batch.join(ask(TALKS[1], 20))
        for _ in range(3):
            batch.step()
        monkeypatch.setattr(RunningBatch, "_bring_up_twin", fail)
        other = batch.join(anchored)
        with pytest.raises(MemoryError):
            finish(batch, other)
        assert_greedy(tiny, TALKS[1], finish(batch, lane)[0].tokens)


def test_nobody_to_tell_leaves_what_was_read(tiny: Model) -> None:
    def gone(_text: str) -> None:
        raise BrokenPipeError

    with Generator(tiny, n_ctx=256) as generator:
        generator.generate(ask(TALKS[0]))
        with pytest.raises(BrokenPipeError):
            generator.generate(ask(TALKS[0]), on_text=gone)
        assert generator.generate(ask(TALKS[0])).timing.reused_tokens == len(TALKS[0]) - 1


def test_many_answers_end_with_the_first_mistake(tiny: Model, monkeypatch: pytest.MonkeyPatch, decoded: list[int]) -> None:
    draw = Answering._draw

    def fail(self: Answering, *arguments: object) -> object:
        if self.request.prompt == TALKS[0]:
            raise ModelError("no token")
        return draw(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Answering, "_draw", fail)
    with pytest.raises(ModelError, match="no token"):
        generate_many(tiny, [ask(TALKS[0]), ask(TALKS[1], 200)])
    assert len(decoded) < 20


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_recurrent_answer_that_cannot_be_read_ends_and_the_others_go_on(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    model, decode = tiny_model("mamba"), Context.decode

    def poisoned(self: Context, batch: Batch) -> None:
        decode(self, batch)
        if ((batch.sequence_ids == bad) & (batch.positions == 65)).any():
            raise ModelError("cannot be read")

    with RunningBatch(model, parallel=3, n_ctx=256) as batch:
        lanes = [batch.join(ask(talk, 12)) for talk in TALKS[:3]]
        with monkeypatch.context() as patch:
            patch.setattr(Context, "decode", poisoned)
            left = set(lanes)
            for _ in range(4000):
                left.difference_update(batch.step())
        assert not left
        for number, lane in enumerate(lanes):
            if number == bad:
                with pytest.raises(ModelError, match="cannot be read"):
                    lane.end()
            else:
                assert_greedy(model, lane.answering.request.prompt, lane.end().tokens)


# A sliding window: llama.cpp puts new tokens where others lie outside their own sequence's window, and copies none of those


def test_what_a_window_no_longer_shows_is_not_reused(tiny_model: TinyModel) -> None:
    model = tiny_model("gemma3")
    with Generator(model, n_ctx=400) as generator:
        first = generator.generate(ask(LONG))
        generator.generate(ask(OTHER))
        generator.generate(ask((*LONG, *first.tokens, *OTHER[:4]), 10))  # copied back from main memory
        alike = ask((*LONG[:100], 5, 6, 7), 12)
        assert_greedy(model, alike.prompt, generator.generate(alike).tokens)


def test_what_others_overwrote_outside_a_window_is_not_reused(tiny_model: TinyModel) -> None:
    model = tiny_model("gemma3")
    with RunningBatch(model, parallel=2, n_ctx=300, cache_ram=0) as batch:
        finish(batch, *(batch.join(ask(prompt)) for prompt in (LONG, OTHER)))
        answered(batch, ask((*LONG[:90], *random_tokens(160, seed=5))))  # cut back, and longer than it was
        alike = ask((*OTHER[:100], 5, 6, 7), 12)
        assert_greedy(model, alike.prompt, answered(batch, alike).tokens)


@pytest.mark.parametrize("length", [60, 140, 200])
def test_a_rewind_past_a_window_is_written_anew_from_all_of_it(tiny_model: TinyModel, length: int) -> None:
    model = tiny_model("gemma3")
    with Generator(model, n_ctx=500) as generator:
        first = generator.generate(ask(LONG))
        generator.generate(ask(OTHER))
        request = ask((*LONG, *first.tokens, *OTHER[:4]), length)
        answer = generator.generate(request, gate=Script(None, ends=[Verdict(None, rewind=50)]))
        assert_greedy(model, request.prompt, answer.tokens)
