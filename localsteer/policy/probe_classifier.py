"""The probe classifier: a projection of the residual stream at one layer, read in the forward pass that is made anyway."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import PolicyError
from localsteer.llama.residual import Rows
from localsteer.policy.classifier import Classifier, Observer, Seen
from localsteer.vector.control_vector import ControlVector

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeClassifier(Classifier):
    """Scores the mean over the user's message, or over the latest tokens of the answer (see `localsteer.vector.probe.Probe`).

    Attributes:
        weights: (n_embd,) float64.
        bias: added to the projection.
        window: tokens of an answer that are averaged.
    """

    layer: int
    weights: Scores
    bias: float
    window: int

    @classmethod
    def of(
        cls, vector: ControlVector, *, name: str, threshold: float | None = None, release: float | None = None
    ) -> ProbeClassifier:
        """The classifier of a probe file.

        Args:
            vector: with a probe.
            name: its name in the policy.
            threshold: instead of the fitted one.
            release: where it turns false again; by default at the threshold.

        Raises:
            PolicyError: the vector has no probe.
        """
        probe = vector.provenance.probe
        if probe is None:
            raise PolicyError(
                "It is a control vector that was not fitted to tell texts apart.",
                hint="Make a probe with `localsteer policy fit`.",
            )
        chosen = probe.threshold if threshold is None else threshold
        return cls(
            name=name,
            watch=probe.watch,
            threshold=chosen,
            release=chosen if release is None else release,
            layer=probe.layer,
            weights=projection(vector.directions[probe.layer]),
            bias=probe.bias,
            window=probe.window,
        )

    def score(self, rows: Rows) -> Scores:
        """Scores of rows (..., n_embd) of the layer."""
        return np.asarray(rows @ self.weights + self.bias, np.float64)

    def observer(self) -> Observer:
        """A view of one answer."""
        return _ProbeObserver(self)


def projection(direction: NDArray[np.floating]) -> Scores:
    """The weights (n_embd,) of a direction d: 2d / ‖d‖²."""
    wide = direction.astype(np.float64)
    return np.asarray(2 * wide / (wide @ wide), np.float64)


def moving_mean(scores: Scores, window: int) -> Scores:
    """For each token the mean of the latest `window` scores, or of as many as there are."""
    sums = np.cumsum(np.concatenate(([0.0], scores)))
    ends = np.arange(1, len(scores) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts), np.float64)


class _ProbeObserver(Observer):
    def __init__(self, classifier: ProbeClassifier) -> None:
        self._classifier = classifier
        self._scores: list[float] = []  # one for each token of the answer, or the one of the message

    def observe(self, seen: Seen) -> float:
        one = self._classifier
        if one.layer not in seen.rows:
            raise PolicyError("There are no activations to read: no text, or too long a one.")
        self._scores.append(float(one.score(seen.rows[one.layer])))
        latest = self._scores[-one.window :]
        return sum(latest) / len(latest)

    def rewind(self, position: int, answer: str) -> None:
        del self._scores[position:]
