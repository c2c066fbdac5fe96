"""Model files that are new here, tried before they are opened."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from localsteer.errors import ModelError
from localsteer.llama import model_trial
from localsteer.llama.apart import Limits, NotStartedError, Outcome, run_apart
from localsteer.llama.model import Model
from tests.conftest import TinyPath
from tests.llama.mutants import Document
from tests.tiny_models import RECURRENT_ARCHITECTURE


class Trials:
    """Counts them; what they come to may be said."""

    def __init__(self, outcome: Outcome | Exception | None = None) -> None:
        self.count = 0
        self.limits: Limits | None = None
        self._outcome = outcome

    def __call__(self, module: str, given: bytes, limits: Limits) -> Outcome:
        self.count, self.limits = self.count + 1, limits
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome if self._outcome is not None else run_apart(module, given, limits)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    """Trials that all go well."""
    counted = Trials(Outcome("well"))
    monkeypatch.setattr(model_trial, "run_apart", counted)
    return counted


@pytest.fixture
def file(tmp_path: Path, tiny_path: TinyPath) -> Path:
    """A tiny model that no other test knows."""
    return Path(shutil.copy(tiny_path("llama"), tmp_path / "stranger.gguf"))


def open_it(path: Path, **how: Any) -> None:
    Model(path, threads=1, trusted=False, **how).close()


def deadly(path: Path) -> Path:
    """Let a model die of its first decode, which no header shows: its tokens are those of another kind of tokenizer."""
    document = Document.read(path)
    document.keys["tokenizer.ggml.model"] = 8, "llama"
    path.write_bytes(document.write())
    return path


@pytest.mark.parametrize("architecture", ["llama", RECURRENT_ARCHITECTURE])
def test_a_sound_model_is_tried_once(
    tmp_path: Path, tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    path = Path(shutil.copy(tiny_path(architecture), tmp_path / "stranger.gguf"))
    counted = Trials()
    monkeypatch.setattr(model_trial, "run_apart", counted)
    for _ in range(2):
        open_it(path)
        assert counted.count == 1


def test_a_model_that_ends_the_process_of_llama_cpp_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Trials()
    monkeypatch.setattr(model_trial, "run_apart", counted)
    deadly(file)
    for _ in range(2):  # a server may be asked for it again and again
        with pytest.raises(ModelError, match=r"stranger\.gguf cannot be used: it ends llama\.cpp's process \(.+\)") as caught:
            open_it(file)
        assert str(caught.value).isprintable()
        assert counted.count == 1


def test_what_llama_cpp_refuses_is_told_as_without_a_trial(file: Path) -> None:
    document = Document.read(file)
    del document.keys["llama.block_count"]
    file.write_bytes(document.write())
    with pytest.raises(ModelError) as trusted:
        Model(file)
    with pytest.raises(ModelError) as tried:
        open_it(file)
    assert (tried.value.message, tried.value.hint) == (trusted.value.message, trusted.value.hint)
    assert "block_count" in str(tried.value)


def test_a_trusted_model_is_not_tried(file: Path, trials: Trials) -> None:
    Model(file, threads=1).close()
    assert trials.count == 0


def test_a_model_that_was_moved_is_known_by_its_content(file: Path, trials: Trials) -> None:
    open_it(file)
    open_it(file.rename(file.with_name("moved.gguf")))
    assert trials.count == 1


def test_a_file_that_took_the_place_of_another_is_tried(file: Path, tiny_path: TinyPath, trials: Trials) -> None:
    open_it(file)
    shutil.copy(tiny_path("qwen2"), file)
    open_it(file)
    assert trials.count == 2


def test_another_build_of_llama_cpp_tries_it_again(file: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    open_it(file)
    monkeypatch.setattr(model_trial, "_build", lambda _layers: "another")
    open_it(file)
    assert trials.count == 2


def test_a_model_that_takes_too_long_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_trial, "run_apart", Trials(Outcome("processor")))
    with pytest.raises(ModelError, match=r"takes llama\.cpp too long"):
        open_it(file)


def test_where_nothing_can_be_tried_the_user_may_trust(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_trial, "run_apart", Trials(NotStartedError("python does not start (no such file)")))
    with pytest.raises(ModelError, match=r"cannot be tried first: python does not start \(no such file\)\. --trust"):
        open_it(file)


def test_a_large_model_may_take_longer_and_more_memory(file: Path, trials: Trials) -> None:
    open_it(file)
    small = trials.limits
    with file.open("ab") as grown:
        grown.truncate(2 << 30)  # a hole
    open_it(file)
    large = trials.limits
    assert small is not None
    assert large is not None
    assert large.processor >= small.processor + 10
    assert large.clock > small.clock + 60
    assert large.memory > small.memory + (2 << 30)


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="every folder can be written")
def test_without_a_cache_it_is_tried_each_time(file: Path, trials: Trials) -> None:
    cache = platformdirs.user_cache_path("localsteer")
    cache.parent.mkdir(parents=True)
    cache.parent.chmod(0o500)
    open_it(file)
    open_it(file)
    assert trials.count == 2


def test_ctrl_c_while_it_is_tried(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Outcome:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr(model_trial, "run_apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_it(file)
    monkeypatch.setattr(model_trial, "run_apart", Trials(Outcome("well")))
    open_it(file)
