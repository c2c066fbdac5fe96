from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.building.library import find_vector
from localsteer.concepts.names import concepts, find_concept, user_folder
from localsteer.concepts.shared import keep, read_folder
from localsteer.errors import ContrastError, LocalsteerError, VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from tests.commands.runner import CONCEPT
from tests.made_files import write_foreign_vector

MODEL = Fingerprint("Tiny", "llama", 6, 8, "a" * 64, "b" * 64)
# Another quantisation of it.
OTHER = replace(MODEL, content="c" * 64)


def vector(model: Fingerprint | None = MODEL, *, source: str = CONCEPT, origin: str = "") -> ControlVector:
    own = Provenance(concept="loud", positive="loud", negative="quiet", model=model, source=source, origin=origin)
    return ControlVector({2: np.arange(1, 9, dtype=np.float32)}, own)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A concept with vectors for two files of one model."""
    made = tmp_path / "downloaded"
    made.mkdir()
    (made / "README.md").write_text("# Not read\n")
    (made / "concept.yaml").write_text(CONCEPT)
    write_vector(vector(), made / "loud.gguf")
    write_vector(vector(OTHER), made / "loud-other.gguf")
    return made


def test_a_concept_is_kept_with_its_vectors_and_found_by_its_name(folder: Path) -> None:
    kept = keep(read_folder(folder))
    assert (kept.name, kept.folder, kept.vectors, kept.left_out) == ("loud", user_folder() / "loud", ("Tiny",), ())
    concept = find_concept("loud")
    for model in (MODEL, OTHER):
        found = find_vector(concept, concept.source(), model.content)
        assert found is not None
        assert found.vector.provenance.model == model
    assert keep(read_folder(folder), force=True) == kept


def test_a_folder_without_a_concept_file_has_the_one_that_its_vector_carries(folder: Path) -> None:
    (folder / "concept.yaml").unlink()
    assert keep(read_folder(folder)).name == "loud"
    assert find_concept("loud").source() == CONCEPT


def test_a_concept_alone_is_kept_to_be_built(folder: Path) -> None:
    for file in folder.glob("*.gguf"):
        file.unlink()
    assert keep(read_folder(folder)).vectors == ()
    assert "loud" in concepts()


def test_what_would_not_be_found_by_the_name_is_left_out(folder: Path) -> None:
    write_vector(vector(source=CONCEPT.replace("very loud", "noisy")), folder / "reworded.gguf")
    write_vector(vector(origin="exported for llama.cpp"), folder / "exported.gguf")
    write_vector(vector(None), folder / "of no model.gguf")
    kept = keep(read_folder(folder))
    assert {path.name for path in kept.left_out} == {"reworded.gguf", "exported.gguf", "of no model.gguf"}


def test_of_two_vectors_for_one_model_the_second_is_told_to_be_left_out(folder: Path) -> None:
    write_vector(vector(), folder / "zz again.gguf")
    kept = keep(read_folder(folder))
    assert [path.name for path in kept.left_out] == ["zz again.gguf"]


def test_nobodys_concept_is_replaced_unasked(folder: Path) -> None:
    mine = user_folder() / "loud" / "concept.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(CONCEPT.replace("very loud", "mine"))
    with pytest.raises(VectorError, match=r'another concept "loud".*--name'):
        keep(read_folder(folder))
    assert "mine" in mine.read_text()
    assert [path.name for path in mine.parent.iterdir()] == ["concept.yaml"]
    assert keep(read_folder(folder), name="louder").name == "louder"
    keep(read_folder(folder), force=True)
    assert mine.read_text() == CONCEPT
    with pytest.raises(VectorError, match=r"is there already.*--force"):
        keep(read_folder(folder))


def test_what_a_killed_import_left_is_written_anew_unasked(folder: Path) -> None:
    kept = keep(read_folder(folder))
    files = set(kept.folder.iterdir())
    (kept.folder / "concept.yaml").unlink()  # it comes last
    keep(read_folder(folder))
    assert set(kept.folder.iterdir()) == files


def test_a_concept_that_hides_a_shipped_one_is_told(folder: Path) -> None:
    assert keep(read_folder(folder), name="happy").hides_shipped
    assert not keep(read_folder(folder)).hides_shipped


@pytest.mark.parametrize("name", ["../escaped", "/etc/x", "a/b", "..", "", "Loud", "a\x1b[2J", "loud\n"])
def test_no_name_leads_anywhere_else(folder: Path, name: str) -> None:
    before = set(folder.parent.rglob("*"))
    with pytest.raises(ContrastError, match="no name for a concept"):
        keep(read_folder(folder), name=name)
    (folder / "concept.yaml").write_text(CONCEPT.replace("name: loud", f"name: {name!r}"))
    with pytest.raises(ContrastError) as refused:
        keep(read_folder(folder))
    assert str(refused.value).isprintable()
    assert set(folder.parent.rglob("*")) == before
    assert not user_folder().exists()


def test_no_name_of_a_model_leads_anywhere_else(folder: Path) -> None:
    odd = replace(MODEL, name="../../x\x1b/..", content="../../../y")
    write_vector(vector(odd), folder / "loud.gguf")
    kept = keep(read_folder(folder))
    assert {path.parent for path in user_folder().rglob("*.gguf")} == {kept.folder}
    assert all(path.name.isprintable() for path in kept.folder.iterdir())


@pytest.mark.parametrize(
    "line",
    ['description: "\\e[2J"', 'poles: {positive: "\\x9b2J", negative: quiet}', 'held_out: {questions: ["\\r"]}', '"\\e[2J": 1'],
)
def test_a_concept_commands_no_terminal(folder: Path, line: str) -> None:
    key = line.partition(":")[0]
    kept = [one for one in CONCEPT.splitlines() if not one.startswith(f"{key}:")]
    (folder / "concept.yaml").write_text("\n".join([*kept, line]))
    with pytest.raises(ContrastError, match=r"concept\.yaml, line \d+") as refused:
        keep(read_folder(folder))
    assert str(refused.value).isprintable()


@pytest.mark.skipif(os.name == "nt", reason="such a name is none there")
def test_a_name_of_a_file_commands_no_terminal(folder: Path) -> None:
    (folder / "loud.gguf").rename(folder / "\x1b[2J.gguf")
    with pytest.raises(VectorError, match="control characters in its name") as refused:
        read_folder(folder)
    assert str(refused.value).isprintable()


def test_every_file_is_checked(folder: Path) -> None:
    (folder / "cut.gguf").write_bytes((folder / "loud.gguf").read_bytes()[:200])
    with pytest.raises(VectorError, match=r"cut\.gguf is damaged"):
        read_folder(folder)
    (folder / "cut.gguf").unlink()
    (folder / "concept.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ContrastError, match="larger than any concept"):
        read_folder(folder)


def test_one_vector_is_imported_into_a_file(folder: Path) -> None:
    with pytest.raises(VectorError, match="holds 2 vectors"):
        read_folder(folder).only()
    assert read_folder(folder).only(OTHER.content) == folder / "loud-other.gguf"
    (folder / "loud-other.gguf").unlink()
    assert read_folder(folder).only() == folder / "loud.gguf"
    (folder / "loud.gguf").unlink()
    with pytest.raises(VectorError, match="holds no vector"):
        read_folder(folder).only()


def test_a_folder_without_a_concept_has_no_name(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    write_foreign_vector(folder / "theirs.gguf", {1: np.ones(8, np.float32)}, layer_count=1)
    with pytest.raises(VectorError, match=r"no name to be kept under.*-o"):
        keep(read_folder(folder))
    (folder / "theirs.gguf").unlink()
    with pytest.raises(LocalsteerError, match="no name to be kept under"):
        keep(read_folder(folder))
