"""The controller: a small state machine for each conversation that gates steering by what classifiers say.

Nothing is shared between conversations but the armed policy, which never changes.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from localsteer.draft import Draft
from localsteer.gate import Verdict
from localsteer.llama.residual import Edit, Rows
from localsteer.policy.audit import Action, AuditLog, Decision
from localsteer.policy.classifier import Classifier, OnError, Seen
from localsteer.policy.condition import Condition
from localsteer.steering import Plan, join_removals

# Rewinds in one answer; after them it is steered, but what is said is said.
MAX_REWINDS = 3
# Of a text in the audit log.
_TEXT_LIMIT = 2000


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


class Controller:
    """Gates the answers of one conversation.

    Args:
        policy: the armed policy.
        audit: where decisions are written; None for nowhere.
        thorough: ask every classifier, also those whose answer changes nothing (to try a policy on old texts).

    Attributes:
        conversation: identity in the audit log.
        latest: the gate of the latest answer.
    """

    def __init__(self, policy: Policy, *, audit: AuditLog | None = None, thorough: bool = False) -> None:
        self.policy = policy
        self.conversation = uuid.uuid4().hex[:12]
        self.latest: AnswerGate | None = None
        self.thorough = thorough
        self._audit = audit
        self._answers = 0
        self._on: dict[str, bool] = {}  # whether classifiers of the prompt were true last time

    def answer(self, message: str, plan: Plan | None = None) -> AnswerGate:
        """The gate of the next answer.

        Args:
            message: the user's latest message.
            plan: steering that is on whatever the policy says.
        """
        self._answers += 1
        base = plan.edit if plan is not None else None
        self.latest = AnswerGate(self, message, base, self._answers, self._on)
        return self.latest

    @property
    def decisions(self) -> list[Decision]:
        """What was decided in the latest answer."""
        return self.latest.decisions if self.latest is not None else []

    def record(self, decision: Decision) -> None:
        """Write a decision into the audit log."""
        if self._audit is not None:
            self._audit.write(decision)


@dataclass
class _Activity:
    """Where a rule stands within an answer.

    Attributes:
        active: whether it steers; its strength may still fall after that.
        level: 0 to 1, how much of its steering is applied.
        until: position at which its hold ends.
        held: what its condition was last time: a rewind needs it to turn true.
        fired: whether it ever steered in this answer.
    """

    active: bool = False
    fired: bool = False
    level: float = 0.0
    until: float = 0.0
    held: bool = False


class _FailedError(Exception):
    """A classifier whose score is needed has failed."""


class AnswerGate:
    """Gates one answer: see `localsteer.gate.Gate` for when it is asked.

    Attributes:
        decisions: what was decided.
        scores: by classifier the score of the prompt, or the highest one of the answer.
        rewinds: how many times tokens were taken back.
        failures: by classifier what went wrong.
    """

    def __init__(self, controller: Controller, message: str, base: Edit | None, number: int, on: dict[str, bool]) -> None:
        policy = controller.policy
        self.decisions: list[Decision] = []
        self.scores: dict[str, float] = {}
        self.rewinds = 0
        self.failures: dict[str, str] = {}
        self.prompt_layers: Collection[int] = policy.layers("prompt")
        self.output_layers: Collection[int] = policy.layers("output")
        self.edits: Sequence[Edit | None] = [base, *(rule.plan.edit for rule in policy.rules)]
        self._controller = controller
        self._policy = policy
        self._message = message
        self._base = base if base is not None and _does_something(base) else None
        self._number = number
        self._on = {name: on.get(name, False) for name, one in policy.classifiers.items() if one.watch == "prompt"}
        self._on_in_conversation = on
        self._now: dict[str, float] = {}
        self._observers = {name: one.observer() for name, one in policy.classifiers.items()}
        self._activities = [_Activity() for _ in policy.rules]
        self._on_prompt, self._on_output = (
            {index for index, rule in enumerate(policy.rules) if watch in policy.watched(rule)} for watch in ("prompt", "output")
        )
        self._combined: dict[tuple[float, ...], Edit | None] = {}
        self._seen = Seen(message)
        self._heard = 0  # length of the answer's text that text classifiers have seen
        self._ends = [0]  # length of the answer's text at each position
        self._begun = False
        self._stopped = False

    # ---- what the generator asks

    @property
    def hold_back(self) -> int:
        """How many of the latest tokens must not be shown yet."""
        if self.rewinds >= MAX_REWINDS:
            return 0
        return max((rule.rewind for rule in self._policy.rules), default=0)

    def after_prompt(self, rows: Mapping[int, Rows]) -> Verdict:
        """The prompt was read: rows of `prompt_layers` at its last token."""
        self._seen = Seen(self._message, rows=rows)
        self._observe(lambda one: one.watch == "prompt")
        self._look(self._on_prompt)
        self._tell_passes(self._on_prompt - self._on_output)
        self._begun = True
        return self._verdict()

    def after_token(self, draft: Draft, *, final: bool) -> Verdict:
        """A token was drawn, or the answer is about to end."""
        position, text = len(draft.tokens), draft.text
        self._ends[position:] = [len(text)]
        self._advance()
        if not final and position % self._policy.stride:
            return self._verdict()
        self._seen = Seen(self._message, text, text[self._heard :], position, final=final)
        self._heard = len(text)
        self._observe(lambda one: one.watch == "output" and one.layer is None)
        taken_back = self._look(range(len(self._policy.rules)))
        if final and not taken_back:
            self._tell_passes(self._on_output)
        self._rewind(taken_back)
        return self._verdict(rewind=taken_back)

    def after_run(self, draft: Draft, rows: Mapping[int, Rows]) -> Verdict:
        """The latest token was run: rows of `output_layers` at it."""
        position = len(draft.tokens)
        self._seen = Seen(self._message, draft.text, "", position, rows)
        self._observe(lambda one: one.watch == "output" and one.layer is not None)
        if position % self._policy.stride:
            return self._verdict()
        before = self._levels
        taken_back = self._look(self._on_output)
        fired = any(level > old for level, old in zip(self._levels, before, strict=True))
        self._rewind(taken_back)
        return self._verdict(rewind=taken_back, again=fired)

    # ---- what is armed, for people

    @property
    def active(self) -> list[tuple[str, float]]:
        """The rules that steer now, each with its level of 0 to 1."""
        pairs = zip(self._policy.rules, self._activities, strict=True)
        return [(rule.name, activity.level) for rule, activity in pairs if activity.level > 0]

    # ---- classifiers

    def _observe(self, wanted: Callable[[Classifier], bool]) -> None:
        """Let classifiers look at what is there; those that cost much wait until a rule depends on them."""
        for name, one in self._policy.classifiers.items():
            if not wanted(one):
                continue
            self._now.pop(name, None)
            if not one.costly or (self._controller.thorough and (one.watch == "prompt" or self._seen.final)):
                self._score(one)

    def _score(self, one: Classifier) -> None:
        """Ask a classifier, unless it has failed in this answer."""
        if one.name in self.failures:
            return
        try:
            score = self._observers[one.name].observe(self._seen)
            if math.isnan(score):
                raise ValueError("its score is not a number")
        except Exception as error:  # whatever happens in a classifier, the answer must come to its end
            self._fail(one, error)
            return
        self._now[one.name] = score
        self.scores[one.name] = max(score, self.scores.get(one.name, -math.inf))
        self._on[one.name] = one.is_on(score, self._on.get(one.name, False))
        if one.watch == "prompt":
            self._on_in_conversation[one.name] = self._on[one.name]

    def _fail(self, one: Classifier, error: Exception) -> None:
        self.failures[one.name] = " ".join(str(error).split()) or type(error).__name__
        self._stopped = self._stopped or self._policy.on_error == "stop"
        self._decide("error", one, None, detail=f"{self.failures[one.name]} (on_error: {self._policy.on_error})")

    def _is_on(self, name: str) -> bool:
        one = self._policy.classifiers[name]
        if one.watch == "output" and self._seen.position == 0 and not self._seen.final:
            return False  # there is no answer yet
        if one.costly and name not in self._now:
            self._score(one)
        if name in self.failures:
            if self._policy.on_error == "steer":
                raise _FailedError
            return False
        return self._on.get(name, False)

    # ---- rules

    def _look(self, rules: Iterable[int]) -> int:
        """Fire, hold and release rules; returns how many tokens are to be taken back."""
        taken_back = 0
        for index in rules:
            rule, activity = self._policy.rules[index], self._activities[index]
            failed = False
            try:
                # What was said of the prompt alone is settled when the answer begins; only its hold may end.
                holds = (index in self._on_output or not self._begun) and rule.condition.holds(self._is_on)
            except _FailedError:
                holds = failed = True
            turned, activity.held = holds and not activity.held, holds
            if holds:
                count = 0
                if turned and not failed and self.rewinds < MAX_REWINDS:
                    count = min(rule.rewind, self._seen.position)
                taken_back = max(taken_back, count)
                self._fire(rule, activity, turned, count, failed)
            elif activity.active and self._seen.position >= activity.until:
                activity.active = False
                if rule.ramp == 0:
                    activity.level = 0.0
                self._decide("release", self._deciding(rule), rule)
        return taken_back

    def _tell_passes(self, rules: Iterable[int]) -> None:
        for index in rules:
            if not self._activities[index].fired:
                rule = self._policy.rules[index]
                self._decide("pass", self._deciding(rule), rule)

    def _fire(self, rule: Rule, activity: _Activity, turned: bool, count: int, failed: bool) -> None:
        begins = not activity.active
        position = self._seen.position - count
        activity.active = activity.fired = True
        activity.until = math.inf if rule.hold is None else position + rule.hold
        if begins:
            activity.level = min(1.0, activity.level + 1 / rule.ramp) if rule.ramp else 1.0
        one = self._deciding(rule)
        detail = "the classifier failed" if failed else ""
        if count:
            self._decide("rewind", one, rule, detail=f"{count} tokens")
        elif turned and rule.rewind and not failed and self._seen.position and self.rewinds >= MAX_REWINDS:
            self._decide("rewinds exhausted", one, rule)
        elif begins:
            self._decide("fire", one, rule, detail=detail)

    def _advance(self) -> None:
        """One token further: ramps rise and fall."""
        for rule, activity in zip(self._policy.rules, self._activities, strict=True):
            if activity.active:
                activity.level = min(1.0, activity.level + 1 / rule.ramp) if rule.ramp else 1.0
            elif activity.level > 0:
                activity.level = max(0.0, activity.level - 1 / rule.ramp) if rule.ramp else 0.0

    def _rewind(self, count: int) -> None:
        if not count:
            return
        self.rewinds += 1
        position = self._seen.position - count
        answer = self._seen.answer[: self._ends[position]]
        for observer in self._observers.values():
            observer.rewind(position, answer)
        self._seen = Seen(self._message, answer, "", position)
        self._heard = len(answer)
        for index in self._on_output:
            self._activities[index].held = False  # what was true of the tokens that are gone may turn true again

    # ---- what comes of it

    @property
    def _levels(self) -> tuple[float, ...]:
        return tuple(activity.level for activity in self._activities)

    def _verdict(self, *, rewind: int = 0, again: bool = False) -> Verdict:
        levels = self._levels
        if levels not in self._combined:
            self._combined[levels] = self._combine(levels)
        return Verdict(self._combined[levels], again=again, rewind=rewind, stop=self._stopped)

    def _combine(self, levels: tuple[float, ...]) -> Edit | None:
        """The steering of all active rules, added up."""
        parts = [(self._base, 1.0)] if self._base is not None else []
        parts += [(rule.plan.edit, level) for rule, level in zip(self._policy.rules, levels, strict=True) if level > 0]
        if not any(level > 0 for level in levels):
            return self._base
        added = np.sum([edit.added * np.float32(level) for edit, level in parts], axis=0)
        return Edit(added.astype(np.float32), join_removals([edit.removed for edit, _ in parts]))

    def _deciding(self, rule: Rule) -> Classifier:
        """The classifier of a rule that was heard last: of those that are true, or of all."""
        classifiers = [self._policy.classifiers[name] for name in rule.condition.names]
        failed = [one for one in classifiers if one.name in self.failures]
        on = [one for one in classifiers if self._on.get(one.name)]
        return (failed or on or classifiers)[-1]

    def _decide(self, action: Action, one: Classifier, rule: Rule | None, *, detail: str = "") -> None:
        activity = self._activities[self._policy.rules.index(rule)] if rule is not None else _Activity()
        score = self._now.get(one.name)
        if action == "pass" and one.watch == "output":
            score = self.scores.get(one.name)  # the highest of the whole answer
        text = ""
        if self._policy.audit_text:
            text = self._seen.answer[-_TEXT_LIMIT:] if self._seen.position else self._message[:_TEXT_LIMIT]
        decision = Decision(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            conversation=self._controller.conversation,
            answer=self._number,
            position=self._seen.position,
            rule=rule.name if rule is not None else "",
            action=action,
            classifier=one.name,
            score=score,
            threshold=one.threshold,
            strength=1.0 if activity.active else 0.0,
            steer=str(rule.plan.steering) if rule is not None else "",
            detail=detail,
            text=text,
        )
        self.decisions.append(decision)
        self._controller.record(decision)


def _does_something(edit: Edit) -> bool:
    return bool(edit.added.any() or edit.removed)
