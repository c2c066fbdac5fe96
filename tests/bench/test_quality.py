from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bench.instruments import INSTRUMENTS, Instrument
from bench.quality import pages, records, retention
from bench.quality.asking import PLACES, ask, requests
from bench.quality.records import Record, all_records, count, count_beyond_chance, less
from bench.quality.size import Size
from bench.quality.ways import CALIBRATED, FRESH, NULL, PEERS, PROMPT, UNSTEERED, WAYS, Ways, without_calibration
from localsteer.building.ahead import Shelf
from localsteer.building.extraction import extract
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.names import LibraryConcept, shipped_folder
from localsteer.errors import CalibrationError
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.forced import Reading
from localsteer.reading.listening import Heard
from localsteer.vector.calibration import POLES, SIGN, Interval
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.dosing import DosedSide, Dosing
from tests.building.test_dosing import HAPPY
from tests.calibration.made import CONCEPT, calibrated_on
from tests.conftest import random_rows

SHOUTING = Instrument(
    "shouting", "whether it is in capitals", "counting", "everyday", 8, lambda text, _question: float(text.isupper())
)
Loud = Mapping[str, tuple[int, int]]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(INSTRUMENTS, "shouting", SHOUTING)
    for module in (records, retention):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(retention, "user_cache_path", lambda _name: tmp_path / "cache")
    monkeypatch.setattr(pages, "_HERE", tmp_path)
    monkeypatch.setattr(pages, "_OVERVIEW", tmp_path / "QUALITY.md")
    monkeypatch.setattr(pages, "shipped_folder", lambda: tmp_path)
    return tmp_path


def side(loud: int, heard: Mapping[str, float] | None = None, text: str = "quiet") -> dict[str, Any]:
    """So many of eight answers shout."""
    row = [dict.fromkeys(PLACES, 1.0) | dict(heard or {})] * 4
    texts = ["LOUD"] * loud + [text] * (8 - loud)
    return {
        "key": "k",
        "dose": 0.5,
        "by": "some machine",
        "texts": texts,
        "heard": [[one[place] for place in PLACES] for one in row],
    }


def put(name: str, loud: Loud, *, which: str = "demo", heard: Mapping[str, Mapping[str, float]] | None = None) -> Record:
    """A record: how many of eight answers shout toward + and toward -, by way."""
    record = Record.of(which, name)
    about = {"concept": name, "description": "Loud.", "poles": ["loud", "quiet"], "instrument": "shouting", "model": "Tiny"}
    record.begin(about, asked="this")
    record.put(UNSTEERED, None, side(4))
    for way, (positive, negative) in {PROMPT: (6, 2), **loud}.items():
        record.put(way, "positive", side(positive, (heard or {}).get(way)))
        record.put(way, "negative", side(negative, (heard or {}).get(way)))
    record.keep()
    return record


def test_a_swing_is_toward_one_pole_less_toward_the_other() -> None:
    record = put("loud", {FRESH: (8, 0)})
    assert record.swing(FRESH).mean == 1.0
    assert record.swing(PROMPT).mean == 0.5
    assert record.swing(PROMPT).low < 0.5 < record.swing(PROMPT).high


def test_a_question_whose_poles_are_the_wrong_way_round_is_counted() -> None:
    record = put("loud", {})
    record.put(FRESH, "positive", side(2))
    record.put(FRESH, "negative", side(4))
    # Answers 3 and 4 of eight shout toward the negative pole alone.
    assert record.wrong(FRESH) == 2 / 8
    assert record.wrong(PROMPT) == 0


def test_a_share_is_of_the_way_that_the_prompt_goes_and_unknown_where_it_goes_nowhere() -> None:
    record = put("loud", {FRESH: (7, 3)})
    assert record.share(FRESH, "positive") == 1.5
    assert record.share(FRESH, "negative") == 0.5
    assert np.isnan(put("loud", {PROMPT: (4, 2), FRESH: (7, 3)}).share(FRESH, "positive"))


