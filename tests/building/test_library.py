from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.building import cache as vector_cache
from localsteer.building import own_answers
from localsteer.building.library import find_vector, load_for_showing, load_vector, loader, save_vector
from localsteer.concepts import names
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import concepts, find_concept, is_path
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.errors import CalibrationError, ContrastError, VectorError
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import calibrated
from tests.conftest import TinyPath

# Three pairs are too few to measure a reliability, which a model with random weights would not have.
CONCEPT = """\
name: {name}
poles: {{positive: up, negative: down}}
template: "{{persona}}"
personas:
  positive: [HIP HIP HURRAY]
  negative: [alas and alack]
openings: [a, b, c]
"""


REAL_SHIPPED_FOLDER = names.shipped_folder


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of two concepts, and folders of a user who has none."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "shipped"
    monkeypatch.setattr(names, "shipped_folder", lambda: folder)
    add_concept(folder, "happy")
    add_concept(folder, "formal")
    return folder


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return tmp_path / "data" / "localsteer" / "vectors"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "localsteer" / "vectors"


def add_concept(folder: Path, name: str) -> Path:
    file = folder / name / "concept.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(CONCEPT.format(name=name))
    return file


def vector_of(model: Model, value: float = 1.0) -> ControlVector:
    return ControlVector({1: np.full(model.n_embd, value, np.float32)}, Provenance(model=model.fingerprint))


# Names


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("happy", False),
        ("happy-sad", False),
        ("happy.yaml", False),
        ("gguf", False),
        ("happy.gguf", True),
        ("./happy", True),
        ("vectors/happy", True),
        ("/happy", True),
        ("~/happy", True),
        ("vectors\\happy", True),
    ],
)
def test_a_path_is_told_from_a_name(name: str, path: bool) -> None:
    assert is_path(name) is path


def test_the_library_in_a_checkout_has_good_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "shipped_folder", REAL_SHIPPED_FOLDER)
    found = concepts()
    assert "happy" in found
    for name, concept in found.items():
        assert load_concept(concept.file).name == name


def test_concepts_are_found_by_their_folders(shipped: Path) -> None:
    (shipped / "no-concept").mkdir()
    (shipped / "file.txt").write_text("x")
    found = concepts()
    assert sorted(found) == ["formal", "happy"]
    assert found["happy"].file == shipped / "happy" / "concept.yaml"
    assert found["happy"].shipped


def test_a_user_without_a_folder_and_a_package_without_vectors_have_none(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "shipped_folder", lambda: shipped / "missing")
    assert concepts() == {}


def test_a_users_concept_comes_before_the_shipped_one(users: Path) -> None:
    add_concept(users, "happy")
    add_concept(users, "pirate")
    found = concepts()
    assert sorted(found) == ["formal", "happy", "pirate"]
    assert [found[name].shipped for name in sorted(found)] == [True, False, False]
    assert [found[name].hides_shipped for name in sorted(found)] == [False, True, False]
    assert find_concept("happy").folder == users / "happy"
    assert find_concept("pirate").folder == users / "pirate"


