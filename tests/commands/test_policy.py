"""`localsteer policy`, and `--policy` of `generate`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.policy.arm import arm
from localsteer.policy.controller import AnswerGate, Controller
from localsteer.policy.examples import Example
from localsteer.policy.probe_classifier import projection
from localsteer.reading.prompt import latest_message, prompt_tokens
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import calibrated_on
from tests.commands.runner import Result, assert_one_clear_line, run
from tests.conftest import TinyPath, run_alone
from tests.policy.made import alike, low_and_high, probe_vector, push, yes_and_no_are_letters
from tests.tiny_models import UNSTEERABLE_ARCHITECTURE, write_tiny_model

Call = Callable[..., Result]
Write = Callable[..., Path]

WORDS = """\
  asked: {type: rule, words: [pig], watch: prompt}
  said: {type: rule, patterns: ['.'], watch: output}
"""
JUDGE = '  bad: {type: model, model: guard.gguf, question: "Bad?", watch: prompt}\n'
ON_ASKED = "  - {name: calm, when: asked, steer: push.gguf}\n"


@pytest.fixture
def call(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str]) -> Call:
    """Calls a command with the tiny model."""
    return lambda *arguments, model="llama": run(capfd, *arguments, "-m", tiny_path(model))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a policy, and the vector that it steers by."""

    def policy(classifiers: str = WORDS, rules: str = ON_ASKED, more: str = "") -> Path:
        push(tmp_path)
        path = tmp_path / "policy.yaml"
        path.write_text(f"version: 1\nclassifiers:\n{classifiers}rules:\n{rules}{more}")
        return path

    return policy


def lines(path: Path, examples: Sequence[Example]) -> Path:
    """Texts without their labels, one a line."""
    path.write_text("".join(f"{one.message}\n" for one in examples))
    return path


def rows(path: Path, examples: Sequence[Example]) -> Path:
    """Texts with their labels, as JSON lines."""
    path.write_text("".join(f"{json.dumps(one.document)}\n" for one in examples))
    return path


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[str | Path, ...]:
    """Options for 24 + 24 texts that no probe sorts without a mistake."""
    examples = alike(24)
    positive = lines(tmp_path / "positive.txt", [one for one in examples if one.label])
    negative = lines(tmp_path / "negative.txt", [one for one in examples if not one.label])
    return ("--positive", positive, "--negative", negative)


def all_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# check


def test_a_valid_policy_is_shown(call: Call, write: Write) -> None:
    rules = "  - {name: calm, when: asked and not said, steer: 0.5 push.gguf, hold: 7, ramp: 3, rewind: 5}\n"
    path = write(rules=rules)
    result = call("policy", "check", path)
    assert result.code == 0
    assert result.out.endswith("policy.yaml is valid, and works with tiny.\n")
    for part in ("asked", "prompt", "said", "output", "calm", "asked and not said", "0.5 push.gguf", "7", "3", "5"):
        assert part in result.out


def test_a_valid_policy_as_json(call: Call, write: Write, tiny: Model, tmp_path: Path) -> None:
    write_vector(probe_vector(tiny, threshold=0.25, layer=2), tmp_path / "eye.gguf")
    path = write(f"{WORDS}  eye: {{type: probe, vector: eye.gguf, release: -1}}\n", more="on_error: stop\n")
    document = call("policy", "check", path, "--json").document
    assert document["file"] == str(path)
    assert (document["model"], document["valid"], document["on_error"]) == ("tiny", True, "stop")
    assert document["classifiers"]["eye"] == {"watch": "prompt", "threshold": 0.25, "release": -1, "layer": 2}
    assert document["classifiers"]["said"]["layer"] is None
    (rule,) = document["rules"]
    assert {key: rule[key] for key in ("name", "when", "steer", "hold", "ramp", "rewind")} == {
        "name": "calm",
        "when": "asked",
        "steer": "push.gguf",
        "hold": "response",
        "ramp": 0,
        "rewind": 0,
    }
    assert 'No rule asks for the classifier "eye".' in document["notes"]


def test_what_the_user_should_know_goes_to_stderr(call: Call, write: Write) -> None:
    result = call("policy", "check", write())
    assert 'No rule asks for the classifier "said".' in result.err
    assert "No rule asks" not in result.out