def test_an_effect_is_how_much_likelier_answers_are_in_the_voice_of_their_pole() -> None:
    record = put("loud", {})
    record.put(FRESH, "positive", side(8, {"positive": 1.0, "negative": 3.0}))
    record.put(FRESH, "negative", side(0, {"positive": 1.5, "negative": 1.0}))
    assert record.effect(FRESH).mean == 2.5


def test_a_cost_is_the_less_of_that_beside_unsteered_answers_and_that_in_the_voice_of_the_pole() -> None:
    costs = {FRESH: {"plain": 3.0, "positive": 1.4, "negative": 1.7}, NULL: {"plain": 1.2, "positive": 4.0, "negative": 4.0}}
    record = put("loud", {FRESH: (8, 0), NULL: (4, 4)}, heard=costs)
    assert record.cost(FRESH, "positive") == pytest.approx(0.4)
    assert record.cost(FRESH, "negative") == pytest.approx(0.7)
    assert record.cost(NULL, "positive") == pytest.approx(0.2)


def test_answers_that_cost_nothing_on_the_mean_cost_nothing_however_much_single_ones_differ() -> None:
    record = put("loud", {NULL: (4, 4)})
    for place, off in enumerate((0.5, -0.5, 0.5, -0.5)):
        row = record.document["ways"][NULL]["positive"]["heard"]
        row[place] = [1.0 + off, 1.0, 1.0 - off, 1.0]
    assert record.cost(NULL, "positive") == pytest.approx(0.0)


def test_relevance_is_how_much_likelier_answers_are_after_their_own_question() -> None:
    record = put("loud", {FRESH: (8, 0)}, heard={FRESH: {"plain": 1.2, "elsewhere": 2.0}})
    assert record.relevance(FRESH, "positive") == pytest.approx(0.8)


def test_of_more_answers_those_are_compared_that_both_have() -> None:
    assert less(np.array([3.0, 4.0, 9.0]), np.array([1.0, 1.0])).tolist() == [2.0, 3.0]
    record = put("loud", {FRESH: (8, 0)})
    longer = side(8)
    longer["texts"] *= 2
    longer["heard"] *= 2
    record.put(FRESH, "positive", longer)
    assert record.swing(FRESH).mean == 1.0
    assert record.cost(FRESH, "positive") == 0.0


def test_an_empty_answer_is_no_value() -> None:
    record = put("loud", {FRESH: (8, 0)}, heard={FRESH: {"plain": 1.5, "positive": 1.5, "negative": 1.5}})
    record.document["ways"][FRESH]["positive"]["heard"][0] = [None] * len(PLACES)
    assert record.cost(FRESH, "positive") == pytest.approx(0.5)


def test_answers_to_other_questions_are_forgotten() -> None:
    record = put("loud", {FRESH: (8, 0)})
    record.begin({"concept": "loud", "description": "Said otherwise."}, asked="this")
    assert record.has(FRESH, "positive", "k", 8)
    assert record.document["description"] == "Said otherwise."
    record.begin({"concept": "loud"}, asked="that")
    assert not record.has(FRESH, "positive", "k", 8)


def test_what_there_is_none_of_is_kept_with_the_reason_until_there_is() -> None:
    record = put("loud", {FRESH: (8, 0)})
    record.fail(FRESH, "No dose does anything.")
    assert record.failed == {FRESH: "No dose does anything."}
    assert FRESH not in record.ways
    assert not record.has(FRESH, "positive", "k", 8)
    record.put(FRESH, "positive", side(8))
    record.put(FRESH, "negative", side(0))
    assert record.failed == {}
    assert FRESH in record.ways


@pytest.mark.parametrize(("key", "answers", "there"), [("k", 8, True), ("k", 4, True), ("k", 9, False), ("other", 8, False)])
def test_a_way_is_asked_again_where_it_was_made_otherwise_or_less_often(key: str, answers: int, there: bool) -> None:
    assert put("loud", {FRESH: (8, 0)}).has(FRESH, "positive", key, answers) is there


