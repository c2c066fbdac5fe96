from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Generator as Steps
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.engine.draft import Draft
from localsteer.engine.gate import Gate
from localsteer.engine.generate import Generator
from localsteer.engine.phases import Division, Phased
from localsteer.engine.request import Request
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.llama.sampling import Sampling
from localsteer.llama.thinking import Thinking
from localsteer.policy.audit import Action, AuditLog, Decision
from localsteer.policy.classifier import Classifier, Observer, OnError, Seen
from localsteer.policy.condition import parse_condition
from localsteer.policy.controller import MAX_REWINDS, AnswerGate, Controller
from localsteer.policy.pattern_classifier import RuleClassifier, Search
from localsteer.policy.policy import Policy, Rule
from localsteer.policy.probe_classifier import ProbeClassifier, moving_mean
from localsteer.steering.dose import DoseLimit
from localsteer.steering.plan import Plan
from localsteer.vector.probe import Watch
from tests.conftest import ROW_NOISE, plan_of, random_edit, random_tokens, run_alone

N_EMBD = 8
# Column of the plan that is on whatever the policy says; rules have the columns 0, 1, 2, ...
BASE = 7


@dataclass(frozen=True, kw_only=True, eq=False)
class Scripted(Classifier):
    """Gives the scores that it is told to, and remembers what it was asked and what was taken back."""

    score: Callable[[Seen], float]
    asked: list[Seen] = field(default_factory=list)
    rewound: list[tuple[int, str]] = field(default_factory=list)

    def observer(self) -> Observer:
        return _ScriptedObserver(self)


class _ScriptedObserver(Observer):
    def __init__(self, classifier: Scripted) -> None:
        self._classifier = classifier

    def observe(self, seen: Seen) -> float:
        self._classifier.asked.append(seen)
        return self._classifier.score(seen)

    def rewind(self, position: int, answer: str) -> None:
        self._classifier.rewound.append((position, answer))


def of_prompt(name: str = "hostile", *, threshold: float = 0.5, release: float = 0.5, costly: bool = False) -> Scripted:
    """A classifier of messages: the message is its score."""
    return Scripted(
        name=name,
        watch="prompt",
        threshold=threshold,
        release=release,
        costly=costly,
        score=lambda seen: float(seen.message),
    )


def of_text(
    scores: Mapping[int, float] | Callable[[Seen], float],
    name: str = "leaking",
    *,
    threshold: float = 0.5,
    release: float = 0.5,
    costly: bool = False,
) -> Scripted:
    """A classifier of the growing answer: its scores by token, 0 where none is given."""
    return Scripted(name=name, watch="output", threshold=threshold, release=release, costly=costly, score=_by_position(scores))


def of_rows(
    scores: Mapping[int, float] | Callable[[Seen], float],
    name: str = "drifting",
    *,
    threshold: float = 0.5,
    release: float = 0.5,
) -> Scripted:
    """A classifier of the residual stream at every token of the answer."""
    return Scripted(name=name, watch="output", threshold=threshold, release=release, layer=3, score=_by_position(scores))


def _by_position(scores: Mapping[int, float] | Callable[[Seen], float]) -> Callable[[Seen], float]:
    return scores if callable(scores) else lambda seen: scores.get(seen.position, 0.0)


def trues(*positions: int) -> dict[int, float]:
    return dict.fromkeys(positions, 1.0)


def adding(column: int, *, removes: Sequence[Sequence[float]] = ()) -> Plan:
    """Steering that shows in one number."""
    added = np.zeros((2, N_EMBD), np.float32)
    added[1, column] = 1.0
    return plan_of(Edit(added, {1: np.array(removes, np.float32)} if removes else {}))


def policy_of(
    classifiers: Sequence[Classifier], *rules: Rule, on_error: OnError = "steer", stride: int = 1, audit_text: bool = False
) -> Policy:
    return Policy({one.name: one for one in classifiers}, rules, on_error, stride, audit_text)


def rule_of(when: str, *, column: int = 0, hold: int | None = None, ramp: int = 0, rewind: int = 0, name: str = "") -> Rule:
    return Rule(name or when, parse_condition(when), adding(column), hold, ramp, rewind)


def levels_of(edits: Sequence[Edit | None], column: int = 0) -> list[float]:
    """How strongly a rule steers each token."""
    return [0.0 if edit is None else float(edit.added[1, column]) for edit in edits]


def steered(edits: Sequence[Edit | None], column: int = 0) -> list[int]:
    """The tokens of an answer, counted from 1, that a rule steers."""
    return [number for number, level in enumerate(levels_of(edits, column), 1) if level > 0]


@dataclass
class Written:
    """An answer as the generator would write it.

    Attributes:
        text: the answer.
        edits: for each of its tokens the edit of the forward pass that it is drawn from.
        shown: the pieces of text that were shown.
        repeated: the tokens that were run twice.
        taken_back: (token at which it was decided, count) for each rewind.
        hold_backs: how many tokens were held back after each.
        stopped: whether the policy ended it.
    """

    text: str
    edits: list[Edit | None]
    shown: list[str]
    repeated: list[int]
    taken_back: list[tuple[int, int]]
    hold_backs: list[int]
    stopped: bool


def write(gate: Gate, count: int = 12) -> Written:
    """Write an answer of `count` tokens, one letter of the alphabet after the other, asking the gate as the generator does."""
    return interleaved([gate], count)[0]


def interleaved(gates: Sequence[Gate], count: int = 12) -> list[Written]:
    """Write answers at the same time: a token of each in turn."""
    results: dict[int, Written] = {}
    writers = [_write(gate, count) for gate in gates]
    while len(results) < len(gates):
        for index in range(len(gates)):
            if index not in results:
                try:
                    next(writers[index])
                except StopIteration as end:
                    results[index] = end.value
    return [results[index] for index in range(len(gates))]


def _write(gate: Gate, count: int) -> Steps[None, None, Written]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    shown: list[str] = []
    draft = Draft(lambda token: letters[token % len(letters)].encode(), (), shown.append)
    rows: Mapping[int, Rows] = {layer: np.zeros(N_EMBD, np.float32) for layer in gate.prompt_layers}
    verdict = gate.after_prompt(rows)
    edits: list[Edit | None] = []
    repeated: list[int] = []
    taken_back: list[tuple[int, int]] = []
    hold_backs: list[int] = []
    edit = verdict.edit
    while not verdict.stop:
        yield
        draft.push(draft.drawn)
        edits.append(edit)
        position = len(draft.tokens)
        final = position >= count
        verdict = gate.after_token(draft, final=final)
        edit = verdict.edit
        if not (final or verdict.rewind or verdict.stop) and gate.output_layers:
            verdict = gate.after_run(draft, {layer: np.full(N_EMBD, position, np.float32) for layer in gate.output_layers})
            if verdict.again and not verdict.rewind:
                repeated.append(position)
                edit = verdict.edit
        if verdict.rewind:
            taken_back.append((position, verdict.rewind))
            draft.rewind(verdict.rewind)
            del edits[len(draft.tokens) :]
            edit = verdict.edit
            continue
        hold_backs.append(gate.hold_back)
        draft.show(gate.hold_back)
        if final:
            break
    draft.show()
    assert "".join(shown) == draft.text
    return Written(draft.text, edits, shown, repeated, taken_back, hold_backs, verdict.stop)


