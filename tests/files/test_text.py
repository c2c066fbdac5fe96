from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from localsteer.chat.transcript import load_transcript
from localsteer.errors import LocalsteerError
from localsteer.files.arrays import read_arrays
from localsteer.llama.model_file import check_model_file
from localsteer.vector.file import read_vector
from localsteer.vector.importing import import_vector


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes there")
@pytest.mark.parametrize("read", [read_vector, read_arrays, check_model_file, import_vector, load_transcript])
def test_what_may_never_end_is_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(LocalsteerError, match=r"pipe\.npz is not an ordinary file"):
        read(tmp_path / "pipe.npz")