def test_what_is_kept_is_read_again() -> None:
    kept = put("loud", {FRESH: (8, 0)})
    assert Record.of("demo", "loud").document == kept.document
    assert [record.name for record in all_records("demo")] == ["loud"]
    assert all_records("real") == []


def test_concepts_are_counted_where_both_ways_are_measured() -> None:
    found = [put("one", {FRESH: (6, 4)}), put("two", {FRESH: (8, 0)}), put("three", {})]
    assert count(found, FRESH, [PROMPT]) == (1, 2)
    assert count(found, FRESH, [PROMPT], 0.5) == (2, 2)


def test_the_wrong_way_is_never_far_enough() -> None:
    backwards = put("one", {PROMPT: (2, 6), FRESH: (3, 4)})
    assert count([backwards], FRESH, [PROMPT], 0.5) == (0, 1)
    assert count([put("two", {PROMPT: (2, 6), FRESH: (5, 4)})], FRESH, [PROMPT]) == (1, 1)


def test_a_concept_that_a_way_has_none_of_counts_against_it() -> None:
    failed = put("one", {FRESH: (8, 0)})
    failed.fail(CALIBRATED, "No dose.")
    assert count([failed, put("two", {CALIBRATED: (8, 0)})], CALIBRATED, [PROMPT]) == (1, 2)


def test_chance_goes_either_way() -> None:
    found = [put("one", {FRESH: (5, 3), NULL: (3, 5)}), put("two", {FRESH: (5, 3), NULL: (4, 3)}), put("three", {NULL: (4, 4)})]
    assert count_beyond_chance(found, FRESH) == (1, 2)


def test_the_better_of_two_peers_counts() -> None:
    one = put("one", {FRESH: (7, 1), PEERS[0]: (4, 4), PEERS[1]: (8, 0)})
    assert count([one, put("two", {FRESH: (7, 1), PEERS[0]: (6, 1), PEERS[1]: (4, 4)})], FRESH, PEERS) == (1, 2)


def test_the_pages_say_how_it_stands(folders: Path) -> None:
    put("loud", {FRESH: (8, 0), NULL: (5, 4), CALIBRATED: (5, 3), PEERS[0]: (8, 0), PEERS[1]: (4, 4)})
    put("loud", {FRESH: (4, 4)}, which="real")
    pages.write()
    overview, demo, real = ((folders / name).read_text() for name in ("QUALITY.md", "DEMO.md", "REAL.md"))
    for page in (overview, demo):
        assert (
            "- fresh at least half as far as the system prompt (swing): **1 of 1**; further than chance goes: **1 of 1**" in page
        )
        assert "- fresh at least half as far toward a single pole: **2 of 2** poles" in page
        assert (
            "- calibrated at least as far as the system prompt: **0 of 1**; as the better peer: **0 of 1** "
            "(as llama-cvector-generator **0 of 1**, as repeng **1 of 1**)"
        ) in page
        assert "| loud | shouting | 8 | 0.50 | +0.50 (" in page
    assert "- fresh at least half as far as the system prompt (swing): **0 of 1**" in real
    assert "**How" not in overview
    assert "LOUD" in demo
    assert "LOUD" not in overview


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("As an AI, I don't have a garden.", 100),
        ("I’m an AI language model.", 100),
        ("I had a lovely day, as an Airedale would.", 0),
        ("Models of artificial lakes.", 0),
    ],
)
def test_answers_of_a_model_that_speaks_of_itself_as_one_are_counted(folders: Path, text: str, share: int) -> None:
    record = put("loud", {})
    record.put(FRESH, "positive", side(0, text=text))
    record.put(FRESH, "negative", side(0))
    record.keep()
    pages.write()
    page = (folders / "DEMO.md").read_text()
    (table,) = re.findall(r"## Speaks of itself as a model [^#]*", page)
    assert f"| loud | 0 | 0 / 0 | {share} / 0 |" in table