def test_a_users_concept_that_hides_a_shipped_one_is_noted_once(users: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = add_concept(users, "happy")
    add_concept(users, "pirate")
    for name in ("happy", "formal", "pirate", "happy"):
        find_concept(name)
    (said,) = caplog.messages
    assert str(file) in said


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hapy", "Did you mean happy?"),
        ("Happy", "Did you mean happy?"),
        ("xyz", "Known are: formal, happy."),
        ("happy=0.5", 'In an expression "happy=0.5" is written "0.5 happy".'),
        ("happy:-2", 'In an expression "happy:-2" is written "-2 happy".'),
        (".5happy", 'In an expression ".5happy" is written ".5 happy"; a sign stays in front.'),
        ("hapy:0.5", "Did you mean happy?"),
        ("down", 'It is the other pole of formal and of happy: in an expression "-formal".'),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(VectorError) as caught:
        find_concept(name)
    assert caught.value.message == f'There is no vector "{name}".'
    assert caught.value.hint == hint


def test_a_file_of_that_name_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-vector").write_bytes(b"GGUF")
    with pytest.raises(VectorError, match=r"\./my-vector"):
        find_concept("my-vector")


def test_a_vector_file_of_that_name_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weary-sea-captain.gguf").write_bytes(b"")
    with pytest.raises(VectorError, match=r"weary-sea-captain\.gguf"):
        find_concept("weary-sea-captain")


def test_a_name_too_long_for_a_file_is_just_unknown() -> None:
    with pytest.raises(VectorError, match="x" * 300):
        find_concept("x" * 300)


# Vectors in files


def test_a_path_is_read_as_it_is(tiny: Model, tmp_path: Path) -> None:
    write_vector(vector_of(tiny, 7), tmp_path / "v.gguf")
    assert load_vector(str(tmp_path / "v.gguf"), tiny).directions[1][0] == 7
    assert load_for_showing(str(tmp_path / "v.gguf")).directions[1][0] == 7


def test_a_tilde_is_the_users_home(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_vector(vector_of(tiny, 7), tmp_path / "v.gguf")
    assert load_vector("~/v.gguf", tiny).directions[1][0] == 7
    assert load_for_showing("~/v.gguf").directions[1][0] == 7


def test_a_missing_path_is_not_looked_up_as_a_name(tiny: Model) -> None:
    with pytest.raises(VectorError, match=r"happy\.gguf"):
        load_vector("happy.gguf", tiny)


# Vectors of concepts


def test_a_vector_is_built_once_and_kept(tiny: Model, cache: Path, shipped: Path) -> None:
    told: list[tuple[str, int, int]] = []
    built = load_vector("happy", tiny, lambda doing, done, total: told.append((doing, done, total)))
    assert built.provenance.concept == "happy"
    assert built.provenance.model == tiny.fingerprint
    assert built.provenance.n_pairs == 3
    assert told
    assert told[-1][1] == told[-1][2]
    (kept,) = cache.iterdir()
    assert kept.name.startswith("happy-")
    again = load_vector("happy", tiny, lambda doing, done, total: pytest.fail("it was built again"))
    assert np.array_equal(again.rows(tiny.n_layer), built.rows(tiny.n_layer))
    # Nothing is written beside the shipped concept, which may be read-only.
    assert [file.name for file in (shipped / "happy").iterdir()] == ["concept.yaml"]


def test_a_vector_that_had_to_be_built_is_told_once(tiny: Model, cache: Path) -> None:
    told: list[tuple[str, ControlVector, float]] = []
    load = loader(tiny, on_built=lambda *built: told.append(built))
    made = load("happy")
    load("happy")
    ((name, vector, seconds),) = told
    assert (name, vector, seconds > 0) == ("happy", made, True)


def test_a_model_that_answers_nothing_gets_no_vector_of_a_dose_that_nobody_measured(
    tiny: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(model: Model, requests: Sequence[Request]) -> list[Answer]:
        return [replace(answer, text="", tokens=(), logprobs=()) for answer in generate_many(model, requests)]

    monkeypatch.setattr(own_answers, "generate_many", silent)
    with pytest.raises(CalibrationError, match="gives no answers"):
        load_vector("happy", tiny)
    assert not list(cache.rglob("*.gguf"))


def test_a_loader_gives_the_vectors_for_its_model(tiny: Model, cache: Path) -> None:
    load = loader(tiny)
    assert load("happy").provenance.concept == "happy"
    assert len(list(cache.iterdir())) == 1


def test_another_wording_is_another_vector(tiny: Model, cache: Path, shipped: Path) -> None:
    before = load_vector("happy", tiny)
    file = shipped / "happy" / "concept.yaml"
    file.write_text(file.read_text().replace("HIP HIP", "OH YEAH"))
    after = load_vector("happy", tiny)
    assert len(list(cache.iterdir())) == 2
    assert not np.array_equal(before.rows(tiny.n_layer), after.rows(tiny.n_layer))
    assert "OH YEAH" in after.provenance.source


def test_concepts_and_models_do_not_share_a_cached_vector(tiny: Model, cache: Path) -> None:
    class Requantised:
        """The same model in another file."""

        fingerprint = replace(tiny.fingerprint, content="x")

        def __getattr__(self, name: str) -> object:
            return getattr(tiny, name)

    load_vector("happy", tiny)
    load_vector("formal", tiny)
    assert load_vector("happy", Requantised()).provenance.model == Requantised.fingerprint  # type: ignore[arg-type]
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(500), b"no vector"])
def test_a_damaged_cached_vector_is_built_again(
    tiny: Model, cache: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    built = load_vector("happy", tiny)
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    kept.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = load_vector("happy", tiny)
    assert np.array_equal(again.rows(tiny.n_layer), built.rows(tiny.n_layer))
    assert kept.read_bytes() == good
    assert str(kept) in caplog.text
    assert "built again" in caplog.text


def test_a_vector_cut_short_in_the_cache_is_built_again(tiny: Model, cache: Path) -> None:
    load_vector("happy", tiny)
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    kept.write_bytes(good[:-100])
    load_vector("happy", tiny)
    assert kept.read_bytes() == good


def test_a_vector_beside_the_concept_is_used_for_its_own_model(tiny: Model, cache: Path, shipped: Path) -> None:
    other = ControlVector({1: np.zeros(3, np.float32)}, Provenance(model=replace(tiny.fingerprint, content="x", n_embd=3)))
    write_vector(other, shipped / "happy" / "a-other.gguf")
    write_vector(ControlVector({1: np.zeros(tiny.n_embd, np.float32)}), shipped / "happy" / "b-foreign.gguf")
    write_vector(vector_of(tiny, 7), shipped / "happy" / "c-tiny.gguf")
    assert load_vector("happy", tiny).directions[1][0] == 7
    assert not cache.exists()


def test_vectors_of_other_models_beside_the_concept_are_passed_over(tiny: Model, cache: Path, shipped: Path) -> None:
    other = replace(tiny.fingerprint, content="x")
    write_vector(replace(vector_of(tiny), provenance=Provenance(model=other)), shipped / "happy" / "other.gguf")
    assert load_vector("happy", tiny).provenance.n_pairs == 3
    assert len(list(cache.iterdir())) == 1


def test_a_users_concept_is_what_is_built(tiny: Model, users: Path) -> None:
    file = add_concept(users, "happy")
    file.write_text(file.read_text().replace("HIP HIP", "OH YEAH"))
    assert "OH YEAH" in load_vector("happy", tiny).provenance.source


def test_a_broken_concept_is_named(tiny: Model, shipped: Path, cache: Path) -> None:
    (shipped / "happy" / "concept.yaml").write_text("name: [")
    with pytest.raises(ContrastError, match=r"happy.concept\.yaml, line 1"):
        load_vector("happy", tiny)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_does_not_lose_the_vector(
    tiny: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert load_vector("happy", tiny).provenance.concept == "happy"
    (said,) = caplog.messages
    assert "happy cannot be kept for next time" in said


# Several processes

BUILD = """
import logging, sys, time
from pathlib import Path
from localsteer.building import library
from localsteer.concepts import names
from localsteer.llama.model import Model

logging.basicConfig()
folder, extract = Path(sys.argv[1]), library.extract
names.shipped_folder = lambda: folder / "shipped"

def extract_when_told(*arguments, **options):
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    print("extracted")
    return extract(*arguments, **options)

library.extract = extract_when_told
with Model(sys.argv[2], threads=1) as model:
    print(library.load_vector("happy", model).rows(model.n_layer).sum())
"""
Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path, tiny_path: TinyPath) -> Iterator[Start]:
    """Starts a process that builds happy on the tiny model as soon as there is a file "go"."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        number, command = len(processes), [sys.executable, "-c", BUILD, str(tmp_path), str(tiny_path("llama"))]
        with (tmp_path / f"printed-{number}").open("w") as printed, (tmp_path / f"said-{number}").open("w") as said:
            processes.append(subprocess.Popen(command, stdout=printed, stderr=said))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_two_processes_that_want_a_vector_one_builds_it(start: Start, tmp_path: Path, cache: Path) -> None:
    one = start()
    wait_until((tmp_path / "begun").exists)
    other = start()
    wait_until(lambda: "waiting for it" in (tmp_path / "said-1").read_text())
    (tmp_path / "go").touch()
    assert (one.wait(60), other.wait(60)) == (0, 0)
    built, waited = ((tmp_path / f"printed-{number}").read_text().split() for number in (0, 1))
    assert len(waited) == 1
    assert built == ["extracted", *waited]
    (kept,) = cache.iterdir()
    assert read_vector(kept).provenance.concept == "happy"
    assert (tmp_path / "said-0").read_text() == ""


def test_a_process_that_was_killed_while_building_holds_up_nobody(
    start: Start, tmp_path: Path, cache: Path, tiny: Model, caplog: pytest.LogCaptureFixture
) -> None:
    process = start()
    wait_until((tmp_path / "begun").exists)
    process.kill()
    process.wait()
    assert load_vector("happy", tiny).provenance.concept == "happy"
    assert caplog.messages == []
    assert [file.suffix for file in cache.iterdir()] == [".gguf"]


# Calibrated vectors


def test_a_saved_vector_is_found_by_its_name(tiny: Model, cache: Path) -> None:
    path = save_vector("happy", calibrated(tiny.fingerprint), tiny)
    assert path.parent == cache
    found = load_vector("happy", tiny, lambda doing, done, total: pytest.fail("it was built"))
    assert found.provenance.calibration == calibrated(tiny.fingerprint).provenance.calibration


def test_a_saved_vector_takes_the_place_of_the_one_that_was_built(tiny: Model, cache: Path) -> None:
    load_vector("happy", tiny)
    save_vector("happy", calibrated(tiny.fingerprint), tiny)
    assert len(list(cache.iterdir())) == 1
    assert load_vector("happy", tiny).provenance.calibration is not None


def test_a_saved_vector_is_for_its_model_and_its_wording_only(tiny: Model, shipped: Path) -> None:
    save_vector("happy", calibrated(tiny.fingerprint), tiny)
    assert load_vector("formal", tiny).provenance.calibration is None
    file = shipped / "happy" / "concept.yaml"
    file.write_text(file.read_text().replace("HIP HIP", "OH YEAH"))
    assert load_vector("happy", tiny).provenance.calibration is None


def test_a_calibrated_vector_comes_before_one_that_is_not(tiny: Model, shipped: Path) -> None:
    plain, measured = vector_of(tiny, 7), calibrated(tiny.fingerprint)
    measured = replace(measured, provenance=replace(measured.provenance, source=""))
    # Calibrated here, while an uncalibrated one lies beside the concept.
    write_vector(plain, shipped / "happy" / "a.gguf")
    assert load_vector("happy", tiny).directions[1][0] == 7
    save_vector("happy", measured, tiny)
    assert load_vector("happy", tiny).provenance.calibration is not None
    # The other way round.
    save_vector("formal", plain, tiny)
    write_vector(measured, shipped / "formal" / "a.gguf")
    assert load_vector("formal", tiny).provenance.calibration is not None


def test_what_was_calibrated_here_comes_before_what_was_calibrated_elsewhere(tiny: Model, shipped: Path) -> None:
    elsewhere, here = (calibrated(tiny.fingerprint, seed=seed) for seed in (1, 2))
    write_vector(replace(elsewhere, provenance=replace(elsewhere.provenance, source="")), shipped / "happy" / "a.gguf")
    save_vector("happy", here, tiny)
    assert np.array_equal(load_vector("happy", tiny).rows(tiny.n_layer), here.rows(tiny.n_layer))


def test_only_a_concept_can_be_saved_by_name(tiny: Model, cache: Path) -> None:
    with pytest.raises(VectorError, match="happy"):
        save_vector("hapy", calibrated(tiny.fingerprint), tiny)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_an_error_when_saving(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(VectorError, match="cache"):
        save_vector("happy", calibrated(tiny.fingerprint), tiny)


# Where a vector is, without a model


def test_a_vector_is_found_by_the_models_content_alone(tiny: Model, shipped: Path, cache: Path) -> None:
    concept, content = find_concept("happy"), tiny.fingerprint.content
    source = concept.source()
    assert find_vector(concept, source, content) is None
    load_vector("happy", tiny)
    found = find_vector(concept, source, content)
    assert found is not None
    assert [found.path] == list(cache.iterdir())
    assert (found.shipped, found.calibrated) == (False, False)
    assert find_vector(concept, source, "another file") is None
    assert find_vector(concept, source + "# edited", content) is None
    save_vector("happy", calibrated(tiny.fingerprint), tiny)
    found = find_vector(concept, source, content)
    assert found is not None
    assert found.calibrated


def test_a_vector_beside_a_shipped_concept_is_shipped_and_one_beside_a_users_is_not(
    tiny: Model, shipped: Path, users: Path
) -> None:
    add_concept(users, "pirate")
    for name, root in (("happy", shipped), ("pirate", users)):
        write_vector(vector_of(tiny, 7), root / name / "tiny.gguf")
        concept = find_concept(name)
        found = find_vector(concept, concept.source(), tiny.fingerprint.content)
        assert found is not None
        assert (found.path, found.shipped) == (root / name / "tiny.gguf", name == "happy")


def test_a_calibration_on_another_file_of_the_model_does_not_count(tiny: Model, shipped: Path) -> None:
    measured = calibrated(replace(tiny.fingerprint, content="another quantisation"))
    measured = replace(measured, provenance=replace(measured.provenance, source="", model=tiny.fingerprint))
    write_vector(measured, shipped / "happy" / "tiny.gguf")
    concept = find_concept("happy")
    found = find_vector(concept, concept.source(), tiny.fingerprint.content)
    assert found is not None
    assert not found.calibrated


# For looking at


def test_any_built_vector_can_be_looked_at(tiny: Model, shipped: Path) -> None:
    write_vector(vector_of(tiny, 7), shipped / "happy" / "tiny.gguf")
    assert load_for_showing("happy").directions[1][0] == 7


def test_a_vector_that_an_older_version_built_is_not_looked_at(
    tiny: Model, shipped: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_vector("happy", tiny)
    assert load_for_showing("happy").provenance.concept == "happy"
    monkeypatch.setattr(vector_cache, "_VERSION", vector_cache._VERSION + 1)
    with pytest.raises(VectorError, match="localsteer vectors build happy"):
        load_for_showing("happy")


def test_a_concept_that_is_not_built_says_how_to_build_it(shipped: Path) -> None:
    with pytest.raises(VectorError, match=r"happy.*localsteer vectors build happy"):
        load_for_showing("happy")


def test_looking_at_an_unknown_name_is_an_error() -> None:
    with pytest.raises(VectorError, match="formal"):
        load_for_showing("formol")


def test_a_kept_vector_is_an_ordinary_vector_file(tiny: Model, cache: Path) -> None:
    built = load_vector("happy", tiny)
    (kept,) = cache.iterdir()
    assert read_vector(kept).layers == built.layers