def told(decisions: Sequence[Decision]) -> list[tuple[int, str, Action]]:
    return [(one.position, one.rule, one.action) for one in decisions]


# Rules of the prompt


def test_a_rule_that_fires_on_the_prompt_steers_the_whole_response() -> None:
    gate = Controller(policy_of([of_prompt()], rule_of("hostile"))).answer("0.5")
    assert levels_of(write(gate).edits) == [1.0] * 12
    assert told(gate.decisions) == [(0, "hostile", "fire")]
    assert gate.active == [("hostile", 1.0)]


def test_a_rule_that_does_not_fire_steers_nothing() -> None:
    gate = Controller(policy_of([of_prompt()], rule_of("hostile"))).answer("0.49")
    assert write(gate).edits == [None] * 12
    assert told(gate.decisions) == [(0, "hostile", "pass")]
    assert gate.active == []


@pytest.mark.parametrize("hold", [1, 2, 5])
def test_a_rule_of_the_prompt_lets_go_after_its_hold(hold: int) -> None:
    gate = Controller(policy_of([of_prompt()], rule_of("hostile", hold=hold))).answer("1")
    assert steered(write(gate).edits) == list(range(1, hold + 1))
    assert told(gate.decisions) == [(0, "hostile", "fire"), (hold, "hostile", "release")]


def test_a_prompt_is_classified_once() -> None:
    classifier = of_prompt()
    write(Controller(policy_of([classifier], rule_of("hostile"))).answer("1"))
    assert [(seen.message, seen.position) for seen in classifier.asked] == [("1", 0)]


# Rules of the output


def test_the_token_after_a_firing_is_the_first_steered_one() -> None:
    gate = Controller(policy_of([of_text(trues(4))], rule_of("leaking"))).answer("Hello")
    assert steered(write(gate).edits) == list(range(5, 13))
    assert told(gate.decisions) == [(4, "leaking", "fire")]


# The model thinks up to the letter d; from g to i it calls a tool.
PARTS = Division(Thinking("<", "d"), begun=True, call=("g", "i"))


@pytest.mark.parametrize(
    ("classifier", "rule", "steer_forms", "expected"),
    [
        (of_prompt(), rule_of("hostile", hold=2), False, {5: 1.0, 6: 1.0}),
        (of_prompt(), rule_of("hostile", hold=4), False, {5: 1.0, 6: 1.0, 7: 1.0, 10: 1.0}),
        (of_prompt(), rule_of("hostile", hold=4), True, {5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0}),
        (of_prompt(), rule_of("hostile", hold=2, ramp=2), False, {5: 0.5, 6: 1.0, 7: 0.5}),
        (of_text(trues(2)), rule_of("leaking", hold=2), False, {5: 1.0, 6: 1.0}),
        (of_text(trues(2)), rule_of("leaking", hold=3, ramp=2), False, {5: 0.5, 6: 1.0, 7: 1.0, 10: 0.5}),
        (of_text(trues(8)), rule_of("leaking", hold=2), False, {10: 1.0, 11: 1.0}),
        (of_rows(trues(3)), rule_of("drifting", hold=3), False, {5: 1.0, 6: 1.0, 7: 1.0}),
    ],
)
def test_what_is_not_steered_takes_nothing_of_a_hold_or_a_ramp(
    classifier: Scripted, rule: Rule, steer_forms: bool, expected: Mapping[int, float]
) -> None:
    gate = Controller(policy_of([classifier], rule)).answer("1")
    edits = write(Phased(gate, PARTS, None, steer_forms=steer_forms)).edits
    assert {place: level for place, level in enumerate(levels_of(edits), 1) if level} == expected


@pytest.mark.parametrize("hold", [1, 2, 5])
def test_a_rule_of_the_text_lets_go_after_its_hold(hold: int) -> None:
    gate = Controller(policy_of([of_text(trues(4))], rule_of("leaking", hold=hold))).answer("Hello")
    assert steered(write(gate).edits) == list(range(5, 5 + hold))
    assert told(gate.decisions) == [(4, "leaking", "fire"), (4 + hold, "leaking", "release")]


@pytest.mark.parametrize("hold", [2, 3, 5])
def test_a_rule_of_the_residual_stream_lets_go_after_its_hold(hold: int) -> None:
    gate = Controller(policy_of([of_rows(trues(4))], rule_of("drifting", hold=hold))).answer("Hello")
    written = write(gate)
    assert steered(written.edits) == list(range(5, 5 + hold))
    assert told(gate.decisions) == [(4, "drifting", "fire"), (4 + hold, "drifting", "release")]
    # The pass over the fourth token was made before anything was known of it.
    assert written.repeated == [4]


def test_what_stays_true_of_the_residual_stream_repeats_no_pass() -> None:
    for hold in (1, 3, None):
        gate = Controller(policy_of([of_rows(trues(*range(3, 9)))], rule_of("drifting", hold=hold))).answer("Hello")
        written = write(gate, 20)
        assert written.repeated == [3]
        # With a hold of one token it shows too late that nothing is true any more: the pass over the token is made.
        last = 20 if hold is None else 8 + max(hold, 2)
        assert steered(written.edits) == list(range(4, last + 1))


def test_a_gate_that_does_not_fire_repeats_no_pass() -> None:
    gate = Controller(policy_of([of_prompt(), of_rows({})], rule_of("drifting"), rule_of("hostile"))).answer("0")
    written = write(gate)
    assert (written.repeated, written.edits) == ([], [None] * 12)
    assert told(gate.decisions) == [(0, "hostile", "pass"), (12, "drifting", "pass")]


def test_a_condition_that_is_true_again_prolongs_the_hold() -> None:
    gate = Controller(policy_of([of_text(trues(2, 4))], rule_of("leaking", hold=3))).answer("Hello")
    assert steered(write(gate).edits) == [3, 4, 5, 6, 7]
    assert told(gate.decisions) == [(2, "leaking", "fire"), (7, "leaking", "release")]


def test_a_rule_may_fire_again_after_its_release() -> None:
    gate = Controller(policy_of([of_text(trues(2, 7))], rule_of("leaking", hold=2))).answer("Hello")
    assert steered(write(gate).edits) == [3, 4, 8, 9]
    assert [action for _, _, action in told(gate.decisions)] == ["fire", "release", "fire", "release"]


@pytest.mark.parametrize("make", [of_text, of_rows])
def test_a_token_is_steered_for_as_long_as_a_hold_says_whatever_the_scores(make: Callable[..., Scripted]) -> None:
    generator = np.random.default_rng(1)
    for _ in range(100):
        hold = int(generator.integers(2, 7))
        true = [position for position in range(1, 40) if generator.random() < 0.12]
        classifier = make(trues(*true))
        written = write(Controller(policy_of([classifier], rule_of(classifier.name, hold=hold))).answer("Hello"), 40)
        expected = [token for token in range(1, 41) if any(position < token <= position + hold for position in true)]
        assert steered(written.edits) == expected


# Ramps


