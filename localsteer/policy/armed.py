"""An armed policy: what a policy file comes to for one model. It never changes, and all conversations share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from localsteer.policy.classifier import Classifier, OnError
from localsteer.policy.condition import Condition
from localsteer.steering import Plan


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule of an armed policy.

    Attributes:
        name: its name.
        condition: when it fires.
        plan: what it steers by, resolved for the model.
        hold: tokens that it holds at least; None to the end of the response.
        ramp: tokens over which its strength rises, and falls again.
        rewind: tokens that are taken back when it fires on the output.
    """

    name: str
    condition: Condition
    plan: Plan
    hold: int | None = None
    ramp: int = 0
    rewind: int = 0


@dataclass(frozen=True, eq=False)
class Policy:
    """A policy with everything that it needs for one model.

    Attributes:
        classifiers: by name.
        rules: in their order.
        on_error: what happens where a classifier fails.
        stride: rules are looked at after every so many tokens.
        audit_text: whether decisions carry texts.
    """

    classifiers: Mapping[str, Classifier]
    rules: tuple[Rule, ...]
    on_error: OnError = "steer"
    stride: int = 1
    audit_text: bool = False

    def layers(self, watch: str) -> frozenset[int]:
        """The layers that classifiers of the prompt or the output read."""
        return frozenset(one.layer for one in self.classifiers.values() if one.watch == watch and one.layer is not None)

    def watched(self, rule: Rule) -> set[str]:
        """What the classifiers of a rule watch."""
        return {self.classifiers[name].watch for name in rule.condition.names}
