from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from localsteer.building import own_answers as room
from localsteer.building import refusal
from localsteer.building.own_answers import OwnAnswers
from localsteer.building.refusal import read_refusal
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.llama.model import Model
from localsteer.reading.forced import ForcedReader, Said
from localsteer.reading.span import Span
from localsteer.vector.calibration import OTHER, POLES

PAIRS = tuple(Pair(Prompt((), f"good {number}"), Prompt((), f"bad {number}")) for number in range(6))
CONTRAST = Contrast("happy", "", "happy", "sad", PAIRS, ("Who?", "Where?", "Why?"), personas=(("Be glad.", "Be sad."),))


def text(model: Model, tokens: tuple[int, ...]) -> str:
    return b"".join(map(model.token_bytes, tokens)).decode()


def test_a_model_that_thinks_first_is_dosed_by_what_it_answers(thinking: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tokens of reasoning are no answer of a happy persona, and no refusal."""
    read: list[tuple[int, ...]] = []

    def generate(model: Model, requests: Sequence[Request]) -> list[Answer]:
        read.extend(tuple(request.prompt) for request in requests)
        return generate_many(model, requests)

    def activations(_model: Model, spans: Sequence[Span], _layers: Sequence[int]) -> None:
        read.extend(span.tokens for span in spans)
        raise InterruptedError

    monkeypatch.setattr(refusal, "_OPENINGS", {})
    monkeypatch.setattr(refusal, "_DIRECTIONS", {})
    monkeypatch.setattr(refusal, "read_activations", activations)
    for each in (room, refusal):
        monkeypatch.setattr(each, "generate_many", generate)
    with OwnAnswers(thinking, CONTRAST, seed=0, progress=None) as own:
        read += [prompt for prompts in own.voices.start.values() for prompt in prompts]
    with pytest.raises(InterruptedError):
        read_refusal(thinking, [1])
    assert len(read) > 50
    assert {text(thinking, prompt).rpartition("assistant\n")[2] for prompt in read} == {"<think>\n\n</think>\n\n"}


def test_what_a_system_prompt_does_to_the_own_answers_is_measured_as_a_vector_is(tiny: Model) -> None:
    with OwnAnswers(tiny, CONTRAST, seed=0, progress=None) as own:
        answers = {
            pole: [Said.of(one.tokens, [entry.likeliest for entry in one.logprobs]) for one in own.answers[pole]][:4]
            for pole in POLES
        }

        def nats(prompts: Sequence[tuple[int, ...]], said: Sequence[Said]) -> float:
            # One by one, and without what is kept of the prompts.
            return float(np.mean([ForcedReader(tiny, [prompt], [one]).plain for prompt, one in zip(prompts, said, strict=True)]))

        for pole in POLES:
            bare, asked = own.voices.start[pole][:4], own.voices.own[pole][:4]
            gains = {of: nats(asked, said) - nats(bare, said) for of, said in answers.items()}
            assert own.asked[pole] == pytest.approx(gains[pole] - gains[OTHER[pole]], abs=1e-4)


def test_prompt_files_have_no_system_prompt_to_compare_with(tiny: Model) -> None:
    with OwnAnswers(tiny, replace(CONTRAST, personas=()), seed=0, progress=None) as own:
        assert all(math.isnan(own.asked[pole]) for pole in POLES)
    with OwnAnswers(tiny, None, seed=0, progress=None) as own:
        assert all(math.isnan(own.asked[pole]) for pole in POLES)
