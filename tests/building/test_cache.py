from __future__ import annotations

import threading
from pathlib import Path

import filelock
import pytest

from localsteer.building.cache import cache_folder, cache_path, forget_lock, make_folder, one_at_a_time
from localsteer.errors import VectorError


def test_another_concept_wording_or_model_is_another_file() -> None:
    paths = {cache_path(*key) for key in (("a", "x", "m"), ("b", "x", "m"), ("a", "y", "m"), ("a", "x", "n"), ("a", "x", "m"))}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {cache_folder()}


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(VectorError, match=str(tmp_path / "file")):
            make_folder(folder)
    # As root, whom no permission stops.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(VectorError, match=str(tmp_path)):
        make_folder(tmp_path)


# One at a time


def test_the_second_one_waits_for_the_first_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []

    def second() -> None:
        with one_at_a_time(tmp_path / "v.gguf"):
            order.append("second")

    thread = threading.Thread(target=second)
    with one_at_a_time(tmp_path / "v.gguf"), one_at_a_time(tmp_path / "other.gguf"):
        thread.start()
        while not caplog.messages:
            assert thread.is_alive()
            thread.join(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    (said,) = caplog.messages
    assert str(tmp_path / "v.gguf") in said
    assert "waiting" in said


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "new"

    def work() -> None:
        with one_at_a_time(folder / "v.gguf"):
            assert len(list(folder.iterdir())) == 1
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work()
        assert list(folder.iterdir()) == []


def test_where_no_lock_can_be_had_the_work_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done = []
    (tmp_path / "file").touch()
    with one_at_a_time(tmp_path / "file" / "v.gguf"):
        done.append("no folder")

    def acquire(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with one_at_a_time(tmp_path / "v.gguf"):
        done.append("no locks")
    assert done == ["no folder", "no locks"]
    assert caplog.messages == []


def test_a_lock_that_a_killed_process_left_goes_and_one_that_is_held_stays(tmp_path: Path) -> None:
    path, left = tmp_path / "v.gguf", tmp_path / ".v.gguf.lock"
    with one_at_a_time(path):
        forget_lock(path)
        assert left.exists()
    left.touch()
    forget_lock(path)
    assert list(tmp_path.iterdir()) == []
    forget_lock(path)
