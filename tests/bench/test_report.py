"""The page of results, section by section."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure import Comparison, Section, Series, Target
from bench.report import Measured, record

ORDER = ("decode", "serving")


def result(title: str, ours: float, *, at_least: bool = True) -> Measured:
    series = Series((ours, ours, 2 * ours))
    line = Comparison(
        "speed", "tokens/s", series, "theirs", Series((1.0, 1.0, 1.0)), series, "ours / theirs", Target(2.0, at_least)
    )
    return Measured(Section(title, "How.", (line,)), {"Date": f"the day of {title}"}, 3)


def page(folder: Path) -> str:
    return (folder / "RESULTS.md").read_text()


def test_a_section_takes_its_place_beside_the_others(tmp_path: Path) -> None:
    record(tmp_path, "serving", result("Serving", 1.0), ORDER)
    record(tmp_path, "decode", result("Decoding", 3.0), ORDER)
    assert page(tmp_path).index("## Decoding") < page(tmp_path).index("## Serving")
    for title in ("Decoding", "Serving"):
        assert f"Date: the day of {title}; --repeats: 3" in page(tmp_path)


def test_a_section_that_is_measured_again_replaces_the_old_one(tmp_path: Path) -> None:
    for title in ("Old", "New"):
        record(tmp_path, "decode", result(title, 1.0), ORDER)
    assert "## New" in page(tmp_path)
    assert "Old" not in page(tmp_path)


@pytest.mark.parametrize(
    ("at_least", "ours", "verdict"), [(True, 2.0, "yes"), (True, 1.9, "**no**"), (False, 2.0, "yes"), (False, 2.1, "**no**")]
)
def test_the_page_says_whether_the_target_was_met(tmp_path: Path, at_least: bool, ours: float, verdict: str) -> None:
    record(tmp_path, "decode", result("Decoding", ours, at_least=at_least), ORDER)
    line = next(line for line in page(tmp_path).splitlines() if line.startswith("| speed |"))
    assert line.endswith(f"| {'at least' if at_least else 'at most'} 2 | {verdict} |")
    assert f"{ours:.2f} tokens/s ({ours:.2f} to {2 * ours:.2f})" in line
