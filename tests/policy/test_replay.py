from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.policy.arm import arm
from localsteer.policy.examples import Example, read_examples
from localsteer.policy.replay import Replayed, measure_replayed, replay
from localsteer.policy.text_rows import NEUTRAL_MESSAGE
from localsteer.reading.prompt import latest_message, prompt_tokens
from localsteer.vector.file import write_vector
from tests.conftest import Floats, run_alone
from tests.policy.made import decoded, probe_vector, push, yes_and_no_are_letters

Try = Callable[..., list[Replayed]]

# A score is a projection of rows with noise of 0.1 at most on a direction of length 8.
NOISE = 0.05
RULES = {
    "asked": "asked: {type: rule, words: [pig], watch: prompt}",
    "said": "said: {type: rule, words: [cow], watch: output}",
    "felt": "felt: {type: probe, vector: felt.gguf}",
    "meant": "meant: {type: probe, vector: meant.gguf}",
    "bad": 'bad: {type: model, question: "Bad?", watch: prompt}',
    "worse": 'worse: {type: model, question: "Bad?", watch: output}',
}


@pytest.fixture
def attempt(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Try:
    """Replays texts under a policy of some of these classifiers, each with a rule of its name unless told otherwise."""
    yes_and_no_are_letters(monkeypatch)
    push(tmp_path)

    def attempt(
        classifiers: Sequence[str], examples: Sequence[Example], *, model: Model = tiny, rules: str = "", more: str = ""
    ) -> list[Replayed]:
        write_vector(probe_vector(model, watch="prompt", layer=2), tmp_path / "felt.gguf")
        write_vector(probe_vector(model, watch="output", layer=3, window=4), tmp_path / "meant.gguf")
        rules = rules or "\n".join(f"  - {{name: on_{name}, when: {name}, steer: push.gguf}}" for name in classifiers)
        lines = "\n".join(f"  {RULES.get(name, name)}" for name in classifiers)
        path = tmp_path / "policy.yaml"
        path.write_text(f"version: 1\nclassifiers:\n{lines}\nrules:\n{rules}\n{more}")
        with arm(path, model) as armed:
            return replay(armed.policy, model, examples)

    return attempt


def text(words: str, label: bool | None = None) -> Example:
    return Example(words, words, label)


def projected(model: Model, rows: Floats, layer: int) -> NDArray[np.float64]:
    """Scores of rows (n_tokens, n_embd) by the probe of this layer, by the book."""
    direction = probe_vector(model, layer=layer).directions[layer].astype(np.float64)
    scores: NDArray[np.float64] = 2 * (rows @ direction) / (direction @ direction)
    return scores


def prompt(model: Model, message: str) -> tuple[int, ...]:
    return prompt_tokens(model, [Message("user", message)])


# What a policy says


def test_rules_fire_on_messages_and_answers(attempt: Try) -> None:
    examples = [
        Example("A pig?", "No."),
        Example("A hen?", "A cow."),
        Example("A pig or a cow?", "Well, a cow!"),
        Example("A cow?", "A pig."),
        text("The pig and the cow"),
        Example("", "cow"),
        Example("pig", ""),
    ]
    results = attempt(["asked", "said"], examples)
    assert [one.fired for one in results] == [
        ("on_asked",),
        ("on_said",),
        ("on_asked", "on_said"),
        (),
        ("on_asked", "on_said"),
        ("on_said",),
        ("on_asked",),
    ]
    assert [one.example for one in results] == examples
    assert results[0].scores == {"asked": 1, "said": 0}
    assert results[5].scores == {"said": 1}
    assert results[6].scores == {"asked": 1}
    assert all(one.failures == {} for one in results)


def test_probes_score_the_mean_of_the_message_and_the_highest_mean_of_the_answer(steerable: Model, attempt: Try) -> None:
    examples = [text("Hello, hens"), Example("A pig?", "Well, no. 12345"), Example("", "x")]
    for one, result in zip(examples, attempt(["felt", "meant"], examples, model=steerable), strict=True):
        if one.message:
            start, stop = latest_message(steerable, [Message("user", one.message)])
            rows = run_alone(steerable, prompt(steerable, one.message)).rows[2][start:stop]
            assert result.scores["felt"] == pytest.approx(projected(steerable, rows, 2).mean(), abs=NOISE)
        before = prompt(steerable, one.message_before or NEUTRAL_MESSAGE)
        tokens = steerable.tokenize(one.answer)
        scores = projected(steerable, run_alone(steerable, (*before, *tokens)).rows[3], 3)[len(before) :]
        means = [scores[max(0, end - 4) : end].mean() for end in range(1, len(scores) + 1)]
        assert result.scores["meant"] == pytest.approx(max(means), abs=NOISE)


def test_a_judge_is_asked_even_where_no_rule_needs_its_answer(attempt: Try) -> None:
    rules = "  - {name: only, when: asked and bad or said and worse, steer: push.gguf}"
    calm, pig = attempt(["asked", "said", "bad", "worse"], [Example("A hen", "Yes, a hen"), Example("A pig", "Yes")], rules=rules)
    alone = attempt(["bad"], [Example("A hen", "")])[0].scores["bad"]
    assert calm.scores["bad"] == pytest.approx(alone, abs=0.02)
    assert calm.scores.keys() == pig.scores.keys() == {"asked", "said", "bad", "worse"}
    assert calm.scores["worse"] == pytest.approx(attempt(["bad"], [text("Yes, a hen")])[0].scores["bad"], abs=0.02)


def test_a_rule_with_rewind_fires_once_and_nothing_is_taken_back(attempt: Try) -> None:
    rules = "  - {name: only, when: said, steer: push.gguf, rewind: 5, hold: 2, ramp: 2}"
    (result,) = attempt(["said"], [Example("Hi", "A cow, and then a hen and another hen.")], rules=rules)
    assert result.fired == ("only",)
    assert [(one.action, one.position) for one in result.decisions] == [("fire", 6), ("release", 8)]
    # Three times, with what lies between them long enough for each hold to end.
    (result,) = attempt(["said"], [Example("Hi", "cow and hen and cow and hen and cow")], rules=rules)
    assert [one.action for one in result.decisions] == ["fire", "release"] * 2 + ["fire"]
    assert result.fired == ("only",)


def test_a_message_says_nothing_about_the_next_one(attempt: Try) -> None:
    examples = [text(letter * 8) for letter in "abcdefghijklmnop"]
    scores = [one.scores["felt"] for one in attempt(["felt"], examples)]
    middle = float(np.median(scores))
    # Once true, this one would stay so in a conversation.
    sticky = f"felt: {{type: probe, vector: felt.gguf, threshold: {middle}, release: -100}}"
    results = attempt([sticky], examples, rules="  - {name: only, when: felt, steer: push.gguf}")
    fired = [bool(one.fired) for one in results]
    assert fired == [score >= middle for score in scores]
    assert (True, False) in itertools.pairwise(fired)
    assert len({decision.conversation for one in results for decision in one.decisions}) == len(examples)


def test_nothing_is_written_into_the_audit_log(attempt: Try, tmp_path: Path) -> None:
    assert attempt(["asked"], [text("A pig")], more="audit: log.jsonl\n")[0].fired
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_a_policy_of_words_runs_no_model(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    with decoded(monkeypatch) as run:
        attempt(["asked", "said"], [text("A pig and a cow")])
    assert run == []


# What goes wrong


@pytest.mark.parametrize("on_error", ["steer", "pass", "stop"])
def test_a_text_that_is_too_long_is_told_and_the_others_are_not_touched(attempt: Try, on_error: str) -> None:
    long = "A pig and a cow. " * 40
    short = text("A pig and a cow.")
    examples = [short, Example(long, "A cow"), Example("A pig", long), short]
    more = f"on_error: {on_error}\n"
    first, long_message, long_answer, last = attempt(["asked", "said", "felt", "meant"], examples, more=more)
    assert first.failures == last.failures == {}
    assert first.scores.keys() == {"asked", "said", "felt", "meant"}
    assert last.scores == pytest.approx(first.scores, abs=NOISE)
    assert long_message.failures.keys() == {"felt", "meant"}
    assert "too long" in long_message.failures["felt"]
    assert long_answer.failures.keys() == {"meant"}
    for one in (long_message, long_answer):
        assert (one.scores["asked"], one.scores["said"]) == (1, 1)
        assert {"on_asked", "on_said"} <= set(one.fired)
        assert ("on_meant" in one.fired) == (on_error == "steer")
        assert [decision.classifier for decision in one.decisions if decision.action == "error"] == list(one.failures)


def test_a_judge_that_cannot_be_opened_is_told_for_each_text(
    attempt: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localsteer.policy import model_classifier as judge

    monkeypatch.setattr(judge, "_YES", ("yes",))
    results = attempt(["bad", "asked"], [text("A pig"), text("A hen")], more="on_error: pass\n")
    assert all("no single tokens for yes and no" in one.failures["bad"] for one in results)
    assert [one.fired for one in results] == [("on_asked",), ()]


def test_a_text_without_a_message_is_no_text_for_a_probe_of_messages(attempt: Try) -> None:
    (result,) = attempt(["felt", "said"], [Example("", "A cow")], more="on_error: pass\n")
    assert (result.scores, result.failures) == ({"said": 1}, {})


def test_half_a_character_in_a_file_is_read_as_a_question_mark(attempt: Try, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"text": "A pig \ud83d"}) + "\n" + json.dumps({"prompt": "\udc00", "answer": "\ud800 cow \udfff"}))
    results = attempt(["asked", "said", "felt", "meant", "bad"], read_examples(path))
    whole = attempt(["asked", "said", "felt", "meant", "bad"], [text("A pig ?"), Example("?", "? cow ?")])
    assert [(one.scores, one.fired, one.failures) for one in results] == [(one.scores, one.fired, {}) for one in whole]


# Labels


def test_labels_and_scores_are_measured_together(attempt: Try, tiny: Model, tmp_path: Path) -> None:
    examples = [text("A pig", True), text("pig, pig", True), text("A hen", True), text("Pig!", False), text("cow", False)]
    results = attempt(["asked", "felt"], examples)
    with arm(tmp_path / "policy.yaml", tiny) as armed:
        asked, felt = armed.policy.classifiers["asked"], armed.policy.classifiers["felt"]
    found = measure_replayed(results, asked)
    assert found is not None
    assert (found.true_positives, found.false_positives, found.true_negatives, found.false_negatives) == (2, 1, 1, 1)
    assert measure_replayed(results, felt) is not None
    assert measure_replayed([*results, *attempt(["asked", "felt"], [text("unlabelled")])], asked) is None
    long = attempt(["asked", "felt"], [text("long " * 200, True)])
    assert measure_replayed([*results, *long], felt) is None
    assert measure_replayed([*results, *long], asked) is not None


def test_progress_counts_the_texts(tiny: Model, attempt: Try, tmp_path: Path) -> None:
    attempt(["asked"], [])
    told: list[tuple[int, int]] = []
    with arm(tmp_path / "policy.yaml", tiny) as armed:
        replay(armed.policy, tiny, [text("a"), text("b"), text("c")], on_progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)]
