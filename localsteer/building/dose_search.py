"""Which doses to measure next, and the dose, from what given answers become under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from localsteer.vector.dosing import Tried

# The doses so far are between 0.12 (news reader, SmolLM2-135M; happy, Gemma 3 270M) and 1.3 (pirate, 1.5B), but for one of
# 0.06 that shows nothing (French, Gemma).
LADDER = (0.2, 0.5, 1.2)
_LEAST_DOSE, _MAX_DOSE = 0.02, 4.0
# Between those of the ladder one more is read, and another one unless a measured dose is as near as this to the level, in nats a
# token: where what the persona says comes and goes within one step of the ladder (French on the 1.5B).
_NEAR_ENOUGH = 0.03
_REFINEMENTS = 2
# Times a dose, below which another one tells nothing of the slope. The gain of plain talk against a pirate (1.5B) was -0.145 at
# 0.5 and at 0.5175; a cubic through both gave a dose of 0.84, where -0.15 is reached at 0.53.
_APART = 1.1
# Nats a token that stand for a model whose logits are not numbers any more.
_LOST = -100.0


@dataclass
class DoseSearch:
    """The strongest dose at which given answers are within a tolerance of the likeliest that they become.

    Attributes:
        tolerance: nats a token.
        next: relative doses to measure.
        points: by relative dose, how much likelier the answers become, nats a token.
        refinements: how many were measured between those of the ladder.
    """

    tolerance: float
    next: list[float]
    points: dict[float, float] = field(default_factory=lambda: {0.0: 0.0})
    refinements: int = 0

    def add(self, found: Sequence[float]) -> None:
        """Take down what was measured at the doses asked for, and ask for others or none."""
        self.points |= {dose: own if np.isfinite(own) else _LOST for dose, own in zip(self.next, found, strict=True)}
        self.next = []
        low, high = self._bracket()
        if high is None and low < _MAX_DOSE:
            self.next = [min(_MAX_DOSE, 2 * low)]
        elif high is not None and self._may_be_below(low, high):
            self.next = [sorted(self.points)[1] / 2]
        elif not self.refinements or (self.refinements < _REFINEMENTS and self._is_rough(low, high)):
            self.refinements += 1
            self.next = [self.dose]

    def _is_rough(self, low: float, high: float | None) -> bool:
        return high is not None and min(self._off(low), self._off(high)) > _NEAR_ENOUGH

    def _may_be_below(self, low: float, high: float) -> bool:
        """Whether the best dose may be below all that were measured: nothing good was, or the first one is the best."""
        _, least, *_ = sorted(self.points)
        return least > _LEAST_DOSE and (low == 0 or (self._peaks_at(least) and high <= LADDER[1]))

    def _peaks_at(self, dose: float) -> bool:
        """Whether the best dose is the weakest of the ladder, and better than none by more than reading is inexact."""
        return dose == LADDER[0] and self.points[dose] == max(self.points.values()) and self.points[dose] > _NEAR_ENOUGH

    @property
    def is_lost(self) -> bool:
        """Whether nothing that was measured is a number."""
        return all(own == _LOST for dose, own in self.points.items() if dose > 0)

    @property
    def tried(self) -> tuple[Tried, ...]:
        """All that was measured."""
        return tuple(Tried(dose, self.points[dose]) for dose in sorted(self.points) if dose > 0)

    @property
    def dose(self) -> float:
        """The dose, as far as is known: where the cubic through four near points that are apart falls below the level."""
        low, high = self._bracket()
        if high is None:
            return low
        doses, found = self._apart()
        place = int(np.searchsorted(doses, low, side="right")) - 1
        first = min(max(0, place - 1), max(0, len(doses) - 4))
        near = doses[first : first + 4]
        curve = np.polyfit(near, found[first : first + 4], len(near) - 1)
        between = np.linspace(low, high, 201)
        below = between[np.polyval(curve, between) < self._level()]
        return float(below[0]) if len(below) else high

    def _apart(self) -> tuple[list[float], list[float]]:
        """Doses and what was measured there; those that are near each other as one, for through two of them noise is a slope."""
        groups: list[list[float]] = []
        for dose in sorted(self.points):
            if groups and dose < _APART * groups[-1][0] and _LOST not in (self.points[dose], self.points[groups[-1][-1]]):
                groups[-1].append(dose)
            else:
                groups.append([dose])
        means = [float(np.mean([self.points[dose] for dose in group])) for group in groups]
        return [float(np.mean(group)) for group in groups], means

    def _level(self) -> float:
        return max(self.points.values()) - self.tolerance

    def _off(self, dose: float) -> float:
        return abs(self.points[dose] - self._level())

    def _bracket(self) -> tuple[float, float | None]:
        """The strongest measured dose below which all are good from the best one on, and the next stronger one."""
        doses, level = sorted(self.points), self._level()
        best = max(doses, key=self.points.__getitem__)
        bad = next((dose for dose in doses if dose > best and not self.points[dose] >= level), None)
        return max(dose for dose in doses if bad is None or dose < bad), bad