@pytest.mark.parametrize("command", ["check", "run", "generate", "chat"])
@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("rules:", "rules: [", ("policy.yaml, line 6", "not valid YAML")),
        ("words: [pig]", "word: [pig]", ("policy.yaml, line 3", "classifiers.asked.word")),
        ("when: asked", "when: missing", ("policy.yaml, line 6", "no classifier", "asked, said")),
        ("steer: push.gguf", "steer: 2 2 push.gguf", ("policy.yaml, line 6", "rules.0.steer")),
        ("version: 1", "version: 2", ("policy.yaml, line 1", "version")),
        ("push.gguf", "gone.gguf", ("calm", "gone.gguf")),
        ("patterns: ['.']", "patterns: ['(']", ("policy.yaml, line 4", "RE2")),
    ],
)
def test_a_mistake_in_a_policy_is_one_clear_line(
    call: Call, write: Write, tmp_path: Path, command: str, old: str, new: str, parts: tuple[str, ...]
) -> None:
    path = write()
    path.write_text(path.read_text().replace(old, new))
    texts = lines(tmp_path / "texts.txt", low_and_high(2))
    arguments: dict[str, tuple[str | Path, ...]] = {
        "check": ("policy", "check", path),
        "run": ("policy", "run", path, texts),
        "generate": ("generate", "Hello", "--policy", path),
        "chat": ("chat", "--policy", path),
    }
    assert_one_clear_line(call(*arguments[command]), *parts)


def test_a_mistake_is_told_before_the_model_is_loaded(capfd: pytest.CaptureFixture[str], write: Write, tmp_path: Path) -> None:
    path = write(more="colour: red\n")
    texts = lines(tmp_path / "texts.txt", low_and_high(2))
    for arguments in (("check", path), ("run", path, texts)):
        result = run(capfd, "policy", *arguments, "-m", tmp_path / "no-model.gguf")
        assert_one_clear_line(result, "policy.yaml, line 7", "colour")


def test_what_a_policy_names_and_is_not_there_is_one_clear_line(call: Call, write: Write, tmp_path: Path) -> None:
    assert_one_clear_line(call("policy", "check", tmp_path / "gone.yaml"), "gone.yaml")
    eye = "  asked: {type: probe, vector: gone.gguf}\n"
    assert_one_clear_line(call("policy", "check", write(eye)), 'classifier "asked"', "gone.gguf")
    guard = JUDGE.replace("bad", "asked")
    assert_one_clear_line(call("policy", "check", write(guard)), 'classifier "asked"', "guard.gguf")
    write_tiny_model(tmp_path / "guard.gguf")
    # It is loaded to prove that it can judge; this one cannot.
    assert_one_clear_line(call("policy", "check", write(guard)), 'classifier "asked"', "guard.gguf", "yes and no")


def test_a_policy_that_the_model_cannot_follow_is_one_clear_line(call: Call, write: Write) -> None:
    assert_one_clear_line(call("policy", "check", write(), model=UNSTEERABLE_ARCHITECTURE), 'rule "calm"')


# fit


def test_fit_writes_a_probe_and_says_how_good_it_is(
    call: Call, two_files: tuple[str | Path, ...], tmp_path: Path, tiny: Model
) -> None:
    probe = tmp_path / "probe.gguf"
    result = call("policy", "fit", *two_files, "-o", probe, "--target-fpr", "0.2")
    assert result.code == 0, result.err
    found = read_vector(probe).provenance.probe
    assert found is not None
    assert (found.watch, found.fitted, found.target) == ("prompt", (12, 12), 0.2)
    unseen = found.unseen
    facts = dict(line.split("   ", 1) for line in result.out.splitlines() if "   " in line)
    assert facts["Layer"].strip() == str(found.layer)
    assert f"{found.threshold:.3f}, for a false positive rate of 0.2" in facts["Threshold"]
    assert "12 positive and 12 negative" in facts["Fitted to"]
    assert "12 positive and 12 negative" in facts["Reported on"]
    for name, rate in (("AUROC", unseen.auroc), ("Recall", unseen.recall), ("False positive rate", unseen.false_positive_rate)):
        assert f"{rate.mean:.3f}  (95 % interval {rate.low:.3f} to {rate.high:.3f})" in facts[name]
    assert result.err.count("Few texts") == 2
    assert read_vector(probe).check_fits(tiny.fingerprint) is None


