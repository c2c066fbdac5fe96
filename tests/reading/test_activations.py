from __future__ import annotations

import numpy as np
import pytest

from localsteer.errors import ContrastError, ModelError
from localsteer.llama.model import Model
from localsteer.reading import prefix_tree
from localsteer.reading.activations import read_activations
from localsteer.reading.span import Span
from tests.conftest import ROW_NOISE, Floats, TinyModel, random_tokens, run_alone

STEM = random_tokens(20, seed=1)
# Prompts that share a stem, one that is the beginning of another, one twice, and one of its own.
SPANS = (
    Span((*STEM, *random_tokens(9, seed=2))),
    Span((*STEM, *random_tokens(30, seed=3)), start=20),
    Span(STEM),
    Span((*STEM[:7], *random_tokens(4, seed=4)), start=2),
    Span((*STEM, *random_tokens(9, seed=2)), start=0),
    Span((*STEM, *random_tokens(9, seed=2))),
    Span(random_tokens(80, seed=5), start=-3),
    Span((65,)),
)


def assert_as_read_alone(model: Model, spans: tuple[Span, ...], layers: tuple[int, ...], values: Floats, norms: Floats) -> None:
    assert values.shape == (len(spans), len(layers), model.n_embd)
    assert norms.shape == (len(spans), len(layers))
    for number, span in enumerate(spans):
        run = run_alone(model, span.tokens)
        for column, layer in enumerate(layers):
            rows = run.rows[layer][span.start :]
            np.testing.assert_allclose(values[number, column], rows.mean(axis=0), atol=ROW_NOISE)
            np.testing.assert_allclose(norms[number, column], np.linalg.norm(rows, axis=1).mean(), atol=ROW_NOISE)


def test_prompts_that_share_tokens_read_as_each_alone(steerable: Model) -> None:
    # Every block, the last one included, where llama.cpp shows only some tokens; and not in their order.
    layers = (2, 0, steerable.n_layer - 1, 1)
    activations = read_activations(steerable, SPANS, layers)
    assert_as_read_alone(steerable, SPANS, layers, activations.values, activations.norms)


@pytest.mark.parametrize(("most_nodes", "most_sequences"), [(60, 128), (2048, 2), (30, 1)])
def test_what_does_not_fit_one_tree_is_read_in_several(
    steerable: Model, monkeypatch: pytest.MonkeyPatch, most_nodes: int, most_sequences: int
) -> None:
    monkeypatch.setattr(prefix_tree, "MAX_NODES", most_nodes)
    monkeypatch.setattr(prefix_tree, "MAX_SEQUENCES", most_sequences)
    activations = read_activations(steerable, SPANS, (1, 2))
    assert_as_read_alone(steerable, SPANS, (1, 2), activations.values, activations.norms)


def test_a_tree_longer_than_a_ubatch_is_read_in_parts(tiny: Model) -> None:
    spans = tuple(Span((*STEM, *random_tokens(150, seed=seed)), start=10) for seed in range(6))
    activations = read_activations(tiny, spans, (1, 3))
    assert_as_read_alone(tiny, spans, (1, 3), activations.values, activations.norms)


def test_progress_counts_each_shared_token_once_and_reaches_the_total(tiny: Model, tiny_model: TinyModel) -> None:
    told: list[tuple[int, int]] = []
    spans = [Span((*STEM, *random_tokens(150, seed=seed))) for seed in range(6)]
    read_activations(tiny, spans, (1,), lambda done, total: told.append((done, total)))
    assert told == [(512, 920), (920, 920)]
    told.clear()
    read_activations(tiny_model("mamba"), spans, (1,), lambda done, total: told.append((done, total)))
    assert told == [(170 * number, 6 * 170) for number in range(1, 7)]


def test_an_empty_prompt_is_an_error_that_names_it(tiny: Model) -> None:
    with pytest.raises(ContrastError, match="Prompt 2 is empty"):
        read_activations(tiny, [Span((1, 2)), Span(())], (1,))


def test_a_prompt_beyond_the_models_context_is_an_error_that_names_it(tiny: Model) -> None:
    longest = random_tokens(tiny.n_ctx_train, seed=6)
    activations = read_activations(tiny, [Span(longest)], (1,))
    assert_as_read_alone(tiny, (Span(longest),), (1,), activations.values, activations.norms)
    with pytest.raises(ContrastError, match="Prompt 1 has 513 tokens, and the model's context holds 512"):
        read_activations(tiny, [Span((*longest, 65))], (1,))


def test_a_model_that_hides_its_residual_stream_is_an_error(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError, match=r"does not show the residual stream .*localsteer doctor"):
        read_activations(tiny_model("plamo2"), SPANS, (1, 2))
