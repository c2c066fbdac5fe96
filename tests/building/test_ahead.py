from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.building.ahead import Shelf, model_slug
from localsteer.building.cache import cache_folder
from localsteer.building.library import load_vector, save_vector
from localsteer.concepts import names
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import find_concept, shipped_folder
from localsteer.discovery import DEMO_FILE
from localsteer.errors import CalibrationError, VectorError
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector, write_vector
from tests.building.test_library import add_concept, vector_of
from tests.calibration.made import calibrated
from tests.conftest import TinyPath

SHIPPED = shipped_folder()


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of two concepts."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(names, "shipped_folder", lambda: folder)
    add_concept(folder, "happy")
    add_concept(folder, "formal")
    return folder


@pytest.fixture
def shelf(tiny_path: TinyPath) -> Shelf:
    return Shelf.for_model(tiny_path("llama"))


@pytest.fixture
def folder(tmp_path: Path, tiny_path: TinyPath) -> Shelf:
    """A shelf in a folder."""
    return Shelf.for_model(tiny_path("llama"), tmp_path / "out")


def edit(shipped: Path, name: str) -> None:
    file = shipped / name / "concept.yaml"
    file.write_text(file.read_text().replace("HIP HIP", "OH YEAH"))


# The cache


def test_what_is_built_is_kept_where_every_command_finds_it(shelf: Shelf, tiny: Model) -> None:
    place = shelf.look(find_concept("happy"))
    assert (place.state, place.calibrated, place.to_build) == ("missing", False, True)
    place = shelf.build(place, tiny)
    assert (place.state, place.calibrated, place.to_build, place.error) == ("built", False, False, None)
    assert place.seconds > 0
    assert place.found is not None
    assert place.found.path == place.path
    assert [place.path] == list(cache_folder().iterdir())
    load_vector("happy", tiny, lambda *_: pytest.fail("it was built again"))
    again = shelf.look(find_concept("happy"))
    assert (again.state, again.to_build, again.seconds) == ("there", False, 0)


def test_a_shipped_vector_is_there(shelf: Shelf, tiny: Model, shipped: Path) -> None:
    write_vector(vector_of(tiny), shipped / "happy" / "tiny.gguf")
    place = shelf.look(find_concept("happy"))
    assert (place.state, place.to_build, place.to_calibrate) == ("shipped", False, True)


def test_a_calibrated_vector_takes_the_place_of_a_shipped_one_in_the_cache(shelf: Shelf, tiny: Model, shipped: Path) -> None:
    write_vector(vector_of(tiny, 7), shipped / "happy" / "tiny.gguf")
    before = (shipped / "happy" / "tiny.gguf").read_bytes()
    given: list[float] = []

    def calibrate(vector: ControlVector, contrast: Contrast) -> ControlVector:
        given.append(float(vector.directions[1][0]))
        assert contrast.name == "happy"
        return calibrated(tiny.fingerprint)

    place = shelf.calibrate(shelf.look(find_concept("happy")), calibrate)
    assert given == [7]
    assert (place.calibrated, place.to_calibrate, place.error) == (True, False, None)
    assert load_vector("happy", tiny).provenance.calibration is not None
    assert (shipped / "happy" / "tiny.gguf").read_bytes() == before


def test_what_cannot_be_calibrated_stays_built(shelf: Shelf, tiny: Model) -> None:
    def calibrate(*_: object) -> ControlVector:
        raise CalibrationError("it does nothing")

    built = shelf.build(shelf.look(find_concept("happy")), tiny)
    place = shelf.calibrate(built, calibrate)
    assert (place.state, place.calibrated, place.to_calibrate) == ("built", False, False)
    assert str(place.error) == "it does nothing"
    assert place.seconds >= built.seconds
    assert load_vector("happy", tiny).provenance.calibration is None


def test_a_broken_concept_is_an_error_of_its_own(shelf: Shelf, shipped: Path) -> None:
    (shipped / "happy" / "concept.yaml").write_text("name: [")
    place = shelf.look(find_concept("happy"))
    assert (place.state, place.to_build, place.to_calibrate) == ("failed", False, False)
    assert "line 1" in str(place.error)
    assert shelf.look(find_concept("formal")).error is None


