from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bench import quality_page
from bench.fresh import Answers
from bench.instruments import Instrument
from bench.measure import MeasurementError
from localsteer.concepts.concept_file import parse_concept
from localsteer.llama.model import Model
from localsteer.vector.calibration import Pole
from tests.calibration.made import CONCEPT

QUESTIONS = ("How was your day?", "And the night?", "What of it?", "Who?")
SHOUTING = Instrument(
    "volume", "capitals in 100 letters", "counting", "everyday", 8, lambda text, _question: float(text.isupper())
)
WAYS = ("system prompt", "localsteer", "llama-cvector-generator", "repeng")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quality_page, "_HERE", tmp_path)
    monkeypatch.setattr(quality_page, "_RECORDS", tmp_path / "quality")
    monkeypatch.setattr(quality_page, "shipped_folder", lambda: tmp_path)
    return tmp_path


def answers(loud: int, nll: float = 1.5, count: int = 8) -> Answers:
    """So many of the answers shout."""
    return Answers(tuple("LOUD" if index < loud else "quiet" for index in range(count)), np.full(count, nll), len(QUESTIONS))


MACHINE = {"CPU": "some", "llama-cpp-python": "0.3", "localsteer": "0.1"}


def record(
    loud: dict[str, tuple[int, int]],
    *,
    base: bool = False,
    problem: str = "",
    ways: tuple[str, ...] = WAYS,
    questions: tuple[str, ...] = QUESTIONS,
) -> None:
    """How many of eight answers shout, toward + and toward -, by way; those not named are as loud as unsteered."""
    made: dict[tuple[str, Pole], Answers] = {}
    for way in ways:
        positive, negative = loud.get(way, (4, 4))
        made[way, "positive"], made[way, "negative"] = answers(positive, 1.75), answers(negative, 1.5)
    model = cast(Model, SimpleNamespace(name="Tiny", chat_template=None if base else object()))
    contrast = parse_concept(CONCEPT, "loud")
    quality_page.write_record(
        model, contrast, SHOUTING, questions, made, answers(4), {"repeng": {"positive": 0.3}}, problem, MACHINE
    )
    quality_page.write_pages()


def test_the_page_counts_where_ours_goes_as_far_as_the_others(folders: Path) -> None:
    record({"localsteer": (8, 0), "system prompt": (6, 2), "repeng": (8, 0)})
    page = (folders / "QUALITY.md").read_text()
    assert "Of 1 concepts localsteer moves its instrument at least as far as the system prompt for **1**" in page
    assert "better of the two peers for **1**; beyond doubt for 1." in page
    assert "| loud | volume | +0.50" in page


def test_a_peer_that_goes_further_is_counted_against_us(folders: Path) -> None:
    record({"localsteer": (6, 2), "system prompt": (8, 0), "llama-cvector-generator": (7, 1)})
    page = (folders / "QUALITY.md").read_text()
    assert "at least as far as the system prompt for **0**" in page
    assert "better of the two peers for **0**" in page


def test_a_concept_that_moves_nothing_stays_and_says_so(folders: Path) -> None:
    record({"system prompt": (8, 0)})
    assert "**It does not move its instrument beyond doubt on this model.**" in (folders / "QUALITY.md").read_text()
    assert "(does not move it)" in (folders / "README.md").read_text()


def test_a_vector_without_a_calibration_says_why(folders: Path) -> None:
    record({"localsteer": (8, 0)}, problem="No dose does anything.")
    assert (
        "Not calibrated, so this is the dose that it was built with: No dose does anything."
        in (folders / "QUALITY.md").read_text()
    )


def test_the_cost_is_against_unsteered_answers(folders: Path) -> None:
    record({"localsteer": (8, 0)})
    assert "| localsteer | loud | +1.00 (1.00..1.00) | +0.25 (0.25..0.25) | 8 |" in (folders / "QUALITY.md").read_text()


def test_a_base_model_has_a_table_of_its_own_and_none_in_the_library(folders: Path) -> None:
    record({"localsteer": (8, 0)})
    record({"localsteer": (8, 0)}, base=True)
    page, library = ((folders / name).read_text() for name in ("QUALITY.md", "README.md"))
    assert page.index("## The demo model: Tiny") < page.index("## A base model (raw text continuation): Tiny")
    assert library.count("| loud |") == 1


def test_answers_to_one_question_are_compared_with_unsteered_ones_to_it() -> None:
    reference = Answers(("a",) * 4, np.array([1.0, 2.0, 1.0, 2.0]), 2)
    steered = Answers(("a", "b"), np.array([1.5, np.nan]), 2)
    values: Any = steered.less(steered.nll, reference, reference.nll)
    assert values[0] == 0.5
    assert np.isnan(values[1])
    assert steered.cost(reference).mean == 0.5


def test_ways_that_are_not_measured_again_stay_as_they_are(folders: Path) -> None:
    record({"localsteer": (6, 2), "system prompt": (8, 0), "llama-cvector-generator": (7, 1)})
    record({"localsteer, anchored": (8, 0)}, ways=("localsteer, anchored",))
    page = (folders / "QUALITY.md").read_text()
    assert "Of 1 concepts localsteer moves its instrument at least as far as the system prompt for **0**" in page
    assert "Of 1 concepts localsteer, anchored moves its instrument at least as far as the system prompt for **1**" in page
    assert "| system prompt | loud | +1.00 (1.00..1.00)" in page


def test_the_better_of_ours_is_set_against_the_better_peer(folders: Path) -> None:
    swings = {"localsteer": (6, 2), "localsteer, anchored": (8, 0), "repeng": (7, 1), "system prompt": (8, 0)}
    record(swings, ways=(*WAYS, "localsteer, anchored"))
    page = (folders / "QUALITY.md").read_text()
    assert "at least as far as the system prompt for **1**, and as the better peer for **1**. Less than" in page
    assert "localsteer moves its instrument at least as far as the system prompt for **0**, and" in page
    record(swings | {"localsteer, anchored": (6, 2)}, ways=(*WAYS, "localsteer, anchored"))
    assert "and as the better peer for **0**. Less than" in (folders / "QUALITY.md").read_text()


@pytest.mark.parametrize(("mean", "close"), [(1.1, "loud"), (3.0, "none")])
def test_the_page_names_what_is_too_close_to_call(folders: Path, mean: float, close: str) -> None:
    record({}, ways=(*WAYS, "localsteer, anchored"))
    (path,) = (folders / "quality").glob("*.json")
    document = json.loads(path.read_text())
    for way in document["ways"].values():
        way["swing"] = {"mean": 0.0, "low": -1.0, "high": 1.0}
    document["ways"]["localsteer"]["swing"] = {"mean": 1.0, "low": 0.5, "high": 1.5}
    document["ways"]["repeng"]["swing"] = {"mean": mean, "low": mean - 0.5, "high": mean + 0.5}
    path.write_text(json.dumps(document))
    quality_page.write_pages()
    assert f"a standard error apart from that peer: {close}." in (folders / "QUALITY.md").read_text()


def test_what_was_asked_otherwise_does_not_stand_beside_it() -> None:
    record({})
    with pytest.raises(MeasurementError, match=r"loud: system prompt"):
        record({}, ways=("localsteer, anchored",), questions=("And how?", *QUESTIONS[1:]))


def test_a_concept_that_is_measured_again_gets_as_many_answers_as_before(folders: Path) -> None:
    assert quality_page.recorded_answers("loud", base=False) == 0
    record({"localsteer": (6, 2)})
    assert quality_page.recorded_answers("loud", base=False) == 8
    assert quality_page.recorded_answers("loud", base=True) == 0
