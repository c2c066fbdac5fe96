from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from localsteer.errors import ContrastError, PolicyError
from localsteer.files import yaml_lines
from localsteer.files.yaml_lines import YamlFile


@pytest.fixture(autouse=True, params=["CSafeLoader", "SafeLoader"])
def _reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All holds with libyaml and without it, as PyYAML may be built."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_lines, "_FAST", getattr(yaml, request.param))


TEXT = """\
# A recipe.
name: soup
serves: 4
parts:
  - {what: leek, grams: 300}
  - what: water
    grams: 900
notes:
  salt: much
  7: seven
"""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    what: str
    grams: int


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    serves: Literal["all"] | int = "all"
    parts: list[Part]
    notes: dict[str | int, str] = {}


def parse(text: str = TEXT) -> YamlFile:
    return YamlFile.parse(text, where="soup.yaml", kind="a recipe", page="docs/recipes.md", error=PolicyError)


def refusal(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text).validate(Recipe)
    return str(caught.value)


def test_a_good_text_becomes_a_model() -> None:
    made = parse().validate(Recipe)
    assert made == Recipe(
        name="soup",
        serves=4,
        parts=[Part(what="leek", grams=300), Part(what="water", grams=900)],
        notes={"salt": "much", 7: "seven"},
    )


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 2),
        (("name",), 2),
        (("parts",), 4),
        (("parts", 0), 5),
        (("parts", 0, "grams"), 5),
        (("parts", 1), 6),
        (("parts", 1, "grams"), 7),
        (("notes", "salt"), 9),
        (("notes", 7), 10),
        # What is not there has the line of what it should be in.
        (("colour",), 2),
        (("parts", 2), 4),
        (("parts", 1, "colour"), 6),
        (("parts", "grams"), 4),
        (("name", "first"), 2),
    ],
)
def test_every_place_has_its_line(place: Sequence[str | int], line: int) -> None:
    assert parse().line_of(place) == line
    assert str(parse().mistake(place, "wrong")).startswith(f"soup.yaml, line {line}: ")


def test_a_mistake_says_where_and_what_and_what_shows_the_format() -> None:
    mistake = parse().mistake(("parts", 1, "grams"), "that is too much")
    assert isinstance(mistake, PolicyError)
    assert str(mistake) == "soup.yaml, line 7: parts.1.grams: that is too much. docs/recipes.md shows the format."
    assert str(parse().mistake((), "no good")) == "soup.yaml, line 2: no good. docs/recipes.md shows the format."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: soup", "name: 7", "line 2: name: input should be a valid string"),
        ("name: soup\n", "", "line 2: name: field required"),
        ("name: soup", "name: soup\ncolour: green", "line 3: colour: there is no such key"),
        ("    grams: 900", "    gramms: 900", "line 6: parts.1.grams: field required"),
        ("grams: 300", "grams: 300, litres: 1", "line 5: parts.0.litres: there is no such key"),
        ("serves: 4", "serves: none", "line 3: serves: input should be 'all', or input should be a valid integer"),
        ("salt: much", "salt: 7", "line 9: notes.salt: input should be a valid string"),
        ("7: seven", "1.5: seven", "line 8: notes: "),
        ("parts:", "parts: 7\nsteps:", "line 4: parts: input should be a valid list"),
    ],
)
def test_the_first_broken_rule_is_told_with_its_line(old: str, new: str, message: str) -> None:
    assert TEXT.count(old) == 1
    said = refusal(TEXT.replace(old, new))
    assert said.startswith(f"soup.yaml, {message}")
    assert said.endswith(". docs/recipes.md shows the format.")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1, 2\nb: 3\n", 2),
        ("a: 1\nb: 'open\n\n", 2),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 1\nb: *c\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2),
        ("a: 1\n{[b]: 1}: 2\n", 2),
    ],
)
def test_what_is_no_yaml_is_told_in_one_line_with_its_line(text: str, line: int) -> None:
    message = refusal(text)
    assert message.startswith(f"soup.yaml, line {line}: this is not valid YAML: ")
    assert "\n" not in message


WILD = ["2024-13-45", "!!int soup", "!!bool maybe", "!!float ''", "!!int ''", "!!timestamp now", "!!binary ß", "=", "[" * 700]


@pytest.mark.parametrize("value", WILD, ids=[value[:20] for value in WILD])
def test_values_that_do_not_exist_are_no_valid_yaml_either(value: str) -> None:
    message = refusal(f"name: {value}\n")
    assert message.startswith("soup.yaml")
    assert "this is not valid YAML: " in message
    assert "\n" not in message


def test_text_that_cannot_be_printed_is_no_valid_yaml() -> None:
    assert "this is not valid YAML" in refusal("name: so\0up\n")


@pytest.mark.parametrize("text", ["", "# nothing\n", "soup", "7", "null", "- name: soup\n", "[]"])
def test_a_text_without_keys_is_not_what_it_should_be(text: str) -> None:
    assert refusal(text) == "soup.yaml is not a recipe: it holds no keys. docs/recipes.md shows one."


def test_each_kind_of_file_raises_its_own_error() -> None:
    for text in ("[", "soup"):
        with pytest.raises(ContrastError):
            YamlFile.parse(text, where="a", kind="b", page="c", error=ContrastError)
    file = YamlFile.parse("name: 7", where="a", kind="b", page="c", error=ContrastError)
    with pytest.raises(ContrastError):
        file.validate(Recipe)


def test_what_an_alias_brings_is_read_and_has_a_line() -> None:
    text = "name: soup\nparts:\n  - &leek {what: leek, grams: 1}\n  - {<<: *leek, grams: 2}\n"
    assert parse(text).validate(Recipe).parts == [Part(what="leek", grams=1), Part(what="leek", grams=2)]
    message = refusal(text.replace("grams: 2", "grams: few"))
    assert message.startswith("soup.yaml, line 4: parts.1.grams: input should be a valid integer")
    assert refusal(text.replace("grams: 1", "grams: few")).startswith("soup.yaml, line 3: parts.0.grams: input should be")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: soup\nserves: 4\nname: stew\n", 3, "name"),
        ("name: soup\nnotes:\n  salt: much\n  salt: none\n", 4, "salt"),
        ("parts:\n  - {what: leek, grams: 1, what: water}\n", 2, "what"),
    ],
)
def test_a_key_that_stands_there_twice_is_refused(text: str, line: int, key: str) -> None:
    assert refusal(text) == f'soup.yaml, line {line}: the key "{key}" stands here a second time.'


def test_an_alias_is_no_repetition() -> None:
    assert parse("a: &one {x: 1}\nb: *one\n").data == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.parametrize(
    ("value", "meaning"),
    [("Yes", "true or false"), ("off", "true or false"), ("12", "a number"), ("1.5", "a number"), ("2024-05-01", "a date")],
)
def test_a_text_that_yaml_takes_for_something_else_is_told_to_get_quotes(value: str, meaning: str) -> None:
    said = refusal(TEXT.replace("name: soup", f"name: {value}"))
    assert said.startswith("soup.yaml, line 2: name: ")
    assert f"YAML takes this for {meaning}" in said
    assert "quotes" in said


def test_classes_that_a_file_knows_nothing_of_are_not_named() -> None:
    assert "Part" not in refusal(TEXT.replace("{what: leek, grams: 300}", "leek"))


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 100_000, "? " * 100_000])
def test_a_text_of_nothing_but_depth_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match=r"soup\.yaml"):
        parse(f"name: soup\nparts: {text}" if text[0] in "[{" else text)
