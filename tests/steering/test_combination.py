from __future__ import annotations

import numpy as np
import pytest

from localsteer.errors import LocalsteerError, VectorError
from localsteer.llama.model import Model
from localsteer.steering.combination import combine, describe
from localsteer.steering.expression import parse_steering
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import calibrated

ONES = ControlVector({1: np.ones(8, np.float32), 2: np.ones(8, np.float32)}, Provenance(concept="ones"))
TWOS = ControlVector({2: np.full(8, 2, np.float32), 3: np.full(8, 2, np.float32)})
BY_NAME = {"ones": ONES, "my/twos.gguf": TWOS, "huge": ControlVector({1: np.full(8, 1e38, np.float32)})}


def combined(expression: str) -> ControlVector:
    return combine(parse_steering(expression), BY_NAME.__getitem__)


def test_terms_are_summed_with_their_strengths_and_layers() -> None:
    made = combined("0.5 ones - my/twos.gguf@2")
    assert {layer: direction.tolist()[0] for layer, direction in made.directions.items()} == {1: 0.5, 2: -1.5}
    assert made.provenance.concept == "0.5 ones - twos@2-2"


def test_a_vector_alone_keeps_its_name() -> None:
    assert combined("ones").provenance.concept == "ones"
    assert combined("my/twos.gguf").provenance.concept == "twos"
    assert combined("-ones").provenance.concept == "-ones"
    assert combined("ones@1").provenance.concept == "ones@1-1"


def test_layers_where_the_terms_cancel_are_left_out() -> None:
    assert combined("2 ones - my/twos.gguf").layers == (1, 3)
    with pytest.raises(VectorError, match="adds nothing"):
        combined("ones - ones")
    with pytest.raises(VectorError, match="adds nothing"):
        combined("0 ones")


def test_each_scope_has_the_dose_that_was_calibrated_for_it(tiny: Model) -> None:
    vector = calibrated(tiny.fingerprint)
    steering = parse_steering("-0.5 loud")
    for mode in ("response", "prompt"):
        made = combine(steering, lambda _name: vector, mode)
        assert np.array_equal(made.rows(4), vector.at(-0.5, mode).rows(4))


def test_what_cannot_be_added_is_refused() -> None:
    with pytest.raises(LocalsteerError, match=r"!ones removes a component.*-s"):
        combined("my/twos.gguf + !ones")
    with pytest.raises(VectorError, match=r"ones: .*layers 1-2, and none at 5"):
        combined("ones@5")
    with pytest.raises(VectorError, match="strength of 100 huge is too large"):
        combined("100 huge")


def test_an_expression_is_described_by_the_vectors_own_names() -> None:
    assert str(describe(parse_steering("0.5 my/twos.gguf + ones@1-2"), BY_NAME.__getitem__)) == "0.5 twos + ones@1-2"
