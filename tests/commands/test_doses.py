"""What is said of a vector's doses once it is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localsteer.commands.doses import print_dosing
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.vector.made_dosing import dosing


def told(capsys: pytest.CaptureFixture[str], **changed: Any) -> tuple[str, str]:
    found = dosing(0.5, 0.25)
    sides = {**found.sides, "positive": replace(found.sides["positive"], **changed)}
    own = Provenance(positive="loud", negative="quiet", dosing=replace(found, sides=sides))
    print_dosing(ControlVector({1: np.ones(4, np.float32)}, own))
    said = capsys.readouterr()
    return said.out, said.err


def test_both_doses_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = told(capsys)
    assert out.splitlines()[0].startswith("+1 loud: relative dose 0.50 (0.25 with the prompt steered as well)")
    assert out.splitlines()[1].startswith("-1 quiet: relative dose 0.25")
    assert err == ""


def test_what_a_system_prompt_does_is_told_where_one_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = told(capsys, asked=0.83)
    assert "beside those of quiet, 0.83 under a system prompt that asks for it; answers" in out.splitlines()[0]
    assert "system prompt" not in out.splitlines()[1]
    assert "0.83" not in told(capsys, asked=0.83, shown=False)[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"coherence": 1.7}, "Answers toward loud made no sense"),
        ({"coherence": float("inf")}, "Answers toward loud made no sense, or were none"),
        ({"most": 0.5}, "Toward loud more than that makes the model refuse everyday questions."),
        ({"shown": False}, "loud: nothing beyond chance was seen."),
    ],
)
def test_what_is_wrong_with_a_dose_is_told_beside_it(
    capsys: pytest.CaptureFixture[str], changed: dict[str, Any], said: str
) -> None:
    _, err = told(capsys, **changed)
    assert said in err
    assert "quiet" not in err


def test_an_answer_that_makes_no_sense_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = told(capsys, coherence=1.7, shown=False)
    assert err.count("\n") == 1
    assert "as much as its text bears" not in err


def test_nothing_is_told_of_a_vector_that_was_not_dosed(capsys: pytest.CaptureFixture[str]) -> None:
    print_dosing(ControlVector({1: np.ones(4, np.float32)}))
    assert capsys.readouterr() == ("", "")
