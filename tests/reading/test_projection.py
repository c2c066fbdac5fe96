from __future__ import annotations

import numpy as np
import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.projection import project
from localsteer.vector.control_vector import ControlVector
from tests.conftest import ROW_NOISE, TinyModel, random_rows, random_tokens, run_alone

TEXT = "in the house, there is a pig"


def vector(model: Model, seed: int, *layers: int) -> ControlVector:
    rows = random_rows(model, layers, seed)
    return ControlVector({layer: rows[layer] for layer in layers})


def expected(model: Model, text: str, directions: ControlVector) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """By the definition in docs/server.md, from a run of the text by itself."""
    rows = run_alone(model, model.tokenize(text)).rows
    shares = []
    for layer, direction in directions.directions.items():
        later = rows[layer][1:].astype(np.float64)
        shares.append(later @ direction / np.linalg.norm(direction) / np.linalg.norm(later, axis=1).mean())
    mean = np.mean(shares, axis=0)
    return np.concatenate([[0.0], mean - mean.mean()])


def test_every_token_is_projected(steerable: Model) -> None:
    vectors = {"one": vector(steerable, 1, 1), "two": vector(steerable, 2, 2, 3), "last": vector(steerable, 3, 3)}
    (found,) = project(steerable, [TEXT], vectors, n_ctx=64)
    assert found.tokens == tuple(steerable.tokenize(TEXT))
    for name, directions in vectors.items():
        # Hidden states are 8 to 24 long.
        assert found.along[name] == pytest.approx(expected(steerable, TEXT, directions), abs=ROW_NOISE / 8)
        assert found.along[name].std() > 0.01


def test_texts_do_not_touch_each_other(transformer: Model) -> None:
    directions = {"one": vector(transformer, 1, 1, 2)}
    texts = [TEXT, "something else", "", "x", TEXT]
    together = project(transformer, texts, directions, n_ctx=64)
    for text, found in zip(texts, together, strict=True):
        (alone,) = project(transformer, [text], directions, n_ctx=64)
        assert found.tokens == alone.tokens
        assert found.along["one"] == pytest.approx(alone.along["one"], abs=ROW_NOISE / 8)
    assert [len(one.tokens) for one in together[2:4]] == [0, 1]
    assert together[3].along["one"].tolist() == [0]


def test_the_length_of_a_direction_does_not_matter(tiny: Model) -> None:
    short = vector(tiny, 1, 1, 2)
    long = ControlVector({layer: 100 * direction for layer, direction in short.directions.items()})
    opposite = ControlVector({layer: -direction for layer, direction in short.directions.items()})
    (found,) = project(tiny, [TEXT], {"short": short, "long": long, "opposite": opposite}, n_ctx=64)
    assert found.along["long"] == pytest.approx(found.along["short"], abs=1e-6)
    assert found.along["opposite"] == pytest.approx(-found.along["short"], abs=1e-6)


# Layer 3 is the last, which shows only tokens that ask for logits.
@pytest.mark.parametrize("layers", [(1, 2), (1, 3)])
def test_a_text_of_several_parts_is_read_whole(tiny: Model, layers: tuple[int, int]) -> None:
    text = tiny.detokenize([32 + token % 90 for token in random_tokens(700, seed=4)])
    directions = vector(tiny, 1, *layers)
    (found,) = project(tiny, [text], {"one": directions}, n_ctx=1024)
    assert len(found.tokens) > 512
    assert found.along["one"] == pytest.approx(expected(tiny, text, directions), abs=ROW_NOISE / 8)


def test_a_text_as_long_as_the_context_is_read_and_a_longer_one_refused(tiny: Model) -> None:
    directions = {"one": vector(tiny, 1, 1)}
    (found,) = project(tiny, ["x" * 16], directions, n_ctx=16)
    assert len(found.along["one"]) == 16
    with pytest.raises(LocalsteerError, match="17 tokens, and 16 can be read"):
        project(tiny, ["x", "x" * 17], directions, n_ctx=16)


def test_a_vector_that_is_zero_leads_nowhere(tiny: Model) -> None:
    zero = ControlVector({1: np.zeros(tiny.n_embd, np.float32)})
    half = ControlVector({**vector(tiny, 1, 2).directions, 1: zero.directions[1]})
    found, alone = (project(tiny, [TEXT], vectors, n_ctx=64)[0] for vectors in ({"zero": zero, "half": half}, {"zero": zero}))
    for one in (found, alone):
        assert one.along["zero"].tolist() == [0] * len(one.tokens)
    assert found.along["half"] == pytest.approx(expected(tiny, TEXT, vector(tiny, 1, 2)), abs=ROW_NOISE / 8)
    assert project(tiny, [TEXT], {}, n_ctx=64)[0].along == {}


def test_half_a_character_is_refused(tiny: Model) -> None:
    with pytest.raises(LocalsteerError, match="not valid Unicode"):
        project(tiny, ["\ud800"], {"one": vector(tiny, 1, 1)}, n_ctx=16)


def test_a_model_that_cannot_be_read_says_so(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    with pytest.raises(LocalsteerError):
        project(model, [TEXT], {"one": vector(model, 1, 1)}, n_ctx=64)