def test_the_strength_rises_and_falls_token_by_token() -> None:
    for classifier, start in ((of_prompt(), 0), (of_text(trues(3)), 3), (of_rows(trues(3)), 3)):
        rule = rule_of(classifier.name, hold=6, ramp=4)
        written = write(Controller(policy_of([classifier], rule)).answer("1"), 16)
        rise_and_fall = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
        assert levels_of(written.edits) == [*[0.0] * start, *rise_and_fall, *[0.0] * (16 - start - 9)]


@pytest.mark.parametrize("ramp", [1, 3, 7, 10])
def test_a_ramp_of_any_length_reaches_full_strength_and_nothing(ramp: int) -> None:
    written = write(Controller(policy_of([of_prompt()], rule_of("hostile", hold=ramp + 2, ramp=ramp))).answer("1"), 3 * ramp + 4)
    expected = [step / ramp for step in range(1, ramp + 1)] + [1.0, 1.0] + [step / ramp for step in range(ramp - 1, 0, -1)]
    levels = levels_of(written.edits)
    np.testing.assert_allclose(levels[: len(expected)], expected, rtol=1e-6)
    assert levels[ramp - 1 : ramp + 2] == [1.0, 1.0, 1.0]
    # Not an edit that adds next to nothing, for which llama.cpp would go on steering.
    assert written.edits[len(expected) :] == [None] * (3 * ramp + 4 - len(expected))


def test_a_rule_that_fires_while_it_falls_rises_from_there() -> None:
    gate = Controller(policy_of([of_text(trues(1, 7))], rule_of("leaking", hold=4, ramp=4))).answer("Hello")
    assert levels_of(write(gate).edits) == [0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.75, 1.0, 1.0, 1.0, 0.75]
    assert gate.active == [("leaking", 0.5)]


def test_a_short_hold_ends_a_long_ramp_on_its_way() -> None:
    gate = Controller(policy_of([of_prompt()], rule_of("hostile", hold=2, ramp=4))).answer("1")
    assert levels_of(write(gate, 6).edits) == [0.25, 0.5, 0.25, 0, 0, 0]


# Hysteresis


@pytest.mark.parametrize("make", [of_text, of_rows])
def test_a_classifier_stays_true_until_its_release_threshold(make: Callable[..., Scripted]) -> None:
    scores = {2: 0.5, 3: 0.9, 4: 0.5, 5: 0.4, 6: 0.39, 7: 0.5, 8: 0.79}
    classifier = make(scores, threshold=0.8, release=0.4)
    write_to = Controller(policy_of([classifier], rule_of(classifier.name, hold=2))).answer("Hello")
    assert steered(write(write_to).edits) == [4, 5, 6, 7]
    without = make(scores, threshold=0.8, release=0.8)
    write_to = Controller(policy_of([without], rule_of(classifier.name, hold=2))).answer("Hello")
    assert steered(write(write_to).edits) == [4, 5]


def test_a_classifier_of_the_prompt_stays_true_from_message_to_message() -> None:
    classifier = of_prompt(threshold=0.8, release=0.4)
    controller = Controller(policy_of([classifier], rule_of("hostile")))
    fired = []
    for message in ("0.5", "0.9", "0.5", "0.4", "0.3", "0.5"):
        edits = write(controller.answer(message), 3).edits
        fired.append(bool(steered(edits)))
    assert fired == [False, True, True, True, False, False]
    # A new conversation knows nothing of it.
    write(controller.answer("0.9"))
    controller.reset()
    assert not steered(write(controller.answer("0.5")).edits)
    assert controller.decisions[0].answer == 1


def test_nothing_else_is_carried_into_the_next_answer() -> None:
    text, rows = of_text({3: 0.9}, threshold=0.8, release=0.1), of_rows({4: 0.9}, threshold=0.8, release=0.1)
    rules = (rule_of("leaking", rewind=2, ramp=3, column=0), rule_of("drifting", column=1))
    controller = Controller(policy_of([text, rows], *rules))
    first = controller.answer("Hello")
    assert write(first).taken_back[0] == (3, 2)
    assert first.active
    text_scores = dict.fromkeys(range(20), 0.5)
    controller.policy = policy_of([of_text(text_scores, threshold=0.8, release=0.1), rows], *rules)
    second = controller.answer("Hello")
    assert second.decisions == []
    assert (second.rewinds, second.hold_back, second.active, second.scores) == (0, 2, [], {})
    written = write(second, 4)
    assert written.edits == [None] * 4
    assert controller.latest is second
    assert controller.decisions == second.decisions


# What several rules do together


def test_rules_that_fire_together_add_up() -> None:
    policy = policy_of(
        [of_prompt(), of_text(trues(3)), of_rows(trues(5))],
        rule_of("hostile", column=0, hold=8),
        rule_of("leaking", column=1, hold=4, ramp=2),
        rule_of("drifting", column=2),
    )
    gate = Controller(policy).answer("1", adding(BASE))
    edits = write(gate).edits
    assert levels_of(edits, 0) == [1] * 8 + [0] * 4
    assert levels_of(edits, 1) == [0, 0, 0, 0.5, 1, 1, 1, 0.5, 0, 0, 0, 0]
    assert levels_of(edits, 2) == [0] * 5 + [1] * 7
    assert levels_of(edits, BASE) == [1] * 12
    assert gate.active == [("drifting", 1.0)]


def test_rules_may_steer_in_one_direction() -> None:
    policy = policy_of([of_prompt(), of_text(trues(2))], rule_of("hostile"), rule_of("leaking"))
    assert levels_of(write(Controller(policy).answer("1", adding(0)), 5).edits) == [2, 2, 3, 3, 3]


def test_where_no_rule_steers_the_plan_does_as_it_is() -> None:
    # The very same edit: what was computed under it is in the cache.
    base = adding(BASE)
    edits = write(Controller(policy_of([of_text(trues(3))], rule_of("leaking", hold=2))).answer("", base), 8).edits
    assert [edit is base.edit for edit in edits] == [True, True, True, False, False, True, True, True]


def test_a_plan_that_does_nothing_is_no_steering() -> None:
    nothing = plan_of(Edit(np.zeros((2, N_EMBD), np.float32)))
    assert write(Controller(policy_of([of_prompt()], rule_of("hostile"))).answer("0", nothing), 4).edits == [None] * 4


def test_the_edit_only_changes_where_the_strength_does() -> None:
    # Each change costs llama.cpp milliseconds.
    policy = policy_of([of_prompt()], rule_of("hostile", ramp=3, hold=10))
    edits = write(Controller(policy).answer("1"), 20).edits
    assert len({id(edit) for edit in edits}) == 4
    assert edits[0] is edits[11]
    assert edits[2] is edits[9]


def test_what_several_edits_remove_is_removed_once() -> None:
    x, y = np.eye(N_EMBD, dtype=np.float32)[:2]
    base = adding(BASE, removes=[x])
    diagonal = replace(rule_of("hostile"), plan=adding(0, removes=[(x + y) / np.sqrt(2)]))
    policy = policy_of([of_prompt(), of_text(trues(3))], diagonal, replace(rule_of("leaking"), plan=adding(1, removes=[x])))
    edits = write(Controller(policy).answer("1", base), 6).edits
    for edit in (edits[0], edits[-1]):
        assert edit is not None
        basis = edit.removed[1]
        np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-6)
        for direction in (x, y):
            np.testing.assert_allclose(direction - (direction @ basis.T) @ basis, 0, atol=1e-6)


