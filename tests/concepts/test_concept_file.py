from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.concepts.concept_file import load_concept, parse_concept
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.errors import ContrastError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from tests.tiny_models import write_tiny_model

PIRATE = """\
# Ahoy.
name: pirate
description: Talks like a pirate.
poles: {positive: pirate, negative: news reader}
template: "You are {persona}. {persona}!"
personas:
  positive:
    - a pirate
    - an old buccaneer
  negative:
    - a news reader
    - an announcer
questions:
  - Where do you live?
  - What did you eat?
openings:
  - Well,
  - I
  - The
held_out:
  questions:
    - How is the weather?
"""

PAIRS = """\
name: french
poles:
  positive: french
  negative: english
pairs:
  - {positive: "Où ?", negative: "Where?"}
  - positive: Oui.
    negative: "Yes."
held_out:
  questions: ["Who?"]
"""

TEMPLATED = """\
name: french
poles: {positive: french, negative: english}
templated: true
pairs:
  - {positive: "<|im_start|>user\\nOù ?\\n", negative: " Where?"}
held_out: {questions: ["Who?"]}
"""


def parse(text: str = PIRATE) -> Contrast:
    return parse_concept(text, "pirate.yaml")


def without(text: str, *starts: str) -> str:
    """The concept without the lines that begin so."""
    lines = [line for line in text.splitlines(keepends=True) if not line.strip().startswith(starts)]
    assert len(lines) < len(text.splitlines())
    return "".join(lines)


def system(prompt: Prompt) -> str:
    assert prompt.messages[0].role == "system"
    return prompt.messages[0].content


# A good concept


def test_a_concept_says_what_it_is() -> None:
    made = parse()
    assert (made.name, made.description) == ("pirate", "Talks like a pirate.")
    assert (made.positive, made.negative) == ("pirate", "news reader")
    assert made.held_out == ("How is the weather?",)
    assert made.source == PIRATE


def test_half_a_crossing_asks_each_question_of_every_other_persona() -> None:
    full, half = parse().pairs, parse(PIRATE + "crossing: half\n").pairs
    # Openings 1 and 3 belong to question 1, and opening 2 to question 2.
    assert half == (full[0], full[2], full[4])
    no_question = PIRATE.replace("questions:\n  - Where do you live?\n  - What did you eat?\n", "")
    for text in (without(PIRATE, "- What did"), no_question):
        pairs = parse(text + "crossing: half\n").pairs
        assert [(system(pair.positive), pair.positive.opening) for pair in pairs] == [
            ("You are a pirate. a pirate!", "Well,"),
            ("You are a pirate. a pirate!", "The"),
            ("You are an old buccaneer. an old buccaneer!", "I"),
        ]


def test_personas_are_crossed_with_openings() -> None:
    pairs = parse().pairs
    assert [(system(pair.positive), pair.positive.opening) for pair in pairs] == [
        (f"You are {persona}. {persona}!", opening)
        for persona in ("a pirate", "an old buccaneer")
        for opening in ("Well,", "I", "The")
    ]
    assert [system(pair.negative) for pair in pairs[::3]] == [
        "You are a news reader. a news reader!",
        "You are an announcer. an announcer!",
    ]


def test_questions_take_turns() -> None:
    for number, pair in enumerate(parse().pairs):
        expected = Message("user", ("Where do you live?", "What did you eat?")[number % 3 % 2])
        assert pair.positive.messages[1:] == (expected,)


def test_a_pair_differs_in_the_persona_only() -> None:
    for pair in parse().pairs:
        assert pair.positive.messages[0] != pair.negative.messages[0]
        assert pair.positive.messages[1:] == pair.negative.messages[1:]
        assert pair.positive.opening == pair.negative.opening


def test_an_opening_may_differ_between_the_poles() -> None:
    made = parse(PIRATE.replace("  - Well,\n", '  - {positive: "Arrr,", negative: Good evening.}\n'))
    assert [(pair.positive.opening, pair.negative.opening) for pair in made.pairs[:2]] == [("Arrr,", "Good evening."), ("I", "I")]
    assert made.pairs[0].positive.messages[1] == made.pairs[0].negative.messages[1]


def test_an_opening_for_one_pole_only_names_its_line() -> None:
    with pytest.raises(ContrastError, match=r"pirate\.yaml, line 18: openings\.1\.negative"):
        parse(PIRATE.replace("  - I\n", "  - {positive: Arrr}\n"))


def test_a_concept_may_name_its_instrument() -> None:
    assert parse("instrument: piracy\n" + PIRATE).pairs == parse().pairs


def test_a_concept_may_do_without_questions() -> None:
    made = parse(PIRATE.replace("questions:\n  - Where do you live?\n  - What did you eat?\n", ""))
    assert [len(pair.positive.messages) for pair in made.pairs] == [1] * 6


def test_more_openings_than_questions_and_the_other_way_round() -> None:
    few = parse(without(PIRATE, "- I", "- The"))
    assert [pair.positive.messages[1].content for pair in few.pairs] == ["Where do you live?"] * 2
    assert len(few.pairs) == 2


