from __future__ import annotations

from localsteer.building.voices import voices
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.concepts.descriptions import everyday_questions
from localsteer.llama.model import Model

PAIRS = tuple(Pair(Prompt((), f"good {number}"), Prompt((), f"bad {number}")) for number in range(6))
PERSONAS = (("Be glad.", "Be sad."), ("Cheer.", "Weep."))


def text(model: Model, tokens: tuple[int, ...]) -> str:
    return b"".join(map(model.token_bytes, tokens)).decode()


def test_personas_speak_before_the_held_out_questions_and_steering_begins_at_the_bare_question(tiny: Model) -> None:
    contrast = Contrast("happy", "", "happy", "sad", PAIRS, ("Who?", "Where?", "Why?"), personas=PERSONAS)
    found = voices(tiny, contrast, 4)
    assert (found.reach, found.spoken) == (1, True)
    for number, question in enumerate(["Who?", "Where?", "Why?", "Who?"]):
        happy, sad = PERSONAS[number % 2]
        bare = text(tiny, found.start["positive"][number])
        assert question in bare
        assert "glad" not in bare
        assert found.start["negative"][number] == found.start["positive"][number]
        for pole, persona in (("positive", happy), ("negative", sad)):
            said = text(tiny, found.own[pole][number])  # type: ignore[index]
            assert persona in said
            assert question in said


def test_without_personas_a_pole_is_its_own_prompts_and_the_way_to_it_begins_at_the_others(tiny: Model) -> None:
    found = voices(tiny, Contrast("mood", "", "good", "bad", PAIRS), 3)
    assert [text(tiny, prompt) for prompt in found.own["positive"]] == ["good 0", "good 2", "good 4"]
    assert [text(tiny, prompt) for prompt in found.start["positive"]] == ["bad 0", "bad 2", "bad 4"]
    assert found.start["negative"] == found.own["positive"]
    assert (found.reach, found.spoken) == (2, True)
    all_of_them = voices(tiny, Contrast("mood", "", "good", "bad", PAIRS), 30).own["positive"]
    assert [text(tiny, prompt) for prompt in all_of_them] == [f"good {number}" for number in range(6)]


def test_a_vector_from_elsewhere_is_asked_everyday_questions(tiny: Model) -> None:
    found = voices(tiny, None, 5)
    assert not found.spoken
    for prompt, question in zip(found.own["negative"], everyday_questions(), strict=False):
        assert question in text(tiny, prompt)
    assert found.own["positive"] == found.start["positive"] == found.start["negative"]


def test_personas_without_questions_of_their_own_are_asked_everyday_ones(tiny: Model) -> None:
    contrast = Contrast("happy", "", "happy", "sad", PAIRS, personas=PERSONAS)
    assert everyday_questions()[0] in text(tiny, voices(tiny, contrast, 2).own["positive"][0])