def test_refusals_are_told_beside_those_without_steering(folders: Path) -> None:
    record = put("loud", {})
    record.put(FRESH, "positive", side(0, text="I'm sorry, but I can't assist with that."))
    record.put(FRESH, "negative", side(0))
    record.keep()
    pages.write()
    page = (folders / "DEMO.md").read_text()
    assert (
        "- refused, fresh: 50.0 per cent of all answers, unsteered 0.0; more than 5 points above: loud, positive (100 beside 0)\n"
        in page
    )
    assert "| loud | 0 | 0 / 0 | 100 / 0 |" in (folders / "DEMO.md").read_text()


def test_the_library_shows_the_demo_model_alone(folders: Path) -> None:
    put("quiet", {CALIBRATED: (4, 4)})
    put("other", {CALIBRATED: (8, 0)}, which="real")
    pages.write()
    library = (folders / "README.md").read_text()
    assert "| quiet | loud | quiet | whether it is in capitals | +0.00 (0.00..0.00) (not shown beyond doubt) |" in library
    assert "[report](quiet/REPORT.md)" in library
    assert "| other |" not in library


def test_retention_is_told_with_its_mean(folders: Path) -> None:
    put("loud", {})
    sides = {
        pole: {
            "loss": loss,
            "prompt loss": 0.1,
            "followed": 0.5,
            "followed unsteered": 0.75,
            "followed under the prompt": 0.25,
        }
        for pole, loss in (("positive", 0.02), ("negative", 0.04))
    }
    kept = {"key": "k", "questions": 282, "prompted": 21, "given": 10, "sides": sides}
    folder = folders / "records" / "demo" / "retention"
    folder.mkdir()
    (folder / "loud.json").write_text(json.dumps(kept))
    pages.write()
    page = (folders / "DEMO.md").read_text()
    assert "| loud | positive | +0.020 | +0.100 | 50 | 75 | 25 |" in page
    assert "| mean |  | +0.030 | +0.100 | 50 | 75 | 25 |" in page
    assert "the right letter of 282 questions loses 0.030 nats; of 21 of them under the system prompts, 0.100 (2 sides)" in page


def test_each_side_gets_other_instructions_and_a_pole_comes_to_meet_all() -> None:
    turns = [retention._turn(40, number, 10) for number in range(8)]
    assert all(not set(one) & set(other) for one, other in zip(turns[::2], turns[1::2], strict=True))
    for pole in range(2):
        assert sorted(number for turn in turns[pole::2] for number in turn) == list(range(40))
    assert sorted(retention._turn(40, 3, 40)) == list(range(40))


