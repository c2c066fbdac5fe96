from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localsteer.errors import LocalsteerError, VectorError
from localsteer.export.glp import export_removal
from localsteer.files.gguf_header import read_header
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector
from tests.conftest import random_rows

Load = Callable[[str], ControlVector]


@pytest.fixture
def load(tiny: Model) -> Load:
    def vector(seed: int, *layers: int) -> ControlVector:
        rows = random_rows(tiny, layers, seed)
        return ControlVector({layer: rows[layer] for layer in layers}, Provenance(model=tiny.fingerprint))

    return {"harsh": vector(1, 1, 2), "cold": vector(2, 2, 3), "late": vector(3, 3)}.__getitem__


def test_a_file_takes_away_what_the_expression_does(tiny: Model, load: Load, tmp_path: Path) -> None:
    export_removal(parse_steering("!harsh + !late"), tmp_path / "v.gguf", load, tiny)
    header = read_header(tmp_path / "v.gguf", VectorError, kind="vector file")
    assert (header.text("glp.mode"), header.text("glp.hook_point")) == ("project", "residual_stream_post_layer")
    assert (header.value("glp.alpha_default"), header.whole_number("glp.rank")) == (1.0, 1)
    read = resolve(parse_steering("!v"), tiny.fingerprint, lambda _name: read_vector(tmp_path / "v.gguf")).edit
    ours = resolve(parse_steering("!harsh + !late"), tiny.fingerprint, load).edit
    assert read.removed.keys() == ours.removed.keys() == {1, 2, 3}
    for layer, basis in ours.removed.items():
        np.testing.assert_allclose(abs(read.removed[layer] @ basis.T), 1, atol=1e-5)
        assert np.linalg.norm(read_vector(tmp_path / "v.gguf").directions[layer]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("expression", "word"),
    [
        ("harsh", "takes something away"),
        ("!harsh + 0.5 cold", "0.5 cold"),
        ("!harsh@thinking", "@thinking"),
        ("!harsh + !cold", "several directions"),
        ("", "removes nothing"),
    ],
)
def test_what_no_such_file_can_say_is_refused(tiny: Model, load: Load, tmp_path: Path, expression: str, word: str) -> None:
    with pytest.raises(LocalsteerError, match=word):
        export_removal(parse_steering(expression), tmp_path / "v.gguf", load, tiny)
    assert not list(tmp_path.iterdir())
