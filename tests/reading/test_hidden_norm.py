from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localsteer.errors import ModelError
from localsteer.llama.model import Model
from localsteer.reading import hidden_norm
from localsteer.reading.hidden_norm import read_hidden_norm
from tests.conftest import TinyModel, run_alone
from tests.tiny_models import UNSTEERABLE_ARCHITECTURE, write_tiny_model


def test_it_is_the_mean_length_of_all_rows_but_the_first(steerable: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_norm, "_TEXT", "Bread is made of flour.")
    norms = read_hidden_norm(steerable)
    rows = run_alone(steerable, steerable.tokenize("Bread is made of flour.")).rows
    assert norms.shape == (steerable.n_layer,)
    assert np.isnan(norms[0])
    for layer in range(1, steerable.n_layer):
        assert norms[layer] == pytest.approx(np.linalg.norm(rows[layer][1:], axis=1).mean(), rel=1e-3)


def test_a_short_context_is_enough(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "short.gguf", n_ctx_train=16), threads=1) as model:
        assert (read_hidden_norm(model)[1:] > 0).all()


def test_a_model_that_does_not_show_its_hidden_states_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelError):
        read_hidden_norm(tiny_model(UNSTEERABLE_ARCHITECTURE))
