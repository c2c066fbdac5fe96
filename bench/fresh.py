"""Answers to questions that no concept and no calibration has seen, and what they cost in coherence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from localsteer.calibration.fits import Values, mean_interval
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.scoring import Scored, answer_nll
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Interval

# Far from every seed that a calibration draws with.
FRESH_SEED = 20_007


@dataclass(frozen=True)
class Answers:
    """Answers to questions that take turns: answer i is to question i modulo their number.

    Attributes:
        texts: the answers.
        nll: (n,) nats a token of each under the unsteered model after the bare question; NaN for an empty one.
        n_questions: how many questions there are.
    """

    texts: tuple[str, ...]
    nll: Values
    n_questions: int

    @property
    def questions(self) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
        """(n,) the question that each answers."""
        return np.arange(len(self.texts), dtype=np.intp) % self.n_questions

    def less(self, values: Values, reference: Answers, reference_values: Values) -> Values:
        """(n,) a value for each answer, less the mean of those of the reference's answers to the same question."""
        mean = [float(np.nanmean(reference_values[reference.questions == index])) for index in range(self.n_questions)]
        return values - np.array(mean, np.float64)[self.questions]

    def cost(self, reference: Answers) -> Interval:
        """Coherence cost, each answer against the unsteered ones to its question."""
        return mean_interval(self.less(self.nll, reference, reference.nll), self.questions, 0)


def requests(
    model: Model,
    questions: Sequence[str],
    *,
    count: int,
    max_tokens: int,
    plan: Plan | None = None,
    systems: Sequence[str] = (),
    seed: int = FRESH_SEED * 1000,
    first: int = 0,
) -> list[Request]:
    """Requests with a seed of its own each, from `seed` on; system prompts and questions take turns.

    With `first` those that come after so many others.
    """
    made = []
    for number in range(first, first + count):
        system = [Message("system", systems[number % len(systems)])] if systems else []
        prompt = prompt_tokens(model, [*system, Message("user", questions[number % len(questions)])])
        made.append(Request(prompt, plan, Sampling(seed=seed + number), max_tokens))
    return made


def ask(
    model: Model,
    questions: Sequence[str],
    *,
    count: int,
    max_tokens: int,
    plan: Plan | None = None,
    systems: Sequence[str] = (),
    first: int = 0,
) -> Answers:
    """Sample answers, and let the unsteered model re-read them.

    Args:
        model: answers.
        questions: take turns.
        count: how many answers.
        max_tokens: the longest answer.
        plan: the steering, if any.
        systems: system prompts, which take turns, too.
        first: how many answers there are already; whole rounds of the questions.
    """
    assert first % len(questions) == 0
    asked = requests(model, questions, count=count, max_tokens=max_tokens, plan=plan, systems=systems, first=first)
    answers = generate_many(model, asked)
    bare = requests(model, questions, count=count, max_tokens=1, first=first)
    scored = [Scored(request.prompt, answer.tokens) for request, answer in zip(bare, answers, strict=True)]
    return Answers(tuple(answer.text for answer in answers), answer_nll(model, scored), len(questions))
