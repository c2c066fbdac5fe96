from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import instructions as module
from bench.instructions import CHECKS, Instruction, instructions

# Of each check: an argument, texts that follow it, and texts that do not.
EXAMPLES: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "at_most_words": (3, ("One", "It's well-known here."), ("one two three four",)),
    "at_least_words": (3, ("one two three", "où est-il, là-bas ?"), ("one two", "It's well-known.", "- - -")),
    "sentences": (
        2,
        ("One is here. Two is there.", 'He said "No." She left', "It costs 3.50 here! Why?", "1. Bread\n2. Milk"),
        ("One is here.", "One. Two. Three and", "- bread\n- butter\n- milk", "..."),
    ),
    "lines": (2, ("one\ntwo", "one\n\ntwo"), ("one two", "one\ntwo\nthree")),
    "paragraphs": (2, ("one\n\ntwo", "one\nmore\n \n\ntwo"), ("one\ntwo", "one\n\ntwo\n\nthree")),
    "has": (["key", "lamp"], ("A lamp, a KEY.", '"key"lamp'), ("A lamp.", "Lamps and keys.", "a keyhole lamp")),
    "lacks": (["water", "salt"], ("It is wide.", "Waterfalls"), ("Salt, mostly.", "It is water")),
    "lacks_characters": ("e,", ("A dog runs.",), ("A dog, running", "The dog", "Every dog")),
    "word_times": (["blue", 2], ("Blue, and blue.", "blue bluebell blue"), ("blue", "blue blue blue", "bluebell blue")),
    "number_of_digits": (3, ("Room 101.", "12 and 345"), ("Room 12", "In 1969", "one hundred")),
    "initials": ("b", ("Bear, bee, bird", "- boat\n- barn"), ("bear, cat, bird", "Words: bear, bee", "1. bear")),
    "capital_words": (2, ("I saw SNOW and ICE.",), ("I saw SNOW.", "SNOW AND ICE", "I saw A Snow")),
    "starts_with": ("Step one", ("Step one: boil.", "**Step One** is to boil"), ("Step one.", "So, step one is", "Boil it.")),
    "ends_with": (
        "That is all.",
        ("They span rivers. That is all.", "It is long, that is all", '"It spans. That is all."'),
        ("That is all.", "That is all. They span rivers.", "They span rivers."),
    ),
    "postscript": ("P.S.", ("Come by.\nP.S. Bring it", "Hi.\n\n**P.S.** Thanks."), ("P.S. Hi", "Come. P.S. Hi", "Hi.\nP.S.")),
    "lower_case": (True, ("in the south.", "où ? 3 là"), ("In the south.", "THERE", "123")),
    "upper_case": (True, ("WHEAT, 3 KINDS.", "BLÉ"), ("Wheat", "WHEAT and CORN", "123")),
    "quoted": (True, ('"Sit down."', "“Sit down.”"), ("Sit down.", '"Sit", she said, "down"', '"Sit down.', '""')),
    "placeholders": (2, ("Dear [name], come to [place].", "[a][b][c]"), ("Dear [name]", "Dear [] and []", "(name) (place)")),
    "bullets": (
        2,
        ("- hat\n- towel", "Take:\n* **hat**\n  * towel", "• hat\n\n• towel"),
        ("- hat", "- hat\n- towel\n- book", "1. hat\n2. towel", "hat - towel - book", "-hat\n-towel", "**hat**\n**towel**"),
    ),
    "numbered": (
        2,
        ("1. lute\n2. harp", "Two:\n1) lute\n2) harp"),
        ("1. lute", "1. lute\n2. harp\n3. drum", "1. lute\n1. harp", "1. lute 2. harp", "- lute\n- harp"),
    ),
    "separated": (["|", 3], ("red | blue | green", "red|blue|green"), ("red | blue", "| red | blue", "red, blue, green")),
    "title": (True, ("<<Light>>\nIt shines.",), ("<Light> shines", "<<>> shines", "<<Light shines", "Light")),
    "json_keys": (
        ["city", "country"],
        ('{"country": "Peru", "city": "Lima"}', '```json\n{"city": 1, "country": null}\n```'),
        ('{"city": "Lima"}', '{"city": 1, "country": 2, "sea": 3}', "{'city': 1, 'country': 2}", '["city", "country"]', "Lima"),
    ),
    "one_of": (["(a) May", "(b) July"], ("(b) July", '"(A) May".'), ("July", "(b) July is warmer", "(a) May (b) July", "May")),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, (_, follow, _) in EXAMPLES.items() for text in follow])
def test_a_check_passes_what_follows(name: str, text: str) -> None:
    assert CHECKS[name](text, EXAMPLES[name][0])


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, (_, _, stray) in EXAMPLES.items() for text in stray])
def test_a_check_fails_what_does_not(name: str, text: str) -> None:
    assert not CHECKS[name](text, EXAMPLES[name][0])


def test_a_text_may_end_in_a_mark() -> None:
    assert CHECKS["ends_with"]("Is it late?", "?")
    assert not CHECKS["ends_with"]("Is it late? Yes.", "?")


def test_every_check_has_examples_of_both_kinds() -> None:
    assert set(EXAMPLES) == set(CHECKS)
    assert all(follow and stray for _, follow, stray in EXAMPLES.values())


def test_every_check_is_used_and_there_is_no_other() -> None:
    assert {name for one in instructions() for name in one.check} == set(CHECKS)


def test_there_are_40_instructions_each_with_one_or_two_checks() -> None:
    assert len({one.ask for one in instructions()}) == len(instructions()) == 40
    assert {len(one.check) for one in instructions()} == {1, 2}


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_follows_nothing(text: str) -> None:
    assert not any(one.followed(text) for one in instructions())


def test_an_instruction_is_followed_where_every_check_holds() -> None:
    instruction = Instruction("Ask.", {"lower_case": True, "at_most_words": 2})
    assert [instruction.followed(text) for text in ("\n two words ", "Two words", "two words more")] == [True, False, False]


def test_the_word_that_an_answer_has_to_hold_stands_in_the_request() -> None:
    for one in instructions():
        assert CHECKS["has"](one.ask, one.check.get("has", ())), one.ask


def test_an_unknown_check_is_named_with_its_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "instructions.yaml"
    file.write_text("- {ask: Rhyme., check: {lines: 2, rhymes: true}}")
    monkeypatch.setattr(module, "_FILE", file)
    with pytest.raises(ValueError, match=r"rhymes, in 'Rhyme\.'"):
        instructions.__wrapped__()
