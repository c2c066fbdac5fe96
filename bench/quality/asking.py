"""Answers to questions that nothing was built, dosed or calibrated on, and what is heard in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from localsteer.concepts.contrast import Contrast
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.forced import Said
from localsteer.reading.listening import Heard, cross_entropies
from localsteer.reading.prompt import answer_prompt
from localsteer.steering.plan import Plan

# Far from every seed that a dosing or a calibration draws with.
SEED = 20_007_000
# How far away in the list the other question is, after which an answer should not be likely.
_ELSEWHERE = 3
PLACES = ("plain", "elsewhere", "positive", "negative")
"""Where an answer is heard: after its own question, after another one, and after its own under each pole's persona."""


@dataclass(frozen=True)
class Given:
    """Answers to questions in turns: answer i is to question i modulo their number.

    Attributes:
        texts: the answers.
        heard: of the first of them, how unlikely each is in each of `PLACES`, nats a token; None where it is empty.
    """

    texts: list[str]
    heard: list[list[float | None]]


def requests(
    model: Model,
    questions: Sequence[str],
    *,
    count: int,
    max_tokens: int,
    plan: Plan | None = None,
    systems: Sequence[str] = (),
    seed: int = SEED,
    told: int = 0,
) -> list[Request]:
    """Requests with a seed of its own each, from `seed` on; system prompts and questions take turns.

    Of the first `told`, what else might have been drawn is told as well.
    """
    made, words = [], min(Sampling().top_k, model.n_vocab)
    for number in range(count):
        system = [Message("system", systems[number % len(systems)])] if systems else []
        prompt = answer_prompt(model, [*system, Message("user", questions[number % len(questions)])])
        made.append(Request(prompt, plan, Sampling(seed=seed + number), max_tokens, logprobs=words if number < told else None))
    return made


# Those of the sampler's settings that answers here depend on.
_DRAWN = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "seed",
)  # fmt: skip


def asked_by(model: Model, contrast: Contrast, questions: Sequence[str], max_tokens: int) -> str:
    """What answers depend on but for what is done to the model, as a hash: others are no answers to the same."""
    # By what it says, not by all that can be said: a setting that the sampler comes to have changes no answer.
    drawn = ", ".join(f"{name}={getattr(Sampling(), name)!r}" for name in _DRAWN)
    parts = (model.fingerprint.content, tuple(questions), max_tokens, contrast.personas, SEED, _ELSEWHERE)
    text = f"({', '.join(map(repr, parts))}, Sampling({drawn}))"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ask(
    model: Model,
    contrast: Contrast,
    questions: Sequence[str],
    *,
    count: int,
    heard: int = 0,
    max_tokens: int,
    plan: Plan | None = None,
    systems: Sequence[str] = (),
) -> Given:
    """Sample answers, and hear some of them again.

    Args:
        model: answers and listens.
        contrast: whose personas listen.
        questions: take turns.
        count: how many answers.
        heard: of them, how many are heard: that takes as long as three answers.
        max_tokens: the longest answer.
        plan: the steering, if any.
        systems: system prompts, which take turns, too.
    """
    asked = requests(model, questions, count=count, max_tokens=max_tokens, plan=plan, systems=systems, told=heard)
    answers = generate_many(model, asked)
    spoken = []
    for number, (request, answer) in enumerate(zip(asked[:heard], answers, strict=False)):
        # What an anchored answer is drawn from depends on the unsteered model as well: there the tokens stand for themselves.
        if plan is not None and plan.mode == "anchored":
            said = Said.exactly(answer.tokens)
        else:
            said = Said.drawn(answer.tokens, [entry.likeliest for entry in answer.logprobs], request.sampling)
        spoken += [Heard(prompt, said) for prompt in _places(model, contrast, questions, number)]
    found = cross_entropies(model, spoken).reshape(-1, len(PLACES))
    told = [[round(float(value), 4) if np.isfinite(value) else None for value in row] for row in found]
    return Given([answer.text for answer in answers], told)


def _places(model: Model, contrast: Contrast, questions: Sequence[str], number: int) -> list[tuple[int, ...]]:
    """The prompts after which an answer is heard."""
    own, other = (Message("user", questions[place % len(questions)]) for place in (number, number + _ELSEWHERE))
    personas = contrast.personas[number % len(contrast.personas)]
    voices = [[Message("system", persona), own] for persona in personas]
    return [answer_prompt(model, messages) for messages in ([own], [other], *voices)]