def test_the_generator_is_told_of_every_edit_beforehand() -> None:
    policy = policy_of([of_prompt()], rule_of("hostile", column=0), rule_of("not hostile", column=1))
    base = adding(BASE)
    gate = Controller(policy).answer("0", base)
    assert list(gate.edits) == [base.edit, policy.rules[0].plan.edit, policy.rules[1].plan.edit]
    assert Controller(policy).answer("0").edits[0] is None


# The largest dose


def limited(policy: Policy, dose: float) -> tuple[Policy, DoseLimit]:
    """The same policy under a limit, on a model whose hidden states have a norm of 1: a rule of these tests has a dose of 1."""
    limit = DoseLimit(dose, np.ones(2, np.float32))
    return replace(policy, limit=limit), limit


def doses_of(edits: Sequence[Edit | None], limit: DoseLimit) -> list[float]:
    return [0.0 if edit is None else limit.dose_of(edit) for edit in edits]


def test_a_plan_and_rules_together_are_held_at_the_largest_dose() -> None:
    policy = policy_of([of_prompt(), of_text(trues(2, 4))], rule_of("hostile"), rule_of("leaking", hold=3))
    held, limit = limited(policy, 1.5)
    gate = Controller(held).answer("1", adding(0))
    edits = write(gate, 8).edits
    assert doses_of(edits, limit) == pytest.approx([1.5] * 8)
    # What there is keeps its proportions, the plan's part too.
    across, limit = limited(policy_of([of_prompt()], rule_of("hostile", column=1)), 1.0)
    (edit, *_) = write(Controller(across).answer("1", adding(0)), 2).edits
    assert edit is not None
    assert edit.added[1, :2] == pytest.approx([1 / np.sqrt(2)] * 2)


def test_what_is_within_the_largest_dose_stays_as_it_is() -> None:
    for message, limit in (("1", 2.0), ("0", 1.0)):
        policy = policy_of([of_prompt()], rule_of("hostile"))
        gate = Controller(limited(policy, limit)[0]).answer(message, adding(0))
        assert write(gate, 4).edits == write(Controller(policy).answer(message, adding(0)), 4).edits
        assert "limited" not in [one.action for one in gate.decisions]


@pytest.mark.parametrize("base", [None, adding(0), adding(1)])
@pytest.mark.parametrize("opposed", [False, True])
def test_no_token_of_a_ramp_gets_more_than_the_largest_dose(base: Plan | None, opposed: bool) -> None:
    classifiers = [of_prompt(), of_text(trues(3, 9)), of_rows(trues(5))]
    rules = [rule_of("hostile", ramp=7), rule_of("leaking", hold=4, ramp=3, rewind=2), rule_of("drifting", column=1, ramp=2)]
    if opposed:
        turned = replace(rules[1].plan, edit=rules[1].plan.edit.scaled(-1.0))
        rules[1] = replace(rules[1], plan=turned)
    policy, limit = limited(policy_of(classifiers, *rules), 1.0)
    doses = doses_of(write(Controller(policy).answer("1", base), 24).edits, limit)
    assert max(doses) <= 1.0 + 1e-6
    assert max(doses) == pytest.approx(1.0)


def test_the_log_says_once_an_answer_that_the_dose_was_held() -> None:
    policy = policy_of([of_prompt(), of_text(trues(3, 7))], rule_of("hostile", ramp=2), rule_of("leaking", hold=2, name="second"))
    controller = Controller(limited(policy, 1.25)[0])
    for message in ("1", "1"):
        gate = controller.answer(message)
        write(gate, 12)
        (decision,) = [one for one in gate.decisions if one.action == "limited"]
        assert (decision.position, decision.rule, decision.classifier) == (3, "second", "leaking")
        assert decision.detail == "relative dose 2.00 held at 1.25"
    assert "limited" not in [one.action for one in controller.answer("0").decisions]


# What a ramp keeps


def test_all_edits_of_a_ramp_share_their_rows() -> None:
    # An answer's edits are kept with its tokens in the cache: 0.5 MB each for an 8B model, if each had rows of its own.
    x, y = np.eye(N_EMBD, dtype=np.float32)[:2]
    base = adding(BASE, removes=[x])
    rules = (replace(rule_of("hostile", ramp=1000), plan=adding(0, removes=[y])), rule_of("leaking", column=1, ramp=1000))
    for limit in (None, DoseLimit(1.01, np.ones(2, np.float32))):
        policy = replace(policy_of([of_prompt(), of_text(trues(300))], *rules), limit=limit)
        edits = write(Controller(policy).answer("1", base), 600).edits
        assert len({id(edit) for edit in edits}) == 600
        steering = [edit for edit in edits if edit is not None]
        assert {id(rows) for edit in steering for rows, _ in edit.terms} == {
            id(one.edit.rows) for one in (base, *(rule.plan for rule in rules))
        }
        # A basis without the second rule, and one with it.
        assert len({id(basis) for edit in steering for basis in edit.removed.values()}) == 2


# Rules over both


def test_a_rule_may_mix_prompt_and_output() -> None:
    policy = policy_of([of_prompt(), of_text(trues(4))], rule_of("hostile and leaking"))
    assert steered(write(Controller(policy).answer("1")).edits) == list(range(5, 13))
    assert steered(write(Controller(policy).answer("0")).edits) == []


def test_a_prompt_alone_can_decide_a_mixed_rule() -> None:
    # Before there is an answer, nothing is true of it.
    policy = policy_of([of_prompt(), of_text(trues(4))], rule_of("hostile and not leaking", hold=2))
    assert steered(write(Controller(policy).answer("1")).edits) == [1, 2, 3, 4, 5, *range(6, 13)]
    policy = policy_of([of_prompt(), of_text(trues(4))], rule_of("hostile or leaking", hold=2))
    assert steered(write(Controller(policy).answer("1")).edits) == list(range(1, 13))
    assert steered(write(Controller(policy).answer("0")).edits) == [5, 6]


def test_a_rule_may_mix_text_and_residual_stream() -> None:
    policy = policy_of([of_text(trues(3, 4, 5)), of_rows(trues(4))], rule_of("leaking and drifting", hold=2))
    gate = Controller(policy).answer("Hello")
    written = write(gate)
    # At the fifth token the text is known, and of the residual stream what was so at the fourth.
    assert steered(written.edits) == [5, 6, 7]
    assert written.repeated == [4]


def test_what_is_said_of_a_mixed_rule_waits_for_the_end_of_the_answer() -> None:
    policy = policy_of([of_prompt(), of_text({})], rule_of("hostile and leaking"))
    gate = Controller(policy).answer("1")
    gate.after_prompt({})
    assert gate.decisions == []
    write(gate, 4)
    assert told(gate.decisions)[-1] == (4, "hostile and leaking", "pass")


# Rewinds


