from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsteer.errors import VectorError
from localsteer.vector.calibration import Interval
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.dosing import Dosing
from localsteer.vector.file import read_vector, write_vector
from tests.vector.made_dosing import dosing

NONE = Interval(math.nan, math.nan, math.nan)


def vector(found: Dosing) -> ControlVector:
    return ControlVector({1: np.ones(4, np.float32), 2: np.full(4, 2.0, np.float32)}, Provenance(dosing=found))


@pytest.mark.parametrize(
    ("strength", "mode", "times"),
    [
        (1, "response", 1),
        (2, "response", 2),
        (-1, "response", -0.5),
        (1, "prompt", 0.5),
        (-2, "prompt", -0.5),
        (-1, "anchored", -0.5),
    ],
)
def test_a_dosed_vector_has_a_dose_for_each_pole_and_mode(strength: float, mode: Any, times: float) -> None:
    found = vector(dosing(0.5, 0.25)).at(strength, mode)
    np.testing.assert_allclose(found.directions[2], 2.0 * times)
    assert found.provenance.dosing is None


def test_arithmetic_and_other_layers_end_a_dosing() -> None:
    made = vector(dosing())
    for other in (made * 2, -made, made + made, made.only([1])):
        assert other.provenance.dosing is None
    assert made.named("other").provenance.dosing is not None


def test_a_dosing_comes_back_from_a_file(tmp_path: Path) -> None:
    found = dosing()
    unknown = replace(found, sides={**found.sides, "negative": replace(found.sides["negative"], ratio=NONE, coherence=math.nan)})
    for made in (found, unknown):
        write_vector(vector(made), tmp_path / "v.gguf")
        read = read_vector(tmp_path / "v.gguf").provenance.dosing
        assert read is not None
        assert read.document() == made.document()


def test_what_a_system_prompt_does_is_kept_and_a_file_from_before_it_was_measured_stays_as_it_was() -> None:
    found = dosing()
    assert "asked" not in found.document()["sides"]["positive"]
    assert Dosing.from_json(found.to_json()).to_json() == found.to_json()
    asked = replace(found, sides={pole: replace(side, asked=0.9) for pole, side in found.sides.items()})
    assert Dosing.from_json(asked.to_json()) == asked


@pytest.mark.parametrize(
    "change",
    [
        {"sides": {}},
        {"sides": {"positive": {}}},
        {"seed": "x"},
        {"dose": {"response": 0}},
        {"dose": {"response": -1, "prompt": 1}},
        {"dose": {"response": 1e999, "prompt": 1}},
        {"dose": {"response": 1}},
    ],
)
def test_a_damaged_dosing_is_refused(change: dict[str, Any]) -> None:
    document = dosing().document()
    (document["sides"]["positive"] if "dose" in change else document).update(change)
    with pytest.raises(VectorError, match="the dosing is damaged") as caught:
        Dosing.from_json(json.dumps(document))
    assert "again" in (caught.value.hint or "")
