from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from localsteer.engine.batch import RunningBatch
from localsteer.engine.checks import check_memory, check_steering, default_context
from localsteer.engine.generate import Generator
from localsteer.errors import ModelError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """How much memory there seems to be."""
    memory = SimpleNamespace(available=0, total=0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=0))
    return memory


def test_with_enough_memory_it_is_what_the_model_can_read(tiny: Model, free: SimpleNamespace) -> None:
    free.available = 1 << 40
    assert default_context(tiny, 4) == tiny.n_ctx_train


def test_without_it_is_less(tiny: Model, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "n_ctx_train", 100_000)
    for available, parallel, expected in (
        (1 << 40, 1, 16_384),
        (4 * 5000 * tiny.kv_bytes, 1, 4864),
        (4 * 5000 * tiny.kv_bytes, 4, 1024),
        (0, 1, 256),
    ):
        free.available = available
        assert default_context(tiny, parallel) == expected


def test_the_kv_cache_is_as_large_as_said(tiny: Model) -> None:
    """As llama.cpp copies it: beside keys and values, some bytes of each cell."""
    with Context(tiny, n_ctx=256) as context:
        sizes = []
        for start, tokens in ((0, [5] * 64), (64, [5] * 64)):
            context.decode(Batch.of_one_sequence(tokens, start=start))
            sizes.append(context.sequence_bytes(0))
    assert (sizes[1] - sizes[0]) / 64 == pytest.approx(tiny.kv_bytes, rel=0.1)


def test_a_context_that_does_not_fit_is_refused_before_it_is_made(
    tiny: Model, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would end some process for lack of memory: llama.cpp clears what it gets."""
    monkeypatch.setattr(Context, "__init__", lambda *_, **__: pytest.fail("was made"))
    free.available = free.total = 100_000 * tiny.kv_bytes
    check_memory(tiny, 100_000)
    for attempt in (
        lambda: check_memory(tiny, 100_001),
        lambda: Generator(tiny, n_ctx=10**8),
        lambda: RunningBatch(tiny, parallel=4, n_ctx=30_000),
    ):
        with pytest.raises(ModelError, match=r"A context of [\d,]+ tokens takes .* GB of memory .* --context"):
            attempt()


def test_what_is_free_elsewhere_is_not_known(tiny: Model, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localsteer.engine.checks.rpc.connected", lambda: ["10.0.0.2:50052"])
    check_memory(tiny, 10**8)


@pytest.mark.parametrize(("layers", "is_elsewhere"), [(None, True), (1, True), (-1, True), (0, False)])
def test_what_is_free_on_a_gpu_is_not_known(
    tiny: Model, free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, layers: int | None, is_elsewhere: bool
) -> None:
    monkeypatch.setattr("localsteer.engine.checks.library.build_features", lambda: SimpleNamespace(gpu=True))
    monkeypatch.setattr(tiny, "gpu_layers", layers)
    with nullcontext() if is_elsewhere else pytest.raises(ModelError, match="of memory"):
        check_memory(tiny, 10**8)


def test_steering_is_too_strong_where_a_layer_s_squares_are_together_past_all_numbers(tiny: Model) -> None:
    """Each of them, and those of one component over the layers, is a number still."""
    rows = np.zeros((tiny.n_layer, tiny.n_embd), np.float32)
    rows[1] = 1.5e19 / tiny.n_embd**0.5
    check_steering(tiny, [None, Edit(rows)])
    rows[1] = 1.5e19
    with pytest.raises(ModelError, match="too strong for any model"):
        check_steering(tiny, [None, Edit(rows)])
