from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.steerability import Steerability, probe_steerability
from tests.conftest import Floats, TinyModel, TinyPath
from tests.tiny_models import write_tiny_model


def test_what_llama_cpp_can_steer_is_found_steerable(steerable: Model) -> None:
    assert probe_steerability(steerable) == Steerability(readable=True, native=True)


def test_an_architecture_that_ignores_control_vectors_is_found_out(tiny_model: TinyModel) -> None:
    found = probe_steerability(tiny_model("plamo2"))
    assert not found.readable
    assert not found.native
    assert "l_out-2" in found.reason


def test_the_smallest_model_that_can_be_steered_has_two_blocks(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "two.gguf", n_layer=2), threads=1) as model:
        assert probe_steerability(model) == Steerability(readable=True, native=True)
    with Model(write_tiny_model(tmp_path / "one.gguf", n_layer=1), threads=1) as model:
        found = probe_steerability(model)
        assert not found.native


def test_broken_weights_are_found_out(tiny_path: TinyPath, tmp_path: Path) -> None:
    content = bytearray(tiny_path("llama").read_bytes())
    content[-256:] = np.full(64, np.nan, np.float32).tobytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(content)
    with Model(broken, threads=1) as model:
        assert probe_steerability(model) == Steerability(False, False, "its logits are not finite numbers")


def test_a_build_that_ignores_control_vectors_leaves_the_tap(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "set_control_vector", lambda self, added: None)
    found = probe_steerability(tiny)
    assert (found.readable, found.native) == (True, False)
    assert "ignores control vectors" in found.reason


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_build_that_steers_another_block_is_not_trusted(tiny: Model, monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    honest = Context.set_control_vector

    def shifted(context: Context, added: Floats | None) -> None:
        honest(context, None if added is None else np.roll(added, shift, axis=0))

    monkeypatch.setattr(Context, "set_control_vector", shifted)
    assert not probe_steerability(tiny).native


def test_a_build_that_scales_control_vectors_is_not_trusted(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Context.set_control_vector

    def scaled(context: Context, added: Floats | None) -> None:
        honest(context, None if added is None else added * np.float32(0.99))

    monkeypatch.setattr(Context, "set_control_vector", scaled)
    assert not probe_steerability(tiny).native


def test_a_model_of_one_block_cannot_be_steered(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "flat.gguf", n_layer=1), threads=1) as flat:
        found = probe_steerability(flat)
    assert not found.native
    assert "only block 0" in found.reason
