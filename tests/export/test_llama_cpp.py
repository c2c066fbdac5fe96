from __future__ import annotations

import shlex
from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.errors import ExportError, LocalsteerError
from localsteer.export.llama_cpp import at_strength, command_lines, compare, vector_for_llama_cpp
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from localsteer.vector.importing import import_vector
from tests.calibration.made import DOSES, LAYERS, calibrated
from tests.conftest import TinyModel, random_rows
from tests.tiny_models import UNSTEERABLE_ARCHITECTURE


def exported(expression: str, vector: ControlVector) -> ControlVector:
    return vector_for_llama_cpp(parse_steering(expression), lambda _name: vector)


@pytest.mark.parametrize(("expression", "pole"), [("loud", "positive"), ("-loud", "negative")])
def test_strength_one_is_the_dose_that_was_calibrated_with_the_prompt(tiny: Model, expression: str, pole: str) -> None:
    vector = calibrated(tiny.fingerprint)
    made = exported(expression, vector)
    assert made.layers == LAYERS[pole]  # type: ignore[index]
    norms = vector.provenance.hidden_norm
    assert norms is not None
    dose = sum(np.linalg.norm(direction) / norms[layer] for layer, direction in made.directions.items())
    assert dose == pytest.approx(DOSES[pole, "prompt"], rel=1e-4)  # type: ignore[index]


def test_where_it_comes_from_is_kept(tiny: Model) -> None:
    given, made = calibrated(tiny.fingerprint).provenance, exported("-0.5 loud", calibrated(tiny.fingerprint)).provenance
    assert made.concept == "-0.5 loud"
    assert made.origin == "exported for llama.cpp: -0.5 loud, prompt and response"
    assert (made.model, made.method, made.n_pairs) == (given.model, given.method, given.n_pairs)
    assert (made.positive, made.negative) == (given.negative, given.positive)
    assert made.calibration is None  # strength 1 is the dose: it must not be applied twice


def test_nothing_but_its_layers_is_in_the_file(tiny: Model, tmp_path: Path) -> None:
    write_vector(exported("loud", calibrated(tiny.fingerprint)), tmp_path / "v.gguf")
    assert [tensor.name for tensor in gguf.GGUFReader(tmp_path / "v.gguf").tensors] == ["direction.1", "direction.2"]


@pytest.mark.parametrize("expression", ["loud", "-0.7 loud", "0.5 loud + 0.25 loud@1", "0.3 loud@2-2"])
def test_exported_imported_and_exported_again_is_the_same_file(tiny: Model, tmp_path: Path, expression: str) -> None:
    write_vector(exported(expression, calibrated(tiny.fingerprint)), tmp_path / "1.gguf")
    write_vector(import_vector(tmp_path / "1.gguf", model=tiny.fingerprint).vector, tmp_path / "2.gguf")
    write_vector(exported("loud", import_vector(tmp_path / "2.gguf").vector), tmp_path / "3.gguf")
    first = (tmp_path / "1.gguf").read_bytes()
    assert (tmp_path / "2.gguf").read_bytes() == first
    assert (tmp_path / "3.gguf").read_bytes() == first


def test_a_vector_from_elsewhere_makes_the_same_round(tmp_path: Path) -> None:
    given = ControlVector({2: np.arange(8, dtype=np.float32)}, Provenance(model_hint="llama", origin="imported from x.npz"))
    write_vector(exported('"my vectors/x.gguf"', given), tmp_path / "1.gguf")
    write_vector(exported("y", import_vector(tmp_path / "1.gguf").vector), tmp_path / "2.gguf")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()
    assert import_vector(tmp_path / "2.gguf").vector.provenance.origin == "imported from x.npz"


def test_a_strength_multiplies_every_term() -> None:
    assert str(at_strength(parse_steering("0.5 happy - formal@2-3"), -2)) == "-happy + 2 formal@2-3"
    with pytest.raises(LocalsteerError, match="!happy"):
        vector_for_llama_cpp(at_strength(parse_steering("!happy"), 0.5), lambda _name: pytest.fail("was loaded"))


def test_what_is_typed_is_one_argument_each() -> None:
    for line in command_lines(Path("my vectors/a,b.gguf"), Path("models/m 1.gguf")):
        program, *arguments = shlex.split(line)
        assert program in ("llama-cli", "llama-server", "llama-completion")
        assert arguments == ["-m", "models/m 1.gguf", "--control-vector", '"my vectors/a,b.gguf"']
    assert command_lines(Path("v.gguf"), Path("m.gguf"))[0] == "llama-cli -m m.gguf --control-vector v.gguf"


def test_a_written_file_is_read_back_and_compared(steerable: Model, tmp_path: Path) -> None:
    rows = random_rows(steerable, (1, 2), seed=3)
    vector = ControlVector({1: rows[1], 2: rows[2]})
    plan = resolve(parse_steering("push"), steerable.fingerprint, lambda _name: vector, "prompt")
    write_vector(vector, tmp_path / "v.gguf")
    fidelity = compare(tmp_path / "v.gguf", steerable, plan.edit.added)
    fidelity.refuse_if_far()
    assert fidelity.mean < 1e-6
    write_vector(vector * 0.5, tmp_path / "half.gguf")
    with pytest.raises(ExportError, match="localsteer doctor"):
        compare(tmp_path / "half.gguf", steerable, plan.edit.added).refuse_if_far()


def test_an_architecture_without_control_vectors_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model(UNSTEERABLE_ARCHITECTURE)
    with pytest.raises(ExportError, match=UNSTEERABLE_ARCHITECTURE):
        compare(tmp_path / "v.gguf", model, random_rows(model, (1,), seed=0))
