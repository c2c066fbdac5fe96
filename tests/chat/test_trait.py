"""What a trait looks like in an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from localsteer.chat.trait import BARS, FULL, Trait, TraitReader
from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.projection import project
from localsteer.vector.control_vector import ControlVector


def trait(pieces: list[str], along: list[float]) -> Trait:
    return Trait("happy", tuple(pieces), np.array(along, np.float32))


def test_the_line_goes_from_the_beginning_to_the_end() -> None:
    line = trait(["a"] * 5, [-9, -FULL, 0, FULL, 9]).line(60)
    assert (line[0], line[1], line[3], line[4]) == (BARS[0], BARS[0], BARS[-1], BARS[-1])
    assert line[2] in BARS[3:5]
    assert trait(["a"] * 100, [-FULL] * 50 + [FULL] * 50).line(10) == BARS[0] * 5 + BARS[-1] * 5
    assert trait([], []).line(10) == ""
    assert trait([], []).mean == 0


def test_a_word_has_the_colour_of_all_its_tokens() -> None:
    heat = trait(["I", " am", " hap", "py", " \x1b[2J"], [0, 0, 2 * FULL, 0, 0]).heat()
    assert heat.plain == "I am happy \ufffd[2J"
    coloured = [heat.plain[span.start : span.end] for span in heat.spans if getattr(span.style, "bgcolor", None) is not None]
    assert coloured == [" happy"]


def test_along_and_against_have_colours_of_their_own() -> None:
    styles = [trait(["a"], [value]).heat().spans[0].style for value in (-FULL, FULL)]
    assert styles[0] != styles[1]
    assert not trait(["a"], [0.0]).heat().spans or "bgcolor" not in str(trait(["a"], [0.0]).heat().spans[0].style)
    assert f"{-FULL:+.1f}" in trait(["a"], [1.0]).legend().plain
    assert "this answer +1.00" in trait(["a"], [1.0]).legend().plain


def test_read_along_a_vector_and_its_opposite(tiny: Model) -> None:
    direction = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    vectors = {"push": ControlVector({2: direction}), "pull": ControlVector({2: -direction})}
    reader = TraitReader(tiny, 512)
    push, pull = reader.read("Pigs can \u661fswim.", vectors)
    assert "".join(push.pieces) == "Pigs can \u661fswim."
    assert len(push.along) == len(push.pieces)
    assert push.along[0] == 0
    np.testing.assert_allclose(push.along, -pull.along, atol=1e-3)
    # The same once more, and longer vectors are the same vectors.
    again, longer = reader.read("Pigs can \u661fswim.", {"push": vectors["push"], "longer": ControlVector({2: 5 * direction})})
    np.testing.assert_array_equal(again.along, push.along)
    np.testing.assert_allclose(longer.along, push.along, atol=1e-2)


def test_everyday_text_is_read_once_for_a_vector(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(model: Model, texts: Sequence[str], *arguments: Any, **more: Any) -> Any:
        read.append(len(texts))
        return project(model, texts, *arguments, **more)

    monkeypatch.setattr("localsteer.chat.trait.project", counting)
    reader = TraitReader(tiny, 512)
    for size in (1, 1, 2):  # loaded anew each time, and built anew once
        reader.read("Pigs can swim.", {"push": ControlVector({2: np.full(64, size, np.float32)})})
    assert [count > 1 for count in read] == [True, False, False, True, False]


def test_a_vector_of_another_model_is_refused(tiny: Model) -> None:
    with pytest.raises(LocalsteerError):
        TraitReader(tiny, 512).read("Hello", {"wide": ControlVector({2: np.ones(128, np.float32)})})