def test_prompts_without_a_difference_are_an_error_of_their_own(shelf: Shelf, tiny: Model, shipped: Path) -> None:
    file = shipped / "happy" / "concept.yaml"
    file.write_text(file.read_text().replace("alas and alack", "HIP HIP HURRAY"))
    place = shelf.build(shelf.look(find_concept("happy")), tiny)
    assert place.state == "failed"
    assert place.error is not None
    assert not list(cache_folder().glob("*"))


def test_a_cache_that_cannot_be_written_is_told_before_the_work(shelf: Shelf) -> None:
    cache_folder().parent.parent.mkdir(parents=True)
    cache_folder().parent.write_text("no folder")
    with pytest.raises(VectorError, match=str(cache_folder().parent)):
        shelf.check_writable()


# A folder


def test_a_vector_in_a_folder_is_named_after_its_model(folder: Shelf, tiny: Model, tmp_path: Path) -> None:
    folder.check_writable()
    place = folder.build(folder.look(find_concept("happy")), tiny)
    assert place.path == tmp_path / "out" / "happy" / "llama.gguf"
    assert read_vector(place.path).provenance.concept == "happy"
    assert [file.name for file in place.path.parent.iterdir()] == ["llama.gguf"]
    assert not cache_folder().exists()
    assert folder.look(find_concept("happy")).state == "there"


def test_only_what_is_in_the_folder_counts(folder: Shelf, tiny: Model, shipped: Path) -> None:
    write_vector(vector_of(tiny, 7), shipped / "happy" / "tiny.gguf")
    save_vector("happy", vector_of(tiny, 8), tiny)
    assert folder.look(find_concept("happy")).to_build
    place = folder.build(folder.look(find_concept("happy")), tiny)
    assert place.found is not None
    assert place.found.vector.provenance.n_pairs == 3


def test_a_vector_of_a_former_wording_is_replaced(folder: Shelf, tiny: Model, shipped: Path) -> None:
    before = folder.build(folder.look(find_concept("happy")), tiny)
    edit(shipped, "happy")
    place = folder.look(find_concept("happy"))
    assert place.to_build
    after = folder.build(place, tiny)
    assert after.path == before.path
    assert after.path is not None
    assert "OH YEAH" in read_vector(after.path).provenance.source


def test_a_damaged_vector_is_replaced(folder: Shelf, tiny: Model) -> None:
    place = folder.build(folder.look(find_concept("happy")), tiny)
    assert place.path is not None
    good = place.path.read_bytes()
    place.path.write_bytes(good[:-100])
    folder.build(folder.look(find_concept("happy")), tiny)
    assert place.path.read_bytes() == good


def test_a_vector_of_another_model_file_is_left_alone(folder: Shelf, tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "out" / "happy" / "llama.gguf"
    path.parent.mkdir(parents=True)
    other = vector_of(tiny)
    other = replace(other, provenance=replace(other.provenance, model=replace(tiny.fingerprint, content="x")))
    for vector in (other, ControlVector({1: np.ones(tiny.n_embd, np.float32)})):
        write_vector(vector, path)
        place = folder.look(find_concept("happy"))
        assert (place.state, place.to_build) == ("failed", False)
        assert str(path) in str(place.error)


# The model's part of a file's name


@pytest.mark.parametrize(
    ("file", "slug"),
    [
        (DEMO_FILE, "smollm2-135m-instruct"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "llama-3.2-1b-instruct"),
        ("gemma-3-1b-it-UD-IQ2_XXS.gguf", "gemma-3-1b-it"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b"),
        ("big-BF16-00001-of-00003.gguf", "big"),
        ("model.fp16.gguf", "model"),
        ("tiny.gguf", "tiny"),
        ("Q8_0.gguf", "q8_0"),
        ("sha256-ab34f16", "sha256-ab34f16"),
    ],
)
def test_a_models_part_of_a_name(file: str, slug: str) -> None:
    assert model_slug(Path(file)) == slug


def test_the_vectors_of_the_demo_model_are_named_by_that_rule() -> None:
    assert (SHIPPED / "happy" / f"{model_slug(Path(DEMO_FILE))}.gguf").is_file()
