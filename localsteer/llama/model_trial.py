"""A model file that was never seen here, tried before it is opened: some end llama.cpp's process, take all memory, or hang.

Its header is checked, and it is loaded once in a process of its own, where it makes a prompt and computes a token. What went well
is remembered in the user's cache: by the file's place, size and time of change, and by its content for one that was moved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from localsteer.errors import ModelError, shown
from localsteer.files.home import cache_folder
from localsteer.files.text import readable
from localsteer.llama import library, rpc
from localsteer.llama.apart import Limits, NotStartedError, Outcome, run_apart
from localsteer.llama.header_check import check_header
from localsteer.llama.model_file import content_hash, model_parts

logger = logging.getLogger("localsteer.llama")

_PROGRAM = "localsteer.llama.tried_model"
# Counted up when a trial tries more than before.
_VERSION = 1
# A tiny model takes 1 s of a processor, one of 1.1 GB 2 s, most of which is llama.cpp's repacking of weights.
_PROCESSOR_SECONDS = 10
_BYTES_A_PROCESSOR_SECOND = 100 << 20
# The slowest disks read so much a second.
_CLOCK_SECONDS = 60
_BYTES_A_CLOCK_SECOND = 20 << 20
# Repacked weights take their size again. The rest: of a vocabulary of 262,144 tokens 0.2 GB, and a stack for each thread.
_MEMORY = 1 << 30
_MEMORY_A_THREAD = 16 << 20

# What came of files that cannot be used: a server may be asked for one again and again.
_known: dict[Path, str] = {}


def try_model(path: Path, *, gpu_layers: int | None, threads: int, ollama_template: str | None) -> None:
    """Make sure that a model can be opened here, unless it was before.

    Args:
        path: the GGUF file (of a split model: the first part).
        gpu_layers: as `Model` takes it.
        threads: as `Model` takes it.
        ollama_template: as `Model` takes it.

    Raises:
        ModelError: it cannot, or there is no process to try it in.
    """
    with readable(path, ModelError, kind="model file"):
        parts = [(str(part.resolve()), part.stat()) for part in model_parts(path) if part.is_file()]
    stamps = [[name, state.st_size, state.st_mtime_ns, state.st_ino] for name, state in parts]
    place = _known_file(json.dumps([stamps, _build(gpu_layers)]))
    if place.is_file():
        return
    if place in _known:
        raise _unusable(path, _known[place])
    check_header(path)
    content = _known_file(f"{content_hash(path)} {_build(gpu_layers)}")
    if not content.is_file():
        logger.info("%s was never opened here: it is tried in a process of its own", path)
        how = {"gpu_layers": gpu_layers, "threads": threads, "ollama_template": ollama_template, "rpc": rpc.connected()}
        outcome = _run({"path": os.fspath(path), **how}, size=sum(state.st_size for _, state in parts))
        if outcome.end != "well":
            what = f"ends llama.cpp's process ({outcome.last_words})" if outcome.end == "died" else "takes llama.cpp too long"
            if outcome.end != "clock":  # the machine may have had much else to do
                _known[place] = what
            raise _unusable(path, what)
        if outcome.output:
            refused = json.loads(outcome.output)
            raise ModelError(refused["message"], hint=refused["hint"])
    with contextlib.suppress(OSError):  # without a cache it is tried each time
        place.parent.mkdir(parents=True, exist_ok=True)
        for mark in (place, content):
            mark.touch()


def _unusable(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} cannot be used: it {what}. It was tried in a process of its own.",
        hint="It is damaged, made to do harm, or of a kind that this llama.cpp cannot run: take another file.",
    )


def _run(how: Mapping[str, object], size: int) -> Outcome:
    limits = Limits(
        processor=_PROCESSOR_SECONDS + size // _BYTES_A_PROCESSOR_SECOND,
        clock=_CLOCK_SECONDS + size / _BYTES_A_CLOCK_SECOND,
        memory=_MEMORY + 2 * size + _MEMORY_A_THREAD * (os.cpu_count() or 1),
    )
    try:
        return run_apart(_PROGRAM, json.dumps(how).encode(), limits)
    except NotStartedError as error:
        raise ModelError(
            f"{how['path']} was never opened here, and cannot be tried first: {shown(error)}.",
            hint="--trust opens a model that you trust without that.",
        ) from error


def _build(gpu_layers: int | None) -> str:
    """What a model is tried on: another build of llama.cpp may not survive what this one does."""
    features = library.build_features()
    return f"{_VERSION} {features.version} {'gpu' if features.gpu and gpu_layers != 0 else 'cpu'}"


def _known_file(what: str) -> Path:
    name = hashlib.sha256(what.encode("utf-8", errors="surrogateescape")).hexdigest()[:32]
    return cache_folder() / "tried-models" / name
