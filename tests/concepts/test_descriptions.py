from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from localsteer.concepts.concept_file import load_concept, parse_concept
from localsteer.concepts.descriptions import check_concept_place, concept_name, describe, write_concept
from localsteer.concepts.names import concepts, shipped_folder
from localsteer.errors import ContrastError

# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a weary sea captain", "weary-sea-captain"),
        ("An  Old,\n  grumpy CAT.", "old-grumpy-cat"),
        ("the queen's fool", "queens-fool"),
        ("une grand-mère inquiète", "une-grand-mere-inquiete"),
        ("anthropologist", "anthropologist"),
        ("my_captain-2", "my-captain-2"),
    ],
)
def test_a_description_makes_a_name(text: str, name: str) -> None:
    assert concept_name(text) == name


def test_a_long_description_makes_a_name_that_files_can_have() -> None:
    name = concept_name("a person who " + "talks and " * 100)
    assert name.startswith("person-who-talks-and")
    assert len(name) <= 60
    assert not name.endswith("-")
    assert len(concept_name("x" * 300)) <= 60


@pytest.mark.parametrize("text", ["老船长", "12 angry men", "!?"])
def test_a_description_without_latin_letters_needs_a_name(text: str) -> None:
    with pytest.raises(ContrastError, match="-o") as caught:
        concept_name(text)
    assert text in caught.value.message


# The concept


def test_both_descriptions_stand_in_every_sentence() -> None:
    made = parse_concept(describe("captain", "a weary sea captain", "a cheerful cook."), "captain")
    assert (made.name, made.positive, made.negative) == ("captain", "weary sea captain", "cheerful cook")
    assert made.description == "A weary sea captain against a cheerful cook."
    assert len(made.personas) == 4
    for positive, negative in made.personas:
        assert positive.replace("a weary sea captain", "X") == negative.replace("a cheerful cook", "X") != positive
        assert "{" not in positive
    assert len({positive for positive, _ in made.personas}) == 4
    assert len(made.pairs) == 4 * 24
    assert len(made.held_out) == 20


def test_the_other_pole_is_an_ordinary_person_unless_told_otherwise() -> None:
    assert parse_concept(describe("captain", "a weary sea captain"), "captain").negative == "ordinary person"


def test_odd_descriptions_come_through_as_they_are() -> None:
    for text in ('a "captain": {persona} #1', "ein müder Kapitän", "yes", "- x", "老船长"):
        made = parse_concept(describe("odd", text), "odd")
        assert made.positive == text.removeprefix("a ")
        assert text in made.personas[0][0]


@pytest.mark.parametrize(("one", "other"), [("", "a cook"), ("a cook", " \n"), (".", "a cook")])
def test_an_empty_description_is_refused(one: str, other: str) -> None:
    with pytest.raises(ContrastError, match="empty"):
        describe("x", one, other)


def test_two_equal_descriptions_are_refused() -> None:
    with pytest.raises(ContrastError, match="both sides"):
        describe("x", "a cook", "A cook.")


def test_a_damaged_file_of_shared_prompts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localsteer.concepts.descriptions.shipped_folder", lambda: tmp_path)
    with pytest.raises(ContrastError, match=r"described\.yaml"):
        describe("x", "a cook")
    (tmp_path / "described.yaml").write_text("personas: []\n")
    with pytest.raises(ContrastError, match=r"described\.yaml, line 1"):
        describe("x", "a cook")


# The file


def test_the_file_loads_and_reads_well(tmp_path: Path) -> None:
    path = tmp_path / "captain.yaml"
    write_concept(describe("captain", "a weary sea captain"), path)
    assert load_concept(path).source == describe("captain", "a weary sea captain")
    lines = path.read_text().splitlines()
    assert lines[1:5] == [
        "name: captain",
        "description: A weary sea captain against an ordinary person.",
        "poles:",
        "  positive: weary sea captain",
    ]
    assert max(map(len, lines)) <= 120


def test_the_same_file_may_be_there_already_and_another_one_not(tmp_path: Path) -> None:
    path = tmp_path / "captain.yaml"
    text = describe("captain", "a weary sea captain")
    write_concept(text, path)
    write_concept(text, path)
    path.write_text(text + "# mine\n")
    for use in (check_concept_place, write_concept):
        with pytest.raises(ContrastError, match=re.escape(str(path))) as caught:
            use(text, path)
        assert f"localsteer extract {path}" in (caught.value.hint or "")
    assert path.read_text() == text + "# mine\n"


def test_a_folder_that_is_missing_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match="missing"):
        check_concept_place("x", tmp_path / "missing" / "x.yaml")


# The shared prompts


def shared() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((shipped_folder() / "described.yaml").read_text(encoding="utf-8"))
    return document


def test_there_are_enough_shared_prompts_and_no_two_alike() -> None:
    found = shared()
    counts = {"personas": 4, "questions": 6, "openings": 24}
    assert {key: len(set(found[key])) for key in counts} == counts == {key: len(found[key]) for key in counts}
    assert len(set(found["held_out"]["questions"])) == 20
    assert all(persona.count("{description}") == 1 for persona in found["personas"])


def test_the_shared_prompts_are_no_concept_of_the_library() -> None:
    assert "described" not in concepts()
