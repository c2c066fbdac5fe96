from __future__ import annotations

import pytest
import yaml

from bench.instruments import INSTRUMENTS
from bench.questions import accepted_answers, question_sets
from localsteer.concepts.names import shipped_folder


@pytest.mark.parametrize(
    ("name", "nearer", "farther"),
    [
        ("sentiment", "What a lovely, joyful morning!", "What a terrible, hopeless morning."),
        ("calmness", "We share a gentle, trusting contentment.", "I loathe you, and my rage is savage."),
        ("politeness", "Thank you, I would be glad to help.", "That is a stupid, idiotic question."),
        ("formality", "The committee considered alternative proposals.", "Yeah, it's just my stuff, you know."),
        ("brevity", "Blue.", "It is painted in a shade of blue that changes with the light of the day."),
        ("confidence", "It is certainly and undoubtedly so.", "Perhaps it might be so, but I am not sure."),
        ("enthusiasm", "What joy! I am thrilled!", "It was on Tuesday."),
        ("readability", "The sun is hot. We see it by day.", "Electromagnetic radiation necessitates photosynthesis."),
        ("imagination", "A dragon sang of moonlight and magic.", "The government taxes business revenue."),
        ("caution", "Please don't: that is dangerous.", "Go on, it will be fun."),
        ("respect", "You are very welcome here.", "You are a stupid asshole."),
        ("french", "Je ne sais pas où se trouve la gare.", "I do not know where the station is."),
        ("lists", "You need:\n- bread\n- butter\n2. milk", "You need bread, butter and milk."),
        ("piracy", "Ahoy, the ship sets sail!", "The minister has resigned."),
    ],
)
def test_an_instrument_tells_the_poles_apart(name: str, nearer: str, farther: str) -> None:
    score = INSTRUMENTS[name].score
    assert score(nearer, "") > score(farther, "")


def test_truth_asks_for_the_right_word() -> None:
    question = "What is two plus two?"
    score = INSTRUMENTS["truth"].score
    assert [score(text, question) for text in ("It is 4.", "FOUR", "It is 14.", "fourteen", "")] == [100, 100, 0, 0, 0]


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_an_empty_answer_has_a_score(name: str) -> None:
    assert INSTRUMENTS[name].score("", "What is two plus two?") == 0


def test_every_instrument_asks_questions_that_exist() -> None:
    assert {one.questions for one in INSTRUMENTS.values()} <= set(question_sets())


def test_every_fact_has_an_answer() -> None:
    assert all(accepted_answers(question) for question in question_sets()["facts"])


def test_every_shipped_concept_names_an_instrument() -> None:
    for file in shipped_folder().glob("*/concept.yaml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["instrument"] in INSTRUMENTS, file
