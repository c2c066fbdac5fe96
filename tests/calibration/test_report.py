from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from localsteer.calibration.report import (
    CURVE_HEADERS,
    curve_rows,
    document,
    pole_names,
    scale_line,
    side_line,
    terminal_plot,
    write_report,
)
from localsteer.errors import CalibrationError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.calibration import POLES, Calibration, Interval, Limit, Mode, Pole
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import DOSES, calibrated, calibration, nothing, point, result

MODEL = Fingerprint("Tiny", "llama", 6, 4, "vocabulary", "content")
MADE = calibration(MODEL)
NAMES = pole_names(calibrated(MODEL))
LOUD = (
    "relative dose 0.30, layers 1-2, effect 0.90 (0.70 to 1.10), cost 0.25 nats a token; "
    "more would cost more coherence than the 0.25 that are allowed"
)
NO_NEGATIVE: tuple[tuple[Pole, Mode], ...] = (("negative", "response"), ("negative", "prompt"))


# In words


def test_poles_have_the_names_of_the_concept() -> None:
    assert NAMES == {"positive": "loud", "negative": "quiet"}
    assert pole_names(ControlVector(calibrated(MODEL).directions, Provenance())) == {"positive": "+", "negative": "-"}


def test_a_side_in_one_line() -> None:
    side = MADE.sides["positive", "response"]
    assert side_line(side, 0.25) == LOUD
    unsure = replace(side, shown=False)
    assert "effect 0.90 (0.70 to 1.10) (not shown beyond doubt), cost 0.25" in side_line(unsure, 0.25)
    assert side_line(nothing(side), 0.25) == "no dose: none within 0.25 nats a token does anything beyond doubt"
    # An older calibration has kept no interval of the effect.
    assert "effect 0.90, cost 0.25" in side_line(replace(side, between=None), 0.25)
    # What a side allowed itself comes before what was asked for.
    assert side_line(replace(side, allowed=None), 0.4).endswith("more would cost more coherence than the 0.40 that are allowed")
    assert side_line(replace(side, allowed=0.5), 0.4).endswith("more would cost more coherence than the 0.50 that are allowed")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("coherence", "coherence"),
        ("repetition", "repeat"),
        ("relevance", "questions"),
        ("refusals", "refused"),
        ("script", "script"),
        ("measured", "no more was tried"),
    ],
)
def test_a_side_says_what_keeps_it_from_being_stronger(limit: Limit, words: str) -> None:
    *_, why = side_line(replace(MADE.sides["positive", "response"], limit=limit), 0.25).split("; ")
    assert words in why


def scale_of(made: Calibration) -> list[str]:
    return list(scale_line(made, NAMES))


def test_the_scale_names_the_persona_that_it_is_made_of() -> None:
    toward_loud, toward_quiet = scale_of(MADE)
    assert toward_loud.startswith("toward loud, effect 1 is as far as the system prompt")
    assert "other way" not in toward_loud
    assert toward_quiet.startswith("toward quiet, effect 1 is as far as the system prompt for loud goes the other way")
    assert "for quiet does not move this model beyond doubt (0.20)" in toward_quiet


def test_where_system_prompts_move_nothing_the_scale_is_a_deviation() -> None:
    lines = scale_of(replace(MADE, scale=dict.fromkeys(POLES, "deviation")))
    assert len(lines) == 2
    for line in lines:
        assert "standard deviation of the unsteered answers" in line
        assert "system prompts move nothing" in line


def test_a_concept_without_personas_does_not_blame_system_prompts() -> None:
    for line in scale_of(replace(MADE, personas={}, scale=dict.fromkeys(POLES, "deviation"))):
        assert "standard deviation of the unsteered answers" in line
        assert "system prompts move nothing" not in line


# The table


def rows_of(made: Calibration) -> dict[str, tuple[str, ...]]:
    return {row[0]: row for row in curve_rows(made)}


def test_the_table_goes_from_unsteered_over_both_poles_to_the_personas() -> None:
    rows = list(curve_rows(MADE))
    assert all(len(row) == len(CURVE_HEADERS) for row in rows)
    assert [row[0] for row in rows] == [
        *("0", "+0.50", "+1.00", "+2.00", "-0.50", "-1.00", "-2.00"),
        *("persona +", "persona -"),
    ]
    assert rows[2] == ("+1.00", "0.300", "+0.90 (0.80..1.00)", "+0.25 (0.15..0.35)", "0.80", "12%", "8")


