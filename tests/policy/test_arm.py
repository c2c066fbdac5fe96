from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localsteer.building import library
from localsteer.concepts import names
from localsteer.engine.draft import Draft
from localsteer.errors import LocalsteerError, ModelError, PolicyError
from localsteer.llama.model import Model
from localsteer.policy import arm as arming
from localsteer.policy import model_classifier as judging
from localsteer.policy.arm import ArmedPolicy, arm, arm_probe
from localsteer.policy.classifier import Seen
from localsteer.policy.controller import Controller
from localsteer.policy.model_classifier import ModelClassifier
from localsteer.policy.probe_classifier import ProbeClassifier
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.steering.dose import DoseLimit
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from localsteer.vector.probe import Watch
from tests.building.test_library import CONCEPT
from tests.calibration.made import DOSES, calibrated, calibrated_on
from tests.conftest import TinyModel, TinyPath
from tests.policy.made import decoded, probe_vector, push, yes_and_no_are_letters
from tests.tiny_models import UNSTEERABLE_ARCHITECTURE, write_tiny_model

Write = Callable[..., Path]

# What a judge was asked before decides how tokens are batched: 0.001 in a probability, most of the time.
NOISE = 0.01


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a policy of these classifiers, with a rule that asks for all of them unless told otherwise."""

    def policy(*classifiers: str, rules: str = "", more: str = "", name: str = "policy.yaml") -> Path:
        names = " or ".join(line.partition(":")[0] for line in classifiers)
        rules = rules or f"  - {{name: only, when: {names}, steer: push.gguf}}"
        lines = "\n".join(f"  {line}" for line in classifiers)
        path = tmp_path / name
        path.write_text(f"version: 1\nclassifiers:\n{lines}\nrules:\n{rules}\n{more}")
        if not (path.parent / "push.gguf").exists():
            push(path.parent)
        return path

    return policy


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Model]:
    """The models that policies open, which must be able to say y and n."""
    yes_and_no_are_letters(monkeypatch)
    models: list[Model] = []

    def open_model(path: Path, *, gpu_layers: int | None, threads: int, ollama_template: str | None, trusted: bool) -> Model:
        models.append(Model(path, gpu_layers=gpu_layers, threads=threads, ollama_template=ollama_template, trusted=trusted))
        return models[-1]

    monkeypatch.setattr(arming, "Model", open_model)
    return models


@pytest.fixture
def guard(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "guard.gguf", seed=1)


def judge(name: str, model: str = "", question: str = "Bad?") -> str:
    named = f"model: {model}, " if model else ""
    return f'{name}: {{type: model, {named}question: "{question}", watch: prompt}}'


WORD = "word: {type: rule, words: [pig], watch: prompt}"
PROBE = "probe: {type: probe, vector: probe.gguf}"


def score_of(armed: ArmedPolicy, name: str, message: str) -> float:
    return armed.policy.classifiers[name].observer().observe(Seen(message))


# What is in the file


def test_everything_in_the_file_is_armed(tiny: Model, write: Write, tmp_path: Path) -> None:
    push(tmp_path, "other.gguf", layer=2)
    rules = (
        "  - {name: first, when: word and not late, steer: 2 push.gguf, hold: 7, ramp: 3}\n"
        "  - {name: second, when: late, steer: '-other.gguf', rewind: 5}"
    )
    late = "late: {type: rule, patterns: ['co+w'], words: [hen], watch: output}"
    path = write(WORD, late, rules=rules, more="on_error: stop\nstride: 4\naudit_text: true\n")
    with arm(path, tiny) as armed:
        policy = armed.policy
        assert (policy.on_error, policy.stride, policy.audit_text) == ("stop", 4, True)
        assert list(policy.classifiers) == ["word", "late"]
        first, second = policy.rules
        assert (first.name, first.hold, first.ramp, first.rewind) == ("first", 7, 3, 0)
        assert (second.name, second.hold, second.ramp, second.rewind) == ("second", None, 0, 5)
        assert np.array_equal(first.plan.edit.added[1], 2 * read_vector(tmp_path / "push.gguf").directions[1])
        assert np.array_equal(second.plan.edit.added[2], -read_vector(tmp_path / "other.gguf").directions[2])
        assert (policy.watched(first), policy.watched(second)) == ({"prompt", "output"}, {"output"})
        assert armed.audit is None
        assert score_of(armed, "word", "A PIG!") == 1
        assert score_of(armed, "word", "A pigeon!") == 0
        for text in ("a cooow", "the hen."):
            assert policy.classifiers["late"].observer().observe(Seen("", text, text, 1)) == 1


def test_paths_start_from_the_folder_of_the_policy(
    tiny: Model, write: Write, guard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "policies", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    write_vector(probe_vector(tiny), folder / "probe.gguf")
    guard.rename(folder / "guard.gguf")
    path = write(PROBE, judge("bad", "guard.gguf"), more="audit: log.jsonl\n", name="policies/policy.yaml")
    monkeypatch.chdir(elsewhere)
    yes_and_no_are_letters(monkeypatch)
    for given in (path, os.path.relpath(path)):
        with arm(given, tiny) as armed:
            armed.prove()
    assert (folder / "log.jsonl").exists()
    assert list(elsewhere.iterdir()) == []
    monkeypatch.chdir(folder)
    with arm("policy.yaml", tiny) as armed:
        assert armed.audit is not None


def test_vectors_may_be_names_of_concepts(tiny: Model, write: Write) -> None:
    concept = names.user_folder() / "loud" / "concept.yaml"
    concept.parent.mkdir(parents=True)
    concept.write_text(CONCEPT.format(name="loud"))
    told: list[str] = []
    path = write(WORD, rules="  - {name: only, when: word, steer: 0.5 loud + push.gguf}")
    with arm(path, tiny, lambda what, done, total: told.append(what)) as armed:
        (rule,) = armed.policy.rules
        expected = library.load_vector("loud", tiny).at(0.5) + read_vector(path.parent / "push.gguf")
        assert np.allclose(rule.plan.edit.added, expected.rows(tiny.n_layer), atol=1e-6)
    assert told


def test_what_a_probe_file_says_can_be_changed_by_the_policy(tiny: Model, write: Write, tmp_path: Path) -> None:
    write_vector(probe_vector(tiny, threshold=0.25, watch="output", window=3, layer=2), tmp_path / "probe.gguf")
    changed = "changed: {type: probe, vector: probe.gguf, threshold: 0.5, release: -0.5, watch: output}"
    lower = "lower: {type: probe, vector: probe.gguf, threshold: -1}"
    with arm(write(PROBE, changed, lower), tiny) as armed:
        found = armed.policy.classifiers
    assert [(one.threshold, one.release) for one in found.values()] == [(0.25, 0.25), (0.5, -0.5), (-1, -1)]
    for one in found.values():
        assert isinstance(one, ProbeClassifier)
        assert (one.watch, one.layer, one.window) == ("output", 2, 3)


def test_a_model_classifier_has_its_threshold_and_release(tiny: Model, write: Write) -> None:
    hesitant = 'hesitant: {type: model, question: "Bad?", watch: output, threshold: 0.7, release: 0.4}'
    with arm(write(judge("bad"), hesitant), tiny) as armed:
        found = {name: (one.threshold, one.release, one.watch) for name, one in armed.policy.classifiers.items()}
    assert found == {"bad": (0.5, 0.5, "prompt"), "hesitant": (0.7, 0.4, "output")}


# What the user should know


def test_a_classifier_that_no_rule_asks_for_is_noted(tiny: Model, write: Write) -> None:
    spare = "spare: {type: rule, words: [cow], watch: prompt}"
    path = write(WORD, spare, rules="  - {name: only, when: not word, steer: push.gguf}")
    with arm(path, tiny) as armed:
        assert 'No rule asks for the classifier "spare".' in armed.notes
        assert not any('"word"' in note for note in armed.notes)


def test_a_probe_of_another_model_file_is_noted(tiny: Model, write: Write, tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "other.gguf", seed=7), threads=1) as other:
        write_vector(probe_vector(other), tmp_path / "probe.gguf")
    with arm(write(PROBE), tiny) as armed:
        (about,) = [note for note in armed.notes if note.startswith("probe.gguf")]
    assert "another file of the same model" in about
    assert "threshold may not hold" in about
    write_vector(probe_vector(tiny), tmp_path / "probe.gguf")
    with arm(write(PROBE), tiny) as armed:
        assert not any(note.startswith("probe.gguf") for note in armed.notes)


# Models of classifiers


def test_classifiers_that_name_one_file_share_one_load(
    tiny: Model, write: Write, guard: Path, opened: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    (guard.parent / "alias.gguf").symlink_to(guard)
    (guard.parent / "sub").mkdir()
    names = ("guard.gguf", "guard.gguf", "./guard.gguf", "sub/../guard.gguf", "alias.gguf", str(guard))
    with arm(write(*(judge(f"bad{number}", name) for number, name in enumerate(names))), tiny) as armed:
        assert opened == []
        scores = [score_of(armed, name, "Hello") for name in armed.policy.classifiers]
        assert len(opened) == 1
        assert scores == pytest.approx([scores[0]] * len(names), abs=NOISE)
        judges = {one.judge for one in armed.policy.classifiers.values() if isinstance(one, ModelClassifier)}
        assert len(judges) == 1
        with decoded(monkeypatch) as run:
            score_of(armed, "bad3", "Hello")
        assert len(run) == 1


def test_another_question_or_file_is_another_judgement(tiny: Model, write: Write, guard: Path, opened: list[Model]) -> None:
    write_tiny_model(guard.parent / "other.gguf", seed=2)
    path = write(judge("one", "guard.gguf"), judge("two", "guard.gguf", "Good?"), judge("three", "other.gguf"))
    with arm(path, tiny) as armed:
        one, two, three = (score_of(armed, name, "Hello") for name in armed.policy.classifiers)
        assert min(abs(one - two), abs(one - three), abs(two - three)) > 2 * NOISE
    assert len(opened) == 2


def test_a_classifier_without_a_model_asks_the_chats_own(
    tiny: Model, tiny_path: TinyPath, write: Write, opened: list[Model]
) -> None:
    path = write(judge("own"), judge("named", str(tiny_path("llama"))))
    with arm(path, tiny) as armed:
        assert score_of(armed, "own", "Hello") == pytest.approx(score_of(armed, "named", "Hello"), abs=NOISE)
        own = armed.policy.classifiers["own"]
        assert isinstance(own, ModelClassifier)
        assert own.judge.model is tiny
    assert opened == []
    assert tiny.handle


def test_models_of_classifiers_are_closed_at_the_end(tiny: Model, write: Write, guard: Path, opened: list[Model]) -> None:
    with arm(write(judge("own"), judge("bad", "guard.gguf")), tiny) as armed:
        armed.prove()
        assert opened[0].handle
    with pytest.raises(ModelError, match="is closed"):
        _ = opened[0].handle
    assert tiny.tokenize("Hello")
    assert tiny.handle


@pytest.mark.parametrize("gpu_layers", [None, 0, 3])
def test_models_of_classifiers_are_opened_as_the_chats_own(
    tiny_path: TinyPath, write: Write, guard: Path, opened: list[Model], gpu_layers: int | None
) -> None:
    with (
        Model(tiny_path("llama"), gpu_layers=gpu_layers, threads=1) as model,
        arm(write(judge("bad", "guard.gguf")), model) as armed,
    ):
        armed.prove()
        assert [(one.path, one.gpu_layers, one.threads) for one in opened] == [(guard, gpu_layers, 1)]


def test_models_may_be_names_that_models_list_shows(
    tiny: Model, write: Write, tmp_path: Path, opened: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_tiny_model(folder / "watchdog.gguf", seed=3)
    monkeypatch.setenv("LOCALSTEER_MODELS", str(folder))
    with arm(write(judge("bad", "watchdog")), tiny) as armed:
        score_of(armed, "bad", "Hello")
    assert [model.path.name for model in opened] == ["watchdog.gguf"]


def test_a_judge_is_only_asked_where_its_answer_changes_something(
    tiny: Model, write: Write, opened: list[Model], guard: Path
) -> None:
    rules = "  - {name: only, when: word and not bad, steer: push.gguf}"
    with arm(write(WORD, judge("bad", "guard.gguf"), rules=rules), tiny) as armed:
        controller = Controller(armed.policy)
        controller.answer("A friendly hen").after_prompt({})
        assert opened == []
        gate = controller.answer("A friendly pig")
        gate.after_prompt({})
        assert len(opened) == 1
        assert gate.scores["bad"] == pytest.approx(score_of(armed, "bad", "A friendly pig"), abs=NOISE)


def test_a_model_file_that_vanishes_after_arming_fails_in_the_answer_only(
    tiny: Model, write: Write, guard: Path, opened: list[Model]
) -> None:
    with arm(write(judge("bad", "guard.gguf"), more="on_error: pass\n"), tiny) as armed:
        guard.unlink()
        with pytest.raises(PolicyError, match=r'classifier "bad": There is no model file .*guard\.gguf'):
            armed.prove()
        gate = Controller(armed.policy).answer("Hello")
        verdict = gate.after_prompt({})
        assert (verdict.edit, verdict.stop) == (None, False)
        assert "no model file" in gate.failures["bad"]
        assert gate.after_token(Draft(tiny.token_bytes, (), None), final=True).stop is False


# What cannot be armed


def test_a_probe_for_another_watch_is_refused(tiny: Model, write: Write, tmp_path: Path) -> None:
    watches: tuple[tuple[Watch, Watch], ...] = (("prompt", "output"), ("output", "prompt"))
    for fitted, asked in watches:
        write_vector(probe_vector(tiny, watch=fitted), tmp_path / "probe.gguf")
        path = write(f"eye: {{type: probe, vector: probe.gguf, watch: {asked}}}")
        message = rf'classifier "eye": probe\.gguf was fitted to watch the {fitted}, and the policy says {asked}'
        with pytest.raises(PolicyError, match=message):
            arm(path, tiny)
        with arm(write(f"eye: {{type: probe, vector: probe.gguf, watch: {fitted}}}"), tiny):
            pass


def test_a_plain_control_vector_is_no_probe(tiny: Model, write: Write, tmp_path: Path) -> None:
    path = write("eye: {type: probe, vector: push.gguf}")
    with pytest.raises(PolicyError, match=r'classifier "eye": .*not fitted to tell texts apart.*localsteer policy fit'):
        arm(path, tiny)
    with pytest.raises(PolicyError, match="not fitted to tell texts apart"):
        arm_probe(tmp_path / "push.gguf", tiny)


def test_a_release_above_the_threshold_in_the_file_is_refused(tiny: Model, write: Write, tmp_path: Path) -> None:
    write_vector(probe_vector(tiny, threshold=0.25), tmp_path / "probe.gguf")
    with pytest.raises(PolicyError, match=r'"probe": release 0\.5 is above the threshold 0\.25'):
        arm(write("probe: {type: probe, vector: probe.gguf, release: 0.5}"), tiny)


def test_a_probe_of_another_shape_is_refused(tiny: Model, write: Write, tmp_path: Path) -> None:
    probe = probe_vector(tiny).provenance.probe
    wide = ControlVector({2: np.ones(96, np.float32)}, Provenance(probe=probe))
    write_vector(wide, tmp_path / "probe.gguf")
    with pytest.raises(PolicyError, match=r'"probe": probe\.gguf does not fit this model.*n_embd 96'):
        arm(write(PROBE), tiny)


@pytest.mark.parametrize(
    ("classifier", "rules", "message"),
    [
        (PROBE, "", r'The classifier "probe": .*probe\.gguf'),
        (judge("bad", "missing.gguf"), "", r'The classifier "bad": .*missing\.gguf'),
        (WORD, "  - {name: only, when: word, steer: gone.gguf}", r'The rule "only": .*gone\.gguf'),
        (WORD, "  - {name: only, when: word, steer: hapy}", r'The rule "only": There is no vector "hapy".*happy'),
        (WORD, "  - {name: only, when: word, steer: push.gguf@9}", r'The rule "only": .*layer 9'),
    ],
)
def test_what_is_missing_is_named_with_its_place_in_the_policy(
    tiny: Model, write: Write, classifier: str, rules: str, message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        arm(write(classifier, rules=rules), tiny)


def test_an_audit_log_that_cannot_be_written_is_told_before_the_answer(tiny: Model, write: Write) -> None:
    with pytest.raises(PolicyError, match=r"audit log .*log\.jsonl cannot be written"):
        arm(write(WORD, more="audit: nowhere/log.jsonl\n"), tiny)


# Proving that it works


@pytest.mark.parametrize(
    ("question", "yes", "message"),
    [("Is it? " * 80, "y", "question is too long"), ("Bad?", "yes", "no single tokens for yes and no")],
)
def test_proving_asks_each_question_once(
    tiny: Model, write: Write, question: str, yes: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    yes_and_no_are_letters(monkeypatch)
    monkeypatch.setattr(judging, "_YES", (yes,))
    with (
        arm(write(WORD, judge("bad", question=question)), tiny) as armed,
        pytest.raises(PolicyError, match=f'"bad": .*{message}'),
    ):
        armed.prove()


def test_proving_finds_a_model_that_does_not_show_its_hidden_states(tiny_model: TinyModel, write: Write, tmp_path: Path) -> None:
    model = tiny_model(UNSTEERABLE_ARCHITECTURE)
    write_vector(probe_vector(model), tmp_path / "probe.gguf")
    with arm(write(PROBE), model) as armed, pytest.raises(PolicyError, match=r'"probe": .*does not show.*localsteer doctor'):
        armed.prove()
    with arm(write(WORD), model) as armed, pytest.raises(PolicyError, match=r'rule "only": .*cannot be steered'):
        armed.prove()


def test_a_policy_that_works_is_proven(steerable: Model, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yes_and_no_are_letters(monkeypatch)
    write_vector(probe_vector(steerable), tmp_path / "probe.gguf")
    with arm(write(WORD, PROBE, judge("bad")), steerable) as armed:
        armed.prove()


def test_a_probe_of_messages_at_the_last_layer_is_refused(steerable: Model, write: Write, tmp_path: Path) -> None:
    path = tmp_path / "probe.gguf"
    for layer in (1, 2):
        write_vector(probe_vector(steerable, layer=layer), path)
        with arm(write(PROBE), steerable) as armed:
            assert armed.policy.classifiers["probe"].layer == layer
    write_vector(probe_vector(steerable, layer=3), path)
    refused = r'"probe": .*probe\.gguf reads layer 3, the last one.*only the end of a prompt'
    with pytest.raises(PolicyError, match=refused):
        arm(write(PROBE), steerable)
    with pytest.raises(PolicyError, match=refused):
        arm_probe(path, steerable)
    # Answers are read there too.
    write_vector(probe_vector(steerable, watch="output", layer=3), path)
    with arm(write(PROBE), steerable) as armed:
        armed.prove()


# A probe by itself


@pytest.mark.parametrize(
    ("file", "name"), [("hostile", "hostile"), ("hostile-2 neu", "hostile_2_neu"), ("2nd", "_2nd"), ("böse", "b_se")]
)
def test_a_probe_by_itself_is_a_policy_without_rules(tiny: Model, tmp_path: Path, file: str, name: str) -> None:
    write_vector(probe_vector(tiny, threshold=0.25), tmp_path / f"{file}.gguf")
    with arm_probe(tmp_path / f"{file}.gguf", tiny) as armed:
        assert [(key, one.threshold) for key, one in armed.policy.classifiers.items()] == [(name, 0.25)]
        assert (armed.policy.rules, armed.audit, armed.notes) == ((), None, ())


def test_a_probe_that_is_missing_is_told(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(LocalsteerError, match=r"gone\.gguf"):
        arm_probe(tmp_path / "gone.gguf", tiny)


def test_rules_have_the_doses_that_anchored_answers_take(tiny: Model, write: Write, tmp_path: Path) -> None:
    write_vector(calibrated(tiny.fingerprint), tmp_path / "loud.gguf")
    path = write(WORD, rules="  - {name: first, when: word, steer: '-loud.gguf'}")
    with arm(path, tiny) as armed:
        for anchored, mode in ((True, "anchored"), (False, "response")):
            (rule,) = armed.for_answers("anchored" if anchored else "response").rules
            assert rule.plan.relative_dose == pytest.approx(DOSES["negative", mode])  # type: ignore[index]


def test_each_rule_is_held_by_the_largest_dose_in_every_mode(tiny: Model, write: Write, tmp_path: Path) -> None:
    write_vector(calibrated_on(tiny), tmp_path / "loud.gguf")
    path = write(WORD, rules="  - {name: first, when: word, steer: '-loud.gguf'}")
    response, anchored = DOSES["negative", "response"], DOSES["negative", "anchored"]
    hidden = read_hidden_norm(tiny)
    between = DoseLimit((response + anchored) / 2, hidden)
    with arm(path, tiny, limit=between) as armed:
        assert armed.policy.limit is between
        assert armed.for_answers("prompt").rules[0].plan.relative_dose == pytest.approx(response)
        with pytest.raises(PolicyError, match=r'"first": .*--max-dose'):
            armed.for_answers("anchored")
    for limit, mode in ((between, "anchored"), (DoseLimit(0.9 * response, hidden), "response")):
        with pytest.raises(PolicyError, match=r'"first": .*--max-dose'):
            arm(path, tiny, limit=limit, mode=mode)  # type: ignore[arg-type]
    removing = write(WORD, rules="  - {name: first, when: word, steer: '!loud.gguf'}")
    with pytest.raises(PolicyError, match=r'"first": .*removes'):
        arm(removing, tiny, limit=DoseLimit(100, hidden))


def test_a_file_that_is_no_audit_log_is_refused_by_name(tiny: Model, write: Write, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("My thesis.\n" * 500)
    path = write(WORD, more="audit: thesis.txt\naudit_max_bytes: 1000\naudit_files: 1\n")
    for _ in range(2):
        with pytest.raises(PolicyError, match=r"thesis\.txt"):
            arm(path, tiny)
    assert (tmp_path / "thesis.txt").read_text() == "My thesis.\n" * 500
    assert not (tmp_path / "thesis.txt.1").exists()
