from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.errors import ExportError, LocalsteerError
from localsteer.export import bake
from localsteer.export.bake import prepare
from localsteer.export.gguf_rewrite import Replacement, open_model_file, rewrite
from localsteer.export.ollama import adapter_modelfile, modelfile, modelfile_path
from localsteer.export.verify import exchanges, predictions, reference
from localsteer.files.gguf_header import read_header
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from tests.conftest import TinyPath, random_rows
from tests.export.conftest import Opened
from tests.tiny_models import ARCHITECTURES, RECURRENT_ARCHITECTURE, UNSTEERABLE_ARCHITECTURE, write_tiny_model

LABEL = parse_steering("0.5 push")
# Architectures of the tiny models that take the bias; one whose file has it already, and one that scales it.
TAKES_IT = ("llama", "granite", "starcoder2")
MERGED = tuple(architecture for architecture in ARCHITECTURES if architecture not in TAKES_IT)


def _once(data: bytes) -> Iterator[bytes]:
    yield data


def push(model: Model, layers: tuple[int, ...] = (1, 2, 3)) -> ControlVector:
    rows = random_rows(model, layers, seed=1)
    return ControlVector({layer: rows[layer] for layer in layers}, Provenance(concept="push"))


def plan_for(model: Model, expression: str = "push", layers: tuple[int, ...] = (1, 2, 3)) -> Plan:
    return resolve(parse_steering(expression), model.fingerprint, lambda _name: push(model, layers), "prompt")


def bake_push(path: Path, folder: Path, *, verify: bool = True) -> tuple[bake.Baked, Path]:
    """The model with the push baked in, as baked.gguf of the folder; and the model."""
    with Model(path, threads=1) as model:
        rows = random_rows(model, (1, 2), seed=0, norm=3.0)
    write_vector(ControlVector({layer: rows[layer] for layer in (1, 2)}), folder / "push.gguf")
    steering = parse_steering(str(folder / "push.gguf"))
    return bake.bake(path, steering, folder / "baked.gguf", verify=verify, open_model=lambda one: Model(one, threads=1)), path


def requantised(source: Path, target: Path, kind: str) -> Path:
    """A model whose feed-forward and attention outputs are of another type."""
    reader, to = gguf.GGUFReader(source), gguf.GGMLQuantizationType[kind]
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_model_file(source))
        replaced = {}
        for one in reader.tensors:
            if one.name.endswith(("ffn_down.weight", "attn_output.weight")):
                data = gguf.quantize(np.array(one.data), to).tobytes()
                replaced[one.name] = Replacement(int(to), len(data), functools.partial(_once, data))
        rewrite(file, target, tensors={}, replaced=replaced, keys={})
    return target


