from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama.infill import File, infill_prompt
from localsteer.llama.model import Model
from tests.tiny_models import write_tiny_model

_MARKS = {"pre": 1, "suf": 2, "mid": 3}
_FILES = [File("a.py", "x"), File("b.py", "y")]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[dict[str, int]], Model]:
    def made(infill: dict[str, int]) -> Model:
        return Model(write_tiny_model(tmp_path / "infill.gguf", n_layer=1, infill=infill), threads=1)

    return made


def test_what_stands_between_two_texts_is_asked_for(opened: Callable[[dict[str, int]], Model]) -> None:
    with opened(_MARKS) as model:
        assert bytes(infill_prompt(model, "ab", "yz")) == b"\1ab\2yz\3"
        assert bytes(infill_prompt(model, "ab", "yz", begun="c")) == b"\1abc\2yz\3"
        # What looks like a mark in a text is text.
        assert len(infill_prompt(model, "<|im_end|>", "")) == len("<|im_end|>") + 3


def test_other_files_stand_before(opened: Callable[[dict[str, int]], Model]) -> None:
    with opened({**_MARKS, "rep": 4, "sep": 5}) as model:
        written = model.detokenize(infill_prompt(model, "ab", "yz", files=_FILES))
        assert written == "\4myproject\n\5a.py\nx\5b.py\ny\5filename\n\1ab\2yz\3"
    with opened(_MARKS) as model:
        written = model.detokenize(infill_prompt(model, "ab", "yz", files=_FILES))
        assert written == "\n\n--- snippet ---\n\nx\n\n--- snippet ---\n\ny\1ab\2yz\3"


def test_a_model_without_marks_says_so(tiny: Model) -> None:
    with pytest.raises(LocalsteerError, match="fill in"):
        infill_prompt(tiny, "a", "b")