def test_the_table_counts_effects_toward_the_negative_pole_downward() -> None:
    assert rows_of(MADE)["-1.00"][1:4] == ("0.400", "-0.90 (-1.00..-0.80)", "+0.25 (0.15..0.35)")
    assert rows_of(MADE)["persona -"][2] == "-0.20 (-0.30..-0.10)"


def test_each_scope_has_its_table() -> None:
    assert [row[1] for row in curve_rows(MADE, "prompt")][1:4] == ["0.060", "0.120", "0.240"]


def test_a_side_without_a_dose_shows_what_was_measured_without_a_strength() -> None:
    rows = list(curve_rows(calibration(MODEL, without=NO_NEGATIVE)))
    assert [row[0] for row in rows][4:7] == ["", "", ""]
    assert [row[1] for row in rows][4:7] == ["0.200", "0.400", "0.800"]


def test_nothing_is_minus_zero() -> None:
    # As rounding leaves what hardly differs from the unsteered answers.
    rounding = Interval(-1e-16, -1e-16, 1e-17)
    hardly = {pole: replace(persona, effect=rounding, cost=rounding) for pole, persona in MADE.personas.items()}
    row = rows_of(replace(MADE, personas=hardly))["persona +"]
    assert row[2:4] == ("+0.00 (0.00..0.00)", "+0.00 (0.00..0.00)")


# The plot in the terminal


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminal_plot_fits_the_terminal(width: int) -> None:
    lines = terminal_plot(MADE, width).splitlines()
    assert 10 <= len(lines) <= 30
    assert max(len(line) for line in lines) <= min(width, 90)
    assert "\x1b" not in "".join(lines)
    assert lines == [line.rstrip() for line in lines]


def test_the_terminal_plot_names_what_it_shows() -> None:
    text = terminal_plot(MADE, 80)
    for word in ("effect", "cost, nats a token", "strength", "budget, 0.25 nats"):
        assert word in text


def test_the_terminal_plot_shows_the_negative_pole_below_zero() -> None:
    labels = [float(label) for label in re.findall(r"^ *(-?\d\.\d\d)┤", terminal_plot(MADE, 80), re.MULTILINE)]
    most = max(one.effect.mean for one in MADE.sides["negative", "response"].curve)
    assert min(labels) == pytest.approx(-most) == -max(labels)


def test_the_terminal_plot_changes_with_what_was_measured() -> None:
    louder = replace(MADE.sides["positive", "response"], curve=(point(0.3, effect=5.0, cost=3.0),))
    other = replace(MADE, sides={**MADE.sides, ("positive", "response"): louder})
    assert terminal_plot(other, 80) != terminal_plot(MADE, 80)
    # One plot leaves no trace in the next.
    assert terminal_plot(MADE, 80) == terminal_plot(MADE, 80)


@pytest.mark.parametrize("without", [NO_NEGATIVE, tuple(DOSES)])
def test_sides_without_a_dose_are_left_out_of_the_terminal_plot(without: tuple[tuple[Pole, Mode], ...]) -> None:
    assert "strength" in terminal_plot(calibration(MODEL, without=without), 80)


# For machines


def test_the_document_holds_everything_measured() -> None:
    found = json.loads(json.dumps(document(result(MODEL))))
    assert (found["concept"], found["poles"]) == ("loud", {"positive": "loud", "negative": "quiet"})
    assert (found["model"], found["budget"], found["seed"], found["generated_tokens"]) == ("Tiny", 0.25, 7, 1234)
    side = found["sides"]["negative/response"]
    assert (side["dose"], side["layers"], side["limit"], side["between"]) == (0.4, [2, 3], "coherence", [0.7, 1.1])
    assert [one["dose"] for one in side["curve"]] == [0.2, 0.4, 0.8]
    assert found["personas"]["positive"]["effect"]["mean"] == 1.0
    assert found["scale"] == {"positive": "persona", "negative": "other persona"}
    assert found["samples"]["negative/response"] == [
        {"dose": 0.3, "answers": [["How are you?", "FINE!\n\nAND YOU?"], ["Where is it?", ""]]}
    ]
    assert found["samples"]["positive/anchored"][0]["dose"] == 0.6