@pytest.mark.parametrize("make", [of_text, of_rows])
def test_a_rule_takes_back_its_tokens_and_steers_what_is_written_anew(make: Callable[..., Scripted]) -> None:
    classifier = make(lambda seen: float(seen.answer.endswith("h")))
    gate = Controller(policy_of([classifier], rule_of(classifier.name, rewind=5))).answer("Hello")
    written = write(gate)
    assert written.taken_back == [(8, 5)]
    assert written.text == "abcijklmnopq"
    assert steered(written.edits) == list(range(4, 13))
    assert (gate.rewinds, told(gate.decisions)) == (1, [(8, classifier.name, "rewind")])
    assert gate.decisions[0].detail == "5 tokens"
    assert classifier.rewound == [(3, "abc")]
    assert written.repeated == []


def test_no_more_is_taken_back_than_there_is() -> None:
    classifier = of_text(lambda seen: float(seen.answer.endswith("c")))
    written = write(Controller(policy_of([classifier], rule_of("leaking", rewind=5))).answer("Hello"))
    assert written.taken_back == [(3, 3)]
    assert written.text == "defghijklmno"
    assert steered(written.edits) == list(range(1, 13))


def test_the_hold_counts_from_the_first_token_that_is_written_anew() -> None:
    for make in (of_text, of_rows):
        classifier = make(lambda seen: float(seen.answer.endswith("h")))
        gate = Controller(policy_of([classifier], rule_of(classifier.name, rewind=5, hold=4))).answer("Hello")
        assert steered(write(gate).edits) == [4, 5, 6, 7]


def test_at_most_three_rewinds() -> None:
    # True at each fifth letter, whatever was taken back before.
    classifier = of_text(lambda seen: float((ord(seen.answer[-1]) - ord("a")) % 5 == 4))
    gate = Controller(policy_of([classifier], rule_of("leaking", rewind=3))).answer("Hello")
    written = write(gate, 14)
    assert [count for _, count in written.taken_back] == [3, 3, 3]
    assert gate.rewinds == MAX_REWINDS == 3
    assert [action for _, _, action in told(gate.decisions)] == ["rewind"] * 3 + ["rewinds exhausted"]
    # Nothing can be taken back any more, so nothing is held back.
    assert written.hold_backs[-1] == 0
    assert set(written.hold_backs[: written.hold_backs.index(0)]) == {3}
    assert levels_of(written.edits)[-1] == 1.0


def test_what_turns_true_again_is_taken_back_again() -> None:
    for make in (of_text, of_rows):
        classifier = make(lambda seen: float(seen.position >= 6))
        gate = Controller(policy_of([classifier], rule_of(classifier.name, rewind=1))).answer("Hello")
        assert write(gate).taken_back == [(6, 1)] * 3
        # It stays true from there on, which is said once.
        assert told(gate.decisions)[3:] == [(6, classifier.name, "rewinds exhausted")]


def test_a_rewind_soon_after_another_takes_back_what_nobody_saw() -> None:
    for make in (of_text, of_rows):
        classifier = make(lambda seen: float(seen.answer[-1] in "hi"))
        gate = Controller(policy_of([classifier], rule_of(classifier.name, rewind=5))).answer("Hello")
        written = write(gate)
        # Of the three tokens that the first rewind kept, two had been shown before it.
        assert written.taken_back == [(8, 5), (4, 2)]
        assert written.text == "abjklmnopqrs"
        assert classifier.rewound == [(3, "abc"), (2, "ab")]


def test_what_merely_stays_true_takes_nothing_back() -> None:
    for make in (of_text, of_rows):
        classifier = make(lambda seen: float(4 <= seen.position < 8))
        mixed = rule_of(f"hostile or {classifier.name}", rewind=2)
        assert write(Controller(policy_of([of_prompt(), classifier], mixed)).answer("1")).taken_back == []
        assert write(Controller(policy_of([of_prompt(), classifier], mixed)).answer("0")).taken_back == [(4, 2), (4, 2), (4, 2)]


def test_a_rewind_by_one_rule_is_none_by_another_that_was_true_before() -> None:
    for make in (of_text, of_rows):
        lasting = make(lambda seen: float(seen.position >= 1), "lasting")
        other = of_text(lambda seen: float(seen.answer.endswith("j")), "other")
        mixed = rule_of("hostile or lasting", rewind=2, column=0)
        gate = Controller(policy_of([of_prompt(), lasting, other], mixed, rule_of("other", rewind=4, column=1))).answer("1")
        written = write(gate)
        assert written.taken_back == [(10, 4)]
        assert steered(written.edits, 0) == list(range(1, 13))
        assert steered(written.edits, 1) == list(range(7, 13))


def test_what_was_true_of_tokens_that_are_gone_is_not_true_any_more() -> None:
    # The score stays between the two thresholds where it was never above the upper one.
    for make in (of_text, of_rows):
        classifier = make(lambda seen: 0.9 if seen.answer.endswith("h") else 0.5, threshold=0.8, release=0.4)
        gate = Controller(policy_of([classifier], rule_of(classifier.name, rewind=5, hold=3))).answer("Hello")
        written = write(gate)
        assert written.taken_back == [(8, 5)]
        assert steered(written.edits) == [4, 5, 6]


def test_what_was_true_of_tokens_that_are_kept_stays_true() -> None:
    for make in (of_text, of_rows):
        lasting = make(lambda seen: 0.9 if seen.answer.endswith("c") else 0.5, "lasting", threshold=0.8, release=0.4)
        other = of_text(lambda seen: float(seen.answer.endswith("j")), "other")
        rules = (rule_of("lasting", column=0, hold=2), rule_of("other", rewind=4, column=1))
        written = write(Controller(policy_of([lasting, other], *rules)).answer("Hello"))
        assert written.taken_back == [(10, 4)]
        assert steered(written.edits, 0) == list(range(4, 13))


def test_no_hold_counts_from_tokens_that_are_gone() -> None:
    other = of_text(lambda seen: float(seen.answer.endswith("j")), "other")
    rules = (rule_of("drifting", column=0, hold=3), rule_of("other", rewind=4, column=1))
    gate = Controller(policy_of([of_rows(trues(5, 6)), other], *rules)).answer("Hello")
    written = write(gate)
    assert written.taken_back == [(10, 4)]
    # True at the sixth token, which is kept.
    assert steered(written.edits, 0)[-1] == 9


def test_a_classifier_sees_the_kept_text_and_what_is_fresh() -> None:
    classifier = of_text(lambda seen: float(seen.answer.endswith("h")))
    write(Controller(policy_of([classifier], rule_of("leaking", rewind=5))).answer("Hello"), 6)
    # The answer is over at six tokens.
    assert [seen.fresh for seen in classifier.asked] == list("abcdef")
    classifier.asked.clear()
    write(Controller(policy_of([classifier], rule_of("leaking", rewind=5))).answer("Hello"), 9)
    assert [(seen.position, seen.fresh) for seen in classifier.asked] == [
        *zip(range(1, 9), "abcdefgh", strict=True),
        *zip(range(4, 10), "ijklmn", strict=True),
    ]
    assert classifier.asked[8].answer == "abci"
    assert [seen.final for seen in classifier.asked] == [False] * 13 + [True]


def test_the_longest_of_several_rewinds_counts() -> None:
    classifier = of_text(lambda seen: float(seen.answer.endswith("h")))
    rules = (rule_of("leaking", rewind=2, column=0, name="short"), rule_of("leaking", rewind=6, column=1, name="long"))
    gate = Controller(policy_of([classifier], *rules)).answer("Hello")
    assert gate.hold_back == 6
    written = write(gate)
    assert written.taken_back == [(8, 6)]
    assert gate.rewinds == 1
    assert steered(written.edits, 0) == steered(written.edits, 1) == list(range(3, 13))


