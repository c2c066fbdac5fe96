from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from localsteer.errors import ExportError
from localsteer.export.verify import Fidelity, divergences, exchanges, predictions, reference
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from tests.conftest import TinyModel, random_rows, run_alone
from tests.tiny_models import UNSTEERABLE_ARCHITECTURE, write_tiny_model


def test_the_divergence_is_that_of_the_textbook() -> None:
    ours, theirs = np.log([[0.5, 0.5], [0.9, 0.1]]).astype(np.float32), np.log([[0.25, 0.75], [0.9, 0.1]]).astype(np.float32)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    both = np.arange(2)
    np.testing.assert_allclose(divergences([(both, row) for row in ours], theirs), [expected, 0], atol=1e-7)


def test_tokens_that_are_hardly_likely_count_as_one(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(tiny, (1, 2), seed=0)
    found = []
    for kept in (tiny.n_vocab, tiny.n_vocab // 2):
        monkeypatch.setattr("localsteer.export.verify._KEPT", kept)
        ours = reference(tiny, rows)
        found.append(ours.compare(predictions(tiny, ours.texts, control_vector=rows * np.float32(0.9))))
    exact, kept_half = found
    assert exact.mean > 1e-4
    assert 0.8 * exact.mean < kept_half.mean < exact.mean
    assert 0.8 * exact.unsteered_mean < kept_half.unsteered_mean < exact.unsteered_mean


def test_predictions_are_those_of_the_last_20_tokens(tiny: Model) -> None:
    texts = exchanges(tiny)[:2]
    rows = random_rows(tiny, (1, 3), seed=0)
    found = np.stack(list(predictions(tiny, texts, edit=Edit(rows))))
    assert found.shape == (40, tiny.n_vocab)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)
    logits = run_alone(tiny, texts[1], [Edit(rows)] * len(texts[1]), read=False).logits[-20:]
    np.testing.assert_allclose(found[20:] - found[20:, :1], logits - logits[:, :1], atol=1e-3)


def test_both_ways_to_steer_agree(steerable: Model) -> None:
    rows = random_rows(steerable, range(1, steerable.n_layer), seed=0)
    ours = reference(steerable, rows)
    same = ours.compare(predictions(steerable, ours.texts, control_vector=rows))
    assert same.places == 400
    assert same.mean < 1e-6
    assert 0.1 < same.unsteered_mean < same.unsteered_largest
    same.refuse_if_far()


def test_an_export_that_is_wrong_is_refused(tiny: Model) -> None:
    rows = random_rows(tiny, (1, 2), seed=0)
    wrong = {
        "one block late": np.roll(rows, 1, axis=0),
        "the other way": -rows,
        "twice as strong": 2 * rows,
        "one layer only": rows * (np.arange(tiny.n_layer) == 1)[:, None],
        "nothing": 0 * rows,
    }
    ours = reference(tiny, rows)
    for control_vector in wrong.values():
        fidelity = ours.compare(predictions(tiny, ours.texts, control_vector=control_vector))
        with pytest.raises(ExportError, match="localsteer doctor"):
            fidelity.refuse_if_far()


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ExportError):
        Fidelity(400, math.nan, math.nan, 1.0, 2.0).refuse_if_far()


def test_the_bound_is_noise_or_a_tenth_of_what_there_is_to_lose() -> None:
    assert Fidelity(400, 0, 0, 0.01, 0.1).bound() == 0.02
    assert Fidelity(400, 0, 0, 2.0, 5.0).bound() == pytest.approx(0.2)


def test_a_base_model_reads_plain_text(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "m.gguf", chat_template=None), threads=1) as base:
        assert base.detokenize(list(exchanges(base)[0])).startswith("How was your day?\n\nIt began with rain")


def test_a_model_that_cannot_be_steered_cannot_be_verified(tiny_model: TinyModel) -> None:
    model = tiny_model(UNSTEERABLE_ARCHITECTURE)
    with pytest.raises(ExportError, match="--no-verify"):
        reference(model, random_rows(model, (1,), seed=0))
