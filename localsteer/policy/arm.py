"""From a policy file to a policy that can gate a model: vectors resolved, probes read, models found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from localsteer.building.library import load_vector
from localsteer.building.own_answers import Progress
from localsteer.concepts.names import is_path
from localsteer.discovery import ollama_layers, resolve_model
from localsteer.engine.checks import check_steering
from localsteer.errors import PolicyError
from localsteer.files.home import expanded
from localsteer.llama.closing import Closing
from localsteer.llama.model import Model
from localsteer.llama.steerability import steerability
from localsteer.policy.audit import AuditLog
from localsteer.policy.classifier import Classifier
from localsteer.policy.model_classifier import Judge, ModelClassifier
from localsteer.policy.pattern_classifier import RuleClassifier, Search
from localsteer.policy.policy import Policy, Rule, naming
from localsteer.policy.policy_file import ClassifierSpec, PolicyDocument, ProbeSpec, RuleSpec, load_policy
from localsteer.policy.probe_classifier import ProbeClassifier
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector


class ArmedPolicy(Closing):
    """A policy with all that it needs, for one model. A context manager, which frees the models of its classifiers.

    Args:
        document: the policy.
        folder: what relative paths in it start from.
        model: the model that answers.
        progress: told about the building of a vector that is not there yet.
        limit: the largest relative dose, of each rule and of all that is added to a token; None for any.
        mode: what is steered, as a rule.

    Attributes:
        policy: for `Controller`, with the doses of `mode`.
        audit: where its decisions go; None where the policy names no file.
        notes: what the user should know, such as a vector read from another quantisation.

    Raises:
        PolicyError: a probe does not fit the model, a rule is above the limit, or a file is missing.
        LocalsteerError: a vector cannot be found or does not fit, or the audit log cannot be written.
    """

    def __init__(
        self,
        document: PolicyDocument,
        folder: Path,
        model: Model,
        progress: Progress | None = None,
        *,
        limit: DoseLimit | None = None,
        mode: Mode = "response",
    ) -> None:
        self._folder = folder
        self._model = model
        self._judges: dict[Path, Judge] = {}
        self._opened: list[Model] = []
        self.notes: tuple[str, ...] = ()
        notes: dict[str, None] = {}
        classifiers = {name: self._classifier(name, spec, notes) for name, spec in document.classifiers.items()}
        self._document = document
        self._limit = limit
        rules = self._rules(mode, progress)
        for rule in rules:
            notes |= dict.fromkeys(rule.plan.notes)
        used = {name for rule in rules for name in rule.condition.names}
        notes |= dict.fromkeys(f'No rule asks for the classifier "{name}".' for name in classifiers if rules and name not in used)
        self.notes = tuple(notes)
        self.policy = Policy(
            classifiers,
            rules,
            document.on_error,
            document.stride,
            document.audit_text,
            limit,
        )
        self._by_mode = {mode: self.policy}
        self.audit: AuditLog | None = None
        if document.audit is not None:
            self.audit = AuditLog(self._path(document.audit), max_bytes=document.audit_max_bytes, files=document.audit_files)

    def close(self) -> None:
        """Free the models of its classifiers; the chat's own stays open."""
        for judge in self._judges.values():
            judge.close()
        for model in self._opened:
            model.close()
        self._judges, self._opened = {}, []

    def prove(self) -> None:
        """Load what is otherwise loaded at first need, and try what otherwise shows while the model answers.

        Raises:
            PolicyError: a classifier's model cannot be opened or cannot judge, or the model's hidden states cannot be read.
        """
        for name, one in self.policy.classifiers.items():
            with naming(f'The classifier "{name}"'):
                if isinstance(one, ModelClassifier):
                    one.judge.ask(one.question, "")
                if one.layer is not None and not steerability(self._model).readable:
                    raise PolicyError(
                        f"llama.cpp does not show the hidden states of {self._model.name}.",
                        hint="`localsteer doctor -m MODEL` says what can be done with a model.",
                    )
        for rule in self.policy.rules:
            with naming(f'The rule "{rule.name}"'):
                check_steering(self._model, [rule.plan.edit])

    def _classifier(self, name: str, spec: ClassifierSpec, notes: dict[str, None]) -> Classifier:
        with naming(f'The classifier "{name}"'):
            if isinstance(spec, RuleSpec):
                searches = (*Search.for_words(spec.words), *(Search.for_pattern(pattern) for pattern in spec.patterns))
                return RuleClassifier(name=name, watch=spec.watch, searches=searches)
            if isinstance(spec, ProbeSpec):
                return self._probe(name, spec, notes)
            release = spec.threshold if spec.release is None else spec.release
            return ModelClassifier(
                name=name,
                watch=spec.watch,
                threshold=spec.threshold,
                release=release,
                judge=self._judge(spec.model),
                question=spec.question,
            )

    def _probe(self, name: str, spec: ProbeSpec, notes: dict[str, None]) -> ProbeClassifier:
        vector = read_vector(self._path(spec.vector))
        fit = vector.check_fits(self._model.fingerprint, name=spec.vector)
        if fit is not None:
            notes[f"{fit} Its threshold may not hold here."] = None
        probe = ProbeClassifier.of(vector, name=name, threshold=spec.threshold, release=spec.release)
        if spec.watch not in (None, probe.watch):
            raise PolicyError(f"{spec.vector} was fitted to watch the {probe.watch}, and the policy says {spec.watch}.")
        if probe.watch == "prompt" and probe.layer >= self._model.n_layer - 1:
            raise PolicyError(f"{spec.vector} reads layer {probe.layer}, the last one, which shows only the end of a prompt.")
        if probe.release > probe.threshold:
            raise PolicyError(f"release {probe.release:g} is above the threshold {probe.threshold:g}.")
        return probe

    def _judge(self, name: str | None) -> Judge:
        """One for each model file, the chat's own included, by whatever paths it is named."""
        path = self._model.path
        if name is not None:
            beside = self._path(name)
            path = beside if beside.is_file() else resolve_model(name)
        file = path.resolve()
        if file not in self._judges:
            self._judges[file] = Judge(self._opener(path), str(path))
        return self._judges[file]

    def _opener(self, path: Path) -> Callable[[], Model]:
        def open_model() -> Model:
            if path.resolve() == self._model.path.resolve():
                return self._model
            own, template = self._model, ollama_layers(path).template
            model = Model(path, gpu_layers=own.gpu_layers, threads=own.threads, ollama_template=template, trusted=own.trusted)
            self._opened.append(model)
            return model

        return open_model

    def for_answers(self, mode: Mode) -> Policy:
        """The policy with the doses that answers of a mode take. A rule never steers a prompt.

        Raises:
            LocalsteerError: a vector is gone, or a rule is above the limit.
        """
        if mode not in self._by_mode:
            self._by_mode[mode] = replace(self.policy, rules=self._rules(mode, None))
        return self._by_mode[mode]

    def _rules(self, mode: Mode, progress: Progress | None) -> tuple[Rule, ...]:
        rules = []
        for spec in self._document.rules:
            with naming(f'The rule "{spec.name}"'):
                plan = self._plan(spec.steer, progress, mode)
                if plan.thinking is not None:
                    raise PolicyError("A policy steers the answer, not the reasoning.", hint="Leave out @thinking.")
            hold = None if spec.hold == "response" else spec.hold
            rules.append(Rule(spec.name, spec.when, plan, hold, spec.ramp, spec.rewind))
        return tuple(rules)

    def _plan(self, steering: Steering, progress: Progress | None, mode: Mode) -> Plan:
        def load(name: str) -> ControlVector:
            return read_vector(self._path(name)) if is_path(name) else load_vector(name, self._model, progress)

        return resolve(steering, self._model.fingerprint, load, "response" if mode == "prompt" else mode, self._limit)

    def _path(self, name: str) -> Path:
        return self._folder / expanded(name, PolicyError)


def arm(
    path: str | Path,
    model: Model,
    progress: Progress | None = None,
    *,
    limit: DoseLimit | None = None,
    mode: Mode = "response",
) -> ArmedPolicy:
    """Load a policy file for a model; see `ArmedPolicy`.

    Raises:
        PolicyError: the file is missing or breaks a rule, or something that it names is missing or does not fit.
    """
    return ArmedPolicy(load_policy(path), Path(path).parent, model, progress, limit=limit, mode=mode)


def classifier_name(path: Path) -> str:
    """A name that a condition can hold, from that of a file."""
    return re.sub(r"\W|^(?=\d)", "_", path.stem, flags=re.ASCII)


def arm_probe(path: str | Path, model: Model) -> ArmedPolicy:
    """A policy of a single probe, and of no rules: to try it on texts.

    Raises:
        PolicyError: the file is missing, holds no probe, or does not fit.
    """
    path = Path(path)
    name = classifier_name(path)
    document = PolicyDocument.model_construct(
        version=1, classifiers={name: ProbeSpec(type="probe", vector=path.name)}, rules=[], on_error="pass"
    )
    return ArmedPolicy(document, path.parent, model)
