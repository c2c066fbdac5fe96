from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from localsteer.calibration import interview as room
from localsteer.calibration.interview import LONG, Interview, probe_speed, prompt_length, questions_of
from localsteer.calibration.outcomes import Outcome, Trial
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.descriptions import everyday_questions
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.errors import CalibrationError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.forced import Said
from localsteer.reading.listening import Heard
from localsteer.reading.prompt import prompt_tokens
from tests.calibration.made import CONCEPT
from tests.conftest import Floats, TinyModel, random_rows, run_alone

CONTRAST = parse_concept(CONCEPT, "loud")
QUESTIONS = CONTRAST.held_out
PAIRS = parse_concept(
    """\
name: shout
poles: {positive: loud, negative: quiet}
pairs:
  - {positive: I AM HERE, negative: I am here}
  - {positive: GO AWAY NOW, negative: please go away}
held_out: {questions: ["How are you?", "Who is there?", "Where is it?", "When was it?"]}
""",
    "shout",
)
# Means over the words and tokens of an answer that is read in a differently composed batch.
NOISE = 0.01


def unit(model: Model, seed: int = 0) -> Floats:
    return random_rows(model, (1, 2), seed, norm=8.0)


def open_interview(
    model: Model,
    folder: Path | None = None,
    *,
    contrast: Contrast | None = CONTRAST,
    along: Floats | None = None,
    apart: float = 0.5,
    seed: int = 0,
    max_tokens: int = 5,
    fresh: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Interview:
    return Interview(
        model,
        rows := unit(model) if along is None else along,
        rows.tobytes(),
        contrast,
        {"positive": apart, "negative": apart / 2},
        seed=seed,
        max_tokens=max_tokens,
        folder=folder,
        fresh=fresh,
        on_progress=on_progress,
    )


STEERED = [Trial(number, dose) for dose in (-1.0, 1.0) for number in range(3)]
ALL = [*(Trial(number) for number in range(4)), *STEERED, Trial(0, persona="positive"), Trial(0, 1.0, "prompt")]


# What is heard


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, Answer]]:
    """All answers as they were given, with what was asked."""
    kept: list[tuple[Request, Answer]] = []

    def generate(model: Model, requests: Sequence[Request]) -> list[Answer]:
        answers = generate_many(model, requests)
        kept.extend(zip(requests, answers, strict=True))
        return answers

    monkeypatch.setattr(room, "generate_many", generate)
    return kept


def said_in(request: Request, answer: Answer) -> Said:
    if request.mode == "anchored":
        return Said.exactly(answer.tokens)
    return Said.drawn(answer.tokens, [entry.likeliest for entry in answer.logprobs], request.sampling)


def cross_entropy(model: Model, prompt: tuple[int, ...], said: Said, edit: Edit | None = None) -> float:
    """From the definition, one sequence at a time."""
    tokens = (*prompt, *said.tokens)
    edits = [edit if place >= len(prompt) - 1 else None for place in range(len(tokens))]
    logits = run_alone(model, tokens, edits, read=False).logits[len(prompt) - 1 : -1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-np.mean([said.found_by(place, own) for place, own in enumerate(logprobs)]))


def asked(model: Model, number: int, system: str | None = None) -> tuple[int, ...]:
    question = Message("user", QUESTIONS[number % 4])
    return prompt_tokens(model, [question] if system is None else [Message("system", system), question])


TRIALS = [Trial(1), Trial(6, 1.0), Trial(3, -1.0, "prompt"), Trial(2, 1.0, "anchored"), Trial(2, persona="negative")]


def test_an_answer_is_heard_after_its_question_and_another_one_and_under_both_personas(
    tiny: Model, given: list[tuple[Request, Answer]]
) -> None:
    for trial in TRIALS:
        (outcome,) = open_interview(tiny).measure([trial])
        request, answer = given[-1]
        said = said_in(request, answer)
        number = trial.number
        positive, negative = CONTRAST.personas[number % 2]
        assert outcome.plain == pytest.approx(cross_entropy(tiny, asked(tiny, number), said), abs=NOISE)
        assert outcome.elsewhere == pytest.approx(cross_entropy(tiny, asked(tiny, number + 3), said), abs=NOISE)
        for system, heard in ((positive, outcome.positive), (negative, outcome.negative)):
            assert heard == pytest.approx(cross_entropy(tiny, asked(tiny, number, system), said), abs=NOISE)
        assert (outcome.text, outcome.tokens, outcome.ended) == (answer.text, 5, False)


