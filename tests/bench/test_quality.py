from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bench.instruments import INSTRUMENTS, Instrument
from bench.quality import pages, records, retention
from bench.quality.asking import PLACES, ask, requests
from bench.quality.records import Record, all_records, count, count_best
from bench.quality.ways import CALIBRATED, FRESH, NULL, PEERS, PROMPT, UNSTEERED, Ways, without_calibration
from localsteer.building.ahead import Shelf
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.names import LibraryConcept
from localsteer.errors import CalibrationError
from localsteer.llama.model import Model
from localsteer.vector.calibration import Interval
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.dosing import DosedSide, Dosing
from tests.calibration.made import CONCEPT, calibrated_on

SHOUTING = Instrument(
    "shouting", "whether it is in capitals", "counting", "everyday", 8, lambda text, _question: float(text.isupper())
)
Loud = Mapping[str, tuple[int, int]]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(INSTRUMENTS, "shouting", SHOUTING)
    for module in (records, retention):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "records")
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
    record.begin({"concept": name, "description": "Loud.", "poles": ["loud", "quiet"], "instrument": "shouting", "model": "Tiny"})
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
    assert record.effect(FRESH) == 2.5


def test_a_cost_is_the_less_of_that_beside_unsteered_answers_and_that_in_the_voice_of_the_pole() -> None:
    costs = {FRESH: {"plain": 3.0, "positive": 1.4, "negative": 1.7}, NULL: {"plain": 1.2, "positive": 4.0, "negative": 4.0}}
    record = put("loud", {FRESH: (8, 0), NULL: (4, 4)}, heard=costs)
    assert record.cost(FRESH, "positive") == pytest.approx(0.4)
    assert record.cost(FRESH, "negative") == pytest.approx(0.7)
    assert record.cost(NULL, "positive") == pytest.approx(0.2)


def test_an_empty_answer_is_no_value() -> None:
    record = put("loud", {FRESH: (8, 0)}, heard={FRESH: {"plain": 1.5, "positive": 1.5, "negative": 1.5}})
    record.document["ways"][FRESH]["positive"]["heard"][0] = [None] * len(PLACES)
    assert record.cost(FRESH, "positive") == pytest.approx(0.5)


def test_answers_to_other_questions_are_forgotten() -> None:
    record = put("loud", {FRESH: (8, 0)})
    asked = {key: value for key, value in record.document.items() if key != "ways"}
    record.begin(asked)
    assert record.has(FRESH, "positive", "k", 8)
    record.begin({**asked, "model": "Another"})
    assert not record.has(FRESH, "positive", "k", 8)


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
    assert count(found, FRESH, PROMPT) == (1, 2)
    assert count(found, FRESH, PROMPT, 0.5) == (2, 2)


def test_the_better_of_two_peers_counts() -> None:
    found = [
        put("one", {FRESH: (7, 1), PEERS[0]: (4, 4), PEERS[1]: (8, 0)}),
        put("two", {FRESH: (7, 1), PEERS[0]: (6, 1), PEERS[1]: (4, 4)}),
    ]
    assert count_best(found, FRESH, PEERS) == (1, 2)


def test_the_pages_say_how_it_stands(folders: Path) -> None:
    put("loud", {FRESH: (8, 0), NULL: (5, 4), CALIBRATED: (5, 3), PEERS[0]: (8, 0), PEERS[1]: (4, 4)})
    put("loud", {FRESH: (4, 4)}, which="real")
    pages.write()
    overview, demo, real = ((folders / name).read_text() for name in ("QUALITY.md", "DEMO.md", "REAL.md"))
    for page in (overview, demo):
        assert "- fresh at least half as far as the system prompt: **1 of 1** concepts" in page
        assert "- fresh further than chance takes it: **1 of 1**" in page
        assert "- calibrated at least as far as the system prompt: **0 of 1**; as the better peer: **0 of 1**" in page
        assert "| loud | shouting | 8 | 0.50 | +0.50 (" in page
    assert "- fresh at least half as far as the system prompt: **0 of 1** concepts" in real
    assert "**How" not in overview
    assert "LOUD" in demo
    assert "LOUD" not in overview


def test_refusals_are_told_beside_those_without_steering(folders: Path) -> None:
    record = put("loud", {})
    record.put(FRESH, "positive", side(0, text="I'm sorry, but I can't assist with that."))
    record.put(FRESH, "negative", side(0))
    record.keep()
    pages.write()
    assert (
        "- refused, per cent of all answers: unsteered 0.0, system prompt 0.0, fresh 50.0, calibrated -"
        in (folders / "DEMO.md").read_text()
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
    kept = {"questions": 282, "given": 10, "concepts": {"loud": {"key": "k", "unsteered": -1.0, "sides": sides, "by": "it"}}}
    (folders / "records" / "demo" / "retention.json").write_text(json.dumps(kept))
    pages.write()
    page = (folders / "DEMO.md").read_text()
    assert "| loud | positive | +0.020 | +0.100 | 50 | 75 | 25 |" in page
    assert "| mean |  | +0.030 | +0.100 | 50 | 75 | 25 |" in page
    assert "loses 0.030 nats at strength 1, and 0.100 under the system prompts (2 sides)" in page


# ---- what is asked, and what is done to the model


def test_questions_and_system_prompts_take_turns_with_a_seed_each(tiny: Model) -> None:
    made = requests(tiny, ["One?", "Two?"], count=4, max_tokens=3, systems=["a", "b", "c"], told=1)
    assert len({request.sampling.seed for request in made}) == 4
    assert len({request.prompt for request in made}) == 4
    assert [bool(request.logprobs) for request in made] == [True, False, False, False]
    assert requests(tiny, ["One?"], count=1, max_tokens=3)[0].prompt != made[0].prompt


def test_answers_are_heard_in_four_places(tiny: Model) -> None:
    contrast = parse_concept(CONCEPT, "loud")
    given = ask(tiny, contrast, ["One?", "Two?", "Three?", "Four?"], count=4, heard=2, max_tokens=4)
    assert len(given.texts) == 4
    assert [len(row) for row in given.heard] == [len(PLACES)] * 2
    again = ask(tiny, contrast, ["One?", "Two?", "Three?", "Four?"], count=4, heard=2, max_tokens=4)
    assert again == given


def test_a_way_is_another_one_for_another_wording_or_effort(tmp_path: Path) -> None:
    contrast = parse_concept(CONCEPT, "loud")
    model = cast(Model, SimpleNamespace(fingerprint=SimpleNamespace(content="c")))
    concept = LibraryConcept("loud", tmp_path, shipped=True)

    def keys(source: str, *, quick: bool) -> dict[str, str]:
        ways = Ways(model, concept, parse_concept(source, "loud"), cast(Shelf, None), quick, False)
        return {way: ways.key(way) for way in (PROMPT, FRESH, CALIBRATED, PEERS[0])}

    first = keys(CONCEPT, quick=False)
    assert len(set(first.values())) == len(first)
    assert first == keys(CONCEPT, quick=False)
    quick = keys(CONCEPT, quick=True)
    assert {way for way in first if first[way] != quick[way]} == {PEERS[0]}
    assert not set(first.values()) & set(keys(contrast.source + "\n# other\n", quick=False).values())


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
