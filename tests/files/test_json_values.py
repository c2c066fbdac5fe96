from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from localsteer.files.json_values import build, json_text, read_json


@dataclass(frozen=True)
class Inner:
    number: float
    word: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    pair: tuple[int, int]
    inner: tuple[Inner, ...]
    by_name: Mapping[Literal["x", "y"], Inner]
    perhaps: float | None
    sure: bool = True


TEXT = (
    '{"name": "n", "count": 3, "pair": [1, 2], "inner": [{"number": 1, "word": "a"}, {"number": null, "word": "b"}], '
    '"by_name": {"x": {"number": 0.5, "word": "b"}}, "perhaps": null}'
)


def test_a_text_for_people_commands_no_terminal_and_can_be_read_back() -> None:
    document = {"größe": ["a\x1b[2J", "\x9b2J\x7f", "\ud83d", 1]}
    text = json_text(document)
    assert "größe" in text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert text.encode()
    assert read_json(text) == document
    with pytest.raises(ValueError, match="float"):
        json_text(math.inf)


def test_a_document_becomes_what_its_fields_say() -> None:
    found = build(Outer, read_json(TEXT))
    assert (found.name, found.count, found.pair, found.perhaps, found.sure) == ("n", 3, (1, 2), None, True)
    assert found.inner[0] == Inner(1.0, "a")
    assert math.isnan(found.inner[1].number)
    assert found.by_name == {"x": Inner(0.5, "b")}


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('"name": "n", ', "", "it lacks the key name"),
        ('"name"', '"colour": 1, "name"', "it has a key colour"),
        ('"n"', "5", "name is not a text"),
        ("3", "3.0", "count is not a whole number"),
        ("3", "true", "count is not a whole number"),
        ("[1, 2]", "[1]", "pair is not a list of 2"),
        ("[1, 2]", '{"1": 2}', "pair is not a list"),
        ("[1, 2]", '[1, "2"]', "pair.1 is not a whole number"),
        ('{"number": 1, "word": "a"}', "[]", "inner.0 is not an object"),
        ('"word": "a"', '"word": "c"', "inner.0.word is not one of a, b"),
        ('"word": "a"', '"word": []', "inner.0.word is not one of a, b"),
        ('"number": 1', '"number": "1"', "inner.0.number is not a number"),
        ('"number": 1', '"number": 1e999', "inner.0.number is not a finite number"),
        ('"number": 1', f'"number": 1{"0" * 400}', "inner.0.number is not a finite number"),
        ('{"x":', '{"z":', "by_name is not one of x, y"),
        ("0.5", "{}", "by_name.x.number is not a number"),
        ('"perhaps": null', '"perhaps": true', "perhaps is not a number"),
        ('"perhaps": null', '"perhaps": 1, "sure": null', "sure is not true or false"),
    ],
)
def test_the_place_of_a_mistake_is_named(old: str, new: str, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        build(Outer, read_json(TEXT.replace(old, new, 1)))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN", "[Infinity]", f"1{'0' * 5000}"])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(text)
