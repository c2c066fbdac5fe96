"""How far steering moves the model, without sampling: and the strengths at which two vectors move it equally far.

The measure is the Kullback-Leibler divergence of the steered model's next-token distributions from the unsteered one's, nats a
token, over answers that the unsteered model gave. It grows as the square of the strength, and is all but free of the noise that
a handful of sampled answers has: a search for a coherence cost of 0.25 by 8 answers a dose came out anywhere from 0.05 to 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bench.fresh import requests
from bench.measure import MeasurementError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.parallel import generate_many

Floats = NDArray[np.float32]

ANSWERS = 12
MAX_TOKENS = 40
# Of the vocabulary, the likeliest tokens at a place: what lies behind them hardly adds to the divergence.
LIKELIEST = 2048
# From a start up to three times too weak or strong, the third step changes the strength by less than one per cent.
STEPS = 4


class Divergence:
    """The measure, on answers to some questions. A context manager.

    Args:
        model: the model.
        questions: take turns.
    """

    def __init__(self, model: Model, questions: Sequence[str]) -> None:
        asked = requests(model, questions, count=ANSWERS, max_tokens=MAX_TOKENS, seed=0)
        given = zip(asked, generate_many(model, asked), strict=True)
        self._texts = [(request.prompt, answer.tokens) for request, answer in given if answer.tokens]
        longest = max(len(prompt) + len(answer) for prompt, answer in self._texts)
        self._context = Context(model, n_ctx=longest, n_seq=1, n_ubatch=longest, n_outputs=MAX_TOKENS)
        self._likeliest: list[NDArray[np.intp]] = []
        self._unsteered: list[Floats] = []
        for logs in self._predictions(None):
            last = min(LIKELIEST, logs.shape[1]) - 1
            self._likeliest.append(np.argpartition(-logs, last, axis=1)[:, : last + 1])
            self._unsteered.append(np.take_along_axis(logs, self._likeliest[-1], 1))

    def __enter__(self) -> Divergence:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._context.close()

    def of(self, added: Floats) -> float:
        """Nats a token, where (n_layer, n_embd) is added while the model reads the answers."""
        sums = []
        for logs, likeliest, unsteered in zip(self._predictions(added), self._likeliest, self._unsteered, strict=True):
            sums.append((np.exp(unsteered) * (unsteered - np.take_along_axis(logs, likeliest, 1))).sum(axis=1))
        return float(np.concatenate(sums).mean())

    def as_far(self, rows: Floats, added: Floats) -> Floats:
        """`rows`, (n_layer, n_embd), at the strength at which they move the model as far as `added` does.

        Raises:
            MeasurementError: that is nowhere, or there is no such strength.
        """
        target = self.of(added)
        strength = float(np.linalg.norm(added)) / max(float(np.linalg.norm(rows)), 1e-12)
        for _ in range(STEPS):
            found = self.of(rows * np.float32(strength))
            if target <= 0 or found <= 0:
                raise MeasurementError("A vector does not move the model at all.")
            strength *= (target / found) ** 0.5
        return rows * np.float32(strength)

    def _predictions(self, added: Floats | None) -> Iterator[Floats]:
        """(n_tokens, n_vocab) log probabilities at the places of each answer's tokens; the prompt is not steered."""
        for prompt, answer in self._texts:
            self._context.clear()
            self._context.set_control_vector(None)
            self._context.decode(Batch.of_one_sequence(prompt[:-1], start=0, last_output=False))
            self._context.set_control_vector(added)
            batch = Batch.of_one_sequence([prompt[-1], *answer[:-1]], start=len(prompt) - 1)
            batch.outputs[:] = 1
            self._context.decode(batch)
            logits = np.stack([self._context.logits(row) for row in range(len(answer))])
            logits -= logits.max(axis=1, keepdims=True)
            yield logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
