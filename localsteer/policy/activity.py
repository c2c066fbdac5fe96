"""Where the rules of a policy stand within an answer."""

from __future__ import annotations

from dataclasses import dataclass

from localsteer.policy.policy import Rule


@dataclass(eq=False)
class Activity:
    """Where a rule stands. Tokens of parts that no policy steers (the reasoning) take nothing of its hold or its ramp.

    Attributes:
        rule: the rule.
        active: whether it steers; its strength may still fall after that.
        fired: whether it ever steered in this answer.
        steps: how far up its ramp it is.
        until: at how many tokens of the parts that are steered its hold ends.
        held: what its condition was last time: a rewind needs it to turn true.
    """

    rule: Rule
    active: bool = False
    fired: bool = False
    steps: int = 0
    until: float = 0.0
    held: bool = False

    @property
    def level(self) -> float:
        """0 to 1, how much of its steering is applied."""
        return self.steps / max(self.rule.ramp, 1)

    def step(self) -> None:
        """One token further: up the ramp where the rule steers, and down it where it does so no more."""
        self.steps = min(self.steps + 1, max(self.rule.ramp, 1)) if self.active else max(self.steps - 1, 0)

    def begin(self) -> None:
        """At least one step up, where the rule steers."""
        if self.active and not self.steps:
            self.step()


@dataclass(frozen=True)
class Moment:
    """What was so at one token of an answer, for a rewind to go back to.

    Attributes:
        length: of the answer's text.
        on: the classifiers of the output that were true.
        held: the rules whose condition was.
    """

    length: int
    on: frozenset[str]
    held: frozenset[Activity]
