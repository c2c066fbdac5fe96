"""A fitted probe, as a vector file carries it: how one direction tells texts apart, and how well it did on unseen ones."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from localsteer.errors import VectorError, shown
from localsteer.files.json_values import build, read_json
from localsteer.vector.calibration import Interval, without_nan

Watch = Literal["prompt", "output"]
"""What is read: the user's message, or the growing answer."""


@dataclass(frozen=True)
class Metrics:
    """How well scores tell positive texts from negative ones at a threshold.

    Every rate comes with its 95 % interval, and is NaN where it is not defined (a precision where nothing was called positive).

    Attributes:
        true_positives: positive texts at or above the threshold.
        false_positives: negative texts at or above it.
        true_negatives: negative texts below it.
        false_negatives: positive texts below it.
        auroc: share of pairs of a positive and a negative text that the scores put in order, whatever the threshold.
        precision: share of positives among the texts called positive.
        recall: share of positive texts that were called so.
        f1: harmonic mean of these two.
        false_positive_rate: share of negative texts that were called positive.
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    auroc: Interval
    precision: Interval
    recall: Interval
    f1: Interval
    false_positive_rate: Interval

    @property
    def positives(self) -> int:
        """Number of positive texts."""
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> int:
        """Number of negative texts."""
        return self.true_negatives + self.false_positives


@dataclass(frozen=True)
class Probe:
    """A linear classifier of the residual stream at one layer.

    The score of a row h is 2 (h · d) / ‖d‖² + bias, where d is the vector's direction at the layer: on the texts it was fitted
    to, the positive ones have a mean score of +1 and the negative ones of -1.

    Attributes:
        layer: the block whose output is read.
        bias: added to the projection.
        threshold: the score from which on a text is called positive.
        watch: whether it was fitted to user messages (h is the mean over a message's tokens) or to answers.
        window: answers only: the score is the mean over this many of the latest tokens.
        fitted: positive and negative texts that the direction, layer and threshold come from.
        target: the false positive rate that the threshold was chosen for; None where both kinds of mistakes count alike.
        unseen: how it did on texts that no choice has seen.

    Raises:
        VectorError: a bias, threshold or target that is no finite number, or a window of no tokens.
    """

    layer: int
    bias: float
    threshold: float
    watch: Watch
    window: int
    fitted: tuple[int, int]
    target: float | None
    unseen: Metrics

    def __post_init__(self) -> None:
        numbers = (self.bias, self.threshold, self.target if self.target is not None else 0.0)
        if not all(map(math.isfinite, numbers)) or self.window < 1:
            raise VectorError(f"bias, threshold and target of {numbers} with a window of {self.window}")

    def to_json(self) -> str:
        """As text, for a vector's metadata."""
        return json.dumps(without_nan(asdict(self)), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Probe:
        """From text.

        Raises:
            VectorError: it is damaged.
        """
        try:
            return build(cls, read_json(text))
        except (ValueError, VectorError) as error:
            raise VectorError(
                f"the probe is damaged: {shown(error)}.", hint="Fit it again with `localsteer policy fit`."
            ) from error