def test_what_no_answer_has_a_value_for_is_null_for_machines() -> None:
    made = result(MODEL)
    unknown = replace(made.calibration, unsteered=replace(made.calibration.unsteered, voiced=float("nan")))
    vector = replace(made.vector, provenance=replace(made.vector.provenance, calibration=unknown))
    text = json.dumps(document(replace(made, vector=vector)), allow_nan=False)
    assert json.loads(text)["unsteered"]["voiced"] is None


def test_a_side_without_a_dose_has_none_in_the_document() -> None:
    side = document(result(MODEL, without=NO_NEGATIVE))["sides"]["negative/prompt"]
    assert (side["dose"], side["effect"], side["cost"], side["norms"]) == (None, None, None, [])


# The folder


def test_a_report_is_a_page_with_its_pictures_and_the_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "loud"
    made = result(MODEL, without=NO_NEGATIVE)
    written = write_report(made, folder)
    assert sorted(written) == sorted(folder.iterdir())
    assert {path.suffix for path in written} == {".md", ".json", ".png", ".svg"}
    page = (folder / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert len(pictures) == 1
    for picture in pictures:
        assert (folder / picture).stat().st_size > 1000
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(document(made)))


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second a report."""
    monkeypatch.setattr("localsteer.calibration.report.draw_curves", lambda _result, path, kind: path.write_text(kind))


@pytest.mark.usefixtures("_no_pictures")
def test_the_page_tells_the_doses_and_shows_answers(tmp_path: Path) -> None:
    write_report(result(MODEL, without=NO_NEGATIVE), tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.startswith("# loud: calibrated on Tiny\n")
    assert "Budget 0.25 nats a token, 4 held-out questions, 1,234 sampled tokens, seed 7." in page
    assert f"| +1 (loud) | response only | {LOUD} |" in page
    assert "| -1 (quiet) | response only | no dose: none within 0.25 nats a token does anything beyond doubt |" in page
    # Answers in one line each, an empty one included.
    assert "**How are you?**\n\n> FINE! AND YOU?\n" in page
    assert "**Where is it?**\n\n> (nothing)" in page
    assert "Toward loud, relative dose 0.30, strength +1.00\n" in page
    assert "Toward quiet, relative dose 0.30\n" in page


@pytest.mark.usefixtures("_no_pictures")
def test_the_tables_of_the_page_are_whole(tmp_path: Path) -> None:
    write_report(result(MODEL), tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for row in (*curve_rows(MADE), *curve_rows(MADE, "prompt"), *curve_rows(MADE, "anchored")):
        assert "| " + " | ".join(row) + " |" in page
    tables: list[list[str]] = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    found = [table for table in tables if table]
    assert len(found) == 4  # doses, and the measurements of three scopes
    for table in found:
        assert len({line.count("|") for line in table}) == 1
        assert set(table[1]) == {"|", "-"}


@pytest.mark.usefixtures("_no_pictures")
def test_a_report_can_be_written_again(tmp_path: Path) -> None:
    write_report(result(MODEL), tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    write_report(result(MODEL, without=NO_NEGATIVE), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert "no dose: none within" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(CalibrationError, match=re.escape(str(folder))):
            write_report(result(MODEL), folder)


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CalibrationError, match="matplotlib") as caught:
        write_report(result(MODEL), tmp_path / "report")
    assert "pip install 'localsteer[plots]'" in (caught.value.hint or "")
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("_no_pictures")
def test_answers_of_an_earlier_calibration_are_not_told_as_if_they_were_new(tmp_path: Path) -> None:
    made = result(MODEL)
    anchored = {key: samples for key, samples in made.findings.samples.items() if key[1] == "anchored"}
    write_report(replace(made, findings=replace(made.findings, samples=anchored)), tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## Sample answers, response only" not in page
    assert (
        "## Sample answers, response, anchored\n\n### Toward loud, relative dose 0.60, strength +1.00\n\n"
        "**How are you?**\n\n> GREAT!\n"
    ) in page
    assert "| +1 (loud) | response, anchored | relative dose 0.60" in page