@pytest.mark.parametrize("architecture", TAKES_IT)
def test_a_baked_model_does_what_the_steered_one_does(opened: Opened, tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", architecture)
    with Model(path, threads=1) as model:
        plan = plan_for(model)
        file = opened(path)
        made = prepare(plan, LABEL, file, model, tmp_path / "scratch")
        ours = reference(model, plan.edit.added)
    assert made.layers == (1, 2, 3)
    rewrite(file, tmp_path / "baked.gguf", tensors=made.tensors, keys=made.keys)
    with Model(tmp_path / "baked.gguf", threads=1) as baked:
        fidelity = ours.compare(predictions(baked, ours.texts))
        assert baked.metadata("localsteer.baked.expression") == "0.5 push"
        assert baked.metadata("localsteer.baked.layers") == "1-3"
    assert not made.replaced
    assert fidelity.places == 400
    assert fidelity.mean < 1e-5
    assert fidelity.unsteered_mean > 0.1


def test_a_tiny_model_of_each_kind_begins_as_it_should(opened: Opened, tmp_path: Path) -> None:
    has = {
        architecture: "blk.1.ffn_down.bias" in opened(write_tiny_model(tmp_path / architecture, architecture)).tensors
        for architecture in TAKES_IT
    }
    assert has == {"llama": False, "granite": False, "starcoder2": True}


@pytest.mark.parametrize("architecture", MERGED)
def test_where_there_is_no_bias_an_adapter_is_merged(tiny_path: TinyPath, tmp_path: Path, architecture: str) -> None:
    made, model = bake_push(tiny_path(architecture), tmp_path)
    assert all(kind == "F32" for kind in made.merged.values())
    assert {int(name.split(".")[1]) for name in made.merged} >= {1, 2}
    assert made.fidelity is not None
    # 0 to 4.8 % as an adapter, too.
    assert made.fidelity.mean < 0.06 * made.fidelity.unsteered_mean
    assert made.fidelity.unsteered_mean > 0.05
    kept = read_header(model, ExportError).tensors.keys() - made.merged.keys()
    old, new = (read_header(path, ExportError) for path in (model, tmp_path / "baked.gguf"))
    assert list(old.tensors) == list(new.tensors)
    assert all(old.tensor_bytes(old.tensors[name]) == new.tensor_bytes(new.tensors[name]) for name in kept)


def test_a_mixture_of_experts_gets_it_where_all_tokens_come_by(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", n_expert=4)
    # Random experts make something else of what they see a block too early: 49 % of the unsteered model's divergence.
    with pytest.raises(ExportError, match="does not steer as localsteer does"):
        bake_push(path, tmp_path)
    made, _ = bake_push(path, tmp_path, verify=False)
    assert made.merged.keys() == {f"blk.{layer}.attn_output.weight" for layer in (1, 2)}
    with Model(tmp_path / "baked.gguf", threads=1) as baked:
        assert baked.metadata("localsteer.baked.layers") == "1-2"


@pytest.mark.parametrize("architecture", [RECURRENT_ARCHITECTURE, UNSTEERABLE_ARCHITECTURE])
def test_an_architecture_with_no_such_matrix_is_refused_by_name(tiny_path: TinyPath, tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", architecture)
    with pytest.raises(ExportError, match=rf"\(architecture {architecture}\)"):
        bake_push(path, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"m.gguf", "push.gguf"}


@pytest.mark.parametrize(
    ("n_embd", "kind", "becomes"), [(64, "Q4_0", "Q8_0"), (64, "F16", "F16"), (64, "BF16", "BF16"), (64, "Q8_0", "Q8_0")]
)
def test_what_is_quantised_becomes_fine_enough(tmp_path: Path, n_embd: int, kind: str, becomes: str) -> None:
    path = requantised(write_tiny_model(tmp_path / "f32.gguf", "qwen3", n_embd=n_embd), tmp_path / "m.gguf", kind)
    made, _ = bake_push(path, tmp_path)
    assert set(made.merged.values()) == {becomes}
    assert made.fidelity is not None
    assert made.fidelity.mean < 0.06 * made.fidelity.unsteered_mean
    assert made.size == path.stat().st_size + made.grown


def test_a_baked_model_is_not_baked_again(opened: Opened, tiny: Model, tiny_path: TinyPath, tmp_path: Path) -> None:
    file = opened(tiny_path("llama"))
    made = prepare(plan_for(tiny), LABEL, file, tiny, tmp_path / "scratch")
    rewrite(file, tmp_path / "baked.gguf", tensors=made.tensors, keys=made.keys)
    with pytest.raises(ExportError, match=r'"0\.5 push" baked in already'):
        bake.refuse_baked(opened(tmp_path / "baked.gguf"))


def test_what_adds_nothing_or_removes_is_refused(opened: Opened, tiny: Model, tiny_path: TinyPath, tmp_path: Path) -> None:
    file = opened(tiny_path("llama"))
    with pytest.raises(LocalsteerError, match="removes a component"):
        bake.bake(tiny.path, parse_steering("!push"), tmp_path / "baked.gguf")
    with pytest.raises(ExportError, match="0 push"):
        prepare(plan_for(tiny, "0 push"), LABEL, file, tiny, tmp_path / "scratch")


def test_the_steered_layers_only_are_touched(opened: Opened, tiny: Model, tiny_path: TinyPath, tmp_path: Path) -> None:
    made = prepare(plan_for(tiny, "-2 push@2"), LABEL, opened(tiny_path("llama")), tiny, tmp_path / "scratch")
    assert list(made.tensors) == ["blk.2.ffn_down.bias"]
    np.testing.assert_allclose(made.tensors["blk.2.ffn_down.bias"], -2 * push(tiny).directions[2])


def test_the_model_itself_and_a_full_disk_are_found_out_before(opened: Opened, tiny_path: TinyPath, tmp_path: Path) -> None:
    file = opened(tiny_path("llama"))
    bake.check_room(tmp_path / "baked.gguf", file, 0)
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny_path("llama"))
    for target in (tiny_path("llama"), link):
        with pytest.raises(ExportError, match=target.name):
            bake.check_room(target, file, 0)
    with pytest.raises(ExportError, match=r"baked\.gguf"):
        bake.check_room(tmp_path / "baked.gguf", file, 1 << 60)


def test_ollama_gets_a_modelfile_for_this_file() -> None:
    path = Path("models/Happy-SmolLM.gguf")
    assert modelfile_path(path) == Path("models/Happy-SmolLM.Modelfile")
    lines = modelfile(path, LABEL).splitlines()
    assert lines[-1] == "FROM ./Happy-SmolLM.gguf"
    assert "#   ollama create happy-smollm -f Happy-SmolLM.Modelfile" in lines
    assert "0.5 push" in lines[0]


def test_ollama_gets_the_template_that_the_file_has_not(tmp_path: Path) -> None:
    """What Ollama keeps beside the weights, it does not find in them."""
    template = "{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}"
    for own, kept in ((None, template), ("{{ messages }}", None)):
        path = write_tiny_model(tmp_path / "model.gguf", chat_template=own)
        with Model(path, threads=1, ollama_template=template) as model:
            assert model.template_beside == kept
    assert modelfile(Path("x.gguf"), LABEL, template).endswith(f'FROM ./x.gguf\nTEMPLATE """{template}"""\n')
    assert adapter_modelfile(Path("x.gguf"), LABEL, Path("/m.gguf"), template).endswith(f'TEMPLATE """{template}"""\n')


def test_the_exchanges_are_long_enough_for_every_vocabulary(tiny: Model) -> None:
    assert len(exchanges(tiny)) == 20
    assert all(len(text) > 40 for text in exchanges(tiny))