def test_pairs_have_their_own_prompts_for_voices(tiny: Model, given: list[tuple[Request, Answer]]) -> None:
    interview = open_interview(tiny, contrast=PAIRS)
    assert not interview.has_personas
    for trial in (Trial(0), Trial(5, 1.0)):
        (outcome,) = interview.measure([trial])
        said, pair = said_in(*given[-1]), PAIRS.pairs[trial.number % 2]
        assert outcome.plain == pytest.approx(cross_entropy(tiny, asked(tiny, trial.number), said), abs=NOISE)
        for prompt, heard in ((pair.positive, outcome.positive), (pair.negative, outcome.negative)):
            voice = tuple(tiny.tokenize(prompt.render(tiny)))
            assert heard == pytest.approx(cross_entropy(tiny, voice, said), abs=NOISE)


def test_a_vector_from_elsewhere_is_its_own_voice_either_way(tiny: Model, given: list[tuple[Request, Answer]]) -> None:
    interview = open_interview(tiny, contrast=None)
    assert not interview.has_personas
    assert interview.questions == everyday_questions()
    (outcome,) = interview.measure([Trial(2, 1.0)])
    said = said_in(*given[-1])
    prompt, other = (prompt_tokens(tiny, [Message("user", interview.questions[number])]) for number in (2, 5))
    edits = Edit(unit(tiny), scale=0.5), Edit(unit(tiny), scale=-0.25)
    assert outcome.plain == pytest.approx(cross_entropy(tiny, prompt, said), abs=NOISE)
    assert outcome.elsewhere == pytest.approx(cross_entropy(tiny, other, said), abs=NOISE)
    assert outcome.positive == pytest.approx(cross_entropy(tiny, prompt, said, edits[0]), abs=NOISE)
    assert outcome.negative == pytest.approx(cross_entropy(tiny, prompt, said, edits[1]), abs=NOISE)
    # What is steered toward the positive pole sounds like it.
    assert outcome.ratio > 10 * NOISE


def test_what_was_heard_is_told_by_differences() -> None:
    made = Outcome("", 5, True, plain=1.5, elsewhere=1.75, positive=1.25, negative=2.0, distinct=1.0, refused=False)
    assert made.relevance == 0.25
    assert made.ratio == 0.75
    assert (made.under("positive"), made.under("negative")) == (1.25, 2.0)


