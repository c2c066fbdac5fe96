from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsteer.calibration import laboratory as room
from localsteer.calibration.laboratory import Laboratory, Outcome, Trial
from localsteer.calibration.shapes import Directions, Shape
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.errors import CalibrationError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.scoring import Scored, answer_nll, reread
from tests.calibration.made import CONCEPT
from tests.conftest import TinyModel

CONTRAST = parse_concept(CONCEPT, "loud")
SHAPE = Shape((1, 2), "relative")
PAIRS = """\
name: shout
poles: {positive: loud, negative: quiet}
pairs:
  - {positive: I AM HERE, negative: I am here}
  - {positive: GO AWAY NOW, negative: please go away}
held_out: {questions: ["How are you?", "Who is there?", "Where is it?", "When was it?"]}
"""
# The same answers read in a differently composed batch.
NOISE = 0.02


def directions(model: Model, seed: int = 0) -> Directions:
    drawn = np.random.default_rng(seed).standard_normal((model.n_layer, model.n_embd)).astype(np.float32)
    return Directions.of(drawn, np.full(model.n_layer, 10, np.float32))


def open_laboratory(
    model: Model,
    folder: Path | None = None,
    *,
    contrast: Contrast = CONTRAST,
    along: Directions | None = None,
    seed: int = 0,
    max_tokens: int = 5,
    fresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Laboratory:
    return Laboratory(
        model,
        along or directions(model),
        contrast,
        seed=seed,
        max_tokens=max_tokens,
        folder=folder,
        fresh=fresh,
        on_progress=on_progress,
    )


STEERED = [Trial(number, SHAPE, dose) for dose in (-2.0, 2.0) for number in range(3)]
ALL = [*(Trial(number) for number in range(4)), *STEERED, Trial(0, persona="positive"), Trial(0, SHAPE, 2.0, "prompt")]

# The instrument is fitted to unsteered answers, which are measured with that.
FITTED_ON = 20
MEASURED = FITTED_ON + sum(trial.shape is not None or trial.persona is not None for trial in ALL)


@pytest.fixture
def read_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers were re-read, batch by batch."""
    counts: list[int] = []

    def counting(model: Model, pairs: Sequence[Scored], layers: Sequence[int] = ()) -> Any:
        counts.append(len(pairs))
        return reread(model, pairs, layers)

    monkeypatch.setattr(room, "reread", counting)
    return counts


def bare_prompt(model: Model, trial: Trial) -> tuple[int, ...]:
    return prompt_tokens(model, [Message("user", CONTRAST.held_out[trial.number % 4])])


# What is measured


def test_an_answer_is_scored_after_its_bare_question_whatever_it_was_given_under(tiny: Model) -> None:
    trials = [Trial(1), Trial(6, SHAPE, 2.0), Trial(3, SHAPE, 2.0, "prompt"), Trial(2, persona="negative")]
    outcomes = open_laboratory(tiny).measure(trials)
    pairs = [Scored(bare_prompt(tiny, trial), outcome.tokens) for trial, outcome in zip(trials, outcomes, strict=True)]
    np.testing.assert_allclose([outcome.nll for outcome in outcomes], answer_nll(tiny, pairs), atol=NOISE)
    assert all(len(outcome.tokens) == 5 and not outcome.ended for outcome in outcomes)
    assert np.isfinite([outcome.reading for outcome in outcomes]).all()


def test_unsteered_answers_read_zero_on_the_average(tiny: Model) -> None:
    # The instrument is fitted to them, half by half.
    outcomes = open_laboratory(tiny).measure([Trial(number) for number in range(20)])
    for half in (0, 1):
        assert np.mean([outcome.reading for outcome in outcomes[half::2]]) == pytest.approx(0, abs=0.05)


def test_every_part_of_a_trial_makes_another_answer(tiny: Model) -> None:
    laboratory = open_laboratory(tiny, max_tokens=8)
    trials = [
        Trial(0),
        Trial(4),  # the same question again, on other chances
        Trial(1),
        Trial(0, SHAPE, 1.5),
        Trial(0, SHAPE, -1.5),
        Trial(0, SHAPE, 1.5, "prompt"),
        Trial(0, Shape((3,), "relative"), 1.5),
        Trial(0, persona="positive"),
        Trial(0, persona="negative"),
    ]
    outcomes = laboratory.measure(trials)
    assert len({outcome.tokens for outcome in outcomes}) == len(trials)
    assert [laboratory.question_of(trial) for trial in trials] == [0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_equal_numbers_share_their_chances(tiny: Model) -> None:
    # A dose next to nothing changes nothing.
    plain, steered = open_laboratory(tiny).measure([Trial(5), Trial(5, SHAPE, 0.0001)])
    assert plain.tokens == steered.tokens


def test_answers_come_in_the_order_they_were_asked_for(tiny: Model) -> None:
    laboratory = open_laboratory(tiny)
    forward = laboratory.measure(ALL)
    assert laboratory.measure(ALL[::-1]) == forward[::-1]
    assert laboratory.measure([ALL[5], ALL[0], ALL[5]]) == [forward[5], forward[0], forward[5]]


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(tiny: Model) -> None:
    one, again, other = (open_laboratory(tiny, seed=seed).measure(ALL) for seed in (3, 3, 4))
    assert one == again
    assert [outcome.tokens for outcome in one] != [outcome.tokens for outcome in other]


def test_the_text_of_an_answer_is_that_of_its_tokens(tiny: Model) -> None:
    laboratory = open_laboratory(tiny)
    (outcome,) = laboratory.measure([Trial(2)])
    text = laboratory.text_of(Trial(2))
    assert text == b"".join(tiny.token_bytes(token) for token in outcome.tokens).decode(errors="replace").strip()


def test_repetition_shows_in_the_share_of_distinct_trigrams() -> None:
    assert Outcome(tuple(range(10)), False).distinct == 1
    assert Outcome((7,) * 10, False).distinct == 1 / 8
    assert Outcome((1, 2) * 5, False).distinct == 2 / 8
    for short in ((1,), (1, 1)):
        assert Outcome(short, True).distinct == 1
    assert Outcome((), True).distinct == 0


def test_a_concept_of_explicit_pairs_can_be_measured(tiny: Model) -> None:
    laboratory = open_laboratory(tiny, contrast=parse_concept(PAIRS, "shout"))
    outcomes = laboratory.measure([Trial(number) for number in range(20)] + STEERED)
    readings = np.array([outcome.reading for outcome in outcomes])
    assert np.isfinite(readings).all()
    assert readings[:20].mean() == pytest.approx(0, abs=0.05)
    assert np.abs(readings[20:]).max() > 0.1


def with_empty_answers(monkeypatch: pytest.MonkeyPatch, is_empty: Callable[[Request], bool]) -> None:
    def generate(model: Model, requests: Sequence[Request], **options: Any) -> list[Answer]:
        answers = generate_many(model, requests, **options)
        return [
            replace(answer, tokens=(), finish_reason="stop") if is_empty(request) else answer
            for request, answer in zip(requests, answers, strict=True)
        ]

    monkeypatch.setattr(room, "generate_many", generate)


def test_an_empty_answer_has_no_score_and_spoils_no_other(tiny: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = open_laboratory(tiny).measure(ALL)
    with_empty_answers(monkeypatch, lambda request: request.plan is not None and request.plan.mode == "prompt")
    found = open_laboratory(tiny, tmp_path).measure(ALL)
    assert [outcome.tokens for outcome in found[:-1]] == [outcome.tokens for outcome in full[:-1]]
    np.testing.assert_allclose([one.nll for one in found[:-1]], [one.nll for one in full[:-1]], atol=NOISE)
    assert (found[-1].tokens, found[-1].ended) == ((), True)
    assert np.isnan([found[-1].nll, found[-1].reading]).all()
    # And it is no reason to ask again.
    assert open_laboratory(tiny, tmp_path).measured == MEASURED


def test_a_model_that_gives_no_answers_is_told_so(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with_empty_answers(monkeypatch, lambda _request: True)
    with pytest.raises(CalibrationError, match=r"tiny .*loud"):
        open_laboratory(tiny).measure([Trial(0)])


def test_the_speed_is_measured(tiny: Model) -> None:
    laboratory = open_laboratory(tiny)
    speed = laboratory.probe_speed()
    assert speed.answering > 0
    assert speed.reading > 0
    assert laboratory.measured == 0


# Once


def test_what_was_measured_is_not_measured_again(tiny: Model, answered: list[int]) -> None:
    laboratory = open_laboratory(tiny)
    first = laboratory.measure([*ALL, *ALL])
    asked = sum(answered)
    assert asked == MEASURED == laboratory.generated_tokens / 5
    assert laboratory.measured == MEASURED
    assert laboratory.measure(ALL) == first[: len(ALL)]
    assert sum(answered) == asked
    laboratory.measure([*ALL, Trial(0, SHAPE, 1.0)])
    assert sum(answered) == asked + 1


def test_progress_counts_the_measured_answers(tiny: Model) -> None:
    told: list[int] = []
    laboratory = open_laboratory(tiny, on_progress=told.append)
    laboratory.measure([Trial(number) for number in range(40)])
    assert told[-1] == 40
    laboratory.measure([Trial(number, SHAPE, dose) for number in range(20) for dose in (-2.0, 2.0)])
    assert told[-1] == 80
    assert told == sorted(told)
    assert len(told) >= 3  # batches of 32 at most


def test_another_vector_shares_the_unsteered_answers(tiny: Model, answered: list[int], tmp_path: Path) -> None:
    laboratory = open_laboratory(tiny, tmp_path)
    measured = laboratory.measure(ALL)
    answered.clear()
    other = laboratory.for_directions(directions(tiny, seed=1))
    again = other.measure(ALL)
    assert sum(answered) == len(STEERED) + 1
    unsteered = [index for index, trial in enumerate(ALL) if trial.shape is None]
    assert [again[index] for index in unsteered] == [measured[index] for index in unsteered]
    assert [one.tokens for one in again] != [one.tokens for one in measured]


# Kept


def test_measurements_are_kept_from_one_run_to_the_next(
    tiny: Model, tmp_path: Path, answered: list[int], read_again: list[int]
) -> None:
    first = open_laboratory(tiny, tmp_path / "not" / "there yet").measure(ALL)
    answered.clear()
    read_again.clear()
    laboratory = open_laboratory(tiny, tmp_path / "not" / "there yet")
    assert laboratory.measured == MEASURED
    assert laboratory.measure(ALL) == first
    assert answered == []
    assert max(read_again) == 20  # only to fit the instrument again


def test_fresh_forgets_what_was_kept(tiny: Model, tmp_path: Path) -> None:
    open_laboratory(tiny, tmp_path).measure(ALL)
    assert open_laboratory(tiny, tmp_path, fresh=True).measured == 0
    assert open_laboratory(tiny, tmp_path).measured == 0


def test_nothing_is_written_without_a_folder(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_laboratory(tiny).measure(STEERED)
    assert list(tmp_path.rglob("*")) == []


def test_other_circumstances_are_other_measurements(tiny: Model, tiny_model: TinyModel, tmp_path: Path) -> None:
    open_laboratory(tiny, tmp_path).measure(STEERED)
    other_words = parse_concept(CONCEPT.replace("shouting", "yelling"), "loud")
    longer = directions(tiny)
    longer.difference[1] *= 2
    louder = directions(tiny)
    louder.hidden[2] = 11
    assert open_laboratory(tiny, tmp_path).measured == FITTED_ON + len(STEERED)
    for other in (
        open_laboratory(tiny, tmp_path, seed=1),
        open_laboratory(tiny, tmp_path, max_tokens=6),
        open_laboratory(tiny, tmp_path, along=directions(tiny, seed=1)),
        open_laboratory(tiny, tmp_path, along=longer),
        open_laboratory(tiny, tmp_path, along=louder),
        open_laboratory(tiny, tmp_path, contrast=other_words),
        open_laboratory(tiny_model("qwen2"), tmp_path, along=directions(tiny)),
    ):
        assert other.measured == 0


@pytest.mark.parametrize(
    "change",
    [
        {"held_out": ("Why?", "Who is there?", "Where is it?", "When was it?")},
        {"personas": (("You are loud.", "You are calm."),)},
    ],
)
def test_other_questions_and_personas_are_other_measurements_also_without_a_file(
    tiny: Model, tmp_path: Path, change: dict[str, Any]
) -> None:
    # A Contrast made in Python has no YAML text.
    made = replace(CONTRAST, source="")
    open_laboratory(tiny, tmp_path, contrast=made).measure(STEERED)
    assert open_laboratory(tiny, tmp_path, contrast=replace(made, **change)).measured == 0


def test_measurements_go_on_where_an_interrupted_run_stopped(tiny: Model, tmp_path: Path, answered: list[int]) -> None:
    trials = [Trial(number, SHAPE, dose) for number in range(20) for dose in (-2.0, 2.0)]
    whole = open_laboratory(tiny, tmp_path / "whole").measure(trials)
    asked = sum(answered)
    answered.clear()

    def interrupt(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_laboratory(tiny, tmp_path / "interrupted", on_progress=interrupt).measure(trials)
    laboratory = open_laboratory(tiny, tmp_path / "interrupted")
    assert laboratory.measured == FITTED_ON + 32
    assert laboratory.measure(trials) == whole
    assert sum(answered) == asked


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.7, 0.9, 0.999])
def test_a_line_that_is_cut_off_is_measured_again(tiny: Model, tmp_path: Path, share: float) -> None:
    first = open_laboratory(tiny, tmp_path).measure(ALL)
    (file,) = tmp_path.iterdir()
    # As a run that is killed may leave it.
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    whole = [json.loads(line) for line in file.read_text().splitlines()[:-1]]
    kept = {record["key"] for record in whole if record["read"]}
    laboratory = open_laboratory(tiny, tmp_path)
    assert laboratory.measured == len(kept) < MEASURED
    again = laboratory.measure(ALL)
    for trial, before, after in zip(ALL, first, again, strict=True):
        assert np.isfinite(after.nll)
        if trial.key in kept:
            assert after == before
    # What is measured after that is kept as well, the line after the cut included.
    assert open_laboratory(tiny, tmp_path).measured == MEASURED


@pytest.mark.parametrize("line", ["", "{", "[]", "5", "null", '{"tokens": [1], "ended": false, "nll": 1.0, "reading": 0.0}'])
def test_a_damaged_line_is_passed_over(tiny: Model, tmp_path: Path, line: str) -> None:
    open_laboratory(tiny, tmp_path).measure(STEERED)
    (file,) = tmp_path.iterdir()
    file.write_text(line + "\n" + file.read_text())
    assert open_laboratory(tiny, tmp_path).measured == FITTED_ON + len(STEERED)


def test_the_file_is_one_json_document_a_line(tiny: Model, tmp_path: Path) -> None:
    open_laboratory(tiny, tmp_path).measure(STEERED)
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({record["key"] for record in records if record["read"]}) == FITTED_ON + len(STEERED)


def test_a_folder_that_cannot_be_written_costs_the_keeping_only(
    tiny: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        found = open_laboratory(tiny, tmp_path / "file" / "folder").measure(STEERED)
    assert found == open_laboratory(tiny).measure(STEERED)
    assert len([record for record in caplog.records if "cannot be kept" in record.message]) == 1