def test_fit_as_json_holds_the_report(call: Call, two_files: tuple[str | Path, ...], tmp_path: Path) -> None:
    probe = tmp_path / "probe.gguf"
    document = call("policy", "fit", *two_files, "-o", probe, "--layers", "1-2", "--seed", "1", "--json").document
    found = read_vector(probe).provenance.probe
    assert found is not None
    assert (document["file"], document["layer"], document["threshold"]) == (str(probe), found.layer, found.threshold)
    assert document["fitted"] == [12, 12]
    assert document["unseen"]["auroc"] == {
        "mean": found.unseen.auroc.mean,
        "low": found.unseen.auroc.low,
        "high": found.unseen.auroc.high,
    }
    assert document["unseen"]["true_positives"] == found.unseen.true_positives
    assert document["chosen"]["true_positives"] + document["chosen"]["false_negatives"] == 12
    assert set(document["by_layer"]) == {"1", "2"}
    assert document["target"] is None
    assert len(document["notes"]) == 2


@pytest.mark.parametrize("watch", ["prompt", "output"])
def test_the_figures_of_fit_are_found_again_by_run(
    call: Call, two_files: tuple[str | Path, ...], tmp_path: Path, watch: str
) -> None:
    probe, unseen = tmp_path / "my-probe.gguf", tmp_path / "unseen.jsonl"
    options = ("--watch", watch, "--save-unseen", unseen, "--window", "5")
    fitted = call("policy", "fit", *two_files, "-o", probe, *options, "--json").document
    assert 0.5 < fitted["unseen"]["auroc"]["mean"] < 1
    result = call("policy", "run", probe, unseen, "--json")
    assert result.document["classifiers"] == {"my_probe": fitted["unseen"]}
    assert result.err == ""
    # None of the other half.
    saved = {json.loads(line)["text"] for line in unseen.read_text().splitlines()}
    assert len(saved) == 24
    everything = {one.message for one in alike(24)}
    assert saved < everything


def test_fit_reads_labels_from_one_file_and_reports_on_another(call: Call, tmp_path: Path) -> None:
    every = rows(tmp_path / "all.jsonl", low_and_high(10))
    unseen = rows(tmp_path / "unseen.jsonl", low_and_high(8, seed=5))
    document = call("policy", "fit", "--examples", every, "--unseen", unseen, "-o", tmp_path / "probe.gguf", "--json").document
    assert document["fitted"] == [10, 10]
    assert document["unseen"]["true_positives"] + document["unseen"]["false_negatives"] == 8
    table = tmp_path / "all.csv"
    table.write_text(
        "text,label,when\n" + "".join(f"{one.message},{'yes' if one.label else 'no'},x\n" for one in low_and_high(10))
    )
    again = call("policy", "fit", "--examples", table, "--unseen", unseen, "-o", tmp_path / "again.gguf", "--json").document
    assert {**again, "file": ""} == {**document, "file": ""}