def test_every_part_of_a_trial_makes_another_answer(tiny: Model) -> None:
    interview = open_interview(tiny, max_tokens=8)
    trials = [
        Trial(0),
        Trial(4),  # the same question again, on other chances
        Trial(1),
        Trial(0, 1.0),
        Trial(0, 0.7),
        Trial(0, -1.0),
        Trial(0, 1.0, "prompt"),
        Trial(0, persona="positive"),
        Trial(0, persona="negative"),
    ]
    outcomes = interview.measure(trials)
    assert len({outcome.text for outcome in outcomes}) == len(trials)
    assert [interview.question_of(trial) for trial in trials] == [0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_equal_numbers_share_their_chances(tiny: Model) -> None:
    # A dose next to nothing changes nothing.
    plain, steered = open_interview(tiny).measure([Trial(5), Trial(5, 0.0001)])
    assert plain.text == steered.text


def test_answers_come_in_the_order_they_were_asked_for(tiny: Model) -> None:
    interview = open_interview(tiny)
    forward = interview.measure(ALL)
    assert interview.measure(ALL[::-1]) == forward[::-1]
    assert interview.measure([ALL[5], ALL[0], ALL[5]]) == [forward[5], forward[0], forward[5]]


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(tiny: Model) -> None:
    one, again, other = (open_interview(tiny, seed=seed).measure(ALL) for seed in (3, 3, 4))
    assert one == again
    assert [outcome.text for outcome in one] != [outcome.text for outcome in other]


def test_neighbouring_seeds_share_no_answers(tiny: Model) -> None:
    trials = [Trial(4 * number) for number in range(8)]
    one, other = (open_interview(tiny, seed=seed).measure(trials) for seed in (0, 1))
    assert not {outcome.text for outcome in one} & {outcome.text for outcome in other}


def saying(monkeypatch: pytest.MonkeyPatch, change: Callable[[Request, Answer], Answer]) -> None:
    """Let answers be others than they are."""

    def generate(model: Model, requests: Sequence[Request]) -> list[Answer]:
        answers = generate_many(model, requests)
        return [change(request, answer) for request, answer in zip(requests, answers, strict=True)]

    monkeypatch.setattr(room, "generate_many", generate)


@pytest.mark.parametrize(
    ("tokens", "distinct"),
    [
        (tuple(range(10)), 1.0),
        ((7,) * 10, 1 / 8),
        ((1, 2) * 5, 2 / 8),
        ((1, 1), 1.0),  # too short to repeat anything
    ],
)
def test_repetition_shows_in_the_share_of_distinct_trigrams(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, tokens: tuple[int, ...], distinct: float
) -> None:
    saying(monkeypatch, lambda _, answer: replace(answer, tokens=tokens, logprobs=answer.logprobs[: len(tokens)]))
    (outcome,) = open_interview(tiny, max_tokens=10).measure([Trial(0)])
    assert outcome.distinct == pytest.approx(distinct)
    assert outcome.tokens == len(tokens)


@pytest.mark.parametrize(("text", "refused"), [("I'm sorry, but I can't help with that.", True), ("Fine, thank you.", False)])
def test_refusals_are_seen(tiny: Model, monkeypatch: pytest.MonkeyPatch, text: str, refused: bool) -> None:
    saying(monkeypatch, lambda _, answer: replace(answer, text=text))
    (outcome,) = open_interview(tiny).measure([Trial(0)])
    assert outcome.refused == refused


def test_an_answer_that_ends_by_itself_is_told_from_one_that_was_cut(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, lambda request, answer: replace(answer, finish_reason="stop") if request.plan else answer)
    plain, steered = open_interview(tiny).measure([Trial(0), Trial(0, 1.0)])
    assert (plain.ended, steered.ended) == (False, True)


def test_the_text_of_an_answer_is_without_the_space_around_it(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, lambda _, answer: replace(answer, text="\n FINE!\n\nAND YOU? "))
    interview = open_interview(tiny)
    interview.measure([Trial(2)])
    assert interview.text_of(Trial(2)) == "FINE!\n\nAND YOU?"


# Empty answers


def with_empty_answers(monkeypatch: pytest.MonkeyPatch, is_empty: Callable[[Request], bool]) -> None:
    def change(request: Request, answer: Answer) -> Answer:
        return replace(answer, text="", tokens=(), logprobs=(), finish_reason="stop") if is_empty(request) else answer

    saying(monkeypatch, change)


def test_an_empty_answer_has_no_score_and_spoils_no_other(tiny: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = open_interview(tiny).measure(ALL)
    with_empty_answers(monkeypatch, lambda request: request.plan is not None and request.plan.mode == "prompt")
    found = open_interview(tiny, tmp_path).measure(ALL)
    assert [outcome.text for outcome in found[:-1]] == [outcome.text for outcome in full[:-1]]
    np.testing.assert_allclose([one.plain for one in found[:-1]], [one.plain for one in full[:-1]], atol=NOISE)
    empty = found[-1]
    assert (empty.text, empty.tokens, empty.ended, empty.distinct) == ("", 0, True, 0.0)
    assert not empty.refused
    assert np.isnan([empty.plain, empty.elsewhere, empty.positive, empty.negative, empty.ratio, empty.relevance]).all()
    # And it is no reason to ask again.
    again = open_interview(tiny, tmp_path)
    assert again.measured == len(ALL)
    (kept,) = again.measure(ALL[-1:])
    assert np.isnan(kept.plain)


def test_an_empty_anchored_answer_is_heard_too(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with_empty_answers(monkeypatch, lambda request: request.mode == "anchored")
    plain, empty = open_interview(tiny).measure([Trial(0), Trial(0, 1.0, "anchored")])
    assert np.isfinite(plain.plain)
    assert np.isnan([empty.plain, empty.ratio]).all()


def test_a_model_that_gives_no_answers_is_told_so(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with_empty_answers(monkeypatch, lambda _request: True)
    with pytest.raises(CalibrationError, match=r"tiny gives no answers") as caught:
        probe_speed(tiny, QUESTIONS)
    assert "localsteer generate" in (caught.value.hint or "")
    with pytest.raises(CalibrationError, match=r"tiny gives no answers"):
        open_interview(tiny).measure([Trial(0)])


# What is asked


def test_a_concept_with_too_few_questions_is_asked_everyday_ones(tiny: Model) -> None:
    assert questions_of(CONTRAST) == QUESTIONS
    assert questions_of(None) == questions_of(replace(CONTRAST, held_out=())) == everyday_questions()
    few = replace(CONTRAST, held_out=QUESTIONS[:3])
    assert questions_of(few) == everyday_questions()
    interview = open_interview(tiny, contrast=few)
    assert interview.question_of(Trial(len(everyday_questions()) + 1)) == 1
    assert np.isfinite(interview.measure([Trial(0)])[0].ratio)


def test_no_question_is_compared_with_itself() -> None:
    for questions in (QUESTIONS, everyday_questions()):
        assert all(questions[number] != questions[(number + 3) % len(questions)] for number in range(len(questions)))


def test_the_speed_is_measured(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def count(_model: Model, heard: Sequence[Heard]) -> None:
        read.extend(len(one.prompt) + len(one.said.tokens) for one in heard)

    monkeypatch.setattr("localsteer.calibration.interview.cross_entropies", count)
    monkeypatch.setattr("localsteer.calibration.interview.time", SimpleNamespace(perf_counter=iter([10.0, 12.0]).__next__))
    speed = probe_speed(tiny, QUESTIONS)
    assert speed.answering > 0
    assert speed.reading == sum(read) / 2 > 0


def test_the_length_of_a_question_is_known(tiny: Model) -> None:
    assert prompt_length(tiny, QUESTIONS) == np.mean([len(asked(tiny, number)) for number in range(4)])


# Once


def test_what_was_measured_is_not_measured_again(tiny: Model, answered: list[int]) -> None:
    interview = open_interview(tiny)
    first = interview.measure([*ALL, *ALL])
    assert sum(answered) == len(ALL) == interview.measured
    assert interview.generated_tokens == 5 * len(ALL)
    assert interview.measure(ALL) == first[: len(ALL)]
    assert sum(answered) == len(ALL)
    interview.measure([*ALL, Trial(0, 0.5)])
    assert sum(answered) == len(ALL) + 1


def test_of_a_long_answer_is_only_known_whether_it_loops_and_it_is_none_of_the_others(
    tiny: Model, given: list[tuple[Request, Answer]], tmp_path: Path
) -> None:
    interview = open_interview(tiny, tmp_path)
    (short,) = interview.measure([Trial(1, 1.0)])
    (long,) = interview.measure([Trial(1, 1.0, long=True)])
    (_, one), (_, other) = given
    assert other.tokens[: len(one.tokens)] == one.tokens  # the same chances
    assert len(other.tokens) == LONG
    assert long.loops is other.loops
    assert math.isnan(long.plain)
    assert interview.measure([Trial(1, 1.0)]) == [short]
    assert (interview.measured_for({"response"}), interview.measured_for({"response"}, long=True)) == (1, 2)
    # They are kept, too.
    assert open_interview(tiny, tmp_path).measure([Trial(1, 1.0, long=True)])[0].loops is long.loops
    assert len(given) == 2


def test_nothing_asked_is_nothing_answered(tiny: Model, answered: list[int]) -> None:
    assert open_interview(tiny).measure([]) == []
    assert answered == []


def test_progress_counts_the_measured_answers(tiny: Model) -> None:
    told: list[int] = []
    interview = open_interview(tiny, on_progress=told.append, max_tokens=2)
    interview.measure([Trial(number) for number in range(40)])
    assert told[-1] == 40
    interview.measure([Trial(number, dose) for number in range(20) for dose in (-1.0, 1.0)])
    assert told[-1] == 80
    assert told == sorted(told)
    assert len(told) >= 4  # batches of 32 at most


# Kept


def test_measurements_are_kept_from_one_run_to_the_next(tiny: Model, tmp_path: Path, answered: list[int]) -> None:
    first = open_interview(tiny, tmp_path / "not" / "there yet").measure(ALL)
    answered.clear()
    interview = open_interview(tiny, tmp_path / "not" / "there yet")
    assert interview.keeps
    assert interview.measured == len(ALL)
    assert interview.generated_tokens == 0  # nothing was asked for yet
    assert interview.measure(ALL) == first
    assert answered == []
    assert interview.generated_tokens == 5 * len(ALL)


def test_fresh_forgets_what_was_kept(tiny: Model, tmp_path: Path) -> None:
    open_interview(tiny, tmp_path).measure(ALL)
    assert open_interview(tiny, tmp_path, fresh=True).measured == 0
    assert open_interview(tiny, tmp_path).measured == 0


def test_nothing_is_written_without_a_folder(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    interview = open_interview(tiny)
    interview.measure(STEERED)
    assert not interview.keeps
    assert list(tmp_path.rglob("*")) == []


def test_a_model_that_thinks_first_is_measured_by_what_it_answers(thinking: Model, given: list[tuple[Request, Answer]]) -> None:
    open_interview(thinking, along=unit(thinking)).measure(ALL)
    prompts = {b"".join(map(thinking.token_bytes, request.prompt)).decode() for request, _ in given}
    assert len(prompts) > 4
    assert {prompt.rpartition("assistant\n")[2] for prompt in prompts} == {"<think>\n\n</think>\n\n"}


def test_other_circumstances_are_other_measurements(tiny: Model, tiny_model: TinyModel, tmp_path: Path) -> None:
    open_interview(tiny, tmp_path).measure(STEERED)
    assert open_interview(tiny, tmp_path).measured == len(STEERED)
    for other in (
        open_interview(tiny, tmp_path, seed=1),
        open_interview(tiny, tmp_path, max_tokens=6),
        open_interview(tiny, tmp_path, along=unit(tiny, seed=1)),
        open_interview(tiny, tmp_path, along=2 * unit(tiny)),
        open_interview(tiny, tmp_path, contrast=parse_concept(CONCEPT.replace("shouting", "yelling"), "loud")),
        open_interview(tiny, tmp_path, contrast=PAIRS),
        open_interview(tiny, tmp_path, contrast=None),
        open_interview(tiny_model("qwen2"), tmp_path, along=unit(tiny)),
    ):
        assert other.measured == 0


@pytest.mark.parametrize(
    ("contrast", "change"),
    [
        (CONTRAST, {"held_out": ("Why?", "Who is there?", "Where is it?", "When was it?")}),
        (CONTRAST, {"personas": (("You are loud.", "You are calm."),)}),
        (PAIRS, {"pairs": PAIRS.pairs[:1]}),
    ],
)
def test_other_questions_and_voices_are_other_measurements_also_without_a_file(
    tiny: Model, tmp_path: Path, contrast: Contrast, change: dict[str, Any]
) -> None:
    # A Contrast made in Python has no YAML text.
    made = replace(contrast, source="")
    open_interview(tiny, tmp_path, contrast=made).measure(STEERED)
    assert open_interview(tiny, tmp_path, contrast=made).measured == len(STEERED)
    assert open_interview(tiny, tmp_path, contrast=replace(made, **change)).measured == 0


@pytest.mark.parametrize("contrast", [CONTRAST, PAIRS])
def test_what_is_not_steered_is_measured_once_for_all_vectors_of_a_concept(
    tiny: Model, tmp_path: Path, contrast: Contrast, answered: list[int]
) -> None:
    unsteered = [Trial(number) for number in range(4)] + [Trial(0, persona="positive")] * bool(contrast.personas)
    first = open_interview(tiny, tmp_path, contrast=contrast).measure([*unsteered, *STEERED])
    answered.clear()
    other = open_interview(tiny, tmp_path, contrast=contrast, along=unit(tiny, seed=1), apart=0.6)
    assert other.measured == len(unsteered)
    assert other.measure(unsteered) == first[: len(unsteered)]
    assert answered == []
    assert open_interview(tiny, tmp_path, contrast=contrast, seed=1).measured == 0
    assert open_interview(tiny, tmp_path, contrast=contrast, fresh=True).measured == 0


def test_a_vector_from_elsewhere_listens_to_unsteered_answers_itself(tiny: Model, tmp_path: Path) -> None:
    open_interview(tiny, tmp_path, contrast=None).measure([Trial(0)])
    assert open_interview(tiny, tmp_path, contrast=None).measured == 1
    assert open_interview(tiny, tmp_path, contrast=None, along=unit(tiny, seed=1)).measured == 0
    assert open_interview(tiny, tmp_path, contrast=None, apart=0.6).measured == 0


def test_the_doses_at_which_a_vector_from_elsewhere_is_heard_belong_to_its_measurements(tiny: Model, tmp_path: Path) -> None:
    open_interview(tiny, tmp_path, contrast=None).measure(STEERED)
    assert open_interview(tiny, tmp_path, contrast=None).measured == len(STEERED)
    assert open_interview(tiny, tmp_path, contrast=None, apart=0.6).measured == 0


def test_measurements_go_on_where_an_interrupted_run_stopped(tiny: Model, tmp_path: Path, answered: list[int]) -> None:
    trials = [Trial(number, dose) for number in range(20) for dose in (-1.0, 1.0)]
    whole = open_interview(tiny, tmp_path / "whole").measure(trials)
    wanted = sum(answered)
    answered.clear()

    def interrupt(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_interview(tiny, tmp_path / "interrupted", on_progress=interrupt).measure(trials)
    interview = open_interview(tiny, tmp_path / "interrupted")
    assert interview.measured == 32
    assert interview.measure(trials) == whole
    assert sum(answered) == wanted


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.7, 0.9, 0.99])
def test_a_line_that_is_cut_off_is_measured_again(tiny: Model, tmp_path: Path, share: float) -> None:
    first = open_interview(tiny, tmp_path).measure(ALL)
    kept = set()
    for file in tmp_path.iterdir():
        # As a run that is killed may leave it.
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        kept |= {json.loads(line)[0] for line in file.read_text().split("\n")[:-1]}
    interview = open_interview(tiny, tmp_path)
    assert interview.measured == len(kept) < len(ALL)
    again = interview.measure(ALL)
    for trial, before, after in zip(ALL, first, again, strict=True):
        assert np.isfinite(after.plain)
        if trial.key in kept:
            assert after == before
    # What is measured after that is kept as well, the line after the cut included.
    assert open_interview(tiny, tmp_path).measured == len(ALL)


def test_two_that_measure_at_the_same_time_keep_what_both_found(tiny: Model, tmp_path: Path) -> None:
    """As two processes that calibrate one vector: each knows what was there when it began."""
    one, other = open_interview(tiny, tmp_path), open_interview(tiny, tmp_path)
    one.measure(STEERED[:3])
    other.measure(STEERED)
    one.measure(ALL)
    assert open_interview(tiny, tmp_path).measured == len(ALL)


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "{}", "5", "null", '"ab"', '["key", null]', '["key", {"text": "Yes."}]', "[[1, 2], {}]", "\ufeff[1]"]
)
def test_a_damaged_line_is_passed_over(tiny: Model, tmp_path: Path, line: str) -> None:
    open_interview(tiny, tmp_path).measure(STEERED)
    (file,) = tmp_path.iterdir()
    file.write_text(line + "\n" + file.read_text(), encoding="utf-8")
    assert open_interview(tiny, tmp_path).measured == len(STEERED)


def test_the_file_is_one_json_document_a_line(tiny: Model, tmp_path: Path) -> None:
    open_interview(tiny, tmp_path).measure(STEERED)
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {key for key, _ in lines} == {trial.key for trial in STEERED}
    assert all(values["tokens"] == 5 for _, values in lines)


def test_any_text_is_kept_as_it_is(tiny: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = 'Größe\u2028"\n\r\x00\ufffd 中 \\'
    saying(monkeypatch, lambda _, answer: replace(answer, text=text))
    first = open_interview(tiny, tmp_path).measure([Trial(0)])
    interview = open_interview(tiny, tmp_path)
    assert interview.measured == 1
    assert interview.measure([Trial(0)]) == first
    assert first[0].text == text


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_cannot_be_written_costs_the_keeping_only(
    tiny: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture, fresh: bool
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        interview = open_interview(tiny, tmp_path / "file" / "folder", fresh=fresh)
        found = interview.measure(STEERED)
        interview.measure([Trial(number) for number in range(4)])
    assert found == open_interview(tiny).measure(STEERED)
    assert not interview.keeps
    assert len([record for record in caplog.records if "cannot be kept" in record.message]) == 1
