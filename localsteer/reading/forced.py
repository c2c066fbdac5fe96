"""Teacher forcing: what a steered model thinks of answers that are given, without sampling a word.

Reading is some times as fast as writing, and what it tells of a dose has no chance in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.reading.rows import Span, read_means
from localsteer.reading.scoring import Scored

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Forced:
    """What an edit does to given answers.

    Attributes:
        gain: (n_texts,) how much likelier each becomes, nats a token; NaN for an empty one.
        kl: KL(steered || unsteered) of what may come next, nats a token, over the texts for which it was asked.
    """

    gain: Floats
    kl: float


class ForcedReader:
    """Given answers, read unsteered once, and then under one edit after another.

    Args:
        model: the model.
        texts: prompts and answers.
        compared: those over whose tokens the predictions are compared (`Forced.kl`). Each token keeps two bytes for every word of
            the vocabulary, 0.3 MB on a model with 150,000.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """

    def __init__(self, model: Model, texts: Sequence[Scored], compared: range = range(0)) -> None:
        self._model = model
        self._texts = texts
        self._compared = compared
        self._before: dict[tuple[int, int], NDArray[np.float16]] = {}

        def keep(readers: Sequence[int], place: int, logprobs: Rows) -> None:
            kept = None
            for number in readers:
                if number in compared:
                    kept = logprobs.astype(np.float16) if kept is None else kept
                    self._before[number, place] = kept

        spans = [Span(text.prompt + text.answer, len(text.prompt)) for text in texts]
        self.nll = read_means(model, spans, (), want_nll=True, on_prediction=keep).nll

    def under(self, edits: Sequence[Edit], *, steer_prompt: bool = False) -> list[Forced]:
        """Read them all under each of some edits; what comes before an edit begins is computed once.

        Args:
            edits: what is done from the last token of the prompt on.
            steer_prompt: do it to the whole prompt, too.
        """
        n_texts = len(self._texts)
        totals, counts = np.zeros(len(edits)), np.zeros(len(edits))

        def compare(readers: Sequence[int], place: int, logprobs: Rows) -> None:
            for reader in readers:
                number, text = divmod(reader, n_texts)
                before = self._before.get((text, place))
                if before is not None:
                    totals[number] += float(np.exp(logprobs) @ (logprobs - before))
                    counts[number] += 1

        first = 0 if steer_prompt else None
        spans = [Span(text.prompt + text.answer, len(text.prompt), None, edit, first) for edit in edits for text in self._texts]
        nll = read_means(self._model, spans, (), want_nll=True, on_prediction=compare).nll.reshape(len(edits), n_texts)
        kls = totals / np.maximum(counts, 1)
        return [Forced(self.nll - own, float(kl)) for own, kl in zip(nll, kls, strict=True)]
