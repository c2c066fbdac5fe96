"""What all classifiers have in common: they observe a text or activations and give a score.

A classifier is shared by all conversations and holds no state of any; what it has to remember within an answer is in the
observer that it makes for that answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from localsteer.llama.residual import Rows
from localsteer.vector.probe import Watch

OnError = Literal["steer", "pass", "stop"]
"""What happens where a classifier fails: the rules that need it steer, it counts as false, or the answer ends."""


@dataclass(frozen=True)
class Seen:
    """What there is to observe at one moment.

    Attributes:
        message: the user's latest message.
        answer: the answer so far.
        fresh: what has come to it since the last time.
        position: tokens of the answer so far.
        rows: by layer the output (n_embd,) of the block: at the latest token of the answer, or the mean over the message; empty
            where none was read.
        final: whether the answer is about to end.
    """

    message: str
    answer: str = ""
    fresh: str = ""
    position: int = 0
    rows: Mapping[int, Rows] = field(default_factory=dict)
    final: bool = False


class Observer(ABC):
    """A classifier's view of one answer."""

    @abstractmethod
    def observe(self, seen: Seen) -> float:
        """The score at this moment."""

    # Most remember nothing of the answer.
    def rewind(self, position: int, answer: str) -> None:  # noqa: B027
        """The answer was taken back to this many tokens and this text."""


@dataclass(frozen=True, kw_only=True)
class Classifier(ABC):
    """One classifier of a policy.

    Attributes:
        name: its name in the policy.
        watch: what it reads.
        threshold: the score from which on it is true.
        release: once true, it stays so until the score falls below this (hysteresis).
        layer: the layer whose activations it needs; None for a classifier of texts.
        costly: whether it is only asked where a rule depends on its answer.
    """

    name: str
    watch: Watch
    threshold: float
    release: float
    layer: int | None = None
    costly: bool = False

    @abstractmethod
    def observer(self) -> Observer:
        """A view of one answer (and the message before it)."""

    def is_on(self, score: float, before: bool) -> bool:
        """Whether it is true at this score, where it was (`before`) true or not."""
        return score >= self.threshold or (before and score >= self.release)