def test_what_fit_prints_for_a_policy_can_be_put_into_one(
    call: Call, two_files: tuple[str | Path, ...], tmp_path: Path, tiny: Model, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("policy", "fit", *two_files, "-o", "2nd-probe.gguf", "--watch", "output")
    line = result.out.splitlines()[-1].partition("In a policy:")[2].strip()
    name = line.partition(":")[0]
    with arm(write(f"  {line}\n", f"  - {{name: only, when: {name}, steer: push.gguf}}\n"), tiny) as armed:
        assert armed.policy.classifiers[name].watch == "output"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--positive", "a.txt"),
        ("--negative", "a.txt"),
        ("--examples", "a.jsonl", "--positive", "a.txt"),
        ("--examples", "a.jsonl", "--positive", "a.txt", "--negative", "b.txt"),
        ("--examples", "a.jsonl", "--target-fpr", "0"),
        ("--examples", "a.jsonl", "--target-fpr", "1"),
        ("--examples", "a.jsonl", "--watch", "both"),
        ("--examples", "a.jsonl", "--window", "0"),
        ("--examples", "a.jsonl", "--layers", "x"),
    ],
)
def test_fit_usage_errors(capfd: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    assert run(capfd, "policy", "fit", *options, "-o", "probe.gguf").code == 2


def test_fit_must_know_where_to_write(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "policy", "fit", "--examples", "a.jsonl").code == 2


def test_a_mistake_in_the_texts_is_one_clear_line_and_nothing_is_written(call: Call, tmp_path: Path) -> None:
    good = low_and_high(10)
    texts = {
        "few.jsonl": good[7:13],
        "unlabelled.jsonl": [*good, Example("Hello", "Hello")],
        "long.jsonl": [*good, Example(long := "x" * 600, long, True)],
        "one-kind.jsonl": good[:10],
        "twice.jsonl": [*good, Example(good[0].message, good[0].message, False)],
    }
    for name, examples in texts.items():
        rows(tmp_path / name, examples)
    (tmp_path / "damaged.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    (tmp_path / "odd.csv").write_text("text,label\nHello,perhaps\n")
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "probe.gguf").write_text("GGUF controlvector: what was there before")
    before = all_of(tmp_path)
    for name, parts in {
        "few.jsonl": ("texts to fit to", "at least 4"),
        "unlabelled.jsonl": ("unlabelled.jsonl, line 21", "no label"),
        "long.jsonl": ("long.jsonl, line 21", "too long"),
        "one-kind.jsonl": ("0 negative texts",),
        "twice.jsonl": ("twice.jsonl, line 21", "both positive and negative"),
        "damaged.jsonl": ("damaged.jsonl, line 2", "no JSON"),
        "odd.csv": ("odd.csv, line 2", "perhaps"),
        "empty.csv": ("empty.csv", "no texts"),
        "gone.jsonl": ("no file", "gone.jsonl"),
    }.items():
        options = ("--save-unseen", tmp_path / "unseen.jsonl")
        result = call("policy", "fit", "--examples", tmp_path / name, "-o", tmp_path / "probe.gguf", *options)
        assert_one_clear_line(result, *parts)
        assert all_of(tmp_path) == before
    result = call(
        "policy", "fit", "--positive", tmp_path / "few.jsonl", "--negative", tmp_path / "gone.txt", "-o", tmp_path / "x.gguf"
    )
    assert_one_clear_line(result, "gone.txt")


def test_what_fit_cannot_do_is_told_before_anything_is_written(
    call: Call, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = ("policy", "fit", "--examples", rows(tmp_path / "all.jsonl", low_and_high(10)))
    before = all_of(tmp_path)
    no_model = ("-m", tmp_path / "no-model.gguf")
    nowhere = tmp_path / "nowhere" / "file"
    probe = ("-o", tmp_path / "probe.gguf")
    # That a file cannot be written is known before the model is loaded.
    assert_one_clear_line(run(capfd, *texts, "-o", nowhere, *no_model), str(nowhere.parent))
    assert_one_clear_line(run(capfd, *texts, *probe, "--save-unseen", nowhere, *no_model), str(nowhere.parent))
    assert_one_clear_line(run(capfd, *texts, *probe, *no_model), "no-model.gguf")
    assert_one_clear_line(call(*texts, *probe, "--layers", "2-9"), "layers 1 to 2")
    assert_one_clear_line(call(*texts, *probe, "--layers", "2-9", "--watch", "output"), "layers 1 to 3")
    assert_one_clear_line(call(*texts, *probe, model=UNSTEERABLE_ARCHITECTURE), "doctor")
    assert all_of(tmp_path) == before


# run


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    return rows(
        tmp_path / "talk.jsonl",
        [
            Example("A pig?", "Why, yes.", True),
            Example("A hen, and\nanother line that is longer than the table has room for it", "", False),
            Example("Pig, please", "", False),
            Example('"A" cow; well, \x1b[1m', "No", False),
        ],
    )


def test_run_shows_scores_what_fires_and_the_confusion_matrix(
    call: Call, write: Write, talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    path = write(rules=ON_ASKED + "  - {name: short, when: said, steer: push.gguf, rewind: 3}\n")
    result = call("policy", "run", path, talk)
    assert result.code == 0, result.err
    shown = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "A pig? 1 1.00 1.00 calm, short" in shown
    assert "A hen, and another line that is longer than the… 0 0.00" in shown
    assert "Pig, please 0 1.00 calm" in shown
    assert '"A" cow; well, [1m 0 0.00 1.00 short' in shown
    assert "asked, true from 0.5:" in result.out
    assert "positive 1 0" in shown
    assert "negative 1 2" in shown
    assert "0.500  (95 % interval" in next(line for line in result.out.splitlines() if line.startswith("Precision"))
    # A message without an answer has no score there.
    assert "No confusion matrix of said" in result.err
    assert "said, true from" not in result.out


def test_run_as_json(call: Call, write: Write, talk: Path) -> None:
    document = call("policy", "run", write(), talk, "--json").document
    first, second, third, fourth = document["texts"]
    assert first == {
        "prompt": "A pig?",
        "answer": "Why, yes.",
        "label": True,
        "scores": {"asked": 1, "said": 1},
        "fired": ["calm"],
        "failures": {},
    }
    assert (second["scores"], second["fired"]) == ({"asked": 0}, [])
    assert third["fired"] == ["calm"]
    assert fourth["prompt"] == '"A" cow; well, \x1b[1m'
    assert document["classifiers"].keys() == {"asked"}
    counts = {key: value for key, value in document["classifiers"]["asked"].items() if isinstance(value, int)}
    assert counts == {"true_positives": 1, "false_positives": 1, "true_negatives": 2, "false_negatives": 0}


def test_run_as_csv(call: Call, write: Write, talk: Path) -> None:
    result = call("policy", "run", write(), talk, "--csv")
    table = list(csv.DictReader(io.StringIO(result.out), strict=True))
    assert [row["prompt"] for row in table] == [json.loads(line)["prompt"] for line in talk.read_text().splitlines()]
    assert [row["asked"] for row in table] == ["1.0", "0.0", "1.0", "0.0"]
    assert [row["said"] for row in table] == ["1.0", "", "", "1.0"]
    assert [row["fired"] for row in table] == ["calm", "", "calm", ""]
    assert [row["label"] for row in table] == ["1", "0", "0", "0"]
    assert {row["failures"] for row in table} == {""}


def test_run_without_labels_measures_nothing_and_needs_none(call: Call, write: Write, tmp_path: Path) -> None:
    texts = lines(tmp_path / "texts.txt", low_and_high(2))
    result = call("policy", "run", write(), texts)
    assert result.code == 0
    assert "true from" not in result.out
    assert "confusion" not in result.err
    assert call("policy", "run", write(), texts, "--json").document["classifiers"] == {}


def test_run_tells_what_failed_for_each_text(call: Call, write: Write, tiny: Model, tmp_path: Path) -> None:
    write_vector(probe_vector(tiny), tmp_path / "eye.gguf")
    path = write(f"{WORDS}  eye: {{type: probe, vector: eye.gguf}}\n", more="on_error: pass\n")
    texts = rows(tmp_path / "texts.jsonl", [Example("A pig", "", True), Example("x" * 600, "", False)])
    short, long = call("policy", "run", path, texts, "--json").document["texts"]
    assert short["failures"] == {}
    assert long["failures"].keys() == {"eye"}
    result = call("policy", "run", path, texts)
    assert "failed" in result.out
    assert "No confusion matrix of eye" in result.err
    table = list(csv.DictReader(io.StringIO(call("policy", "run", path, texts, "--csv").out)))
    assert [row["eye"] == "" for row in table] == [False, True]
    assert table[1]["failures"].startswith("eye: There are no activations")


def test_run_mistakes(call: Call, write: Write, talk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write()
    assert call("policy", "run", path, talk, "--csv", "--json").code == 2
    assert run(capfd, "policy", "run", path).code == 2
    assert_one_clear_line(call("policy", "run", path, tmp_path / "gone.txt"), "gone.txt")
    assert_one_clear_line(call("policy", "run", tmp_path / "gone.yaml", talk), "gone.yaml")
    assert_one_clear_line(call("policy", "run", tmp_path / "gone.gguf", talk), "gone.gguf")
    assert_one_clear_line(call("policy", "run", tmp_path / "push.gguf", talk), "push", "policy fit")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert_one_clear_line(call("policy", "run", path, tmp_path / "empty.txt"), "empty.txt")


# generate --policy


def generated(call: Call, prompt: str, path: Path, *options: str | Path) -> Any:
    result = call("generate", prompt, "--policy", path, "-n", "8", "--seed", "3", "--json", *options)
    assert result.code == 0, result.err
    return result.document


def test_generate_tells_what_the_policy_decided(call: Call, write: Write) -> None:
    path = write(rules=ON_ASKED + "  - {name: other, when: asked and said, steer: -push.gguf, hold: 3}\n")
    plain = call("generate", "A pig", "-n", "8", "--seed", "3", "--json").document
    document = generated(call, "A pig", path)
    assert document["tokens"] != plain["tokens"]
    fired, later, *_ = document["policy"]
    assert {
        key: fired[key] for key in ("rule", "action", "classifier", "position", "score", "threshold", "strength", "steer")
    } == {
        "rule": "calm",
        "action": "fire",
        "classifier": "asked",
        "position": 0,
        "score": 1,
        "threshold": 0.5,
        "strength": 1,
        "steer": "push.gguf",
    }
    assert (later["rule"], later["action"], later["classifier"]) == ("other", "fire", "said")
    assert later["position"] > 0


def test_a_probe_scores_the_message_alone(call: Call, write: Write, tiny: Model, tmp_path: Path) -> None:
    write_vector(vector := probe_vector(tiny, threshold=1e6), tmp_path / "eye.gguf")
    path = write("  eye: {type: probe, vector: eye.gguf}\n", "  - {name: calm, when: eye, steer: push.gguf}\n")
    weights = projection(vector.directions[2])
    user = Message("user", "7 pigs~")
    found = []
    for messages, options in (([user], ()), ([user], ("--raw",)), ([Message("system", "Hens"), user], ("--system", "Hens"))):
        ((decision),) = generated(call, user.content, path, *options)["policy"]
        raw = "--raw" in options
        rows = run_alone(tiny, prompt_tokens(tiny, messages, raw=raw)).rows[2]
        expected = rows[slice(*latest_message(tiny, messages, raw=raw))].mean(axis=0) @ weights
        assert (decision["action"], decision["score"]) == ("pass", pytest.approx(float(expected), abs=0.05))
        found.append(decision["score"])
    # The texts of a file are read as messages of a chat are.
    (text,) = call("policy", "run", path, lines(tmp_path / "one.txt", [Example(user.content, "")]), "--json").document["texts"]
    assert text["scores"]["eye"] == pytest.approx(found[0], abs=0.05)
    assert min(abs(found[0] - found[1]), abs(found[0] - found[2])) > 0.05


def test_what_no_rule_fires_for_is_answered_as_without_a_policy(call: Call, write: Write) -> None:
    plain = call("generate", "A hen", "-n", "8", "--seed", "3", "--json").document
    document = generated(call, "A hen", write())
    assert document["tokens"] == plain["tokens"]
    assert [(one["rule"], one["action"]) for one in document["policy"]] == [("calm", "pass")]


def test_a_steering_of_ones_own_is_on_whatever_the_policy_says(call: Call, write: Write, tmp_path: Path) -> None:
    path = write()
    other = push(tmp_path, "other.gguf", layer=2, seed=4)
    steered = call("generate", "A hen", "-n", "8", "--seed", "3", "--json", "-s", other).document
    assert generated(call, "A hen", path, "-s", other)["tokens"] == steered["tokens"]
    both = call("generate", "A pig", "-n", "8", "--seed", "3", "--json", "-s", f"{other} + {tmp_path / 'push.gguf'}").document
    assert generated(call, "A pig", path, "-s", other)["tokens"] == both["tokens"]


def test_generate_remarks_on_what_fired_only(call: Call, write: Write) -> None:
    path = write()
    fired = call("generate", "A pig", "--policy", path, "-n", "4")
    assert "[policy: calm fired after the prompt (asked 1.00, true from 0.50)]" in fired.err
    assert "policy" not in fired.out
    assert "policy: calm" not in call("generate", "A hen", "--policy", path, "-n", "4").err


def test_a_policy_has_no_place_in_a_comparison(call: Call, write: Write, tmp_path: Path) -> None:
    path = write()
    result = call("generate", "A pig", "--policy", path, "--compare", "-s", tmp_path / "push.gguf")
    assert result.code == 2
    assert "--compare" in result.err


def test_a_rule_above_the_largest_allowed_dose_is_refused(call: Call, write: Write, tiny: Model, tmp_path: Path) -> None:
    write_vector(calibrated_on(tiny), tmp_path / "loud.gguf")
    path = write(rules="  - {name: calm, when: asked, steer: loud.gguf}\n")
    for command in (("generate", "A hen"), ("chat",)):
        result = call(*command, "--policy", path, "--max-dose", "0.25")
        assert_one_clear_line(result, 'The rule "calm": loud.gguf has a relative dose of 0.30', "--max-dose allows 0.25")
    assert [one["action"] for one in generated(call, "A pig", path, "--max-dose", "0.31")["policy"]] == ["fire"]
    both = generated(call, "A pig", path, "--max-dose", "0.31", "-s", tmp_path / "loud.gguf")
    assert [one["action"] for one in both["policy"]] == ["fire", "limited"]
    assert both["policy"][1]["detail"] == "relative dose 0.60 held at 0.31"


def test_the_audit_log_is_written_beside_the_policy(
    call: Call, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(more="audit: audit.jsonl\naudit_text: true\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    documents = [generated(call, prompt, path) for prompt in ("A pig", "A hen")]
    written = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert written == [decision for document in documents for decision in document["policy"]]
    assert [one["action"] for one in written] == ["fire", "pass"]
    assert [one["text"] for one in written] == ["A pig", "A hen"]
    assert len({one["conversation"] for one in written}) == 2
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("on_error", ["steer", "pass", "stop"])
def test_an_answer_ends_well_when_a_model_vanishes_before_its_first_question(
    call: Call, write: Write, tmp_path: Path, on_error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    yes_and_no_are_letters(monkeypatch)
    guard = write_tiny_model(tmp_path / "guard.gguf", seed=1)
    path = write(JUDGE, "  - {name: calm, when: bad, steer: push.gguf}\n", f"on_error: {on_error}\naudit: audit.jsonl\n")
    answer = Controller.answer

    def late(self: Controller, *arguments: Any) -> AnswerGate:
        guard.unlink()
        return answer(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Controller, "answer", late)
        document = generated(call, "A pig", path)
    plain = call("generate", "A pig", "-n", "8", "--seed", "3", "--json").document
    steered = call("generate", "A pig", "-n", "8", "--seed", "3", "--json", "-s", tmp_path / "push.gguf").document
    expected = {
        "steer": (steered["tokens"], "length", ["error", "fire"]),
        "pass": (plain["tokens"], "length", ["error", "pass"]),
        "stop": ([], "policy", ["error", "pass"]),
    }
    tokens, reason, actions = expected[on_error]
    assert (document["tokens"], document["finish_reason"]) == (tokens, reason)
    assert [one["action"] for one in document["policy"]] == actions
    assert "no model file" in document["policy"][0]["detail"]
    assert document["policy"][0]["classifier"] == "bad"
    assert [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()] == document["policy"]


def test_a_judge_decides_and_its_file_is_loaded_once(
    call: Call, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yes_and_no_are_letters(monkeypatch)
    write_tiny_model(tmp_path / "guard.gguf", seed=1)
    for threshold, action in ((0.0, "fire"), (1.0, "pass")):
        path = write(
            JUDGE.replace('Bad?",', f'Bad?", threshold: {threshold},'), "  - {name: calm, when: bad, steer: push.gguf}\n"
        )
        (decision,) = generated(call, "A pig", path)["policy"]
        assert (decision["action"], decision["threshold"]) == (action, threshold)
        assert 0 < decision["score"] < 1
