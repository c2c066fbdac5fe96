from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from localsteer.engine.generate import generate_many
from localsteer.errors import ExportError
from localsteer.export import share as share_module
from localsteer.export.share import Shared, share
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.reading.prompt import answer_prompt
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import calibrated
from tests.commands.runner import CONCEPT
from tests.conftest import TinyModel, random_rows
from tests.tiny_models import RECURRENT_ARCHITECTURE

Load = Callable[[str], ControlVector]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model says nothing worth reading."""
    monkeypatch.setattr(share_module, "_TOKENS", 4)


def loud(model: Model) -> ControlVector:
    """A calibrated vector that carries its concept."""
    vector = calibrated(model.fingerprint)
    own = replace(vector.provenance, concept="loud", description="Shouts.", positive="loud", negative="quiet", source=CONCEPT)
    return replace(vector, provenance=own)


def shared(model: Model, folder: Path, vector: ControlVector, **options: str | bool) -> Shared:
    return share("loud", folder, lambda _name: vector, model, **options)  # type: ignore[arg-type]


def front_matter(folder: Path) -> dict[str, object]:
    start, keys, _ = (folder / "README.md").read_text().split("---\n", 2)
    assert start == ""
    found: dict[str, object] = yaml.safe_load(keys)
    return found


def test_a_folder_holds_the_vector_its_adapter_its_concept_and_a_card(tiny: Model, tmp_path: Path) -> None:
    vector, folder = loud(tiny), tmp_path / "shared"
    made = shared(tiny, folder, vector, license="cc0-1.0", base_model="me/tiny")
    assert [path.name for path in made.files] == ["loud.gguf", "loud-lora.gguf", "concept.yaml", "README.md"]
    assert {path.name for path in tmp_path.rglob("*")} == {"shared", *(path.name for path in made.files)}
    write_vector(vector, tmp_path / "as it is.gguf")
    assert (folder / "loud.gguf").read_bytes() == (tmp_path / "as it is.gguf").read_bytes()
    assert (folder / "concept.yaml").read_text() == CONCEPT
    assert made.adapted is not None
    np.testing.assert_array_equal(read_vector(folder / "loud-lora.gguf").rows(tiny.n_layer), made.adapted.plan.edit.added)
    told = front_matter(folder)
    assert (told["license"], told["base_model"]) == ("cc0-1.0", "me/tiny")
    assert "lora" in str(told["tags"])


def test_the_card_says_for_which_model_how_strong_and_how_it_was_measured(tiny: Model, tmp_path: Path) -> None:
    made = shared(tiny, tmp_path / "shared", loud(tiny))
    page = (tmp_path / "shared" / "README.md").read_text()
    assert tiny.fingerprint.content in page
    assert tiny.path.name in page
    assert str(tiny.path.parent) not in page  # where it lies on this machine is nobody's business
    assert "| +1 | 0.30 | 0.12 |" in page
    assert "| -1 | 0.40 | 0.16 |" in page
    assert "Calibrated on" in page
    assert made.adapted is not None
    assert made.adapted.fidelity is not None
    assert f"mean KL divergence of {made.adapted.fidelity.mean:.2g} nats" in page
    assert "**How are you?**" in page  # the concept's own held-out question
    assert all(f"\n| {strength} |" in page for strength in ("unsteered", "+1", "-1"))
    assert "llama-server -m MODEL --lora loud-lora.gguf" in page
    assert not {"license", "base_model"} & set(front_matter(tmp_path / "shared"))


def test_where_there_can_be_no_adapter_the_rest_is_shared(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model(RECURRENT_ARCHITECTURE)
    rows = random_rows(model, (1, 2), seed=0)
    made = shared(model, tmp_path / "shared", ControlVector({layer: rows[layer] for layer in (1, 2)}))
    assert "mamba" in made.without_adapter
    assert [path.name for path in made.files] == ["loud.gguf", "README.md"]
    page = (tmp_path / "shared" / "README.md").read_text()
    assert "localsteer export llama-cpp loud.gguf" in page
    assert "Neither dosed nor calibrated" in page
    assert "| +1 | not known | not known |" in page
    assert "concept.yaml" not in page


def test_nothing_is_replaced_unasked_and_other_files_stay(tiny: Model, tmp_path: Path) -> None:
    vector = loud(tiny)
    (tmp_path / ".gitattributes").write_text("*.gguf filter=lfs\n")
    shared(tiny, tmp_path, vector)
    (tmp_path / "README.md").write_text("my own words\n")
    with pytest.raises(ExportError, match=r"loud\.gguf is there already.*--force"):
        shared(tiny, tmp_path, vector)
    assert (tmp_path / "README.md").read_text() == "my own words\n"
    shared(tiny, tmp_path, vector, force=True)
    assert (tmp_path / "README.md").read_text().startswith("---\n")
    assert (tmp_path / ".gitattributes").exists()


def test_what_the_new_card_does_not_speak_of_is_gone(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "concept.yaml").write_text("of another vector\n")
    made = shared(tiny, tmp_path, ControlVector(loud(tiny).directions, replace(loud(tiny).provenance, source="")), force=True)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in made.files}


def test_an_end_before_the_end_leaves_no_folder(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(share_module, "generate_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shared(tiny, tmp_path / "shared", loud(tiny))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_share_left_is_written_anew_unasked(tiny: Model, tmp_path: Path) -> None:
    """As between two renames: the card comes last."""
    vector = loud(tiny)
    made = shared(tiny, tmp_path / "shared", vector)
    (tmp_path / "shared" / "README.md").rename(tmp_path / "shared" / ".README.md.0123abcd")
    shared(tiny, tmp_path / "shared", vector)
    assert sorted(file.name for file in (tmp_path / "shared").iterdir()) == sorted(file.name for file in made.files)
    with pytest.raises(ExportError, match="is there already"):
        shared(tiny, tmp_path / "shared", vector)


@pytest.mark.skipif(os.name == "nt", reason="signals are raised otherwise there")
def test_ctrl_c_between_two_files_comes_behind_the_last(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = Path.replace

    def pressed(self: Path, target: Path) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", pressed)
    with pytest.raises(KeyboardInterrupt):
        shared(tiny, tmp_path / "shared", loud(tiny))
    names = {"loud.gguf", "loud-lora.gguf", "concept.yaml", "README.md"}
    assert {file.name for file in (tmp_path / "shared").iterdir()} == names


def test_a_folder_that_cannot_be_made_is_an_error_before_the_work(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_module, "make_adapter", lambda *_, **__: pytest.fail("was begun"))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "missing" / "shared"):
        with pytest.raises(ExportError, match="cannot be made"):
            shared(tiny, folder, loud(tiny))


@pytest.mark.parametrize(
    ("concept", "name"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("0.5 happy + 0.3 formal", "0-5-happy-0-3-formal"),
        ("\x1b[2J", "2j"),
        ("Größe", "gr-e"),
        ("...", "vector"),
        ("a" * 300, "a" * 60),
    ],
)
def test_a_name_leads_nowhere_else(tiny: Model, tmp_path: Path, concept: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "generate_many", lambda *_: [])
    monkeypatch.setattr(share_module, "everyday_questions", tuple)
    rows = random_rows(tiny, (1,), seed=0)
    made = shared(tiny, tmp_path / "shared", ControlVector({1: rows[1]}, Provenance(concept=concept)))
    assert made.name == name
    assert {path.parent for path in made.files} == {tmp_path / "shared"}


def test_no_text_of_a_file_or_a_model_is_markup_of_the_page(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<script>x</script> | a\n# title ![](http://x) \x1b[2J `a`"
    rows = random_rows(tiny, (1,), seed=0)
    own = Provenance(concept="v", description=hostile, positive=hostile, negative=hostile)
    monkeypatch.setattr(
        share_module, "generate_many", lambda *given: [replace(answer, text=hostile) for answer in generate_many(*given)]
    )
    shared(tiny, tmp_path / "shared", ControlVector({1: rows[1]}, own))
    page = (tmp_path / "shared" / "README.md").read_text()
    assert "script" in page
    assert not re.search(r"(?<!\\)<script|\n# title|!\[|\x1b", page)
    table = [line for line in page.splitlines() if line.startswith("| +1 | ") and "script" in line]
    assert table
    assert all(line.replace("\\|", "").count("|") == 3 for line in table)


def test_what_is_asked_is_what_the_vector_was_not_made_from(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Message] = []

    def note(model: Model, messages: list[Message]) -> tuple[int, ...]:
        asked.extend(messages)
        return answer_prompt(model, messages)

    monkeypatch.setattr(share_module, "answer_prompt", note)
    shared(tiny, tmp_path / "shared", loud(tiny))
    assert {message.content for message in asked} == {"How are you?"}
