from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.export import bake, llama_cpp
from localsteer.export.verify import Fidelity, Reference
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import read_vector, write_vector
from tests.calibration.made import calibrated
from tests.commands.runner import assert_one_clear_line, run
from tests.conftest import TinyPath, random_rows
from tests.made_files import split_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def loud(tiny: Model, tmp_path: Path) -> Path:
    path = tmp_path / "loud.gguf"
    write_vector(calibrated(tiny.fingerprint), path)
    return path


@pytest.fixture
def push(tiny: Model, tmp_path: Path) -> Path:
    """Strong enough to matter."""
    path = tmp_path / "push.gguf"
    rows = random_rows(tiny, (1, 2, 3), seed=0)
    write_vector(ControlVector({layer: rows[layer] for layer in (1, 2, 3)}), path)
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# llama-cpp


def test_a_vector_for_llama_cpp_is_written_verified_and_explained(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture
) -> None:
    output = tmp_path / "out.gguf"
    result = run(capfd, "export", "llama-cpp", push, "-o", output, "-m", tiny_path("llama"))
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert "layers 1-3" in lines[0]
    assert "verified over 400 positions" in result.out
    assert f"  llama-server -m {tiny_path('llama')} --control-vector {output}" in lines
    assert "koboldcpp load no control vectors" in result.err
    assert read_vector(output).layers == (1, 2, 3)
    assert files(tmp_path) == {"push.gguf", "out.gguf"}


