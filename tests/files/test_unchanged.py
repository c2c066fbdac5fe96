from __future__ import annotations

import os
from pathlib import Path

import pytest

from localsteer.files.unchanged import WhileUnchanged


def test_a_file_is_read_again_only_where_it_is_another_one(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("one")
    other.write_text("one")
    reads: list[Path] = []

    def read(path: Path) -> list[str]:
        reads.append(path)
        return [path.read_text()]

    contents = WhileUnchanged(read)
    first = contents(path)
    assert contents(path) is first
    assert contents(other) == first
    assert reads == [path, other]
    path.write_text("three")  # another size
    assert contents(path) == ["three"]
    state = path.stat()
    new = tmp_path / "new"
    new.write_text("seven")  # the same size and time, but another file
    os.utime(new, ns=(state.st_atime_ns, state.st_mtime_ns))
    new.replace(path)
    assert contents(path) == ["seven"]
    path.write_text("eight")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert contents(path) == ["eight"]
    assert len(reads) == 5


def test_what_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = WhileUnchanged(Path.read_text)
    with pytest.raises(FileNotFoundError):
        contents(path)
    path.write_text("there")
    assert contents(path) == "there"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        contents(path)