def test_what_a_concept_may_leave_out() -> None:
    made = parse("name: a\npoles: {positive: b, negative: c}\npersonas: {positive: [d], negative: [e]}\nopenings: [f]\n")
    assert made.pairs == (Pair(Prompt((Message("system", "d"),), "f"), Prompt((Message("system", "e"),), "f")),)
    assert (made.description, made.held_out) == ("", ())


def test_explicit_pairs() -> None:
    made = parse(PAIRS)
    assert made.pairs == (
        Pair(Prompt((Message("user", "Où ?"),), ""), Prompt((Message("user", "Where?"),), "")),
        Pair(Prompt((Message("user", "Oui."),), ""), Prompt((Message("user", "Yes."),), "")),
    )
    assert made.held_out == ("Who?",)


def test_templated_pairs_are_the_very_texts_that_the_model_reads(tiny: Model) -> None:
    made = parse(TEMPLATED)
    assert made.pairs == (Pair(Prompt((), "<|im_start|>user\nOù ?\n"), Prompt((), " Where?")),)
    assert [prompt.render(tiny) for prompt in made.prompts()] == ["<|im_start|>user\nOù ?\n", " Where?"]
    assert (made.held_out, made.personas, made.source) == (("Who?",), (), TEMPLATED)


def test_pairs_are_questions_unless_they_are_templated() -> None:
    asked = parse(TEMPLATED.replace("templated: true", "templated: false"))
    assert asked.pairs[0].negative == Prompt((Message("user", " Where?"),), "")
    assert asked.pairs == parse(without(TEMPLATED, "templated")).pairs


def test_prompts_are_all_positive_ones_then_all_negative_ones() -> None:
    texts = [prompt.messages[0].content for prompt in parse(PAIRS).prompts()]
    assert texts == ["Où ?", "Oui.", "Where?", "Yes."]


def test_a_persona_may_hold_braces() -> None:
    made = parse(PIRATE.replace("- a pirate", '- "{x} {persona} {"'))
    assert system(made.pairs[0].positive) == "You are {x} {persona} {. {x} {persona} {!"


def test_a_concept_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "french.yaml"
    path.write_bytes(PAIRS.encode())
    assert load_concept(path) == parse(PAIRS)
    assert load_concept(str(path)) == parse(PAIRS)


def test_the_shipped_concept_is_good() -> None:
    made = load_concept(Path(__file__).parents[2] / "vectors" / "happy" / "concept.yaml")
    assert made.name == "happy"
    assert len(made.pairs) >= 20
    asked = {message.content for prompt in made.prompts() for message in prompt.messages}
    assert made.held_out
    assert not asked & set(made.held_out)


# Broken concepts

BROKEN = [
    # What is replaced by what, the line of the mistake, and words of the message.
    ("name: pirate", "name: Pirate", 2, "name"),
    ("name: pirate", "name: 'two words'", 2, "name"),
    ("name: pirate", "name: -x", 2, "name"),
    ("name: pirate", "name: 7", 2, "name: input should be a valid string"),
    ("description: Talks like a pirate.", "description: [a]", 3, "description"),
    ("description: Talks", "descriptoin: Talks", 3, "descriptoin: there is no such key"),
    ("negative: news reader}", "negativ: news reader}", 4, "negative"),
    ("negative: news reader}", "negative: ''}", 4, "poles.negative"),
    ("negative: news reader}", "negative: no}", 4, "poles.negative: input should be a valid string"),
    ("poles: {positive: pirate, negative: news reader}", "poles: pirate", 4, "poles"),
    ("    - an old buccaneer", "    - ''", 9, "personas.positive.1"),
    ("    - an announcer", "    - 7", 12, "personas.negative.1: input should be a valid string"),
    ("    - a news reader\n    - an announcer", "    []", 10, "personas.negative"),
    ("  - What did you eat?", "  - {What: eat}", 15, "questions.1"),
    ("  - I\n", "  - yes\n", 18, "openings.1"),
    ("    - How is the weather?", "    - ''", 22, "held_out.questions.0"),
    ("  questions:\n    - How", "  question:\n    - How", 21, "held_out.question"),
    ("held_out:\n", "held_out:\n  pairs: []\n", 21, "held_out.pairs"),
    ("openings:", "templated: maybe\nopenings:", 16, "templated"),
    ("name: pirate", "name: @pirate", 2, "YAML"),
    ("  - Where do you live?", "  - *where", 14, "YAML"),
    ("  - Well,", "  - Well: yes: no", 17, "YAML"),
    ("openings:", "\topenings:", 16, "YAML"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), BROKEN, ids=[new for _, new, *_ in BROKEN])
def test_a_broken_concept_names_the_line(old: str, new: str, line: int, words: str) -> None:
    assert PIRATE.count(old) == 1
    with pytest.raises(ContrastError) as caught:
        parse(PIRATE.replace(old, new))
    assert caught.value.message.startswith(f"pirate.yaml, line {line}: ")
    assert words in caught.value.message


