from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.errors import ExportError, LocalsteerError, ModelError, VectorError
from localsteer.export import adapter as adapter_module
from localsteer.export.adapter import adapter_command_lines, best_rows, export_adapter, write_adapter
from localsteer.export.adapter_fit import ROOMS, UNLIKE, Row, fit
from localsteer.export.gguf_rewrite import ModelFile, open_model_file
from localsteer.export.verify import Reference, predictions, reference
from localsteer.llama.adapter import Adapter
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.control_vector import ControlVector, Floats
from localsteer.vector.file import read_vector
from localsteer.vector.importing import import_vector
from tests.calibration.made import DOSES, calibrated
from tests.conftest import TinyModel, TinyPath, random_rows
from tests.tiny_models import ARCHITECTURES, RECURRENT_ARCHITECTURE

LAYERS = (1, 2)


def push(model: Model, norm: float = 3.0) -> ControlVector:
    rows = random_rows(model, LAYERS, seed=0, norm=norm)
    return ControlVector({layer: rows[layer] for layer in LAYERS})


def rows_of(model: Model, added: Floats, folder: Path) -> list[Row]:
    with open_model_file(model.path) as file:
        return best_rows(model, fit(model, file, added), added, folder / "scratch")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_steers_as_localsteer_does_on_every_architecture(
    tiny_model: TinyModel, tmp_path: Path, architecture: str
) -> None:
    model = tiny_model(architecture)
    vector = push(model)
    made = export_adapter(parse_steering("push"), tmp_path / "out.gguf", lambda _name: vector, model)
    assert made.fidelity is not None
    # Between 0 and 4.8 % as measured, where an adapter at another block, or of another sign, is off by half or more.
    assert made.fidelity.mean < 0.06 * made.fidelity.unsteered_mean
    assert made.fidelity.unsteered_mean > 0.05
    # Where a norm comes between, what is left over falls to the blocks behind.
    assert made.matrices[:2] == tuple(f"blk.{layer}.ffn_down.weight" for layer in LAYERS)


@pytest.mark.parametrize("scale", [0.5, -1.0])
def test_any_scale_is_so_many_times_the_steering(transformer: Model, tmp_path: Path, scale: float) -> None:
    added = random_rows(transformer, LAYERS, seed=0, norm=3.0)
    write_adapter(tmp_path / "out.gguf", transformer.architecture, "push", rows_of(transformer, added, tmp_path), {})
    ours = reference(transformer, added * np.float32(scale))
    with Adapter(transformer, tmp_path / "out.gguf") as adapter:
        found = ours.compare(predictions(transformer, ours.texts, adapters=[(adapter, scale)]))
        other = ours.compare(predictions(transformer, ours.texts, adapters=[(adapter, -scale)]))
    # 6.6 % at -1 where a norm comes between (gemma3), which takes away more of what points its own way.
    assert found.mean < 0.08 * found.unsteered_mean
    assert other.mean > found.unsteered_mean


def test_adapters_add_up_and_can_be_taken_off(tiny: Model, tmp_path: Path) -> None:
    one, two = (random_rows(tiny, LAYERS, seed=seed, norm=3.0) for seed in (1, 2))
    for name, added in (("one", one), ("two", two)):
        write_adapter(tmp_path / name, tiny.architecture, name, rows_of(tiny, added, tmp_path), {})
    ours = reference(tiny, one + two)
    with Adapter(tiny, tmp_path / "one") as first, Adapter(tiny, tmp_path / "two") as second:
        both = ours.compare(predictions(tiny, ours.texts, adapters=[(first, 1.0), (second, 1.0)]))
        assert both.mean < 0.06 * both.unsteered_mean
        tokens = tiny.tokenize("Hello there")
        with Context(tiny, n_ctx=64) as context:
            seen = []
            for adapters in ([], [(first, 1.0)], []):
                context.clear()
                context.set_adapters(adapters)
                context.decode(Batch.of_one_sequence(tokens, start=0))
                seen.append(context.logits(len(tokens) - 1).copy())
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[1])


