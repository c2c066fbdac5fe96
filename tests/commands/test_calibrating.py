from __future__ import annotations

import pytest

from localsteer.calibration.laboratory import Speed
from localsteer.commands.calibrating import calibrator_for, duration, price
from localsteer.concept_file import parse_concept
from localsteer.extraction import ExtractionSettings, extract
from localsteer.llama.model import Model
from tests.calibration.made import CONCEPT, make_small


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.4, "9.4 s"), (10.2, "10 s"), (89, "89 s"), (91, "2 min"), (7000, "117 min"), (9000, "2.5 h")],
)
def test_a_time_is_told_in_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_several_calibrations_cost_the_sum(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    contrast = parse_concept(CONCEPT, "loud")
    one = calibrator_for(tiny, extract(tiny, contrast, ExtractionSettings(layers=(1, 3))), contrast)
    speed = Speed(answering=10, reading=100)
    for count in (1, 3):
        answers = count * one.answers
        told = price([one] * count, speed)
        assert told.startswith(f"tiny: up to {answers} answers of 4 tokens ({4 * answers:,} tokens); about ")
    assert duration(3 * one.seconds(speed)) in told
    assert told.endswith("at 10 tokens/s answering and 100 tokens/s re-reading.")
