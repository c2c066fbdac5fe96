"""The controller: a small state machine for each conversation that gates steering by what classifiers say.

Nothing is shared between conversations but the armed policy (`localsteer.policy.policy`), which never changes.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from localsteer.engine.draft import Draft
from localsteer.engine.gate import Verdict
from localsteer.llama.residual import Edit, Rows
from localsteer.policy.activity import Activity, Moment
from localsteer.policy.audit import Action, AuditLog, Decision
from localsteer.policy.classifier import Classifier, Seen
from localsteer.policy.policy import Policy, Rule
from localsteer.steering.plan import Plan, join_removals

# Rewinds in one answer; after them it is steered, but what is said is said.
MAX_REWINDS = 3
# Of a text in the audit log.
_TEXT_LIMIT = 2000


class Controller:
    """Gates the answers of one conversation.

    Args:
        policy: the armed policy.
        audit: where decisions are written; None for nowhere.
        thorough: ask every classifier, also those whose answer changes nothing (to try a policy on old texts).

    Attributes:
        policy: gates the answers that follow; another one with the same classifiers may take its place between two.
        conversation: identity in the audit log.
        latest: the gate of the latest answer.
    """

    def __init__(self, policy: Policy, *, audit: AuditLog | None = None, thorough: bool = False) -> None:
        self.policy = policy
        self.thorough = thorough
        self._audit = audit
        self.reset()

    def reset(self) -> None:
        """Begin a new conversation."""
        self.conversation = uuid.uuid4().hex[:12]
        self.latest: AnswerGate | None = None
        self._answers = 0
        self._on: dict[str, bool] = {}  # whether classifiers of the prompt were true last time

    @property
    def memory(self) -> Mapping[str, bool]:
        """What it carries from answer to answer: which classifiers of the prompt were true last time."""
        return dict(self._on)

    def recall(self, memory: Mapping[str, bool]) -> None:
        """Remember what it did then; what came since was taken back."""
        self._on = dict(memory)
        self.latest = None

    def answer(self, message: str, plan: Plan | None = None) -> AnswerGate:
        """The gate of the next answer.

        Args:
            message: the user's latest message.
            plan: steering that is on whatever the policy says, by itself within the policy's limit.
        """
        self._answers += 1
        base = plan.effect if plan is not None else None
        self.policy.check_beside(base)
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


class _FailedError(Exception):
    """A classifier whose score is needed has failed."""


class AnswerGate:
    """Gates one answer: see `localsteer.engine.gate.Gate` for when it is asked.

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
        self._base = base
        self._number = number
        self._on = {name: on.get(name, False) for name, one in policy.classifiers.items() if one.watch == "prompt"}
        self._on_in_conversation = on
        self._now: dict[str, float] = {}
        self._asked: dict[str, int] = {}  # the place that the latest score of a classifier is about
        self._observers = {name: one.observer() for name, one in policy.classifiers.items()}
        self._activities = [Activity(rule) for rule in policy.rules]
        self._on_prompt, self._on_output = (
            [one for one in self._activities if watch in policy.watched(one.rule)] for watch in ("prompt", "output")
        )
        self._combined: dict[tuple[float, ...], Edit | None] = {}
        self._removed: dict[tuple[Activity, ...], Mapping[int, Rows]] = {}
        self._seen = Seen(message)
        self._aside = 0  # tokens in parts that are not steered
        self._heard = 0  # length of the answer's text that text classifiers have seen
        self._moments: list[Moment] = []  # one for each position
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
        """The prompt was read: mean rows of `prompt_layers` over the message."""
        self._seen = Seen(self._message, rows=rows)
        self._observe(lambda one: one.watch == "prompt")
        self._look(self._on_prompt)
        self._tell_passes(one for one in self._on_prompt if one not in self._on_output)
        self._begun = True
        for activity in self._activities:
            activity.step()
        self._remember(0, 0)
        return self._verdict()

    def after_token(self, draft: Draft, *, final: bool) -> Verdict:
        """A token was drawn, or the answer is about to end."""
        position, text = len(draft.tokens), draft.text
        taken_back = 0
        steered, self._aside = draft.aside == self._aside, draft.aside
        if final or position % self._policy.stride == 0:
            self._seen = Seen(self._message, text, text[self._heard :], position, final=final)
            self._heard = len(text)
            self._observe(lambda one: one.watch == "output" and one.layer is None)
            taken_back = self._look(self._activities, draft.unseen)
            if final and not taken_back:
                self._tell_passes(self._on_output)
        for activity in self._activities:
            if steered:
                activity.step()
            else:
                activity.begin()
        self._remember(position, len(text))
        self._rewind(taken_back)
        return self._verdict(rewind=taken_back)

    def after_run(self, draft: Draft, rows: Mapping[int, Rows]) -> Verdict:
        """The latest token was run: rows of `output_layers` at it."""
        position = len(draft.tokens)
        taken_back = 0
        idle = [one for one in self._on_output if not one.active]
        self._seen = Seen(self._message, draft.text, "", position, rows)
        self._observe(lambda one: one.watch == "output" and one.layer is not None)
        if position % self._policy.stride == 0:
            taken_back = self._look(self._on_output, draft.unseen)
        fired = [one for one in idle if one.active]
        for activity in fired:
            activity.step()
        self._remember(position, len(draft.text))
        self._rewind(taken_back)
        return self._verdict(rewind=taken_back, again=bool(fired))

    @property
    def active(self) -> list[tuple[str, float]]:
        """The rules that steer now, each with its level of 0 to 1."""
        return [(one.rule.name, one.level) for one in self._activities if one.level > 0]

    @property
    def _place(self) -> int:
        """How many tokens of the parts that are steered there are."""
        return self._seen.position - self._aside

    # ---- classifiers

    def _observe(self, wanted: Callable[[Classifier], bool]) -> None:
        """Let classifiers look at what is there; those that cost much wait until a rule depends on them."""
        for name, one in self._policy.classifiers.items():
            if not wanted(one) or (one.watch == "prompt" and not self._message):
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
        self._asked[one.name] = self._place
        self.scores[one.name] = max(score, self.scores.get(one.name, -math.inf))
        self._on[one.name] = one.is_on(score, self._on.get(one.name, False))
        if one.watch == "prompt":
            self._on_in_conversation[one.name] = self._on[one.name]

    def _fail(self, one: Classifier, error: Exception) -> None:
        self.failures[one.name] = " ".join(str(error).split()) or type(error).__name__
        self._stopped = self._stopped or self._policy.on_error == "stop"
        self._decide("error", one, detail=f"{self.failures[one.name]} (on_error: {self._policy.on_error})")

    def _is_on(self, name: str) -> bool:
        one = self._policy.classifiers[name]
        if one.watch == "output" and self._seen.position == 0 and not self._seen.final:
            return False  # there is no answer yet
        if one.watch == "prompt" and not self._message:
            return False  # an answer alone is looked at
        if one.costly and name not in self._now:
            self._score(one)
        if name in self.failures:
            if self._policy.on_error == "steer":
                raise _FailedError
            return False
        return self._on.get(name, False)

    # ---- rules

    def _look(self, activities: Iterable[Activity], most: int = 0) -> int:
        """Fire, hold and release rules; returns how many tokens are to be taken back, of the `most` that can be."""
        fires: list[tuple[Activity, bool, int, bool]] = []
        for activity in activities:
            failed = False
            try:
                # What was said of the prompt alone is settled when the answer begins; only its hold may end.
                looked = activity in self._on_output or not self._begun
                holds = looked and activity.rule.condition.holds(self._is_on)
            except _FailedError:
                holds = failed = True
            turned, activity.held = holds and not activity.held, holds
            if holds:
                may_rewind = turned and not failed and self.rewinds < MAX_REWINDS
                fires.append((activity, turned, min(activity.rule.rewind, most) if may_rewind else 0, failed))
            elif activity.active and self._place >= activity.until:
                activity.active = False
                self._decide("release", self._deciding(activity.rule), activity)
        taken_back = max((count for _, _, count, _ in fires), default=0)
        for activity, turned, count, failed in fires:
            self._fire(activity, turned, taken_back, count > 0, failed)
        return taken_back

    def _tell_passes(self, activities: Iterable[Activity]) -> None:
        for activity in activities:
            if not activity.fired:
                self._decide("pass", self._deciding(activity.rule), activity)

    def _fire(self, activity: Activity, turned: bool, taken_back: int, rewinds: bool, failed: bool) -> None:
        rule, begins = activity.rule, not activity.active
        activity.active = activity.fired = True
        # A score of the residual stream is about the token that was run, also when rules are looked at after the next one.
        classifiers = (self._policy.classifiers[name] for name in rule.condition.names)
        asked = [self._asked[one.name] for one in classifiers if one.watch == "output" and one.name in self._asked]
        latest = max(asked, default=self._place)
        activity.until = math.inf if rule.hold is None else latest - taken_back + rule.hold
        one = self._deciding(rule)
        if rewinds:
            self._decide("rewind", one, activity, detail=f"{taken_back} tokens")
        elif turned and rule.rewind and not failed and self._seen.position and self.rewinds >= MAX_REWINDS:
            self._decide("rewinds exhausted", one, activity)
        elif begins:
            self._decide("fire", one, activity, detail="the classifier failed" if failed else "")

    def _remember(self, position: int, length: int) -> None:
        on = frozenset(name for name, one in self._policy.classifiers.items() if one.watch == "output" and self._on.get(name))
        held = frozenset(activity for activity in self._activities if activity.held)
        self._moments[position:] = [Moment(length, on, held)]

    def _rewind(self, count: int) -> None:
        if not count:
            return
        self.rewinds += 1
        position = self._seen.position - count
        moment = self._moments[position]
        answer = self._seen.answer[: moment.length]
        for name, one in self._policy.classifiers.items():
            self._observers[name].rewind(position, answer)
            if one.watch == "output":
                self._on[name], self._asked[name] = name in moment.on, position - self._aside
        for activity in self._activities:
            activity.held = activity in moment.held
        self._seen = Seen(self._message, answer, "", position)
        self._heard = len(answer)

    # ---- what comes of it

    def _verdict(self, *, rewind: int = 0, again: bool = False) -> Verdict:
        levels = tuple(one.level for one in self._activities)
        if levels not in self._combined:
            self._combined[levels] = self._combine()
        return Verdict(self._combined[levels], again=again, rewind=rewind, stop=self._stopped)

    def _combine(self) -> Edit | None:
        """The steering of all active rules, added up, and weakened where that is more than the largest dose."""
        active = tuple(one for one in self._activities if one.level > 0)
        if not active:
            return self._base
        parts = [self._base] if self._base is not None else []
        parts += [one.rule.plan.edit.scaled(one.level) for one in active]
        if active not in self._removed:  # a ramp changes the strength alone
            self._removed[active] = join_removals([part.removed for part in parts])
        (rows, scale), *beside = [term for part in parts for term in part.terms]
        edit, limit = Edit(rows, self._removed[active], scale, tuple(beside)), self._policy.limit
        if limit is None or limit.allows(dose := limit.dose_of(edit)):
            return edit
        if not any(one.action == "limited" for one in self.decisions):
            detail = f"relative dose {dose:.2f} held at {limit.dose:g}"
            self._decide("limited", self._deciding(active[-1].rule), active[-1], detail=detail)
        return edit.scaled(limit.dose / dose)

    def _deciding(self, rule: Rule) -> Classifier:
        """The last classifier of a rule: of those that failed, are true, or were asked in this answer, or of all."""
        classifiers = [self._policy.classifiers[name] for name in rule.condition.names]
        asked = [one for one in classifiers if one.name in self.scores]
        on = [one for one in asked if self._on[one.name]]
        failed = [one for one in classifiers if one.name in self.failures]
        return (failed or on or asked or classifiers)[-1]

    def _decide(self, action: Action, one: Classifier, activity: Activity | None = None, *, detail: str = "") -> None:
        rule = activity.rule if activity is not None else None
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
            strength=1.0 if activity is not None and activity.active else 0.0,
            steer=str(rule.plan.steering) if rule is not None else "",
            detail=detail,
            text=text,
        )
        self.decisions.append(decision)
        self._controller.record(decision)
