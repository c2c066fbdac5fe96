from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localsteer.errors import ContrastError, LocalsteerError, VectorError
from localsteer.files.atomic import atomic_path, check_writable, is_unfinished

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def write(path: Path, text: str, error: type[LocalsteerError] = LocalsteerError, *, problem: BaseException | None = None) -> None:
    with atomic_path(path, error) as temporary:
        temporary.write_text(text)
        if problem is not None:
            raise problem


def test_a_new_file(tmp_path: Path) -> None:
    write(tmp_path / "new.txt", "hello")
    assert [file.name for file in tmp_path.iterdir()] == ["new.txt"]
    assert (tmp_path / "new.txt").read_text() == "hello"


def test_an_old_file_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        # A rename is atomic within one folder only.
        assert temporary.parent == tmp_path
        assert temporary != path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_without_a_folder_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable(Path("here.txt"))
    write(Path("here.txt"), "x")
    assert [file.name for file in tmp_path.iterdir()] == ["here.txt"]


@pytest.mark.parametrize("problem", [ValueError("x"), KeyboardInterrupt(), SystemExit(), LocalsteerError("x")])
@pytest.mark.parametrize("existed", [True, False])
def test_an_interrupted_write_leaves_the_old_file_or_none(tmp_path: Path, problem: BaseException, existed: bool) -> None:
    path = tmp_path / "file.txt"
    if existed:
        path.write_text("old")
    with pytest.raises(type(problem)) as caught:
        write(path, "half", problem=problem)
    assert caught.value is problem
    assert [file.read_text() for file in tmp_path.iterdir()] == (["old"] if existed else [])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_disk_is_an_error_for_a_person(tmp_path: Path, code: int) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ContrastError) as caught:
        write(path, "half", ContrastError, problem=OSError(code, os.strerror(code)))
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("x")

    with pytest.raises(LocalsteerError, match="No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_problem_without_a_number_is_told_in_its_own_words(tmp_path: Path) -> None:
    # This is how numpy says that the disk is full.
    with pytest.raises(LocalsteerError, match="4096 requested and 100 written"):
        write(tmp_path / "file.txt", "half", problem=OSError("4096 requested and 100 written"))


def test_a_rename_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(VectorError, match="Permission denied"):
        write(path, "new", VectorError)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(LocalsteerError, match=r"file\.txt cannot be written: Read-only file system"):
        write(tmp_path / "file.txt", "x")


@pytest.mark.parametrize("attempt", [lambda path, error: write(path, "x", error), check_writable], ids=["write", "check"])
class TestWhatCannotBeWritten:
    def test_a_folder(self, tmp_path: Path, attempt: Callable[[Path, type[LocalsteerError]], None]) -> None:
        with pytest.raises(VectorError, match="is a folder"):
            attempt(tmp_path, VectorError)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_a_missing_folder(self, tmp_path: Path, attempt: Callable[[Path, type[LocalsteerError]], None]) -> None:
        path = tmp_path / "missing" / "file.txt"
        with pytest.raises(VectorError, match="cannot be written") as caught:
            attempt(path, VectorError)
        assert str(path) in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_with_too_long_a_name(self, tmp_path: Path, attempt: Callable[[Path, type[LocalsteerError]], None]) -> None:
        with pytest.raises(VectorError, match="cannot be written: File name too long"):
            attempt(tmp_path / ("x" * 300), VectorError)

    @pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
    def test_a_file_in_a_read_only_folder(self, tmp_path: Path, attempt: Callable[[Path, type[LocalsteerError]], None]) -> None:
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(VectorError, match="cannot be written"):
                attempt(tmp_path / "file.txt", VectorError)
        finally:
            tmp_path.chmod(0o700)


def test_a_check_says_that_a_folder_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: not (Path(path) == tmp_path and mode == os.W_OK))
    with pytest.raises(VectorError, match="read-only"):
        check_writable(tmp_path / "file.txt", VectorError)


def test_a_check_names_the_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match=r"no folder .*missing\."):
        check_writable(tmp_path / "missing" / "file.txt", VectorError)


def test_a_check_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.txt").write_text("old")
    check_writable(tmp_path / "old.txt")
    assert (tmp_path / "old.txt").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_file_is_as_readable_as_any_other(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "other.txt").write_text("x")
        write(tmp_path / "file.txt", "x")
        left = os.umask(umask)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "other.txt").stat().st_mode)
    assert left == umask


def test_the_umask_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It is one for all threads: between two calls of os.umask another one's files would be everybody's.
    def refuse(mask: int) -> int:
        raise AssertionError("the umask was changed")

    monkeypatch.setattr("os.umask", refuse)
    write(tmp_path / "file.txt", "x")


@pytest.mark.skipif(os.name == "nt", reason="Windows knows read-only alone")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755, 0o444])
def test_a_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    path.chmod(mode)
    with atomic_path(path) as temporary:
        # Nobody may read meanwhile what they may not read afterwards.
        assert stat.S_IMODE(temporary.stat().st_mode) & ~mode & 0o077 == 0
        temporary.write_text("new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_written(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "folder" / "file.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to(Path("folder") / "file.txt")
    check_writable(link)
    write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_link_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "missing" / "file.txt")
    for attempt in (check_writable, lambda path, error: write(path, "x", error)):
        with pytest.raises(VectorError, match=r"link\.txt cannot be written"):
            attempt(link, VectorError)
    assert link.is_symlink()


def test_the_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    synced: list[tuple[bool, str]] = []

    def sync(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.read_text()))

    monkeypatch.setattr("os.fsync", sync)
    write(path, "new")
    assert synced == [(False, "old"), (True, "new")]


def test_a_disk_that_fails_at_the_end_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(VectorError, match=os.strerror(errno.EIO)):
        write(path, "new", VectorError)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


# What a killed process leaves

WRITES = """
import sys
from pathlib import Path
from localsteer.files.atomic import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="nobody can tell there")
def test_the_next_write_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    path, other = tmp_path / "file.txt", tmp_path / ".file.txt.backup"
    other.write_text("mine")
    started = [sys.executable, "-c", WRITES, str(path)]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        (temporary,) = (file for file in tmp_path.iterdir() if file != other)
        # What another process still writes stays.
        assert not is_unfinished(path)
        write(path, "new")
        assert set(tmp_path.iterdir()) == {path, other, temporary}
        process.send_signal(signal.SIGKILL)
    assert is_unfinished(path)
    write(tmp_path / "file", "x")
    write(path, "newer")
    assert set(tmp_path.iterdir()) == {path, other, tmp_path / "file"}
    assert path.read_text() == "newer"
    assert not is_unfinished(path)


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_a_disk_without_locks_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    left = tmp_path / ".file.txt.0123abcd"
    left.write_text("half")
    write(tmp_path / "file.txt", "new")
    assert set(tmp_path.iterdir()) == {tmp_path / "file.txt", left}  # who writes it cannot be told
    assert (tmp_path / "file.txt").read_text() == "new"
