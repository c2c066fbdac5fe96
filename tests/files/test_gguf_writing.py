from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from localsteer.files.gguf_writing import write_out


def writer_of(path: Path) -> GGUFWriter:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("one", np.ones(4, np.float32))
    return writer


def test_all_of_it_is_written(tmp_path: Path) -> None:
    write_out(writer_of(tmp_path / "out.gguf"))
    assert [tensor.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors] == ["one"]


def test_a_file_that_cannot_be_written_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, closed = writer_of(tmp_path / "out.gguf"), []

    def full() -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(writer, "write_tensors_to_file", full)
    monkeypatch.setattr(writer, "close", lambda: closed.append(True))
    with pytest.raises(OSError, match="full"):
        write_out(writer)
    assert closed == [True]