def test_retention_is_measured_once_and_kept_with_what_it_was_measured_by(
    tiny: Model, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(tiny, (1, 2), seed=0)
    vector = ControlVector({layer: rows[layer] for layer in (1, 2)})
    asked = [
        retention.Question(f"What is {number}? (A) this (B) that (C) both (D) none", "ABCD"[number % 4]) for number in range(16)
    ]
    monkeypatch.setattr(retention, "questions", lambda: asked)
    monkeypatch.setattr(retention, "load_vector", lambda _name, _model: vector)
    monkeypatch.setattr(retention, "_LONGEST", 4)
    size = Size(answers=1, heard=1, instructions=3)
    retention.measure(tiny, "demo", ["happy"], size)
    kept = retention.records_of("demo")["happy"]
    assert (kept["questions"], kept["prompted"], kept["given"]) == (16, 2, 3)
    for side in kept["sides"].values():
        assert side["loss"] != 0
        assert side["prompt loss"] != 0
        assert all(0 <= side[key] <= 1 for key in ("followed", "followed unsteered", "followed under the prompt"))
    assert kept["sides"]["positive"]["loss"] != kept["sides"]["negative"]["loss"]
    monkeypatch.setattr(retention, "_right", None)  # it would fail if it were measured again
    retention.measure(tiny, "demo", ["happy"], size)
    with pytest.raises(TypeError):
        retention.measure(tiny, "demo", ["happy"], replace(size, instructions=4))


def test_questions_that_were_read_are_not_read_again(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [retention.Question(f"What is {number}?", "ABCD"[number % 4]) for number in range(7)]
    prompts = [tuple(tiny.tokenize(one.text)) for one in asked]
    edits = [None, Edit(random_rows(tiny, (1,), 0))]
    monkeypatch.setattr(retention, "_AT_ONCE", 3)
    whole, read = retention._right(tiny, prompts, asked, edits), retention._right
    turns: list[tuple[int, int]] = []

    def interrupted(model: Model, some: list[tuple[int, ...]], those: Any, under: list[Edit | None]) -> Any:
        turns.append((len(some), len(under)))
        if len(turns) == 2:
            raise KeyboardInterrupt
        return read(model, some, those, under)

    monkeypatch.setattr(retention, "_right", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retention._right_in_turns(tiny, prompts, asked, edits)
    np.testing.assert_allclose(retention._right_in_turns(tiny, prompts, asked, edits), whole, atol=0.01)
    retention._right_in_turns(tiny, prompts, asked, edits)
    assert turns == [(3, 2), (3, 2), (3, 2), (1, 2)]
    # Another vector, beside what is known already.
    other = Edit(random_rows(tiny, (1,), 5))
    *same, new = retention._right_in_turns(tiny, prompts, asked, [*edits, other])
    assert turns[4:] == [(3, 1), (3, 1), (1, 1)]
    np.testing.assert_allclose(same, whole, atol=0.01)
    np.testing.assert_allclose(new, read(tiny, prompts, asked, [other])[0], atol=0.01)


def test_no_steering_loses_nothing(tiny: Model) -> None:
    asked = [retention.Question("Which?", "B"), retention.Question("What?", "D")]
    prompts = [tuple(tiny.tokenize(one.text)) for one in asked]
    plain, none, steered = retention._right(
        tiny, prompts, asked, [None, Edit(random_rows(tiny, (1,), 0) * 0), Edit(random_rows(tiny, (1,), 0))]
    )
    np.testing.assert_allclose(plain, none, atol=1e-5)
    assert not np.allclose(plain, steered)
    assert (plain < 0).all()


# ---- what is asked, and what is done to the model


def test_questions_and_system_prompts_take_turns_with_a_seed_each(tiny: Model) -> None:
    made = requests(tiny, ["One?", "Two?"], count=4, max_tokens=3, systems=["a", "b", "c"], told=1)
    assert len({request.sampling.seed for request in made}) == 4
    assert len({request.prompt for request in made}) == 4
    assert [bool(request.logprobs) for request in made] == [True, False, False, False]
    assert requests(tiny, ["One?"], count=1, max_tokens=3)[0].prompt != made[0].prompt


def test_answers_are_heard_after_their_question_another_one_and_each_persona(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrast = parse_concept(CONCEPT, "loud")
    asked = ["One?", "Two?", "Three?", "Four?"]
    spoken: list[Heard] = []

    def hear(_model: Model, heard: Sequence[Heard]) -> Any:
        spoken.extend(heard)
        return np.arange(len(heard), dtype=np.float64)

    monkeypatch.setattr("bench.quality.asking.cross_entropies", hear)
    given = ask(tiny, contrast, asked, count=4, heard=2, max_tokens=4)
    assert len(given.texts) == 4
    assert given.heard == [[0, 1, 2, 3], [4, 5, 6, 7]]
    second = [tiny.detokenize(list(one.prompt)) for one in spoken[len(PLACES) :]]
    loud, quiet = contrast.personas[1 % len(contrast.personas)]
    assert ["Two?" in text for text in second] == [True, False, True, True]
    assert [loud in text for text in second] == [False, False, True, False]
    assert [quiet in text for text in second] == [False, False, False, True]


def test_a_way_that_is_built_here_is_another_one_for_another_wording(tmp_path: Path) -> None:
    model = cast(Model, SimpleNamespace(fingerprint=SimpleNamespace(content="c"), chat_template=None))
    concept = LibraryConcept("loud", tmp_path, shipped=True)

    def keys(source: str) -> dict[str, str]:
        ways = Ways(model, concept, parse_concept(source, "loud"), cast(Shelf, None), ships=False)
        return {way: ways.key(way) for way in WAYS}

    first = keys(CONCEPT)
    assert len(set(first.values())) == len(WAYS)
    assert first == keys(CONCEPT)
    assert not set(first.values()) & set(keys(CONCEPT + "\n# other\n").values())


def test_a_null_leads_as_far_away_as_ours_by_another_direction(tiny: Model, tmp_path: Path) -> None:
    ways = Ways(tiny, LibraryConcept("happy", tmp_path, shipped=True), HAPPY, cast(Shelf, None), ships=False)
    vector = extract(tiny, HAPPY)
    ways.__dict__["fresh"] = vector
    doser = ways._doser
    compared = [number for pole in POLES for number in doser.own.read[pole][:2]]
    found = {pole: ways.plan(NULL, pole) for pole in POLES}
    for pole, plan in found.items():
        assert plan is not None
        ours = Edit(vector.at(SIGN[pole]).rows(tiny.n_layer))
        own, other = (one.kl for one in doser.own.reader.under([Reading(ours, compared), Reading(plan.edit, compared)]))
        assert other == pytest.approx(own, rel=0.3)
        assert not np.allclose(plan.edit.added, ours.added)
    assert found["positive"] is not None
    assert found["negative"] is not None
    assert (found["positive"].edit.added * found["negative"].edit.added).sum() < 0


def test_a_fresh_vector_is_at_the_dose_of_its_dosing_whatever_calibration_it_has(tiny: Model) -> None:
    hidden = np.full(tiny.n_layer, 2.0, np.float32)
    made = calibrated_on(tiny)
    with pytest.raises(CalibrationError, match="without a dosing"):
        without_calibration(made)
    side = DosedSide({"response": 0.3, "prompt": 0.2}, (), Interval(1.0, 0.5, 1.5), 0.1, 0.1, True)
    other = replace(side, dose={"response": 0.7, "prompt": 0.2})
    dosing = Dosing("tiny", tiny.fingerprint.content, 0, 8, {"positive": side, "negative": other})
    known = replace(made.provenance, dosing=dosing, hidden_norm=hidden)
    fresh = without_calibration(ControlVector(made.directions, known))
    assert fresh.provenance.calibration is None
    length = calibrated_dose(made)
    for strength, dose in ((1.0, 0.3), (-1.0, 0.7)):
        rows = fresh.at(strength).rows(tiny.n_layer)
        np.testing.assert_allclose(rows, made.rows(tiny.n_layer) * strength * dose / length, rtol=1e-5)
    assert without_calibration(fresh) is fresh


def calibrated_dose(vector: ControlVector) -> float:
    """The relative dose that the tensors hold."""
    calibration = vector.provenance.calibration
    assert calibration is not None
    dose = calibration.sides["positive", "response"].dose
    assert dose is not None
    return dose


def test_the_library_says_what_anchoring_does_by_the_shipped_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the files themselves, not from what was measured beside them."""
    monkeypatch.setattr(pages, "shipped_folder", shipped_folder)
    records_of_one = [Record(Path("happy.json"), {"concept": "happy"})]
    (told,) = pages._of_anchored(records_of_one)
    assert told.startswith("Of the 2 sides that show an effect of more than 0.2, anchored answers have 0.")
    assert told.endswith("of 2 sides.")
    assert list(pages._of_anchored([])) == []
