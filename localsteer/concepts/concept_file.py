"""Concept files: what a control vector shall be about, in YAML.

A concept file lists personas for two poles, questions, and openings of answers. Every persona is put into the template as the
system message and crossed with every opening (or with half of them); the questions take turns. The two prompts of a pair differ
in the persona only (for a language, a format or a length in the opening too), and what is read are the activations at the end of
the opening, where the model is about to go on in its own mood, or over all of it where each pole has its own.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.errors import ContrastError
from localsteer.files.text import read_text
from localsteer.files.yaml_lines import Location, YamlDocument, YamlFile
from localsteer.llama.chat_template import Message

NAME = r"^[a-z][a-z0-9-]*$"
"""Of a concept: it names files, too."""


def _without_commands(text: str) -> str:
    r"""Refuse what would command a terminal: YAML writes it as "\x1b", and these texts are shown."""
    if any(unicodedata.category(character) == "Cc" for character in text if character not in "\n\t"):
        raise ValueError("it holds control characters")
    return text


Text = Annotated[str, Field(min_length=1)]
Shown = Annotated[str, AfterValidator(_without_commands)]


class _Poles(YamlDocument):
    positive: Annotated[Shown, Field(min_length=1)]
    negative: Annotated[Shown, Field(min_length=1)]


class _PerPole(YamlDocument):
    positive: Text
    negative: Text


class _Personas(YamlDocument):
    positive: list[Text] = Field(min_length=1)
    negative: list[Text] = Field(min_length=1)


class _HeldOut(YamlDocument):
    questions: list[Annotated[Shown, Field(min_length=1)]] = Field(default_factory=list)


class Concept(YamlDocument):
    """The contents of a concept.yaml."""

    name: Annotated[str, Field(pattern=NAME)]
    description: Shown = ""
    instrument: str = ""
    poles: _Poles
    template: str = "{persona}"
    personas: _Personas | None = None
    questions: list[Text] = Field(default_factory=list)
    openings: list[Text | _PerPole] = Field(default_factory=list)
    crossing: Literal["full", "half"] = "full"
    pairs: list[_PerPole] = Field(default_factory=list)
    templated: bool = False
    held_out: _HeldOut = Field(default_factory=_HeldOut)

    def inconsistency(self) -> tuple[Location, str] | None:
        """The first rule between keys that is broken: the key, and what is wrong."""
        if self.pairs:
            for key in ("personas", "questions", "openings", "crossing"):
                if key in self.model_fields_set and getattr(self, key):
                    return (key,), "a concept with pairs takes none"
        elif self.templated:
            return ("templated",), "it is for a concept with pairs"
        elif self.personas is None:
            return (), "give either personas (with openings) or pairs"
        else:
            positive, negative = len(self.personas.positive), len(self.personas.negative)
            if positive != negative:
                return ("personas",), f"{positive} positive and {negative} negative; give as many of each, for they are paired"
            if not self.openings:
                return ("openings",), "personas need openings: the first words of answers"
            if self.crossing == "half" and min(positive, len(self.openings)) < 2:
                return ("crossing",), "half of a crossing needs two pairs of personas and two openings"
            if "{persona}" not in self.template:
                return ("template",), "it must contain {persona}"
        for number, question in enumerate(self.held_out.questions):
            if question in self.questions:
                return ("held_out", "questions", number), f'"{question}" is also used for building'
        return None

    def contrast(self, source: str) -> Contrast:
        """The pairs: personas x openings, with the questions taking turns; or the explicit ones.

        Crossed in half, every other persona answers a question, with all of its openings: what comes before the openings, which
        is most of what is read, is halved as well, and every persona still meets half of the questions.
        """
        pairs = [Pair(*(self._explicit(text) for text in (one.positive, one.negative))) for one in self.pairs]
        systems = self._systems()
        pairs += [
            Pair(self._prompt(positive, index, opening.positive), self._prompt(negative, index, opening.negative))
            for number, (positive, negative) in enumerate(systems)
            for index, opening in enumerate(map(_for_both, self.openings))
            if self.crossing == "full" or (number + self._turn(index)) % 2 == 0
        ]
        return Contrast(
            self.name,
            self.description,
            self.poles.positive,
            self.poles.negative,
            tuple(pairs),
            tuple(self.held_out.questions),
            source,
            systems,
        )

    def _explicit(self, text: str) -> Prompt:
        """A prompt of a pair: a question, or the very text that the model reads."""
        return Prompt((), text) if self.templated else Prompt((Message("user", text),), "")

    def _turn(self, index: int) -> int:
        """The question that an opening belongs to; where there is one at most, each opening counts for itself."""
        return index % len(self.questions) if len(self.questions) > 1 else index

    def _systems(self) -> tuple[tuple[str, str], ...]:
        """The personas as system messages, in pairs."""
        if self.personas is None:
            return ()
        positive, negative = (
            [self.template.replace("{persona}", persona) for persona in side]
            for side in (self.personas.positive, self.personas.negative)
        )
        return tuple(zip(positive, negative, strict=True))

    def _prompt(self, system: str, index: int, opening: str) -> Prompt:
        messages = [Message("system", system)]
        if self.questions:
            messages.append(Message("user", self.questions[index % len(self.questions)]))
        return Prompt(tuple(messages), opening)


def _for_both(opening: str | _PerPole) -> _PerPole:
    return opening if isinstance(opening, _PerPole) else _PerPole(positive=opening, negative=opening)


def load_concept(path: str | Path) -> Contrast:
    """Read and validate a concept file.

    Raises:
        ContrastError: the file is missing, no YAML, or breaks a rule; the message names the line.
    """
    path = Path(path)
    return parse_concept(read_text(path, ContrastError), str(path))


def parse_concept(text: str, where: str) -> Contrast:
    """A concept from YAML text.

    Args:
        text: the YAML.
        where: what to call it in messages.

    Raises:
        ContrastError: no YAML, or a rule is broken; the message names the line.
    """
    file = YamlFile.parse(text, where=where, kind="a concept file", page="docs/concepts.md", error=ContrastError)
    return file.validate(Concept).contrast(text)
