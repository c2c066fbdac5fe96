"""Teacher forcing: how near a steered model comes to what it says under a persona, without sampling a word.

Along an answer that was given under a persona, at every token, what the persona would say next is compared with what the steered
model would say next without the persona. Taking the whole distribution instead of the token that was drawn leaves only the choice
of answers to chance.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.reading.rows import OnPrediction, Span, read
from localsteer.reading.scoring import Scored

Floats = NDArray[np.float64]
_Kept = dict[tuple[int, int], NDArray[np.float16]]


@dataclass(frozen=True, eq=False)
class Forced:
    """What an edit does to some given answers.

    Attributes:
        gain: (n,) how much likelier what the persona would say becomes, nats a token, mean over each answer's tokens: by how much
            KL(persona || steered) is below KL(persona || unsteered); NaN for an empty answer.
        kl: KL(steered || unsteered), nats a token, over those answers that are compared; NaN without any.
    """

    gain: Floats
    kl: float


class ForcedReader:
    """Given answers, read unsteered once, and then under one edit after another.

    Args:
        model: the model.
        texts: answers after the prompts at which steering begins.
        personas: the same answers after the prompts that they were given to. Every token keeps two bytes for each word of the
            vocabulary: 0.3 MB on a model with 150,000.
        compared: the answers along which what the steered and the unsteered model say is compared (`Forced.kl`).

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """

    def __init__(self, model: Model, texts: Sequence[Scored], personas: Sequence[Scored], compared: Collection[int] = ()) -> None:
        self._model = model
        self._texts = texts
        self._wanted: _Kept = {}
        self._before: _Kept = {}

        def keep_persona(readers: Sequence[int], place: int, logprobs: Rows) -> None:
            kept = np.exp(logprobs).astype(np.float16)
            for number in readers:
                self._wanted[number, place - len(personas[number].prompt)] = kept

        spans = [Span(text.prompt + text.answer, len(text.prompt)) for text in personas]
        _run(model, spans, keep_persona)
        self._base = np.zeros(len(texts))

        def keep(readers: Sequence[int], place: int, logprobs: Rows) -> None:
            for number in readers:
                offset = place - len(texts[number].prompt)
                self._base[number] += _expected(self._wanted[number, offset], logprobs)
                if number in compared:
                    self._before[number, offset] = logprobs.astype(np.float16)

        _run(model, [Span(text.prompt + text.answer, len(text.prompt)) for text in texts], keep)

    def under(self, readings: Sequence[tuple[Edit, Sequence[int]]], *, steer_prompt: bool = False) -> list[Forced]:
        """Read some of them under an edit each; what comes before an edit begins is computed once.

        Args:
            readings: what is done from the last token of the prompt on, and to which of the texts.
            steer_prompt: do it to the whole prompt, too.
        """
        places = [(number, text) for number, (_, texts) in enumerate(readings) for text in texts]
        after = np.zeros(len(places))
        kls: list[list[float]] = [[] for _ in readings]

        def compare(readers: Sequence[int], place: int, logprobs: Rows) -> None:
            for reader in readers:
                number, text = places[reader]
                offset = place - len(self._texts[text].prompt)
                after[reader] += _expected(self._wanted[text, offset], logprobs)
                before = self._before.get((text, offset))
                if before is not None:
                    kls[number].append(float(np.exp(logprobs) @ (logprobs - before)))

        first = 0 if steer_prompt else None
        spans = []
        for number, text in places:
            given = self._texts[text]
            spans.append(Span(given.prompt + given.answer, len(given.prompt), None, readings[number][0], first))
        _run(self._model, spans, compare)
        chosen = [text for _, text in places]
        lengths = np.array([len(self._texts[text].answer) for text in chosen], np.float64)
        with np.errstate(invalid="ignore"):
            gains = (after - self._base[chosen]) / lengths
        ends = np.cumsum([0, *(len(texts) for _, texts in readings)])
        return [
            Forced(gains[start:end], float(np.mean(own)) if own else float("nan"))
            for start, end, own in zip(ends, ends[1:], kls, strict=False)
        ]


def _expected(wanted: NDArray[np.float16], logprobs: Rows) -> float:
    """What is said by one, as the other finds it: nats."""
    return float(wanted.astype(np.float32) @ logprobs)


def _run(model: Model, spans: Sequence[Span], keep: OnPrediction) -> None:
    for _ in read(model, spans, (), want_nll=True, on_prediction=keep):
        pass
