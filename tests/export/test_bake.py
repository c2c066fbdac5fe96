from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localsteer.errors import ExportError, LocalsteerError
from localsteer.export import bake
from localsteer.export.bake import modelfile, modelfile_path, prepare
from localsteer.export.gguf_rewrite import rewrite
from localsteer.export.verify import exchanges, predictions, reference
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.conftest import TinyPath, random_rows
from tests.export.conftest import Opened
from tests.tiny_models import write_tiny_model

LABEL = parse_steering("0.5 push")
# Architectures of the tiny models that take the bias; those whose files have one already, and one that scales it.
TAKES_IT = ("llama", "granite", "starcoder2")


def push(model: Model, layers: tuple[int, ...] = (1, 2, 3)) -> ControlVector:
    rows = random_rows(model, layers, seed=1)
    return ControlVector({layer: rows[layer] for layer in layers}, Provenance(concept="push"))


def plan_for(model: Model, expression: str = "push", layers: tuple[int, ...] = (1, 2, 3)) -> Plan:
    return resolve(parse_steering(expression), model.fingerprint, lambda _name: push(model, layers), "prompt")


@pytest.mark.parametrize("architecture", TAKES_IT)
def test_a_baked_model_does_what_the_steered_one_does(opened: Opened, tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", architecture)
    with Model(path, threads=1) as model:
        plan = plan_for(model)
        file = opened(path)
        made = prepare(plan, LABEL, file, model.fingerprint)
        ours = reference(model, plan.edit.added)
    assert made.layers == (1, 2, 3)
    rewrite(file, tmp_path / "baked.gguf", tensors=made.tensors, keys=made.keys)
    with Model(tmp_path / "baked.gguf", threads=1) as baked:
        fidelity = ours.compare(predictions(baked, ours.texts))
        assert baked.metadata("localsteer.baked.expression") == "0.5 push"
        assert baked.metadata("localsteer.baked.layers") == "1-3"
    assert fidelity.places == 200
    assert fidelity.mean < 1e-5
    assert fidelity.unsteered_mean > 0.1


def test_a_tiny_model_of_each_kind_begins_as_it_should(opened: Opened, tmp_path: Path) -> None:
    has = {
        architecture: "blk.1.ffn_down.bias" in opened(write_tiny_model(tmp_path / architecture, architecture)).tensors
        for architecture in TAKES_IT
    }
    assert has == {"llama": False, "granite": False, "starcoder2": True}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3", "phi3", "mamba"])
def test_other_architectures_are_refused_with_what_to_do_instead(opened: Opened, tiny_path: TinyPath, architecture: str) -> None:
    with pytest.raises(ExportError, match=rf"architecture {architecture}.*localsteer export llama-cpp.*localsteer chat"):
        bake.refuse_unbakeable(opened(tiny_path(architecture)))


def test_a_mixture_of_experts_is_refused(opened: Opened, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", n_expert=4)
    with pytest.raises(ExportError, match="mixture of experts"):
        bake.refuse_unbakeable(opened(path))


def test_a_baked_model_is_not_baked_again(opened: Opened, tiny: Model, tiny_path: TinyPath, tmp_path: Path) -> None:
    file = opened(tiny_path("llama"))
    made = prepare(plan_for(tiny), LABEL, file, tiny.fingerprint)
    rewrite(file, tmp_path / "baked.gguf", tensors=made.tensors, keys=made.keys)
    with pytest.raises(ExportError, match=r'"0\.5 push" baked in already'):
        bake.refuse_unbakeable(opened(tmp_path / "baked.gguf"))


def test_what_adds_nothing_or_removes_is_refused(opened: Opened, tiny: Model, tiny_path: TinyPath, tmp_path: Path) -> None:
    file = opened(tiny_path("llama"))
    with pytest.raises(LocalsteerError, match="removes a component"):
        bake.bake(tiny.path, parse_steering("!push"), tmp_path / "baked.gguf")
    with pytest.raises(ExportError, match="0 push"):
        prepare(plan_for(tiny, "0 push"), LABEL, file, tiny.fingerprint)


def test_a_block_without_a_plain_feed_forward_layer_is_refused(opened: Opened, tiny: Model, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", n_layer=3)
    with pytest.raises(ExportError, match=r"Blocks 3 of tiny .*@1-2"):
        prepare(plan_for(tiny), LABEL, opened(path), tiny.fingerprint)


def test_the_steered_layers_only_are_touched(opened: Opened, tiny: Model, tiny_path: TinyPath) -> None:
    made = prepare(plan_for(tiny, "-2 push@2"), LABEL, opened(tiny_path("llama")), tiny.fingerprint)
    assert list(made.tensors) == ["blk.2.ffn_down.bias"]
    np.testing.assert_allclose(made.tensors["blk.2.ffn_down.bias"], -2 * push(tiny).directions[2])


def test_the_model_itself_and_a_full_disk_are_found_out_before(
    opened: Opened, tiny_path: TinyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = opened(tiny_path("llama"))
    bake.check_room(tmp_path / "baked.gguf", file)
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny_path("llama"))
    for target in (tiny_path("llama"), link):
        with pytest.raises(ExportError, match=target.name):
            bake.check_room(target, file)
    monkeypatch.setattr(bake, "_ROOM", 1 << 60)
    with pytest.raises(ExportError, match=r"baked\.gguf"):
        bake.check_room(tmp_path / "baked.gguf", file)


def test_ollama_gets_a_modelfile_for_this_file() -> None:
    path = Path("models/Happy-SmolLM.gguf")
    assert modelfile_path(path) == Path("models/Happy-SmolLM.Modelfile")
    lines = modelfile(path, LABEL).splitlines()
    assert lines[-1] == "FROM ./Happy-SmolLM.gguf"
    assert "#   ollama create happy-smollm -f Happy-SmolLM.Modelfile" in lines
    assert "0.5 push" in lines[0]


def test_the_exchanges_are_long_enough_for_every_vocabulary(tiny: Model) -> None:
    assert len(exchanges(tiny)) == 10
    assert all(len(text) > 40 for text in exchanges(tiny))
