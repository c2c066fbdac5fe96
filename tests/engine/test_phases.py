from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localsteer.engine.draft import Draft
from localsteer.engine.gate import Ungated, Verdict
from localsteer.engine.generate import Generator
from localsteer.engine.phases import Division, division_of
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.llama.thinking import Thinking
from localsteer.reading.prompt import chat_tokens
from tests.conftest import plan_of, random_edit, random_tokens
from tests.tiny_models import write_tiny_model

THINK = Thinking("<think>", "</think>")
HARMONY = Thinking("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>")
MUSE = Thinking(" to=self<|message|>", "<|eom|>", "<|message|>")
HERMES = ("<tool_call>", "</tool_call>")
PROMPT = random_tokens(30, seed=1)
N_TOKENS = 24


@pytest.mark.parametrize(
    ("division", "text", "part"),
    [
        (Division(THINK), "", "thinking"),
        (Division(THINK), "<thi", "thinking"),
        (Division(THINK), "\n<think>why", "thinking"),
        (Division(THINK), "<think>why</thi", "thinking"),
        (Division(THINK), "<think>why</think>", "answer"),
        (Division(THINK), "Because", "answer"),
        (Division(THINK, begun=True), "", "thinking"),
        (Division(THINK, begun=True), "why</think>because <think>", "answer"),
        (Division(HARMONY), "", "thinking"),
        (Division(HARMONY), "<|channel|>analysis<|message|>why<|end|>", "thinking"),
        (Division(HARMONY), "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>", "answer"),
        (Division(HARMONY), "<|channel|>final<|message|>b", "answer"),
        (Division(HARMONY), "Because", "answer"),
        (Division(call=HERMES), "I look.", "answer"),
        (Division(call=HERMES), "I look.<tool_call>\n{", "form"),
        (Division(call=HERMES), "<tool_call>{}</tool_call>\nWell", "answer"),
        (Division(call=HERMES), "<tool_call>{}</tool_call><tool_call>", "form"),
        (Division(call=HERMES), '```json\n{"name"', "form"),
        (Division(call=("", "")), ' {"name"', "form"),
        (Division(call=("[TOOL_CALLS]", "")), "[TOOL_CALLS][", "form"),
        (Division(THINK, call=HERMES), "<think>a <tool_call> would do", "thinking"),
        (Division(THINK, call=HERMES), "<think>a <tool_call> would do</think>So", "answer"),
        (Division(call=HERMES), "[smiles] Hello", "answer"),
        (Division(call=HERMES), "{curly} Hello", "answer"),
        (Division(call=HERMES), '[{"name"', "form"),
        (Division(MUSE), " to=self<|message|>why", "thinking"),
        (Division(MUSE), " to=self<|message|>why<|eom|><|start|>assistant<|message|>Because", "answer"),
        (Division(MUSE), "<|message|>Because", "answer"),
        (
            Division(HARMONY, call=(" to=functions.", "")),
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{",
            "form",
        ),
        (Division(HARMONY, call=(" to=functions.", "")), "<|channel|>analysis<|message|>f to=functions.f?", "thinking"),
        (Division(formed=True), "", "form"),
        (Division(THINK, formed=True), "<think>a</think>", "form"),
    ],
)
def test_the_part_that_goes_on_behind_a_text(division: Division, text: str, part: str) -> None:
    assert division.part(text) == part


@pytest.fixture
def generator(tiny: Model) -> Iterator[Generator]:
    with Generator(tiny) as generator:
        yield generator


def tokens_of(generator: Generator, request: Request) -> tuple[int, ...]:
    return generator.generate(request).tokens


def closing_in(model: Model, tokens: tuple[int, ...]) -> tuple[int, Thinking]:
    """The place of a letter that a reply holds for the first time, and marks of which that one ends the reasoning."""
    texts = [model.detokenize([token]) for token in tokens]
    for place in range(3, len(tokens)):
        if texts[place].isalpha() and texts[place].isascii() and texts[place] not in "".join(texts[:place]):
            return place, Thinking("<think>", texts[place])
    raise AssertionError("no letter is new")


def test_the_reasoning_is_not_steered_and_the_answer_is(generator: Generator, tiny: Model) -> None:
    request = Request(PROMPT, plan_of(random_edit(tiny, seed=3)), Sampling(temperature=0), N_TOKENS)
    unsteered = tokens_of(generator, replace(request, plan=None))
    place, thinking = closing_in(tiny, unsteered)
    made = tokens_of(generator, replace(request, division=Division(thinking, begun=True)))
    thought = unsteered[: place + 1]
    assert made[: place + 1] == thought
    from_there = Request((*PROMPT, *thought), request.plan, request.sampling, N_TOKENS - place - 1)
    assert made[place + 1 :] == tokens_of(generator, from_there) != unsteered[place + 1 :]


def test_an_expression_may_steer_the_reasoning_alone(generator: Generator, tiny: Model) -> None:
    edit = random_edit(tiny, seed=3)
    plan = replace(plan_of(edit), edit=replace(edit, scale=0.0), thinking=edit)
    steered = tokens_of(generator, Request(PROMPT, plan_of(edit), Sampling(temperature=0), N_TOKENS))
    place, thinking = closing_in(tiny, steered)
    made = tokens_of(generator, Request(PROMPT, plan, Sampling(temperature=0), N_TOKENS, division=Division(thinking, begun=True)))
    assert (
        made[: place + 1]
        == steered[: place + 1]
        != tokens_of(generator, Request(PROMPT, sampling=Sampling(temperature=0), max_tokens=place + 1))
    )
    assert made[place + 1 :] != steered[place + 1 :]


class Takes(Ungated):
    """A gate that takes back as many tokens as it can, once, when it has seen so many."""

    hold_back = 100

    def __init__(self, after: int) -> None:
        super().__init__(None)
        self.after, self.taken = after, -1

    def after_token(self, draft: Draft, *, final: bool) -> Verdict:
        if self.taken < 0 and len(draft.tokens) >= self.after:
            self.taken = draft.unseen
            return Verdict(None, rewind=self.taken)
        return super().after_token(draft, final=final)


def test_what_a_policy_takes_back_does_not_reach_into_the_reasoning(generator: Generator, tiny: Model) -> None:
    request = Request(PROMPT, None, Sampling(temperature=0), N_TOKENS)
    unsteered = tokens_of(generator, request)
    place, thinking = closing_in(tiny, unsteered)
    for after, expected in ((place, 0), (place + 3, 2)):
        gate = Takes(after)
        generator.generate(replace(request, division=Division(thinking, begun=True)), gate=gate)
        assert gate.taken == expected


def test_a_form_is_steered_where_that_is_asked_for(generator: Generator, tiny: Model) -> None:
    request = Request(PROMPT, plan_of(random_edit(tiny, seed=3)), Sampling(temperature=0), 8)
    formed = replace(request, division=Division(formed=True))
    assert tokens_of(generator, formed) == tokens_of(generator, replace(request, plan=None))
    assert tokens_of(generator, replace(formed, steer_forms=True)) == tokens_of(generator, request)


def test_a_prompt_says_whether_it_ends_inside_the_reasoning(tmp_path: Path) -> None:
    head = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    opens = head + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}{# </think> #}"
    asks = head + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# <think> </think> #}"
    plain = head + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    for template, expected in ((opens, True), (asks, False), (plain, None)):
        with Model(write_tiny_model(tmp_path / f"{len(template)}.gguf", chat_template=template), threads=1) as model:
            division = division_of(model, chat_tokens(model, [Message("user", "hello")]))
            assert (division.begun if division is not None else None) is expected
            skipped = division_of(
                model, chat_tokens(model, [Message("user", "hello")], think=False if expected is not None else None)
            )
            assert skipped is None or not skipped.begun


def test_what_of_the_steering_does_nothing_is_told(tiny: Model) -> None:
    edit = random_edit(tiny, seed=2)
    plan = replace(plan_of(edit), thinking=edit)
    where = {None: True, Division(call=HERMES): True, Division(THINK): False}
    for division, is_told in where.items():
        said = Request(PROMPT, plan, division=division).unheard
        assert any("@thinking" in one for one in said) is is_told
    assert Request(PROMPT, plan_of(edit)).unheard == Request(PROMPT).unheard == ()
    for steer_forms in (True, False):
        said = Request(PROMPT, plan_of(edit), division=Division(formed=True), steer_forms=steer_forms).unheard
        assert any("steer_tools" in one for one in said) is not steer_forms
