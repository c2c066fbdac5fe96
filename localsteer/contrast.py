"""Contrastive prompts: load, validate, and render through the model's chat template.

A concept file lists personas for two poles, questions, and openings of answers. Every persona is put into the template as the
system message and crossed with every opening; the questions take turns. The two prompts of a pair differ in the persona only, and
what is read are the activations at the end of the opening, where the model is about to go on in its own mood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from localsteer.errors import ContrastError
from localsteer.llama.chat_template import Message
from localsteer.llama.fingerprint import hash_texts
from localsteer.llama.model import Model

Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Prompt:
    """One prompt, not yet rendered.

    Attributes:
        messages: the turns; none for text that is already templated.
        opening: what the answer (or the raw text) begins with.
    """

    messages: tuple[Message, ...]
    opening: str

    def render(self, model: Model) -> str:
        """The text that the model reads; a base model without a chat template gets the parts as paragraphs."""
        if not self.messages:
            return self.opening
        if model.chat_template is not None:
            return model.chat_template.render(self.messages) + self.opening
        return "\n\n".join([*(message.content for message in self.messages), self.opening])


@dataclass(frozen=True)
class Pair:
    """Two prompts alike but for the concept."""

    positive: Prompt
    negative: Prompt


@dataclass(frozen=True)
class Contrast:
    """What a vector is built from.

    Attributes:
        name: the concept's name.
        description: one sentence.
        positive: name of the pole that a positive strength moves toward.
        negative: name of the other pole.
        pairs: the contrastive pairs.
        held_out: questions that no pair holds, for measuring.
        source: the concept as YAML text; empty for prompt files.
    """

    name: str
    description: str
    positive: str
    negative: str
    pairs: tuple[Pair, ...]
    held_out: tuple[str, ...] = ()
    source: str = ""

    def prompts(self) -> Iterator[Prompt]:
        """All positive prompts, then all negative ones, in the order of the pairs."""
        yield from (pair.positive for pair in self.pairs)
        yield from (pair.negative for pair in self.pairs)

    def sha256(self, model: Model) -> str:
        """Hash of the prompts as this model reads them."""
        return hash_texts(prompt.render(model).encode() for prompt in self.prompts())


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Poles(_Strict):
    positive: Text
    negative: Text


class _Personas(_Strict):
    positive: list[Text] = Field(min_length=1)
    negative: list[Text] = Field(min_length=1)


class _ExplicitPair(_Strict):
    positive: Text
    negative: Text


class _HeldOut(_Strict):
    questions: list[Text] = Field(default_factory=list)


class Concept(_Strict):
    """The contents of a concept.yaml."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    description: str = ""
    poles: _Poles
    template: str = "{persona}"
    personas: _Personas | None = None
    questions: list[Text] = Field(default_factory=list)
    openings: list[Text] = Field(default_factory=list)
    pairs: list[_ExplicitPair] = Field(default_factory=list)
    held_out: _HeldOut = Field(default_factory=_HeldOut)

    @model_validator(mode="after")
    def _consistent(self) -> Concept:
        if (self.personas is None) == (not self.pairs):
            raise ValueError("give either personas (with openings) or pairs")
        if self.personas is not None:
            if len(self.personas.positive) != len(self.personas.negative):
                raise ValueError(
                    f"personas: {len(self.personas.positive)} positive and {len(self.personas.negative)} negative; "
                    "give as many of each, for they are paired"
                )
            if not self.openings:
                raise ValueError("personas need openings: the first words of answers")
            if "{persona}" not in self.template:
                raise ValueError("the template must contain {persona}")
        elif self.openings or self.questions:
            raise ValueError("pairs take no questions or openings of their own")
        if both := set(self.questions) & set(self.held_out.questions):
            raise ValueError(f'held_out: the question "{min(both)}" is also used for building')
        return self

    def contrast(self, source: str) -> Contrast:
        """The pairs: personas x openings, with the questions taking turns; or the explicit ones."""
        pairs: tuple[Pair, ...]
        if self.personas is None:
            pairs = tuple(
                Pair(*(Prompt((Message("user", text),), "") for text in (pair.positive, pair.negative))) for pair in self.pairs
            )
        else:
            pairs = tuple(
                Pair(self._prompt(positive, index), self._prompt(negative, index))
                for positive, negative in zip(self.personas.positive, self.personas.negative, strict=True)
                for index in range(len(self.openings))
            )
        return Contrast(
            self.name,
            self.description,
            self.poles.positive,
            self.poles.negative,
            pairs,
            tuple(self.held_out.questions),
            source,
        )

    def _prompt(self, persona: str, index: int) -> Prompt:
        messages = [Message("system", self.template.replace("{persona}", persona))]
        if self.questions:
            messages.append(Message("user", self.questions[index % len(self.questions)]))
        return Prompt(tuple(messages), self.openings[index])


def load_concept(path: str | Path) -> Contrast:
    """Read and validate a concept file.

    Raises:
        ContrastError: the file is missing, no YAML, or breaks a rule; the message names the line.
    """
    path = Path(path)
    return parse_concept(_read_text(path), str(path))


def parse_concept(text: str, where: str) -> Contrast:
    """A concept from YAML text.

    Args:
        text: the YAML.
        where: what to call it in messages.

    Raises:
        ContrastError: no YAML, or a rule is broken; the message names the line.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ContrastError(f"{where}{line}: this is not valid YAML: {problem}.") from error
    if not isinstance(data, dict):
        raise ContrastError(f"{where} is not a concept file: it holds no keys.", hint="docs/concepts.md shows one.")
    try:
        concept = Concept.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        location = [part for part in first["loc"] if isinstance(part, str | int)]
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        place = ".".join(str(part) for part in location)
        raise ContrastError(
            f"{where}, line {_line_of(node, location)}: {f'{place}: ' if place else ''}{message}.",
            hint="docs/concepts.md shows the format.",
        ) from error
    return concept.contrast(text)


def _line_of(node: Any, location: Sequence[str | int]) -> int:
    """1-based line of the innermost YAML node on the way to `location`."""
    line = int(node.start_mark.line)
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            key, node = found[0]
            line = int(key.start_mark.line)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = int(node.start_mark.line)
        else:
            break
    return line + 1


def read_prompt_files(positive: str | Path, negative: str | Path, *, name: str) -> Contrast:
    """The very files that llama-cvector-generator takes: one templated prompt a line, newlines escaped; empty lines are skipped.

    Raises:
        ContrastError: a file is missing or empty, or they hold different numbers of prompts.
    """
    sides = []
    for path in (Path(positive), Path(negative)):
        prompts = [_unescape(line) for line in _read_text(path).splitlines() if line.strip()]
        if not prompts:
            raise ContrastError(f"{path} holds no prompts.", hint="Write one prompt a line.")
        sides.append(prompts)
    if len(sides[0]) != len(sides[1]):
        raise ContrastError(
            f"{positive} holds {len(sides[0])} prompts and {negative} {len(sides[1])}.",
            hint="Line k of one is paired with line k of the other, so give as many of each.",
        )
    pairs = tuple(Pair(Prompt((), one), Prompt((), other)) for one, other in zip(*sides, strict=True))
    return Contrast(name, "", Path(positive).stem, Path(negative).stem, pairs)


_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def _unescape(line: str) -> str:
    """The escapes of llama.cpp's `string_process_escapes`; an unknown one stays as it is."""

    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 3:
            return chr(int(code[1:], 16))
        return _ESCAPED.get(code, match[0])

    return _ESCAPE.sub(replace, line)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ContrastError(f"There is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise ContrastError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise ContrastError(f"{path} cannot be read: {error.strerror}.") from error