def test_the_end_of_an_answer_can_be_taken_back() -> None:
    classifier = of_text(lambda seen: float(seen.final and seen.answer.endswith("f")))
    gate = Controller(policy_of([classifier], rule_of("leaking", rewind=4))).answer("Hello")
    written = write(gate, 6)
    assert (written.text, written.taken_back) == ("abghij", [(6, 4)])
    assert told(gate.decisions) == [(6, "leaking", "rewind")]


def _ends_with_one_of(letters: str) -> Callable[[Seen], float]:
    return lambda seen: float(seen.answer[-1] in letters)


def test_streaming_never_shows_what_is_taken_back() -> None:
    generator = np.random.default_rng(2)
    for _ in range(100):
        wanted = "".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), 6, replace=False))
        classifiers = [of_text(_ends_with_one_of(wanted[:3])), of_rows(_ends_with_one_of(wanted[3:]))]
        rules = [rule_of(one.name, rewind=int(generator.integers(0, 6)), hold=3) for one in classifiers]
        # That the pieces join to the text is what `write` makes sure of.
        gate = Controller(policy_of(classifiers, *rules)).answer("Hello")
        written = write(gate, 30)
        assert len(written.text) == 30
        assert gate.rewinds == len(written.taken_back) <= MAX_REWINDS


def test_a_rule_of_the_prompt_alone_takes_nothing_back() -> None:
    gate = Controller(policy_of([of_prompt()], rule_of("hostile", rewind=3))).answer("1")
    assert write(gate).taken_back == []
    assert told(gate.decisions) == [(0, "hostile", "fire")]


# Stride


def test_rules_are_looked_at_after_every_stride() -> None:
    classifier = of_text(lambda seen: float("c" in seen.fresh))
    gate = Controller(policy_of([classifier], rule_of("leaking"), stride=4)).answer("Hello")
    assert steered(write(gate, 10).edits) == [5, 6, 7, 8, 9, 10]
    # Nothing of the text is lost, and the end is looked at wherever it is.
    assert [(seen.position, seen.fresh) for seen in classifier.asked] == [(4, "abcd"), (8, "efgh"), (10, "ij")]


def test_a_classifier_of_the_residual_stream_sees_every_token_whatever_the_stride() -> None:
    classifier = of_rows(trues(3, 4))
    gate = Controller(policy_of([classifier], rule_of("drifting", hold=2), stride=4)).answer("Hello")
    written = write(gate, 10)
    assert [seen.position for seen in classifier.asked] == list(range(1, 10))
    assert [seen.rows[3][0] for seen in classifier.asked] == list(range(1, 10))
    # Its hold ends at the sixth token, and that is seen at the eighth.
    assert steered(written.edits) == [5, 6, 7, 8]
    assert told(gate.decisions) == [(4, "drifting", "fire"), (8, "drifting", "release")]


def test_a_rewind_goes_back_to_a_token_between_two_strides() -> None:
    classifier = of_text(lambda seen: float("h" in seen.fresh))
    gate = Controller(policy_of([classifier], rule_of("leaking", rewind=3), stride=4)).answer("Hello")
    written = write(gate, 10)
    assert (written.text, written.taken_back) == ("abcdeijklm", [(8, 3)])
    assert classifier.rewound == [(5, "abcde")]
    assert [seen.fresh for seen in classifier.asked] == ["abcd", "efgh", "ijk", "lm"]


def test_ramps_rise_between_strides() -> None:
    gate = Controller(policy_of([of_text(trues(4))], rule_of("leaking", ramp=4), stride=4)).answer("Hello")
    assert levels_of(write(gate, 9).edits) == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1]


# What costs much


def test_a_costly_classifier_is_asked_where_a_rule_depends_on_it() -> None:
    text, judge = of_text(trues(3, 5)), of_prompt("judge", costly=True)
    gate = Controller(policy_of([text, judge], rule_of("leaking and not judge", hold=1))).answer("0")
    assert steered(write(gate).edits) == [4, 6]
    # Once: what it says of the prompt does not change.
    assert [seen.position for seen in judge.asked] == [3]
    assert judge.asked[0].message == "0"
    assert not write(Controller(policy_of([of_text({}), judge], rule_of("leaking and not judge"))).answer("0")).taken_back
    assert len(judge.asked) == 1


def test_a_costly_classifier_of_the_output_is_asked_again_at_each_token() -> None:
    text, judge = of_text(trues(3, 5)), of_text(trues(4, 5), "judge", costly=True)
    gate = Controller(policy_of([text, judge], rule_of("leaking and judge"), rule_of("judge and leaking", column=1))).answer("Hi")
    assert steered(write(gate).edits) == list(range(6, 13))
    assert [seen.position for seen in judge.asked] == list(range(1, 13))
    judge.asked.clear()
    gate = Controller(policy_of([text, judge], rule_of("leaking and judge"), rule_of("leaking and judge", column=1))).answer("Hi")
    write(gate)
    assert [seen.position for seen in judge.asked] == [3, 5]
    assert judge.asked[0].answer == "abc"


def test_a_thorough_controller_asks_every_classifier() -> None:
    prompt, output = of_prompt("judge", costly=True), of_text(trues(12), "critic", costly=True)
    policy = policy_of([of_text({}), prompt, output], rule_of("leaking and judge and critic"))
    gate = Controller(policy, thorough=True).answer("0.7")
    write(gate)
    assert gate.scores == {"leaking": 0.0, "judge": 0.7, "critic": 1.0}
    assert ([seen.position for seen in prompt.asked], [seen.position for seen in output.asked]) == ([0], [12])


def test_the_highest_score_of_an_answer_is_kept() -> None:
    gate = Controller(policy_of([of_text({2: 0.3, 5: 0.45, 6: 0.2}), of_prompt()], rule_of("leaking and hostile"))).answer("-3")
    write(gate)
    assert gate.scores == {"leaking": 0.45, "hostile": -3.0}


# What goes wrong


def fail(seen: Seen) -> float:
    raise RuntimeError("the model file\nhas vanished")


def nan(seen: Seen) -> float:
    return float("nan")


@pytest.mark.parametrize(("broken", "reason"), [(fail, "the model file has vanished"), (nan, "its score is not a number")])
def test_a_failing_classifier_does_what_on_error_says(broken: Callable[[Seen], float], reason: str) -> None:
    for make, position in ((of_text, 1), (of_rows, 1)):
        for on_error, tokens, stopped in (("steer", list(range(2, 13)), False), ("pass", [], False), ("stop", [], True)):
            classifier = make(broken)
            policy = policy_of([classifier], rule_of(classifier.name, rewind=4), on_error=on_error)  # type: ignore[arg-type]
            gate = Controller(policy).answer("Hello")
            written = write(gate)
            assert (steered(written.edits), written.stopped) == (tokens, stopped)
            assert len(written.text) == (1 if stopped else 12)
            # It is asked once, and nothing is taken back because of it.
            assert (len(classifier.asked), written.taken_back) == (1, [])
            assert gate.failures == {classifier.name: reason}
            error = gate.decisions[0]
            assert (error.position, error.action, error.classifier, error.score) == (position, "error", classifier.name, None)
            assert error.detail == f"{reason} (on_error: {on_error})"
            later = [(one.action, one.detail) for one in gate.decisions[1:]]
            expected = {"steer": [("fire", "the classifier failed")], "pass": [("pass", "")], "stop": []}
            assert later == expected[on_error]


