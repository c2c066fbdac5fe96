"""Policy files: classifiers, and rules that say what to steer by when they fire, in YAML."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag
from pydantic_core import PydanticKnownError

from localsteer.errors import ExpressionError, PolicyError
from localsteer.files.text import read_text
from localsteer.files.yaml_lines import Location, YamlDocument, YamlFile
from localsteer.policy.classifier import OnError
from localsteer.policy.condition import Condition, parse_condition
from localsteer.policy.pattern_classifier import PatternError, Search, compile_pattern
from localsteer.steering.expression import Steering, parse_steering
from localsteer.vector.probe import Watch

Text = Annotated[str, Field(min_length=1)]


def _checked_name(name: str) -> str:
    # What `when` can hold: a hyphen would be a minus sign there.
    if not (name.isascii() and name.isidentifier()):
        raise ValueError("a name is made of letters, digits and _, and begins with no digit")
    if keyword.iskeyword(name):
        raise ValueError("that word has a meaning of its own in a condition")
    return name


Name = Annotated[str, AfterValidator(_checked_name)]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    if not value:
        raise PydanticKnownError("string_too_short", {"min_length": 1})
    return value


def _condition(value: object) -> Condition:
    return parse_condition(_text(value))


def _steering(value: object) -> Steering:
    try:
        steering = parse_steering(_text(value))
    except ExpressionError as error:
        problem = error.message.partition("\n")[0].rstrip(".")
        raise ValueError(f'{problem} (column {error.column + 1} of "{error.expression}")') from error
    if not steering:
        raise ValueError("it steers by nothing")
    return steering


def _checked_pattern(pattern: str) -> str:
    compile_pattern(pattern)
    return pattern


class _Strict(YamlDocument):
    model_config = ConfigDict(strict=True)


class RuleSpec(_Strict):
    """A classifier by words and patterns."""

    type: Literal["rule"]
    words: list[Text] = Field(default_factory=list)
    patterns: list[Annotated[Text, AfterValidator(_checked_pattern)]] = Field(default_factory=list)
    watch: Watch


class ProbeSpec(_Strict):
    """A classifier by a projection of the residual stream."""

    type: Literal["probe"]
    vector: Text
    watch: Watch | None = None
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    release: Annotated[float, Field(allow_inf_nan=False)] | None = None


class ModelSpec(_Strict):
    """A classifier by a language model's answer to a question; without `model` the chat's own."""

    type: Literal["model"]
    model: Text | None = None
    question: Text
    watch: Watch
    threshold: float = Field(0.5, ge=0, le=1)
    release: float | None = Field(None, ge=0, le=1)


def _kind(value: Any) -> str:
    """Pydantic puts this into the place of a mistake, where a bare "model" would be taken for the key of that name."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"type {kind}"


ClassifierSpec = Annotated[
    Annotated[RuleSpec, Tag("type rule")] | Annotated[ProbeSpec, Tag("type probe")] | Annotated[ModelSpec, Tag("type model")],
    Discriminator(_kind, custom_error_type="type", custom_error_message="a classifier needs a type, one of: rule, probe, model"),
]


class RuleOfPolicy(_Strict):
    """What to steer by when a condition holds.

    Attributes:
        name: for the audit.
        when: classifiers joined by and, or, not, parsed.
        steer: the steering, parsed.
        hold: for how many tokens at least, or to the end of the response.
        ramp: over how many tokens the strength rises, and falls again.
        rewind: how many of the latest tokens are taken back and written anew.
    """

    name: Text
    when: Annotated[Condition, PlainValidator(_condition)]
    steer: Annotated[Steering, PlainValidator(_steering)]
    hold: Literal["response"] | Annotated[int, Field(ge=1)] = "response"
    ramp: int = Field(0, ge=0, le=1000)
    rewind: int = Field(0, ge=0, le=1000)


class PolicyDocument(_Strict):
    """The contents of a policy.yaml.

    Attributes:
        on_error: what happens where a classifier fails: the rules that need it "steer", it counts as false ("pass"), or the
            answer ends ("stop").
        stride: rules are looked at after every so many tokens.
        audit: file that decisions are appended to.
        audit_text: whether texts are written there, too.
        audit_max_bytes: at this size the file is renamed to `.1` (and that to `.2`, ...) and a new one begun.
        audit_files: how many of these are kept.
    """

    version: Literal[1]
    classifiers: dict[Name, ClassifierSpec] = Field(min_length=1)
    rules: list[RuleOfPolicy] = Field(min_length=1)
    on_error: OnError = "steer"
    stride: int = Field(1, ge=1)
    audit: Text | None = None
    audit_text: bool = False
    audit_max_bytes: int = Field(10_000_000, ge=1000)
    audit_files: int = Field(5, ge=1, le=1000)

    def inconsistency(self) -> tuple[Location, str] | None:
        """The first rule between keys that is broken: the key, and what is wrong."""
        for name, spec in self.classifiers.items():
            if broken := _broken_classifier(name, spec):
                return ("classifiers", *broken[0]), broken[1]
        names: set[str] = set()
        for number, rule in enumerate(self.rules):
            if rule.name in names:
                return ("rules", number, "name"), f'there is a rule "{rule.name}" already'
            names.add(rule.name)
            if broken := self._broken_rule(rule):
                return ("rules", number, *broken[0]), broken[1]
        return None

    def _broken_rule(self, rule: RuleOfPolicy) -> tuple[Location, str] | None:
        if unknown := [name for name in rule.when.names if name not in self.classifiers]:
            return ("when",), f'there is no classifier "{unknown[0]}"; there are: {", ".join(self.classifiers)}'
        specs = [self.classifiers[name] for name in rule.when.names]
        if rule.rewind and all(spec.watch == "prompt" for spec in specs):
            return ("rewind",), "the rule watches the prompt only, and at its end there is nothing to take back yet"
        if 0 < rule.rewind < self.stride:
            return ("rewind",), f"rules are looked at every {self.stride} tokens (stride), so fewer are not enough to take back"
        return None


def _broken_classifier(name: str, spec: ClassifierSpec) -> tuple[Location, str] | None:
    if not isinstance(spec, RuleSpec):
        if spec.release is not None and spec.threshold is not None and spec.release > spec.threshold:
            return (name, "release"), "it must not be above the threshold"
        return None
    if not spec.words and not spec.patterns:
        return (name,), "give words or patterns to look for"
    for number, word in enumerate(spec.words):
        if not word.strip():
            return (name, "words", number), "this word is empty"
    try:
        Search.for_words(spec.words)
    except PatternError as error:
        return (name, "words"), str(error)
    return None


def load_policy(path: str | Path) -> PolicyDocument:
    """Read and validate a policy file; its vectors and models are not opened (see `localsteer.policy.arm`).

    Raises:
        PolicyError: the file is missing, no YAML, or breaks a rule; the message names the line.
    """
    path = Path(path)
    text = read_text(path, PolicyError, kind="policy file", hint="docs/policies/ has ready ones.")
    return parse_policy(text, str(path))


def parse_policy(text: str, where: str) -> PolicyDocument:
    """A policy from YAML text.

    Args:
        text: the YAML.
        where: what to call it in messages.

    Raises:
        PolicyError: no YAML, or a rule is broken; the message names the line.
    """
    file = YamlFile.parse(text, where=where, kind="a policy file", page="docs/policy.md", error=PolicyError)
    return file.validate(PolicyDocument)