def test_a_quote_that_is_not_closed_is_named_where_it_opens() -> None:
    with pytest.raises(ContrastError, match="line 14"):
        parse(PIRATE.replace("  - Where do you live?", "  - 'Where do you live?"))


def test_a_mistake_is_told_in_one_line() -> None:
    with pytest.raises(ContrastError, match=r"\A.*YAML.*\Z"):
        parse(PIRATE.replace("pirate", "pi\0rate"))


def test_a_broken_pair_names_its_line() -> None:
    with pytest.raises(ContrastError, match=r"line 8: pairs\.1\.negative"):
        parse(PAIRS.replace('"Yes."', "''"))


INCONSISTENT = [
    (without(PIRATE, "- an announcer"), "2 positive and 1 negative"),
    (without(PIRATE, "openings:", "- Well", "- I", "- The"), "openings"),
    (without(PIRATE, "template:") + 'template: "You are {person}."\n', r"template: it must contain {persona}"),
    (without(PAIRS, "pairs:", "- {", "- pos", 'negative: "Y'), "either personas .* or pairs"),
    (PIRATE + "pairs: [{positive: a, negative: b}]\n", "personas: .*pairs"),
    (PAIRS + "openings: [I]\n", "openings: .*pairs"),
    (PAIRS + 'questions: ["Why?"]\n', "questions: .*pairs"),
    (PAIRS + "crossing: half\n", "crossing: .*pairs"),
    (PIRATE + "templated: true\n", "templated: .*pairs"),
    (TEMPLATED + "openings: [I]\n", "openings: .*pairs"),
    (without(PIRATE, "- an old", "- an ann") + "crossing: half\n", "crossing: .*two pairs of personas"),
    (without(PIRATE, "- I", "- The") + "crossing: half\n", "crossing: .*two openings"),
    (PIRATE + "    - What did you eat?\n", '"What did you eat\\?"'),
]


@pytest.mark.parametrize(("text", "message"), INCONSISTENT, ids=[message for _, message in INCONSISTENT])
def test_parts_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(ContrastError, match=f"^pirate.yaml, line .*{message}"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (without(PIRATE, "- an announcer"), 6),
        (without(PIRATE, "template:") + 'template: "You are {person}."\n', 22),
        (PAIRS + "openings: [I]\n", 11),
        (PIRATE + "    - What did you eat?\n", 23),
    ],
)
def test_parts_that_do_not_go_together_name_their_line(text: str, line: int) -> None:
    with pytest.raises(ContrastError, match=f"line {line}:"):
        parse(text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- name: pirate\n", "pirate", "7", "null"])
def test_a_file_without_keys_is_no_concept(text: str) -> None:
    with pytest.raises(ContrastError, match=r"pirate\.yaml"):
        parse(text)


@pytest.mark.parametrize("key", ["name", "poles"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ContrastError, match=f"{key}:"):
        parse(without(PIRATE, f"{key}:"))


def test_code_in_yaml_is_not_run() -> None:
    with pytest.raises(ContrastError, match=r"line 2: .*YAML"):
        parse(PIRATE.replace("name: pirate", "name: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize("value", ["2024-13-45", "!!int pirate"])
def test_yaml_values_that_do_not_exist_are_refused(value: str) -> None:
    with pytest.raises(ContrastError, match="YAML"):
        parse(PIRATE.replace("description: Talks like a pirate.", f"description: {value}"))


def test_a_missing_concept_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match=r"concept\.yaml"):
        load_concept(tmp_path / "concept.yaml")


def test_a_folder_is_no_concept_file(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match=str(tmp_path)):
        load_concept(tmp_path)


def test_a_concept_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "concept.yaml"
    path.write_bytes("name: groß".encode("latin-1"))
    with pytest.raises(ContrastError, match=r"concept\.yaml.*UTF-8.*byte 9"):
        load_concept(path)


def test_a_broken_concept_file_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "concept.yaml"
    path.write_text("name: [")
    with pytest.raises(ContrastError) as caught:
        load_concept(path)
    assert str(caught.value).startswith(f"{path}, line 1: ")


# The hash


def test_the_hash_is_of_the_prompts_as_the_model_reads_them(tiny: Model, tmp_path: Path) -> None:
    made = parse()
    assert parse(PIRATE + "# a comment\n").sha256(tiny) == made.sha256(tiny)
    assert parse(PIRATE.replace("Talks like", "Speaks as")).sha256(tiny) == made.sha256(tiny)
    changed = {parse(PIRATE.replace(old, "x")).sha256(tiny) for old in ("an old", "announcer", "Where", "Well,", "You are")}
    assert len(changed | {made.sha256(tiny)}) == 6
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as base:
        assert made.sha256(base) != made.sha256(tiny)


def test_swapped_poles_have_another_hash(tiny: Model) -> None:
    made = parse(PAIRS)
    swapped = Contrast("x", "", "", "", tuple(Pair(pair.negative, pair.positive) for pair in made.pairs))
    assert swapped.sha256(tiny) != made.sha256(tiny)
