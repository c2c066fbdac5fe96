"""A concept from two plain descriptions, such as "a weary sea captain" against "an ordinary person".

The questions, the openings and the sentences that the descriptions are put into are the same for all such concepts:
`described.yaml` in the concept library.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from localsteer.concepts.names import shipped_folder
from localsteer.errors import ContrastError
from localsteer.files.atomic import atomic_path, check_writable
from localsteer.files.text import read_text
from localsteer.files.yaml_lines import YamlDocument, YamlFile

AGAINST = "an ordinary person"

_MADE_BY = "# Made by `localsteer extract --concept-from`; yours to edit.\n"
_ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)
# A name becomes a file's name, with an ending or a key behind it; file systems take 255 bytes.
_LONGEST_NAME = 60

Texts = Annotated[list[str], Field(min_length=1)]


class _HeldOut(YamlDocument):
    questions: Texts


class _Shared(YamlDocument):
    """The contents of described.yaml; each of its personas holds `{description}`."""

    personas: Texts
    questions: Texts
    openings: Texts
    held_out: _HeldOut


def everyday_questions() -> tuple[str, ...]:
    """Questions to measure a vector with that brings none of its own: no concept of the library is built from any of them."""
    return tuple(_shared().held_out.questions)


def concept_name(text: str) -> str:
    """A concept's name for a description (or for a file's stem): `weary-sea-captain` for "A weary sea captain".

    Raises:
        ContrastError: it is empty, or nothing is left of it that a name may hold.
    """
    plain = unicodedata.normalize("NFKD", _ARTICLE.sub("", _tidy(text))).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", " ", plain.replace("'", "")).split()
    while len(words) > 1 and len("-".join(words)) > _LONGEST_NAME:
        words.pop()
    name = "-".join(words)[:_LONGEST_NAME]
    if not re.match("[a-z]", name):
        raise ContrastError(
            f'"{text}" makes no name for a concept, which begins with a letter from a to z.',
            hint="Name the vector with -o, such as -o captain.gguf.",
        )
    return name


def describe(name: str, description: str, against: str = AGAINST) -> str:
    """The text of a concept file.

    Args:
        name: of the concept.
        description: who shall speak at a positive strength, in words that fit after "You are".
        against: likewise at a negative strength.

    Raises:
        ContrastError: a description is empty, or both are the same.
    """
    positive, negative = _tidy(description), _tidy(against)
    if positive.casefold() == negative.casefold():
        raise ContrastError(f'"{positive}" is on both sides, so there is nothing to tell apart.', hint="Change --against.")
    shared = _shared()
    concept = {
        "name": name,
        "description": f"{positive[0].upper()}{positive[1:]} against {negative}.",
        "poles": {"positive": _ARTICLE.sub("", positive), "negative": _ARTICLE.sub("", negative)},
        "template": "{persona}",
        "personas": {
            pole: [persona.replace("{description}", text) for persona in shared.personas]
            for pole, text in (("positive", positive), ("negative", negative))
        },
        "questions": shared.questions,
        "openings": shared.openings,
        "held_out": {"questions": shared.held_out.questions},
    }
    return _MADE_BY + yaml.safe_dump(concept, sort_keys=False, allow_unicode=True, width=120)


def check_concept_place(text: str, path: Path) -> None:
    """Find out before the work whether `write_concept` can do its own.

    Raises:
        ContrastError: as `write_concept`.
    """
    check_writable(path, ContrastError)
    if path.exists() and read_text(path, ContrastError) != text:
        raise ContrastError(
            f"{path} is there already, and says something else.",
            hint=f"Build from it with `localsteer extract {path}`, or give the new vector another name with -o.",
        )


def write_concept(text: str, path: Path) -> None:
    """Write a concept file; one that is there stays as it is.

    Raises:
        ContrastError: another text is there, or the file cannot be written.
    """
    check_concept_place(text, path)
    if path.exists():
        return
    with atomic_path(path, ContrastError) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _tidy(text: str) -> str:
    """A description on one line, without a full stop: it may stand in the middle of a sentence."""
    tidy = " ".join(text.split()).rstrip(" .")
    if not tidy:
        raise ContrastError("A description is empty.", hint='Write a few words, such as "a weary sea captain".')
    return tidy


def _shared() -> _Shared:
    path = shipped_folder() / "described.yaml"
    text = read_text(path, ContrastError)
    file = YamlFile.parse(text, where=str(path), kind="a file of shared prompts", page="docs/concepts.md", error=ContrastError)
    return file.validate(_Shared)