def test_a_classifier_that_fails_on_the_prompt() -> None:
    def policy(on_error: OnError) -> Policy:
        return policy_of([replace(of_prompt(), score=fail)], rule_of("hostile", hold=3), on_error=on_error)

    for on_error, expected in (("steer", [1, 2, 3]), ("pass", [])):
        assert steered(write(Controller(policy(on_error)).answer("1")).edits) == expected  # type: ignore[arg-type]
    written = write(Controller(policy("stop")).answer("1"))
    assert (written.text, written.stopped) == ("", True)


def test_a_failing_classifier_concerns_the_rules_that_need_it() -> None:
    rules = (
        rule_of("leaking and broken", column=0),
        rule_of("leaking", column=1),
        rule_of("leaking or broken", column=2),
        rule_of("not broken", column=3),
    )
    broken = of_text(fail, "broken")
    edits = write(Controller(policy_of([of_text(trues(4)), broken], *rules)).answer("Hello")).edits
    assert [steered(edits, column)[0] for column in range(4)] == [5, 5, 2, 2]
    edits = write(Controller(policy_of([of_text(trues(4)), broken], *rules, on_error="pass")).answer("Hello")).edits
    assert [steered(edits, column)[:1] for column in range(4)] == [[], [5], [5], [2]]


def test_a_classifier_may_fail_in_the_middle_and_is_tried_again_in_the_next_answer() -> None:
    def late(seen: Seen) -> float:
        if seen.message == "bad" and seen.position == 5:
            raise ValueError("lost")
        return 0.0

    controller = Controller(policy_of([of_text(late)], rule_of("leaking")))
    assert steered(write(controller.answer("bad")).edits) == list(range(6, 13))
    assert steered(write(controller.answer("good")).edits) == []
    assert told(controller.decisions) == [(12, "leaking", "pass")]


def test_a_failure_without_words_is_named_by_its_kind() -> None:
    def silent(seen: Seen) -> float:
        raise KeyError

    gate = Controller(policy_of([of_text(silent)], rule_of("leaking"))).answer("Hello")
    write(gate)
    assert gate.failures == {"leaking": "KeyError"}


def test_a_costly_classifier_that_failed_is_not_asked_again() -> None:
    judge = replace(of_prompt("judge", costly=True), score=fail)
    gate = Controller(policy_of([of_text(trues(2, 5)), judge], rule_of("leaking and judge", hold=1))).answer("Hello")
    assert steered(write(gate).edits) == [3, 6]
    assert len(judge.asked) == 1


def test_an_interruption_is_no_failure() -> None:
    def interrupted(seen: Seen) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(Controller(policy_of([of_text(interrupted)], rule_of("leaking"))).answer("Hello"))


def test_an_endless_score_is_a_score(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path, max_bytes=10_000, files=1)
    gate = Controller(policy_of([of_text({3: np.inf})], rule_of("leaking")), audit=audit).answer("Hello")
    assert steered(write(gate).edits) == list(range(4, 13))
    assert json.loads(path.read_text())["score"] is None


# What is written down


