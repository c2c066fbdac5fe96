"""Teacher forcing: how near a steered model comes to what it says under a persona, without sampling a word.

Along an answer that was given under a persona, at every token, what the persona would say next is compared with what the steered
model would say next without the persona. Taking what may be said instead of the token that was drawn leaves only the choice of
answers to chance.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.llama.sampling import Sampling
from localsteer.reading.kept import KeptPrompts
from localsteer.reading.rows import read
from localsteer.reading.span import Span

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Said:
    """An answer, and what its speaker would have said at each of its tokens.

    Attributes:
        tokens: the n tokens.
        words: (n, k) the likeliest ones at each place.
        chances: (n, k) how likely, adding up to 1 at each place.
    """

    tokens: tuple[int, ...]
    words: NDArray[np.int32]
    chances: NDArray[np.float32]

    @classmethod
    def of(cls, tokens: tuple[int, ...], likeliest: Sequence[Sequence[tuple[int, float]]]) -> Said:
        """From the likeliest tokens at each place and their log probabilities."""
        if not tokens:
            return cls.exactly(tokens)
        words = np.array([[word for word, _ in place] for place in likeliest], np.int32)
        chances = np.exp([[logprob for _, logprob in place] for place in likeliest])
        return cls(tokens, words, (chances / chances.sum(axis=1, keepdims=True)).astype(np.float32))

    @classmethod
    def drawn(cls, tokens: tuple[int, ...], likeliest: Sequence[Sequence[tuple[int, float]]], sampling: Sampling) -> Said:
        """The same with the chances that the tokens had of being drawn: at the temperature, of what the filters keep.

        Args:
            tokens: the answer.
            likeliest: the likeliest tokens at each place, the first one first, with their log probabilities; `sampling.top_k` of
                them hold all that may be drawn.
            sampling: how they were drawn.
        """
        said = cls.of(tokens, likeliest)
        chances = said.chances.astype(np.float64)
        kept = (np.cumsum(chances, axis=1) - chances < sampling.top_p) & (
            chances >= sampling.min_p * chances.max(axis=1, keepdims=True)
        )
        sharpened = np.where(kept, chances ** (1 / sampling.temperature), 0)
        return cls(tokens, said.words, (sharpened / sharpened.sum(axis=1, keepdims=True)).astype(np.float32))

    @classmethod
    def exactly(cls, tokens: tuple[int, ...]) -> Said:
        """The tokens themselves and nothing else."""
        return cls(tokens, np.array(tokens, np.int32)[:, None], np.ones((len(tokens), 1), np.float32))

    def found_by(self, place: int, logprobs: Rows) -> float:
        """How likely another one finds what is said at a place: nats, from its log probabilities (n_vocab,)."""
        return float(self.chances[place] @ logprobs[self.words[place]])


@dataclass(frozen=True, eq=False)
class Reading:
    """Which answers are read, and under what.

    Attributes:
        edit: what is done from the last token of the prompt on; None for nothing.
        answers: their numbers.
        steer_prompt: do it to the whole prompt, too.
    """

    edit: Edit | None
    answers: Sequence[int]
    steer_prompt: bool = False


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
    """Given answers, read unsteered once, and under one edit after another.

    Args:
        model: the model.
        prompts: those at which steering begins.
        answers: what the persona said; one for each prompt.
        compared: the answers along which what the steered and the unsteered model say is compared (`Forced.kl`). Every token of
            them keeps two bytes for each word of the vocabulary: 0.3 MB on a model with 150,000.
        kept: the prompts, where they shall be computed once for all passes.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[tuple[int, ...]],
        answers: Sequence[Said],
        compared: Collection[int] = (),
        kept: KeptPrompts | None = None,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._answers = answers
        self._compared = compared
        self._kept = kept
        self._plain: Floats | None = None
        self._before: dict[tuple[int, int], NDArray[np.float16]] = {}

    @property
    def plain(self) -> Floats:
        """(n,) how likely the answers are unsteered, nats a token; NaN for an empty one. Read at first use."""
        if self._plain is None:
            self.under([])
        assert self._plain is not None
        return self._plain

    def under(self, readings: Sequence[Reading]) -> list[Forced]:
        """Read answers under edits, in one pass; what comes before an edit begins is computed once.

        The first pass also reads all of them unsteered. Nothing is compared in it.

        Args:
            readings: which answers, and under what.

        Raises:
            ModelError: llama.cpp does not show the residual stream of this architecture.
        """
        is_first = self._plain is None
        every = [Reading(None, range(len(self._prompts))), *readings] if is_first else readings
        read_by = [(reading, number) for reading in every for number in reading.answers]
        spans = []
        for reading, number in read_by:
            prompt, answer = self._prompts[number], self._answers[number]
            spans.append(Span(prompt + answer.tokens, len(prompt), None, reading.edit, 0 if reading.steer_prompt else None))
        found = np.zeros(len(spans))
        kls: dict[int, list[float]] = {}

        def take(readers: Sequence[int], position: int, logprobs: Rows) -> None:
            for reader in readers:
                reading, number = read_by[reader]
                place = position - len(self._prompts[number])
                found[reader] += self._answers[number].found_by(place, logprobs) / len(self._answers[number].tokens)
                if number in self._compared:
                    if reading.edit is None:
                        self._before[number, place] = logprobs.astype(np.float16)
                    elif not is_first:
                        before = self._before[number, place]
                        kls.setdefault(id(reading), []).append(float(np.exp(logprobs) @ (logprobs - before)))

        for _ in read(self._model, spans, (), want_nll=True, on_prediction=take, kept=self._kept):
            pass
        if self._plain is None:
            self._plain, found = np.split(found, [len(self._prompts)])
            self._plain[[not answer.tokens for answer in self._answers]] = np.nan
        forced, start = [], 0
        for reading in readings:
            own = found[start : start + len(reading.answers)]
            forced.append(Forced(own - self._plain[list(reading.answers)], float(np.mean(kls.get(id(reading), np.nan)))))
            start += len(own)
        return forced