def test_the_strength_is_in_the_file(loud: Path, tiny: Model, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    output = tmp_path / "out.gguf"
    result = run(capfd, "export", "llama-cpp", loud, "--strength", "-0.5", "-o", output, "-m", tiny_path("llama"), "--json")
    document = result.document
    assert document["layers"] == [2, 3]
    assert document["relative_dose"] == pytest.approx(0.08)
    assert document["verification"]["positions"] == 400
    assert document["verification"]["kl_mean"] < 1e-6
    assert len(document["commands"]) == 3
    assert np.array_equal(read_vector(output).rows(4), calibrated(tiny.fingerprint).at(-0.5, "prompt").rows(4))


def test_files_alone_need_no_model_where_nothing_is_verified(loud: Path, tmp_path: Path, capfd: Capture) -> None:
    output = tmp_path / "out.gguf"
    result = run(capfd, "export", "llama-cpp", f"{loud} + {loud}@1", "--no-verify", "-o", output, "--json")
    assert result.code == 0, result.err
    assert result.document["verification"] is None
    assert "-m MODEL.gguf" in result.document["commands"][0]
    assert read_vector(output).provenance.concept == "loud + loud@1-1"


def test_an_export_that_fails_its_verification_leaves_no_file(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "read_vector", lambda path: read_vector(path) * -1.0)
    result = run(capfd, "export", "llama-cpp", push, "-o", tmp_path / "out.gguf", "-m", tiny_path("llama"))
    assert_one_clear_line(result, "localsteer doctor")
    assert files(tmp_path) == {"push.gguf"}


@pytest.mark.parametrize("command", ["llama-cpp", "lora", "bake"])
def test_a_removal_is_refused(push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture, command: str) -> None:
    result = run(capfd, "export", command, f"!{push}", "-o", tmp_path / "out.gguf", "-m", tiny_path("llama"))
    assert_one_clear_line(result, "-s")
    assert files(tmp_path) == {"push.gguf"}


@pytest.mark.parametrize("command", ["llama-cpp", "lora", "bake"])
def test_an_empty_expression_is_a_usage_error(tiny_path: TinyPath, tmp_path: Path, capfd: Capture, command: str) -> None:
    result = run(capfd, "export", command, "", "-o", tmp_path / "out.gguf", "-m", tiny_path("llama"))
    assert result.code == 2


# lora


def test_an_adapter_is_written_verified_and_explained(push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    output = tmp_path / "steer.gguf"
    result = run(capfd, "export", "lora", f"0.5 {push}@1-2", "-o", output, "-m", tiny_path("llama"))
    assert result.code == 0, result.err
    assert "0.5 push@1-2, 2 matrices" in result.out
    assert "verified over 400 positions" in result.out
    assert f"  llama-server -m {tiny_path('llama')} --lora {output}" in result.out.splitlines()
    assert "and -1 the other pole" in result.err
    assert files(tmp_path) == {"push.gguf", "steer.gguf", "steer.Modelfile"}
    again = run(capfd, "export", "lora", f"{push}@1-2", "-o", output, "-m", tiny_path("llama"))
    assert again.code == 0, again.err


def test_no_other_file_is_replaced_by_an_adapter(push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    before = push.read_bytes()
    result = run(capfd, "export", "lora", push, "-o", push, "-m", tiny_path("llama"))
    assert_one_clear_line(result, "push.gguf is there already, and no adapter")
    assert push.read_bytes() == before


def test_an_adapter_is_told_to_machines(push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    output = tmp_path / "steer.gguf"
    result = run(capfd, "export", "lora", f"0.5 {push}@1-2", "-o", output, "-m", tiny_path("llama"), "--json")
    told = json.loads(result.out)
    assert told["opposite_scale"] == pytest.approx(-1)
    assert told["bytes"] == output.stat().st_size
    assert told["matrices"] == ["blk.1.ffn_down.weight", "blk.2.ffn_down.weight"]
    assert told["verification"]["kl_mean"] < told["verification"]["unsteered_kl_mean"]


# knobs


def test_knobs_are_written_with_their_page(push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "knobs"
    result = run(capfd, "export", "knobs", push, "-o", folder, "-m", tiny_path("llama"), "--force")
    assert result.code == 0, result.err
    assert "push.gguf: id 0" in result.out
    assert f"  llama-server -m {tiny_path('llama')} --lora-scaled {folder / 'push.gguf'}:0" in result.out
    assert files(folder) == {"push.gguf", "README.md"}
    told = json.loads(run(capfd, "export", "knobs", push, "-o", folder, "-m", tiny_path("llama"), "--force", "--json").out)
    assert [(knob["id"], knob["name"]) for knob in told["knobs"]] == [(0, "push")]


# bake


def test_a_baked_model_is_written_verified_and_has_a_modelfile(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture
) -> None:
    output = tmp_path / "steered.gguf"
    result = run(capfd, "export", "bake", f"0.5 {push}@2-3", "-o", output, "-m", tiny_path("llama"))
    assert result.code == 0, result.err
    assert "layers 2-3" in result.out
    assert "baked as 2 biases" in result.out
    assert "verified over 400 positions" in result.out
    assert files(tmp_path) == {"push.gguf", "steered.gguf", "steered.Modelfile"}
    assert "FROM ./steered.gguf" in (tmp_path / "steered.Modelfile").read_text()
    with Model(output, threads=1) as baked:
        assert baked.metadata("localsteer.baked.expression") == "0.5 push@2-3"
    assert output.stat().st_mode == push.stat().st_mode


def test_a_split_model_is_baked_into_one_file(push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    parts = split_model(tiny_path("llama"), folder, (20, 19))
    result = run(capfd, "export", "bake", push, "-o", tmp_path / "steered.gguf", "-m", parts[0], "--json")
    assert result.code == 0, result.err
    document = result.document
    assert document["verification"]["kl_mean"] < 1e-5 < document["verification"]["unsteered_kl_mean"]
    assert document["bytes"] == (tmp_path / "steered.gguf").stat().st_size


def test_a_baked_model_that_does_something_else_is_not_kept(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = bake.prepare

    def forget_all_but_one(*arguments: object) -> bake.Baking:
        made = prepare(*arguments)  # type: ignore[arg-type]
        return replace(made, tensors=dict(list(made.tensors.items())[:1]))

    monkeypatch.setattr(bake, "prepare", forget_all_but_one)
    result = run(capfd, "export", "bake", push, "-o", tmp_path / "steered.gguf", "-m", tiny_path("llama"))
    assert_one_clear_line(result, "localsteer doctor")
    assert files(tmp_path) == {"push.gguf"}


def test_where_there_is_no_bias_an_adapter_is_merged_and_the_user_told(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture
) -> None:
    output = tmp_path / "steered.gguf"
    result = run(capfd, "export", "bake", f"{push}@1-2", "-o", output, "-m", tiny_path("qwen3"))
    assert result.code == 0, result.err
    assert "merging an adapter into 2 matrices, which are F32 now" in result.out
    assert "verified over 400 positions" in result.out
    document = run(capfd, "export", "bake", f"{push}@1-2", "-o", output, "-m", tiny_path("qwen3"), "--json").document
    assert document["way"] == "merged"
    assert document["merged"] == {f"blk.{layer}.ffn_down.weight": "F32" for layer in (1, 2)}
    assert document["bytes"] == tiny_path("qwen3").stat().st_size + document["bytes_more"]


def test_an_architecture_that_cannot_be_baked_into_is_refused_before_anything_is_written(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture
) -> None:
    result = run(capfd, "export", "bake", push, "-o", tmp_path / "steered.gguf", "-m", tiny_path("mamba"))
    assert_one_clear_line(result, "mamba", "localsteer export llama-cpp")
    assert files(tmp_path) == {"push.gguf"}


def test_the_model_itself_is_not_written_over(push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    before = tiny_path("llama").read_bytes()
    result = run(capfd, "export", "bake", push, "-o", tiny_path("llama"), "-m", tiny_path("llama"))
    assert_one_clear_line(result, "is the model itself")
    assert tiny_path("llama").read_bytes() == before


def test_where_no_modelfile_can_be_written_there_is_no_model_either(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("export", "bake", push, "-m", tiny_path("llama"), "-o")
    output, for_ollama = tmp_path / "steered.gguf", tmp_path / "steered.Modelfile"
    for_ollama.mkdir()
    assert_one_clear_line(run(capfd, *common, output), str(for_ollama), "is a folder")
    for_ollama.rmdir()
    assert_one_clear_line(run(capfd, *common, for_ollama), str(for_ollama), str(output))

    def full(_path: Path, _text: str, **_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert_one_clear_line(run(capfd, *common, output), str(for_ollama), "No space left")
    assert files(tmp_path) == {"push.gguf"}


def test_nothing_is_verified_where_nobody_wants_it(
    push: Path, tiny_path: TinyPath, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Reference, exported: object) -> Fidelity:
        pytest.fail("was verified")

    monkeypatch.setattr(Reference, "compare", refuse)
    result = run(capfd, "export", "bake", push, "-o", tmp_path / "s.gguf", "-m", tiny_path("llama"), "--no-verify")
    assert result.code == 0
    assert "Not verified." in result.err