def test_decisions_say_what_and_why(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    classifiers = [of_prompt(threshold=0.25, release=0.25), of_text({4: 0.75, 6: 0.2}, threshold=0.7, release=0.6)]
    rules = (rule_of("hostile", name="calm"), rule_of("leaking", column=1, hold=2, name="cautious"))
    controller = Controller(policy_of(classifiers, *rules), audit=AuditLog(path, max_bytes=100_000, files=1))
    for message in ("0.5", "0"):
        write(controller.answer(message))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("answer", "position", "rule", "action", "classifier", "score", "threshold", "strength")
    assert [tuple(line[key] for key in keys) for line in lines] == [
        (1, 0, "calm", "fire", "hostile", 0.5, 0.25, 1.0),
        (1, 4, "cautious", "fire", "leaking", 0.75, 0.7, 1.0),
        (1, 6, "cautious", "release", "leaking", 0.2, 0.7, 0.0),
        (2, 0, "calm", "pass", "hostile", 0.0, 0.25, 0.0),
        (2, 4, "cautious", "fire", "leaking", 0.75, 0.7, 1.0),
        (2, 6, "cautious", "release", "leaking", 0.2, 0.7, 0.0),
    ]
    assert {line["conversation"] for line in lines} == {controller.conversation}
    assert not any("text" in line for line in lines)
    assert [line["action"] for line in lines[3:]] == [one.action for one in controller.decisions]


def test_a_pass_carries_the_highest_score_of_the_answer() -> None:
    gate = Controller(policy_of([of_text({3: 0.4, 9: 0.3})], rule_of("leaking"))).answer("Hello")
    write(gate)
    assert [(one.action, one.position, one.score) for one in gate.decisions] == [("pass", 12, 0.4)]


def test_what_fires_carries_the_score_that_it_fired_at() -> None:
    gate = Controller(policy_of([of_text({2: 0.9, 7: 0.6})], rule_of("leaking", hold=2))).answer("Hello")
    write(gate)
    assert [(one.position, one.score) for one in gate.decisions if one.action == "fire"] == [(2, 0.9), (7, 0.6)]


def test_the_classifier_that_decided_is_named() -> None:
    def named(when: str, message: str, actions: Sequence[Action]) -> list[str]:
        classifiers = [of_prompt(), of_text(trues(4)), of_prompt("judge", costly=True)]
        gate = Controller(policy_of(classifiers, rule_of(when, hold=2))).answer(message)
        write(gate)
        return [one.classifier for one in gate.decisions if one.action in actions]

    assert named("hostile and leaking", "1", ["fire"]) == ["leaking"]
    assert named("leaking or hostile", "1", ["fire"]) == ["hostile"]
    assert named("leaking or hostile", "0", ["fire"]) == ["leaking"]
    # The judge was not asked.
    assert named("leaking or judge", "0", ["pass"]) == []
    assert named("hostile and judge", "0", ["pass"]) == ["hostile"]
    assert named("hostile and judge", "1", ["fire"]) == ["judge"]


def test_what_was_true_of_an_earlier_message_is_not_named() -> None:
    controller = Controller(policy_of([of_text(trues(4)), of_prompt("judge", costly=True)], rule_of("judge or leaking")))
    write(controller.answer("1"))
    assert [one.classifier for one in controller.decisions] == ["judge"]
    controller.policy = policy_of(
        [of_text(trues(4)), of_prompt("judge", costly=True)], rule_of("leaking or judge", name="either")
    )
    first = controller.answer("1")
    write(first, 3)
    second = controller.answer("0")
    write(second, 6)
    fired = [one for one in second.decisions if one.action == "fire"]
    assert [(one.classifier, one.score) for one in fired] == [("leaking", 1.0)]


def test_texts_are_written_down_where_they_are_asked_for() -> None:
    classifiers = [of_prompt(), of_text(trues(4))]
    rules = (rule_of("hostile"), rule_of("leaking"))
    for audit_text, expected in ((True, ["1", "abcd"]), (False, ["", ""])):
        gate = Controller(policy_of(classifiers, *rules, audit_text=audit_text)).answer("1")
        write(gate)
        assert [one.text for one in gate.decisions] == expected


def test_long_texts_are_cut_in_the_log() -> None:
    message = "1" + " " * 5000
    gate = Controller(policy_of([of_prompt()], rule_of("hostile"), audit_text=True)).answer(message)
    write(gate)
    assert gate.decisions[0].text == message[:2000]


# Several conversations


def test_two_conversations_do_not_touch_each_other() -> None:
    def calm() -> Controller:
        classifiers = [of_prompt(threshold=0.8, release=0.3), of_text(lambda seen: float(seen.answer.endswith("h")))]
        return Controller(policy_of(classifiers, rule_of("hostile", hold=6, ramp=3), rule_of("leaking", rewind=4, column=1)))

    def cautious() -> Controller:
        classifiers = [of_prompt(), of_rows(lambda seen: float(seen.position in (5, 9)))]
        rules = (rule_of("not hostile and drifting", hold=2), rule_of("drifting", rewind=2, column=1))
        return Controller(policy_of(classifiers, *rules, stride=2))

    def facts(gate: AnswerGate, written: Written) -> object:
        edits = [None if edit is None else edit.added.tolist() for edit in written.edits]
        return edits, written.text, written.taken_back, told(gate.decisions), gate.scores, gate.rewinds

    def alone(controller: Controller) -> list[object]:
        gates = ((gate, write(gate)) for gate in map(controller.answer, messages))
        return [facts(gate, written) for gate, written in gates]

    messages = ("0.9", "0.5", "0.1")
    expected = [alone(controller) for controller in (calm(), cautious())]
    controllers = [calm(), cautious()]
    results: list[list[object]] = [[], []]
    for message in messages:
        gates = [controller.answer(message) for controller in controllers]
        for index, written in enumerate(interleaved(gates)):
            results[index].append(facts(gates[index], written))
    assert results == expected
    assert controllers[0].conversation != controllers[1].conversation


def test_one_policy_serves_many_conversations() -> None:
    policy = policy_of([of_prompt(threshold=0.8, release=0.3)], rule_of("hostile"))
    one, other = Controller(policy), Controller(policy)
    assert steered(write(one.answer("0.9")).edits)
    assert not steered(write(other.answer("0.5")).edits)
    assert steered(write(one.answer("0.5")).edits)


# With a generator


def test_what_a_rule_looks_for_is_not_delivered_unless_the_rewinds_are_exhausted(tiny: Model) -> None:
    prompt = random_tokens(30, seed=1)
    spoken = RuleClassifier(name="spoken", watch="output", searches=(Search.for_pattern("[q-t]"),))
    rule = Rule("avoid", parse_condition("spoken"), plan_of(random_edit(tiny, seed=3, norm=1.0)), hold=5, rewind=3)
    said, counts = 0, set()
    with Generator(tiny) as generator:
        for seed in range(40):
            request = Request(prompt, None, Sampling(temperature=1.5, seed=seed), max_tokens=40)
            plain = generator.generate(request)
            said += bool(set("qrst") & set(plain.text))
            gate = Controller(policy_of([spoken], rule)).answer("Hello")
            pieces: list[str] = []
            answer = generator.generate(request, gate=gate, on_text=pieces.append)
            assert "".join(pieces) == answer.text
            counts.add(gate.rewinds)
            exhausted = any(one.action == "rewinds exhausted" for one in gate.decisions)
            assert bool(set("qrst") & set(answer.text)) == exhausted
            if not gate.rewinds:
                assert answer.tokens == plain.tokens
    assert said > 10
    assert counts >= {0, 1, 2}


def probe_of(model: Model, watch: Watch, threshold: float) -> ProbeClassifier:
    weights = np.random.default_rng(4).standard_normal(model.n_embd)
    return ProbeClassifier(
        name="probe", watch=watch, threshold=threshold, release=threshold, layer=2, weights=weights, bias=0.5, window=4
    )


def test_a_probe_of_the_prompt_leaves_a_plan_alone_or_adds_to_it(steerable: Model) -> None:
    prompt = random_tokens(30, seed=1)
    plan, more = (plan_of(random_edit(steerable, seed=seed)) for seed in (3, 4))
    both = plan_of(Edit(plan.edit.added + more.edit.added))
    request = Request(prompt, plan, Sampling(temperature=1.5, seed=7), max_tokens=12)
    for threshold, expected in ((np.inf, plan), (-np.inf, both)):
        probe = probe_of(steerable, "prompt", threshold)
        gate = Controller(policy_of([probe], Rule("more", parse_condition("probe"), more))).answer("hello", plan)
        with Generator(steerable) as generator:
            answer = generator.generate(request, gate=gate)
        with Generator(steerable) as generator:
            assert answer.tokens == generator.generate(replace(request, plan=expected)).tokens
        # The plan steers the response, which has not begun where the prompt is read.
        row = run_alone(steerable, prompt).rows[2][-1]
        assert gate.scores["probe"] == pytest.approx(float(probe.score(row)), abs=10 * ROW_NOISE)


def test_a_probe_of_the_prompt_scores_the_mean_over_the_message(steerable: Model) -> None:
    prompt = random_tokens(30, seed=1)
    more = plan_of(random_edit(steerable, seed=4))
    for start, stop in ((5, 20), (0, 30)):
        probe = probe_of(steerable, "prompt", np.inf)
        gate = Controller(policy_of([probe], Rule("more", parse_condition("probe"), more))).answer("hello")
        with Generator(steerable) as generator:
            generator.generate(Request(prompt, None, Sampling(temperature=0), 2, message=(start, stop)), gate=gate)
        row = run_alone(steerable, prompt).rows[2][start:stop].mean(axis=0)
        assert gate.scores["probe"] == pytest.approx(float(probe.score(row)), abs=10 * ROW_NOISE)


def test_a_probe_of_the_output_reads_what_was_said_under_steering(steerable: Model) -> None:
    prompt = random_tokens(30, seed=1)
    push = plan_of(random_edit(steerable, seed=3))
    probe = probe_of(steerable, "output", threshold=-np.inf)
    gate = Controller(policy_of([probe], Rule("push", parse_condition("probe"), push, hold=5))).answer("hello")
    with Generator(steerable) as generator:
        answer = generator.generate(Request(prompt, None, Sampling(temperature=1.5, seed=7), max_tokens=12), gate=gate)
    assert told(gate.decisions) == [(1, "push", "fire")]
    # The first token of the answer is run again when the gate fires on it; before that it was read unsteered.
    tokens = (*prompt, *answer.tokens[:-1])
    rows = run_alone(steerable, tokens, [*[None] * 30, *[push.edit] * 11]).rows[2]
    unsteered = run_alone(steerable, tokens[:31]).rows[2][-1]
    scores = moving_mean(probe.score(np.stack([unsteered, *rows[31:]])), 4)
    assert gate.scores["probe"] == pytest.approx(scores.max(), abs=10 * ROW_NOISE)