def test_the_file_says_what_it_is(tiny: Model, tmp_path: Path) -> None:
    vector = calibrated(tiny.fingerprint)
    made = export_adapter(parse_steering("loud"), tmp_path / "out.gguf", lambda _name: vector, tiny, force=True)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    told = {key: field.contents() for key, field in reader.fields.items()}
    assert told["general.type"] == "adapter"
    assert told["adapter.type"] == "lora"
    assert told["general.architecture"] == "llama"
    assert told["localsteer.adapter.expression"] == "loud"
    assert told["localsteer.adapter.model"] == tiny.fingerprint.content
    assert float(told["localsteer.adapter.relative_dose"]) == pytest.approx(DOSES["positive", "prompt"], rel=1e-3)
    assert made.fidelity is not None
    assert float(told["localsteer.adapter.kl"]) == pytest.approx(made.fidelity.mean, rel=1e-2)
    names = {tensor.name for tensor in reader.tensors}
    assert names == {f"{matrix}.{side}" for matrix in made.matrices for side in ("lora_a", "lora_b")}


def test_the_scale_of_the_other_pole_is_told_where_there_is_one(tiny: Model, tmp_path: Path) -> None:
    vector = push(tiny)

    def opposite(expression: str) -> float | None:
        return export_adapter(
            parse_steering(expression), tmp_path / "out.gguf", lambda _name: vector, tiny, verify=False
        ).opposite

    assert opposite("push") == pytest.approx(-1.0)
    # Toward the other pole this one has other layers: no scale of the file is that.
    other = calibrated(tiny.fingerprint)
    made = export_adapter(parse_steering("loud"), tmp_path / "other.gguf", lambda _name: other, tiny, verify=False)
    assert made.opposite is None


def test_ollama_gets_a_modelfile_and_the_programs_a_line_each(tiny: Model, tmp_path: Path) -> None:
    vector = push(tiny)
    made = export_adapter(parse_steering("push"), tmp_path / "my steer.gguf", lambda _name: vector, tiny, verify=False)
    assert made.modelfile == tmp_path / "my steer.Modelfile"
    lines = made.modelfile.read_text().splitlines()
    assert f"FROM {tiny.path}" in lines
    assert "ADAPTER ./my steer.gguf" in lines
    told = adapter_command_lines(tmp_path / "my steer.gguf", Path("m.gguf"))
    assert f"llama-server -m m.gguf --lora '{tmp_path / 'my steer.gguf'}'" in told
    # llama.cpp would take it for two files.
    assert "llama-server -m m.gguf --lora '\"one,two.gguf\"'" in adapter_command_lines(Path("one,two.gguf"), Path("m.gguf"))


