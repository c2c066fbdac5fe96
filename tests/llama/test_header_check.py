"""What a header tells of a model that llama.cpp would not survive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localsteer.errors import ModelError
from localsteer.llama.header_check import check_header
from tests.conftest import TinyPath
from tests.llama.mutants import Document
from tests.made_files import split_model
from tests.tiny_models import ARCHITECTURES, RECURRENT_ARCHITECTURE, UNSTEERABLE_ARCHITECTURE, write_tiny_model

U32, F32, TEXT = 4, 6, 8
Change = Callable[[Document], object]


def key(name: str, kind: int, value: object) -> Change:
    return lambda file: file.keys.update({name: (kind, value)})


def tokens(change: Callable[[list[str]], object]) -> Change:
    return lambda file: change(file.keys["tokenizer.ggml.tokens"][1][1])


def aligned(to: int) -> Change:
    """Tensors aligned so; the first one begins where 32 bytes do not."""

    def change(file: Document) -> None:
        file.keys["general.alignment"] = U32, to
        file.alignment = to
        for length in range(8):  # of a name, until it is so
            file.keys["general.name"] = TEXT, "x" * length
            data = file.write()
            if (len(data) - sum(-(-len(tensor[3]) // to) * to for tensor in file.tensors)) % 32:
                return

    return change


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, RECURRENT_ARCHITECTURE, UNSTEERABLE_ARCHITECTURE])
def test_a_sound_model_passes(tiny_path: TinyPath, architecture: str) -> None:
    check_header(tiny_path(architecture))


def test_a_mixture_of_experts_passes(tmp_path: Path) -> None:
    check_header(write_tiny_model(tmp_path / "m.gguf", n_layer=2, n_embd=8, n_expert=4))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (key("llama.block_count", U32, 0), "it has 0 blocks"),
        (key("llama.block_count", U32, 513), "513 blocks"),
        (key("llama.embedding_length", U32, 0), "embedding_length is 0"),
        (key("llama.attention.head_count", U32, 3), "2 heads for keys and values do not fit 3"),
        (key("llama.attention.head_count_kv", 9, (U32, [2, 2, 3, 2])), "3 heads for keys and values do not fit 4"),
        (key("llama.attention.layer_norm_rms_epsilon", F32, -1.0), "layer_norm_rms_epsilon is -1"),
        (key("llama.attention.layer_norm_rms_epsilon", F32, float("nan")), "layer_norm_rms_epsilon is nan"),
        (key("llama.expert_count", U32, 4), "uses 0 of 4 experts"),
        (key("llama.expert_used_count", U32, 2), "uses 2 of 0 experts"),
        (key("llama.rope.scaling.type", TEXT, "\x1b[2J"), "scales positions"),
        (key("tokenizer.ggml.model", TEXT, "no_vocab"), "has no tokenizer"),
        (key("tokenizer.ggml.tokens", 9, (TEXT, [])), "has no tokens"),
        (tokens(lambda all_of_them: all_of_them.append(all_of_them[7])), "the same token twice"),
        (tokens(lambda all_of_them: all_of_them.extend(["", f"[EMPTY_{len(all_of_them)}]"])), "the same token twice"),
        (aligned(8), "not aligned to 32 bytes"),
        (lambda file: file.tensors.append(("x", [0, 4], 0, b"")), "the tensor x is empty"),
    ],
)
def test_what_llama_cpp_would_not_survive_is_refused(tmp_path: Path, tiny_path: TinyPath, change: Change, problem: str) -> None:
    document = Document.read(tiny_path("llama"))
    change(document)
    path = tmp_path / "m.gguf"
    path.write_bytes(document.write())
    with pytest.raises(ModelError) as caught:
        check_header(path)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{path} cannot be used: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.keys.pop("llama.block_count"),
        key("llama.block_count", TEXT, "many"),
        key("llama.attention.head_count", 9, (TEXT, ["x"])),
        key("tokenizer.ggml.tokens", U32, 7),
        tokens(lambda all_of_them: all_of_them.__setitem__(7, "")),
        lambda file: file.tensors.clear(),  # also the first part of some models in parts
    ],
)
def test_what_llama_cpp_refuses_or_takes_by_itself_is_left_to_it(tmp_path: Path, tiny_path: TinyPath, change: Change) -> None:
    document = Document.read(tiny_path("llama"))
    change(document)
    path = tmp_path / "m.gguf"
    path.write_bytes(document.write())
    check_header(path)


def test_a_missing_part_is_named(tmp_path: Path, tiny_path: TinyPath) -> None:
    first, second, _ = split_model(tiny_path("llama"), tmp_path, (10, 10, 21))
    check_header(first)
    second.unlink()
    with pytest.raises(ModelError, match=rf"is one of 3 parts of a model, and {second.name} is not beside it"):
        check_header(first)


def test_the_tensors_of_every_part_are_checked(tmp_path: Path, tiny_path: TinyPath) -> None:
    first, second, _ = split_model(tiny_path("llama"), tmp_path, (10, 10, 21))
    document = Document.read(second)
    document.tensors.append(("x", [0, 4], 0, b""))
    second.write_bytes(document.write())
    with pytest.raises(ModelError, match=rf"{second.name} cannot be used: the tensor x is empty"):
        check_header(first)
