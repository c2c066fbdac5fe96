from __future__ import annotations

import contextlib
import errno
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.library import load_vector
from localsteer.calibration import interview as room
from localsteer.calibration import plots
from localsteer.calibration.calibrate import Calibrator
from localsteer.calibration.interview import Speed
from localsteer.calibration.loops import ANSWERS
from localsteer.commands.calibrate import duration, price
from localsteer.concepts import names
from localsteer.concepts.concept_file import parse_concept
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import CONCEPT, DOSES, find_sides, make_small
from tests.commands.runner import Result, assert_one_clear_line, run
from tests.policy.made import probe_vector

TinyPath = Callable[[str], Path]

Capture = pytest.CaptureFixture[str]

Calibrate = Callable[..., Result]


@pytest.fixture(scope="module")
def extracted(tiny: Model) -> ControlVector:
    return extract(tiny, parse_concept(CONCEPT, "loud"), ExtractionSettings(layers=(1, 3)))


@pytest.fixture
def vector(extracted: ControlVector, tmp_path: Path) -> Path:
    path = tmp_path / "loud.gguf"
    write_vector(extracted, path)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture
def calibrate(capfd: Capture, tiny_path: TinyPath) -> Calibrate:
    """Run `localsteer calibrate ARGUMENTS --quick` on the tiny model."""
    return lambda *arguments: run(capfd, "calibrate", *arguments, "--quick", "-m", tiny_path("llama"))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers were asked for, batch by batch; the few that the speed is measured on left out."""
    counts: list[int] = []

    def counting(model: Model, requests: Sequence[Request], **options: Any) -> list[Answer]:
        if requests[0].max_tokens == 4:
            counts.append(len(requests))
        return generate_many(model, requests, **options)

    monkeypatch.setattr(room, "generate_many", counting)
    return counts


def interrupt_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Press Ctrl-C when so many answers are measured."""

    def tell(_what: str, done: int, _total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
        yield tell

    monkeypatch.setattr("localsteer.commands.calibrate.progress_bar", progress_bar)


def test_the_doses_are_written_into_the_vector(calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch)
    result = calibrate(vector)
    assert result.code == 0, result.err
    calibration = read_vector(vector).provenance.calibration
    assert calibration is not None
    assert {key: side.dose for key, side in calibration.sides.items()} == DOSES
    assert [path.name for path in vector.parent.iterdir()] == ["loud.gguf"]


def test_what_was_found_is_printed(calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch, without=(("negative", "prompt"),))
    result = calibrate(vector)
    lines = result.out.splitlines()
    effect = "effect 0.90 (0.70 to 1.10), cost 0.25 nats a token; more would cost more coherence than the 0.25 that are allowed"
    assert f"+1 loud, response only: relative dose 0.30, layers 1-2, {effect}" in lines
    assert f"-1 quiet, response only: relative dose 0.40, layers 2-3, {effect}" in lines
    assert "-1 quiet, prompt as well: no dose: none within 0.4 nats a token does anything beyond doubt" in lines
    assert lines[-1] == f"{vector}: calibrated"
    assert any(line.split()[:2] == ["+1.00", "0.300"] for line in lines)
    # What it takes is told before, apart from the result.
    assert "18 answers of 4 tokens (72 tokens)" in result.err
    assert "tokens/s answering" in result.err
    assert "already" not in result.err


def test_another_file_may_be_written_instead(calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch)
    before = vector.read_bytes()
    target = vector.parent / "calibrated.gguf"
    assert calibrate(vector, "-o", target).code == 0
    assert vector.read_bytes() == before
    assert read_vector(target).provenance.calibration is not None


def test_a_probe_is_not_replaced_by_a_vector_that_is_none(calibrate: Calibrate, tiny: Model, tmp_path: Path) -> None:
    probe = tmp_path / "asked.gguf"
    write_vector(probe_vector(tiny, threshold=0.25, layer=2), probe)
    before = probe.read_bytes()
    result = calibrate(probe)
    assert result.code == 1
    assert f"{probe} is a probe" in result.err
    assert "-o" in result.err
    assert probe.read_bytes() == before


def test_json_is_one_document_on_stdout(calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch)
    document = calibrate(vector, "--json", "--budget", "0.4", "--seed", "5").document
    assert document["vector"] == str(vector)
    assert document["report"] == []
    assert (document["concept"], document["poles"]) == ("loud", {"positive": "loud", "negative": "quiet"})
    assert (document["budget"], document["seed"], document["questions"]) == (0.4, 5, 4)
    assert document["sides"]["negative/prompt"]["dose"] == DOSES["negative", "prompt"]
    assert document["samples"]["positive/response"][0]["answers"]
    calibration = read_vector(vector).provenance.calibration
    assert calibration is not None
    assert (calibration.budget, calibration.seed) == (0.4, 5)


def test_a_report_is_written_and_named(calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw_curves", lambda _result, path, kind: path.write_text(kind))  # a second
    find_sides(monkeypatch)
    folder = vector.parent / "reports" / "loud"
    result = calibrate(vector, "--report", folder)
    assert result.out.splitlines()[-1] == f"{vector}: calibrated; the report is in {folder}"
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("# loud: calibrated on tiny")
    pages = calibrate(vector, "--report", folder, "--json").document["report"]
    assert sorted(pages) == sorted(str(path) for path in folder.iterdir())


def test_only_the_layers_asked_for_are_steered(calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch, measuring=True)
    calibrate(vector, "--layers", "2-3")
    assert read_vector(vector).layers == (2, 3)


def test_a_vector_without_a_concept_is_measured_with_one_that_is_given(
    calibrate: Calibrate, vector: Path, extracted: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch)
    write_vector(ControlVector(extracted.directions), vector)
    concept = vector.parent / "concept.yaml"
    concept.write_text(CONCEPT)
    result = calibrate(vector, "--concept", concept)
    assert result.code == 0, result.err
    assert "does not say which model it was read from" in result.err
    assert read_vector(vector).provenance.concept == "loud"


def test_a_vector_of_another_quantisation_is_measured_with_a_note(
    calibrate: Calibrate, vector: Path, extracted: ControlVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch)
    own = extracted.provenance.model
    assert own is not None
    write_vector(replace(extracted, provenance=replace(extracted.provenance, model=replace(own, content="x"))), vector)
    result = calibrate(vector)
    assert result.code == 0
    assert "read from another file of the same model" in result.err


def test_a_concept_of_the_library_is_kept_for_the_model(
    calibrate: Calibrate, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch)
    file = tmp_path / "shipped" / "loud" / "concept.yaml"
    file.parent.mkdir(parents=True)
    # Three pairs are too few to measure a reliability, which a model with random weights would not have.
    file.write_text(
        CONCEPT.replace("[very loud, a shouting man]", "[HIP HIP HURRAY]")
        .replace("[very quiet, a whispering man]", "[alas]")
        .replace('[I, "Well,", Today, "In the house", "My", "All of"]', "[a, b, c]")
    )
    monkeypatch.setattr(names, "shipped_folder", lambda: tmp_path / "shipped")
    result = calibrate("loud", "--json")
    assert result.code == 0, result.err
    kept = Path(result.document["vector"])
    assert kept.exists()
    assert tmp_path / "shipped" not in kept.parents
    assert load_vector("loud", tiny).provenance.calibration is not None


def test_an_interrupted_run_leaves_the_vector_and_says_how_to_go_on(
    calibrate: Calibrate, vector: Path, answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, measuring=True)
    before = vector.read_bytes()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 8)
        result = calibrate(vector)
    assert result.code == 130
    assert result.out == ""
    assert "Traceback" not in result.err
    assert "answers are measured and kept; the same command goes on from there" in result.err
    assert vector.read_bytes() == before
    assert [path.name for path in vector.parent.iterdir()] == ["loud.gguf"]
    asked = sum(answered)
    answered.clear()
    result = calibrate(vector)
    assert result.code == 0
    assert "measured already" in result.err
    in_two_runs = asked + sum(answered)
    answered.clear()
    assert calibrate(vector, "--fresh", "-o", vector.parent / "other.gguf").code == 0
    assert sum(answered) == in_two_runs


def test_an_interrupted_fresh_run_does_not_advise_to_begin_anew(
    calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same command, with --fresh, would forget what was kept.
    interrupt_at(monkeypatch, 8)
    result = calibrate(vector, "--fresh")
    assert result.code == 130
    assert "the same command goes on" not in result.err
    assert "--fresh" in result.err


def test_an_interrupted_run_whose_measurements_cannot_be_kept_does_not_claim_it(
    calibrate: Calibrate, vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    interrupt_at(monkeypatch, 8)
    result = calibrate(vector)
    assert result.code == 130
    assert "cannot be kept" in result.err
    assert "measured and kept" not in result.err


def test_fresh_measures_everything_again(
    calibrate: Calibrate, vector: Path, answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, measuring=True)
    target = vector.parent / "out.gguf"
    calibrate(vector, "-o", target)
    asked = sum(answered)
    answered.clear()
    assert "measured already" in calibrate(vector, "-o", target).err
    assert sum(answered) == 0
    result = calibrate(vector, "-o", target, "--fresh")
    assert "measured already" not in result.err
    assert sum(answered) == asked


def test_long_answers_are_added_to_a_calibration_that_is_there(calibrate: Calibrate, vector: Path, answered: list[int]) -> None:
    assert calibrate(vector, "--by-cost", "--budget", 10).code == 0
    before = read_vector(vector).provenance.calibration
    answered.clear()
    result = calibrate(vector, "--by-cost", "--budget", 10, "--long")
    assert result.code == 0, result.err
    assert "Its doses are known, and held to what long answers bear" in result.err
    assert "up to 78 answers of 192 tokens" in result.err
    after = read_vector(vector).provenance.calibration
    assert before is not None
    assert after is not None
    assert (before.long_answers, after.long_answers) == (0, ANSWERS)
    assert answered == []  # no short ones
    assert after.generated_tokens >= before.generated_tokens + 2 * ANSWERS * 192
    # To hold them again changes nothing, and to add the doses of anchored answers leaves them held.
    result = calibrate(vector, "--by-cost", "--budget", 10, "--long")
    assert "It is held to long answers already." in result.err
    assert read_vector(vector).provenance.calibration == after
    result = calibrate(vector, "--by-cost", "--budget", 10, "--anchored")
    assert result.code == 0, result.err
    both = read_vector(vector).provenance.calibration
    assert both is not None
    assert (both.long_answers, "anchored" in both.modes) == (ANSWERS, True)
    assert all(both.sides[key] == side for key, side in after.sides.items())
    # Measured anew without them, it says that they are no more.
    result = calibrate(vector, "--by-cost", "--budget", 9)
    assert "It was held to long answers, and will not be any more" in result.err
    for key, side in after.sides.items():
        assert side.curve == before.sides[key].curve
        assert (side.dose or 0) <= (before.sides[key].dose or 0)


def test_a_vector_that_does_nothing_is_left_as_it_is(calibrate: Calibrate, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sides(monkeypatch, without=tuple(DOSES), limit="measured")
    before = vector.read_bytes()
    target = vector.parent / "out.gguf"
    for arguments in ((vector,), (vector, "-o", target), (vector, "--json")):
        result = calibrate(*arguments)
        assert (result.code, result.out) == (1, "")
        message = result.err.splitlines()[-1]
        assert message.startswith("localsteer: The vector does nothing inside the budget of 0.4 nats a token on tiny")
        assert "--budget" in message
    assert vector.read_bytes() == before
    assert [path.name for path in vector.parent.iterdir()] == ["loud.gguf"]


def test_a_vector_from_elsewhere_is_measured_with_everyday_questions_and_says_so(calibrate: Calibrate, vector: Path) -> None:
    write_vector(ControlVector({1: np.ones(64, np.float32)}), vector)
    result = calibrate(vector, "--by-cost")
    assert result.code == 0, result.err
    assert "does not carry what it was made from" in result.err
    assert "--concept FILE" in result.err
    calibration = read_vector(vector).provenance.calibration
    assert calibration is not None
    assert calibration.personas == {}
    assert set(calibration.scale.values()) == {"deviation"}


def test_a_vector_of_two_prompt_files_is_calibrated_with_nothing_else_given(
    calibrate: Calibrate, tiny_path: TinyPath, capfd: Capture, tmp_path: Path
) -> None:
    files = tmp_path / "loud.txt", tmp_path / "quiet.txt"
    for file, word in zip(files, ("HURRAY", "alas"), strict=True):
        file.write_text("".join(f"You say {word}\\n{opening}\n" for opening in ("I", "Well", "Today")))
    vector = tmp_path / "out.gguf"
    made = run(capfd, "extract", "--positive", files[0], "--negative", files[1], "-o", vector, "-m", tiny_path("llama"))
    assert made.code == 0, made.err
    result = calibrate(vector, "--by-cost")
    assert result.code == 0, result.err
    found = read_vector(vector).provenance
    assert found.calibration is not None
    assert (found.positive, found.negative, found.n_pairs) == ("loud", "quiet", 3)
    assert found.calibration.questions >= 20  # everyday ones


def test_a_concept_without_questions_is_measured_with_everyday_ones(
    calibrate: Calibrate, vector: Path, extracted: ControlVector
) -> None:
    source = CONCEPT.split("held_out")[0]
    write_vector(replace(extracted, provenance=replace(extracted.provenance, source=source)), vector)
    assert calibrate(vector, "--by-cost").code == 0
    calibration = read_vector(vector).provenance.calibration
    assert calibration is not None
    assert calibration.questions >= 20


def test_a_broken_concept_in_a_vector_says_where_it_came_from(
    calibrate: Calibrate, vector: Path, extracted: ControlVector
) -> None:
    write_vector(replace(extracted, provenance=replace(extracted.provenance, source="name: [")), vector)
    assert_one_clear_line(calibrate(vector), f"the concept in {vector}", "line 1")


def test_a_vector_of_another_shape_is_refused_with_both(calibrate: Calibrate, vector: Path) -> None:
    write_vector(ControlVector({1: np.ones(96, np.float32)}, Provenance(source=CONCEPT)), vector)
    assert_one_clear_line(calibrate(vector), str(vector), "n_embd 96", "n_embd 64")


def test_layers_that_the_vector_does_not_have_are_refused(calibrate: Calibrate, vector: Path) -> None:
    assert_one_clear_line(calibrate(vector, "--layers", "4-9"), "1-3", "4-9", "--layers")


def test_plots_that_cannot_be_drawn_are_told_before_the_model_is_opened(
    vector: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    result = run(capfd, "calibrate", vector, "-m", "none.gguf", "--report", vector.parent / "report")
    assert_one_clear_line(result, "matplotlib", "pip install 'localsteer[plots]'", "--report")


def test_an_output_that_cannot_be_written_is_told_before_the_model_is_opened(vector: Path, capfd: Capture) -> None:
    missing = vector.parent / "missing" / "out.gguf"
    assert_one_clear_line(run(capfd, "calibrate", vector, "-m", "none.gguf", "-o", missing), str(missing.parent))
    assert_one_clear_line(run(capfd, "calibrate", vector, "-m", "none.gguf", "-o", vector.parent), str(vector.parent))
    assert_one_clear_line(run(capfd, "calibrate", vector.parent / "x" / "y.gguf", "-m", "none.gguf"), str(vector.parent / "x"))


def test_a_report_that_cannot_be_written_is_told_before_the_model_is_opened(vector: Path, capfd: Capture) -> None:
    file = vector.parent / "file"
    file.write_text("x")
    for folder in (file, file / "report"):
        assert_one_clear_line(run(capfd, "calibrate", vector, "-m", "none.gguf", "--report", folder), str(folder))


def test_a_missing_vector_is_refused(calibrate: Calibrate, tmp_path: Path) -> None:
    assert_one_clear_line(calibrate(tmp_path / "missing.gguf"), "missing.gguf")
    assert_one_clear_line(calibrate("lowd"), '"lowd"')


def test_a_full_disk_leaves_the_old_vector_and_the_measurements(
    calibrate: Calibrate, vector: Path, answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_sides(monkeypatch, measuring=True)
    before = vector.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
        result = calibrate(vector)
    assert (result.code, result.out) == (1, "")
    assert "No space left on device" in result.err.splitlines()[-1]
    assert vector.read_bytes() == before
    assert [path.name for path in vector.parent.iterdir()] == ["loud.gguf"]
    answered.clear()
    assert calibrate(vector).code == 0
    assert answered == []


@pytest.mark.parametrize(
    "arguments", [("--budget", "0"), ("--budget", "-1"), ("--seed", "-1"), ("--layers", "x"), ("--budget", "much")]
)
def test_usage_errors(capfd: Capture, arguments: tuple[str, str]) -> None:
    result = run(capfd, "calibrate", "loud.gguf", *arguments)
    assert (result.code, result.out) == (2, "")
    assert run(capfd, "calibrate").code == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (10.2, "10 s"), (89, "89 s"), (91, "2 min"), (7000, "117 min"), (9000, "2.5 h")],
)
def test_a_time_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_several_calibrations_cost_the_sum(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    contrast = parse_concept(CONCEPT, "loud")
    one = Calibrator(tiny, extract(tiny, contrast, ExtractionSettings(layers=(1, 3))), contrast)
    speed = Speed(answering=10, reading=100)
    for count in (1, 3):
        answers = count * one.answers
        told = price([one] * count, speed)
        assert told.startswith(f"tiny: up to {answers} answers of 4 tokens ({4 * answers:,} tokens); about ")
    assert duration(3 * one.seconds(speed)) in told
    assert told.endswith("at 10 tokens/s answering and 100 tokens/s re-reading.")