def test_an_adapter_that_does_something_else_is_kept_only_by_force(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = push(tiny)

    def wrong(model: Model, added: Floats) -> Reference:
        return reference(model, -added)

    monkeypatch.setattr(adapter_module, "reference", wrong)
    with pytest.raises(ExportError, match="does not steer as localsteer does"):
        export_adapter(parse_steering("push"), tmp_path / "out.gguf", lambda _name: vector, tiny)
    assert not list(tmp_path.iterdir())
    made = export_adapter(parse_steering("push"), tmp_path / "out.gguf", lambda _name: vector, tiny, force=True)
    assert made.fidelity is not None
    assert made.fidelity.mean > made.fidelity.bound()
    assert (tmp_path / "out.gguf").exists()


def test_what_no_adapter_can_do_is_refused(tiny: Model, tiny_model: TinyModel, tmp_path: Path) -> None:
    vector, recurrent = push(tiny), tiny_model(RECURRENT_ARCHITECTURE)
    with pytest.raises(LocalsteerError, match="removes a component"):
        export_adapter(parse_steering("!push"), tmp_path / "out.gguf", lambda _name: vector, tiny)
    with pytest.raises(VectorError, match="adds nothing"):
        export_adapter(parse_steering("0 push"), tmp_path / "out.gguf", lambda _name: vector, tiny)
    with pytest.raises(ExportError, match=r"\(architecture mamba\) has no matrix at block 1 or above"):
        export_adapter(parse_steering("push"), tmp_path / "out.gguf", lambda _name: push(recurrent), recurrent)
    with pytest.raises(ExportError, match="is the name of the Modelfile"):
        export_adapter(parse_steering("push"), tmp_path / "out.Modelfile", lambda _name: vector, tiny)
    assert not list(tmp_path.iterdir())


def test_nobody_elses_file_is_written_over(tiny: Model, tmp_path: Path) -> None:
    vector, output = push(tiny), tmp_path / "out.gguf"
    write_adapter(output, tiny.architecture, "a fine-tune", rows_of(tiny, random_rows(tiny, LAYERS, seed=1), tmp_path), {})
    before = output.read_bytes()
    with pytest.raises(ExportError, match="no adapter of localsteer's"):
        export_adapter(parse_steering("push"), output, lambda _name: vector, tiny)
    assert output.read_bytes() == before
    (tmp_path / "other.Modelfile").write_text("FROM ./other.gguf\n")
    with pytest.raises(ExportError, match=r"other\.Modelfile is there already, and of something else"):
        export_adapter(parse_steering("push"), tmp_path / "other.lora", lambda _name: vector, tiny)
    assert (tmp_path / "other.Modelfile").read_text() == "FROM ./other.gguf\n"


def test_a_closed_adapter_is_an_error_and_no_crash(tmp_path: Path, tiny_path: TinyPath) -> None:
    with Model(tiny_path("llama"), threads=1) as model:
        write_adapter(
            tmp_path / "out.gguf", model.architecture, "push", rows_of(model, random_rows(model, LAYERS, seed=1), tmp_path), {}
        )
        adapter, left_open = (Adapter(model, tmp_path / "out.gguf") for _ in range(2))
        adapter.close()
        with Context(model, n_ctx=64) as context, pytest.raises(ModelError, match="closed"):
            context.set_adapters([(adapter, 1.0)])
    left_open.close()  # its model has freed it


def test_a_file_that_is_no_adapter_of_the_model_is_one_clear_error(tiny: Model, tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no adapter")
    with pytest.raises(ModelError, match=r"does not load the adapter .*text\.gguf"):
        Adapter(tiny, tmp_path / "text.gguf")
    added = random_rows(tiny, LAYERS, seed=0)
    write_adapter(tmp_path / "out.gguf", tiny.architecture, "push", rows_of(tiny, added, tmp_path), {})
    with pytest.raises(ModelError, match="arch"):
        Adapter(tiny_model("qwen2"), tmp_path / "out.gguf")


def test_a_block_without_such_a_matrix_hands_on_to_the_next(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    added = random_rows(tiny, LAYERS, seed=0)
    with open_model_file(tiny.path) as file:
        left = {name: tensor for name, tensor in file.tensors.items() if not name.startswith("blk.1.")}
        monkeypatch.setattr(type(file), "tensors", property(lambda _file: left))
        fitted = fit(tiny, file, added)
    (row,) = fitted.rows(fitted.rooms[0], fitted.shares[0])
    assert row.matrix == "blk.2.ffn_down.weight"
    np.testing.assert_allclose(row.b, added[1] + added[2], rtol=1e-5)


def test_where_the_inputs_of_the_feed_forward_layer_have_too_little_in_common_the_attention_adds(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = random_rows(tiny, LAYERS, seed=0)
    assert all(row.deviation <= UNLIKE for row in rows_of(tiny, added, tmp_path))
    monkeypatch.setattr("localsteer.export.adapter_fit.UNLIKE", 0.0)
    rows = rows_of(tiny, added, tmp_path)
    assert "blk.2.attn_output.weight" in {row.matrix for row in rows}
    assert max(row.deviation for row in rows) < 0.14  # the feed-forward layer alone has 0.13 and 0.16


def test_what_does_not_come_through_a_norm_falls_to_the_next_block(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gemma3")
    added = random_rows(model, (1,), seed=0, norm=3.0)
    floats = ModelFile.floats

    def closed_at_first(file: ModelFile, name: str) -> Floats:
        """Half of the dimensions of block 1 let nothing through."""
        weights = floats(file, name)
        return np.where(np.arange(len(weights)) % 2, weights, 1e-6).astype(np.float32) if name.startswith("blk.1.") else weights

    monkeypatch.setattr(ModelFile, "floats", closed_at_first)
    with open_model_file(model.path) as file:
        fitted = fit(model, file, added)
    first, second, *_ = fitted.rows(0.2, share=0.0)
    assert first.matrix.startswith("blk.1.")
    assert second.matrix.startswith("blk.2.")
    closed = np.arange(model.n_embd) % 2 == 0
    assert np.abs(first.b[closed]).max() < 0.01 * np.abs(second.b[closed]).max()
    # And no more is added before the norm than there is room for.
    for room in ROOMS:
        assert all(float((row.b**2).mean()) <= room / (1 - room) * 1.01 for row in fitted.rows(room, share=0.0))


def test_where_norms_follow_both_matrices_of_a_block_each_adds_a_part(tiny_model: TinyModel) -> None:
    model = tiny_model("gemma3")
    added = random_rows(model, (1,), seed=0, norm=0.1)
    with open_model_file(model.path) as file:
        fitted = fit(model, file, added)
        norms = [file.floats(f"blk.1.{name}.weight") for name in ("post_attention_norm", "post_ffw_norm")]
    attention, feed_forward = fitted.rows(0.2, share=0.3)[:2]
    assert (attention.matrix, feed_forward.matrix) == ("blk.1.attn_output.weight", "blk.1.ffn_down.weight")
    np.testing.assert_allclose(attention.b * norms[0], 0.3 * added[1], atol=0.02 * float(np.abs(added).max()))
    np.testing.assert_allclose(feed_forward.b * norms[1], 0.7 * added[1], atol=0.02 * float(np.abs(added).max()))


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_an_adapter_is_read_as_the_vector_that_it_was_made_of(tiny_model: TinyModel, tmp_path: Path, architecture: str) -> None:
    """On gemma3 a norm comes between: what the adapter adds at its matrices is not the vector."""
    model = tiny_model(architecture)
    vector = calibrated(model.fingerprint)
    made = export_adapter(parse_steering("loud"), tmp_path / "out.gguf", lambda _name: vector, model, verify=False)
    for read in (read_vector(tmp_path / "out.gguf"), import_vector(tmp_path / "out.gguf", model=model.fingerprint).vector):
        np.testing.assert_array_equal(read.rows(model.n_layer), made.plan.edit.added)
        again = resolve(parse_steering("out"), model.fingerprint, {"out": read}.__getitem__)
        assert again.relative_dose == pytest.approx(DOSES["positive", "prompt"], rel=1e-3)
        assert read.provenance.concept == vector.provenance.concept
        assert read.provenance.model == model.fingerprint
        assert "prompt and response" in read.provenance.origin
    assert "an adapter of localsteer's" in import_vector(tmp_path / "out.gguf").findings[0]


def test_a_mixture_comes_back_from_its_adapter(tiny: Model, tmp_path: Path) -> None:
    vector = push(tiny)
    made = export_adapter(parse_steering("0.5 push - 2 push@1"), tmp_path / "a.gguf", lambda _name: vector, tiny, verify=False)
    read = read_vector(tmp_path / "a.gguf")
    np.testing.assert_array_equal(read.rows(tiny.n_layer), made.plan.edit.added)
    assert read.provenance.concept == str(made.label)


def test_somebody_elses_adapter_is_told_apart_from_a_vector(tiny: Model, tmp_path: Path) -> None:
    write_adapter(
        tmp_path / "out.gguf", tiny.architecture, "a fine-tune", rows_of(tiny, random_rows(tiny, LAYERS, seed=1), tmp_path), {}
    )
    for read in (read_vector, import_vector):
        with pytest.raises(VectorError, match=r"out\.gguf is a LoRA adapter of another kind.*--lora"):
            read(tmp_path / "out.gguf")
