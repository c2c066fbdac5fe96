"""Contrastive prompts: pairs of prompts alike but for the concept, rendered through the model's chat template.

They come from a concept file (`localsteer.concepts.concept_file`) or from the prompt files of llama-cvector-generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from localsteer.errors import ContrastError
from localsteer.files.text import read_text
from localsteer.llama.chat_template import Message
from localsteer.llama.fingerprint import hash_texts
from localsteer.llama.model import Model


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
        """The text that the model reads; a base model without a chat template gets the parts as paragraphs.

        The opening is that of the answer: a model that thinks first is taken past that.
        """
        if not self.messages:
            return self.opening
        if model.chat_template is not None:
            return model.chat_template.render(self.messages, think=False) + self.opening
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
        source: the concept as YAML text.
        personas: system messages that ask for the positive and the negative pole, in pairs.
    """

    name: str
    description: str
    positive: str
    negative: str
    pairs: tuple[Pair, ...]
    held_out: tuple[str, ...] = ()
    source: str = ""
    personas: tuple[tuple[str, str], ...] = ()

    def prompts(self) -> Iterator[Prompt]:
        """All positive prompts, then all negative ones, in the order of the pairs."""
        yield from (pair.positive for pair in self.pairs)
        yield from (pair.negative for pair in self.pairs)

    def sha256(self, model: Model) -> str:
        """Hash of the prompts as this model reads them."""
        return hash_texts(prompt.render(model).encode() for prompt in self.prompts())


def read_prompt_files(positive: str | Path, negative: str | Path, *, name: str) -> Contrast:
    """The very files that llama-cvector-generator takes: one templated prompt a line, newlines escaped; empty lines are skipped.

    Raises:
        ContrastError: a file is missing or empty, or they hold different numbers of prompts.
    """
    sides = []
    for path in (Path(positive), Path(negative)):
        # Not splitlines: it also splits at characters that may stand inside a prompt.
        lines = read_text(path, ContrastError).replace("\r\n", "\n").split("\n")
        prompts = [_unescape(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
        if not prompts:
            raise ContrastError(f"{path} holds no prompts.", hint="Write one prompt a line.")
        sides.append(prompts)
    if len(sides[0]) != len(sides[1]):
        raise ContrastError(
            f"{positive} holds {len(sides[0])} prompts and {negative} {len(sides[1])}.",
            hint="Line k of one is paired with line k of the other, so give as many of each.",
        )
    pairs = tuple(Pair(Prompt((), one), Prompt((), other)) for one, other in zip(*sides, strict=True))
    poles = Path(positive).stem, Path(negative).stem
    return Contrast(name, "", *poles, pairs, source=_as_concept(name, poles, pairs))


def _as_concept(name: str, poles: tuple[str, str], pairs: Sequence[Pair]) -> str:
    """Prompt files as the text of a concept file, which a vector carries: its poles can be told apart by it."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    document = {
        "name": plain if plain[:1].isalpha() else f"prompts-{plain}".rstrip("-"),
        "poles": dict(zip(("positive", "negative"), poles, strict=True)),
        "templated": True,
        "pairs": [{"positive": pair.positive.opening, "negative": pair.negative.opening} for pair in pairs],
    }
    return yaml.safe_dump(document, sort_keys=False)


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def _unescape(line: str, where: str) -> str:
    """The escapes of llama.cpp's `string_process_escapes`, hexadecimal bytes included; an unknown one stays as it is."""

    def replace(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if len(code) == 3:
            return bytes([int(code[1:], 16)])
        return _ESCAPED.get(code, match[0])

    try:
        return _ESCAPE.sub(replace, line.encode()).decode()
    except UnicodeDecodeError as error:
        raise ContrastError(f"{where}: its escaped bytes are not UTF-8 text.") from error
