"""An armed policy: what a policy file comes to for one model. It never changes, and all conversations share it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from localsteer.errors import LocalsteerError, PolicyError
from localsteer.llama.residual import Edit
from localsteer.policy.classifier import Classifier, OnError
from localsteer.policy.condition import Condition
from localsteer.steering.dose import DoseLimit
from localsteer.steering.plan import Plan, join_removals


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
        limit: the largest relative dose of all that is added to a token; None for any. No rule alone is above it.

    Raises:
        VectorError: what the rules remove cannot be removed together.
    """

    classifiers: Mapping[str, Classifier]
    rules: tuple[Rule, ...]
    on_error: OnError = "steer"
    stride: int = 1
    audit_text: bool = False
    limit: DoseLimit | None = None

    def __post_init__(self) -> None:
        self.check_beside(None)

    def check_beside(self, edit: Edit | None) -> None:
        """Make sure that all rules may come together, with steering that is on anyway beside them.

        Raises:
            VectorError: what they remove cannot be removed together.
        """
        edits = [rule.plan.edit for rule in self.rules] + ([edit] if edit is not None else [])
        join_removals([one.removed for one in edits])

    def layers(self, watch: str) -> frozenset[int]:
        """The layers that classifiers of the prompt or the output read."""
        return frozenset(one.layer for one in self.classifiers.values() if one.watch == watch and one.layer is not None)

    def watched(self, rule: Rule) -> set[str]:
        """What the classifiers of a rule watch."""
        return {self.classifiers[name].watch for name in rule.condition.names}


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Say of an error which part of the policy it is about."""
    try:
        yield
    except LocalsteerError as error:
        raise PolicyError(f"{what}: {error.message}", hint=error.hint) from error
