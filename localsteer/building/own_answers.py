"""What each pole says of its own, without any vector: sampled once, and read again under one vector after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from localsteer.building.refusal import Refusals, refusal_openings
from localsteer.building.voices import Tokens, voices
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.descriptions import everyday_questions
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.errors import CalibrationError
from localsteer.llama.chat_template import Message
from localsteer.llama.closing import Closing
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.forced import ForcedReader, Said
from localsteer.reading.kept import KeptPrompts
from localsteer.reading.prompt import answer_prompt
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import OTHER, POLES, Pole

Progress = Callable[[str, int, int], None]
"""Called with what is going on ("answering", "reading", "dosing", ...), what is done and what there is to do."""

# Of each pole, and how many tokens of each. With 8 of 10, two seeds gave doses within 11 % of their mean for the eight sides of
# happy and pirate on both models (a pirate on the 1.5B 0.92 and 1.15; bench/RESULTS.md, "Dosing a fresh vector"); with 6, and the
# token that was drawn instead of all that may be said, happy on SmolLM2-135M came out at 0.18, 0.24 and 0.31.
ANSWERS = 8
TOKENS = 10
# Of what may be said at a token, the likeliest that are compared.
_WORDS = 64
# Of each pole, those along which what the steered and the unsteered model say is compared.
_COMPARED = 2
# Everyday questions that may be refused: of formal's dose on Qwen2.5-Coder 1.5B the first 5 said that a refusal becomes likelier
# by 0.018, the first 10 and all 20 by 0.030 and 0.026.
_REFUSABLE = 8
READ_OF_OTHER = 4
"""Own answers of the other pole that are read for the ratio."""
CONFIRMED = 3
"""To how many prompts of each pole answers are sampled at a dose; where these are in doubt, to the others as well."""


class OwnAnswers(Closing):
    """The answers of both poles to the same questions, and what else is known of a model before a vector is. A context manager.

    Args:
        model: the model.
        contrast: whose poles; None for a vector from elsewhere, whose own answers are unsteered ones.
        seed: of the answers.
        progress: told what is going on.

    Attributes:
        voices: the prompts.
        answers: by pole, one for each prompt.
        reader: reads those that are not empty again, after the prompts from which steering begins.
        read: by pole, which of the reader's those are.
        asked: by pole, how much likelier the persona that asks for it makes its own answers than those of the other pole, nats a
            token; NaN where there are no personas.
        refusals: how likely everyday questions are refused.
        kept: all prompts that are read again.

    Raises:
        CalibrationError: the model gives no answers.
    """

    def __init__(self, model: Model, contrast: Contrast | None, *, seed: int, progress: Progress | None) -> None:
        self.model = model
        self.seed = seed
        self.voices = voices(model, contrast, ANSWERS)
        tell = progress if progress is not None else lambda *_: None
        prompts = [(prompt, None) for pole in POLES for prompt in self.voices.own[pole]]
        tell("answering as each persona", 0, len(prompts))
        found = self.sample(prompts, range(len(prompts)), min(_WORDS, model.n_vocab))
        openings = refusal_openings(model)
        half = len(found) // 2
        self.answers: dict[Pole, list[Answer]] = {"positive": found[:half], "negative": found[half:]}
        if not all(any(answer.tokens for answer in self.answers[pole]) for pole in POLES):
            raise CalibrationError(
                f"{model.name} gives no answers, so no dose can be measured.",
                hint="Is it a model that answers? `localsteer generate` shows.",
            )
        starts: list[Tokens] = []
        said: list[Said] = []
        voiced: list[float] = []  # how likely the persona finds what it says itself, nats a token
        self.read: dict[Pole, list[int]] = {"positive": [], "negative": []}
        for pole in POLES:
            for start, answer in zip(self.voices.start[pole], self.answers[pole], strict=True):
                if answer.tokens:
                    self.read[pole].append(len(starts))
                    starts.append(start)
                    said.append(Said.of(answer.tokens, [entry.likeliest for entry in answer.logprobs]))
                    at = [[logprob for _, logprob in entry.likeliest] for entry in answer.logprobs]
                    voiced.append(float(np.mean((said[-1].chances * at).sum(axis=1))))
        everyday = everyday_questions()[:_REFUSABLE] if openings else ()
        refusable = [answer_prompt(model, [Message("user", question)]) for question in everyday]
        self.kept = KeptPrompts(model, [*starts, *refusable, *(prompt for pole in POLES for prompt in self.voices.own[pole])])
        try:
            compared = {number for pole in POLES for number in self.read[pole][:_COMPARED]}
            self.reader = ForcedReader(model, starts, said, compared, self.kept)
            self.asked = {pole: self._asked(pole, said, np.array(voiced)) for pole in POLES}
            self.refusals = Refusals(model, openings, refusable, self.kept)
            tell("answering as each persona", len(prompts), len(prompts))
        except BaseException:
            self.kept.close()
            raise

    def _asked(self, pole: Pole, said: Sequence[Said], voiced: NDArray[np.float64]) -> float:
        if self.voices.reach != 1 or not self.voices.spoken:
            return float("nan")
        mine, others = self.read[pole][:READ_OF_OTHER], self.read[OTHER[pole]][:READ_OF_OTHER]
        answered = zip(self.voices.own[pole], self.answers[OTHER[pole]], strict=True)
        prompts = [prompt for prompt, answer in answered if answer.tokens][:READ_OF_OTHER]
        under_it = ForcedReader(self.model, prompts, [said[number] for number in others], kept=self.kept).plain
        plain = self.reader.plain
        return float(np.mean(voiced[mine] - plain[mine]) - np.mean(under_it - plain[others]))

    def close(self) -> None:
        """Free what is kept of the prompts."""
        self.kept.close()

    def sample(self, prompts: Sequence[tuple[Tokens, Plan | None]], seeds: Sequence[int], words: int = 0) -> list[Answer]:
        """Answers to prompts, each by a seed of its own, and with so many of the words that may stand at each place."""
        requests = [
            Request(prompt, plan, Sampling(seed=(self.seed * 1009 + own) % 2**31), TOKENS, logprobs=words)
            for (prompt, plan), own in zip(prompts, seeds, strict=True)
        ]
        return generate_many(self.model, requests)
