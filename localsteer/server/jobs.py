"""What is asked of the engine's thread, and what it tells of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localsteer.engine.request import Answer, PromptProgress, Request, TokenLogprob
from localsteer.policy.audit import Decision
from localsteer.policy.controller import AnswerGate


@dataclass(frozen=True)
class Job:
    """One answer that is wanted.

    Attributes:
        request: what to answer.
        gate: the policy's, if any.
        tell_progress: tell how far the prompt is read, as it is read.
    """

    request: Request
    gate: AnswerGate | None = None
    tell_progress: bool = False


@dataclass(frozen=True)
class Piece:
    """More of an answer: text that is certain, the tokens it took, and what the policy decided meanwhile; or of its prompt."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    decisions: tuple[Decision, ...] = ()
    tokens: tuple[int, ...] = ()
    progress: PromptProgress | None = None


@dataclass(frozen=True)
class Ended:
    """An answer came to its end; what follows the last piece is in here."""

    choice: int
    answer: Answer
    decisions: tuple[Decision, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Failed:
    """An answer could not be given."""

    choice: int
    error: Exception


Event = Piece | Ended | Failed


@dataclass(eq=False)
class Ticket:
    """The answers that one request wants.

    Attributes:
        jobs: what they are.
        tell: called in the engine's thread with everything that happens.
        cancelled: nobody waits for them any more.
    """

    jobs: Sequence[Job]
    tell: Callable[[Event], None]
    cancelled: bool = False
    waiting: deque[int] = field(default_factory=deque)
