from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from localsteer.building.dosing import dose
from localsteer.errors import VectorError
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.file import read_vector, write_vector
from localsteer.vector.importing import import_vector

Keys = dict[str, Any]
Write = Callable[[Keys], Path]
PROJECT: Keys = {
    "glp.spec_version": 1,
    "glp.mode": "project",
    "glp.hook_point": "residual_stream_post_layer",
    "glp.rank": 1,
    "glp.orthonormal": True,
}


@pytest.fixture
def write(tmp_path: Path, tiny: Model) -> Write:
    """A vector for the tiny model, with these keys in its file."""

    def written(keys: Keys) -> Path:
        writer = gguf.GGUFWriter(tmp_path / "harsh.gguf", "controlvector")
        writer.add_string("controlvector.model_hint", tiny.architecture)
        writer.add_uint32("controlvector.layer_count", 2)
        for key, value in keys.items():
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
            add[type(value)](key, value)
        for layer in (1, 2):
            writer.add_tensor(f"direction.{layer}", np.arange(tiny.n_embd, dtype=np.float32) + layer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "harsh.gguf"

    return written


def steered(model: Model, expression: str) -> Plan:
    return resolve(parse_steering(expression), model.fingerprint, read_vector)


@pytest.mark.parametrize("prefix", ["glp", "dspark"])
def test_what_is_to_be_taken_away_is_not_added(write: Write, tiny: Model, prefix: str) -> None:
    path = write({key.replace("glp", prefix): value for key, value in PROJECT.items()})
    for expression in (f'"{path}"', f'-0.5 "{path}"', f'"{path}" + !"{path}"'):
        with pytest.raises(VectorError, match="taken away, not added") as caught:
            steered(tiny, expression)
        assert f"!{path}" in str(caught.value)
    plan = steered(tiny, f'!"{path}"')
    assert not plan.edit.added.any()
    for layer in (1, 2):
        direction = np.arange(tiny.n_embd, dtype=np.float32) + layer
        (basis,) = plan.edit.removed[layer]
        np.testing.assert_allclose(direction - (direction @ basis) * basis, 0, atol=1e-4)


def test_it_is_taken_away_as_often_as_the_file_says(write: Write, tiny: Model) -> None:
    path = write({**PROJECT, "glp.alpha_default": 2.0})
    (basis,) = steered(tiny, f'!"{path}"').edit.removed[1]
    direction = np.arange(tiny.n_embd, dtype=np.float32) + 1
    np.testing.assert_allclose(direction - (direction @ basis) * basis, -direction, rtol=1e-5)


def test_only_alone_is_it_taken_away_more_than_once(write: Write, tiny: Model, tmp_path: Path) -> None:
    """What is left would hang on the order."""
    twice = write({**PROJECT, "glp.alpha_default": 2.0}).rename(tmp_path / "twice.gguf")
    once = write(PROJECT)
    with pytest.raises(VectorError, match="alone"):
        steered(tiny, f'!"{twice}" + !"{once}"')
    assert steered(tiny, f'!"{twice}"@1 + !"{once}"@2').edit.removed.keys() == {1, 2}


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"glp.mode": "clamp"}, "clamp"),
        ({"dspark.mode": "reflect"}, "reflect"),
        ({"glp.mode": "\x1b[2J"}, "glp.mode"),
        ({"glp.mode": 7}, "no text"),
        ({**PROJECT, "glp.hook_point": "ffn_out_pre_residual"}, "ffn_out_pre_residual"),
        ({**PROJECT, "glp.rank": 3}, "glp.rank"),
        ({**PROJECT, "glp.structure": "per-execution-step"}, "per-execution-step"),
        ({**PROJECT, "glp.layer_scales": "1,2"}, "layer_scales"),
        ({**PROJECT, "glp.alpha_default": float("nan")}, "alpha_default"),
        ({**PROJECT, "glp.alpha_default": 0.0}, "alpha_default"),
        ({**PROJECT, "glp.alpha_default": 1e30}, "alpha_default"),
        ({"glp.mode": "add", "glp.alpha_default": 2.0}, "alpha_default"),
    ],
)
def test_what_cannot_be_done_is_refused(write: Write, keys: Keys, word: str) -> None:
    path = write(keys)
    for read in (read_vector, import_vector):
        with pytest.raises(VectorError, match=word) as caught:
            read(path)
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "keys", [{}, {"glp.mode": "add"}, {"glp.mode": "add", "glp.alpha_default": 1.0}, {"glp.spec_version": 1}]
)
def test_the_others_are_added_as_ever(write: Write, tiny: Model, keys: Keys) -> None:
    path = write(keys)
    np.testing.assert_array_equal(steered(tiny, f'"{path}"').edit.added[2], np.arange(tiny.n_embd, dtype=np.float32) + 2)


def test_an_imported_one_is_still_to_be_taken_away(write: Write, tiny: Model, tmp_path: Path) -> None:
    imported = import_vector(write({**PROJECT, "glp.alpha_default": 1.5}), model=tiny.fingerprint)
    assert (imported.kind, imported.shift) == ("GLP", 0)
    assert "!harsh" in imported.findings[0]
    write_vector(imported.vector, tmp_path / "ours.gguf")
    assert read_vector(tmp_path / "ours.gguf").provenance.removal == 1.5
    with pytest.raises(VectorError, match="taken away"):
        dose(tiny, imported.vector, None)
