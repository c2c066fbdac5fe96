from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from localsteer.errors import LocalsteerError, ModelError
from localsteer.files.gguf_writing import write_out
from localsteer.llama import library
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from tests.conftest import TinyModel, TinyPath
from tests.llama.mutants import Document
from tests.tiny_models import (
    ARCHITECTURES,
    CHATML_TEMPLATE,
    RECURRENT_ARCHITECTURE,
    SPECIAL_TOKENS,
    UNSTEERABLE_ARCHITECTURE,
    VOCABULARY,
    write_tiny_model,
)

BEGIN, TURN, END = (VOCABULARY.index(token) for token in SPECIAL_TOKENS)


def patched(path: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A copy of a model file with some of its metadata changed."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    target.write_bytes(content.replace(old, new))
    return target


# What a file says


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, RECURRENT_ARCHITECTURE, UNSTEERABLE_ARCHITECTURE])
def test_a_model_knows_its_shape(tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", architecture, n_layer=6, n_embd=32, n_ctx_train=128)
    with Model(path, threads=1) as model:
        assert (model.architecture, model.n_layer, model.n_embd, model.n_ctx_train) == (architecture, 6, 32, 128)
        assert model.n_vocab == len(VOCABULARY)
        assert model.size_bytes == 4 * model.n_params
        assert model.n_params > model.n_vocab * 32
        assert architecture in model.description
        assert model.name == "tiny"
        assert model.sequences_share_tokens == (architecture in ARCHITECTURES)


def test_a_model_without_a_name_has_its_files(tiny_path: TinyPath, tmp_path: Path) -> None:
    path = patched(tiny_path("llama"), tmp_path / "Unnamed-7B.gguf", b"general.name", b"general.nome")
    with Model(path, threads=1) as model:
        assert model.name == "Unnamed-7B"


def test_metadata_of_any_length_is_read_whole(tmp_path: Path, tiny: Model) -> None:
    template = CHATML_TEMPLATE + "{# " + "é" * 2000 + " #}"
    with Model(write_tiny_model(tmp_path / "long.gguf", chat_template=template), threads=1) as model:
        assert model.metadata("tokenizer.chat_template") == template
    assert tiny.metadata("general.architecture") == "llama"
    assert tiny.metadata("no.such.key") is None


def test_the_chat_template_is_the_files(tmp_path: Path, tiny: Model) -> None:
    assert tiny.chat_template is not None
    assert tiny.chat_template.render([Message("user", "Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    template = "{{ bos_token }}|{{ eos_token }}|{{ messages[0].content }}"
    with Model(write_tiny_model(tmp_path / "tokens.gguf", chat_template=template), threads=1) as model:
        assert model.chat_template is not None
        assert model.chat_template.render([Message("user", "Hi")]) == "<|endoftext|>|<|im_end|>|Hi"


def test_a_base_model_has_no_chat_template(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as model:
        assert model.chat_template is None


def test_threads_are_the_machines_unless_they_are_given(tiny_path: TinyPath) -> None:
    with Model(tiny_path("llama")) as model:
        assert model.threads == library.default_threads()
    with Model(tiny_path("llama"), threads=3) as model:
        assert model.threads == 3


# Identity


def test_a_fingerprint_knows_the_same_file_anywhere(tiny: Model, tiny_path: TinyPath, tmp_path: Path) -> None:
    copy = shutil.copy(tiny_path("llama"), tmp_path / "copy.gguf")
    with Model(copy, threads=1) as model:
        assert model.fingerprint == tiny.fingerprint


def test_a_fingerprint_tells_other_weights_of_the_same_model(tiny: Model, tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "tuned.gguf", seed=1), threads=1) as model:
        assert model.fingerprint.content != tiny.fingerprint.content
        assert model.fingerprint.same_model(tiny.fingerprint)


def test_a_fingerprint_tells_other_models(tiny: Model, tiny_path: TinyPath, tiny_model: TinyModel, tmp_path: Path) -> None:
    other = tiny_model("qwen2").fingerprint
    assert not other.same_model(tiny.fingerprint)
    with Model(write_tiny_model(tmp_path / "deep.gguf", n_layer=5), threads=1) as model:
        assert not model.fingerprint.same_model(tiny.fingerprint)
    # In the vocabulary the length of the next token, 10, follows.
    path = patched(tiny_path("llama"), tmp_path / "words.gguf", b"<|im_start|>\x0a", b"<|im_begin|>\x0a")
    with Model(path, threads=1) as model:
        assert not model.fingerprint.same_model(tiny.fingerprint)


# Tokens


@pytest.mark.parametrize("text", ["", "the inn", "  two  spaces ", "naïve 日本語 🙂", "line\n\tline\r\n", "\x00\x7f"])
def test_text_comes_back_from_its_tokens(tiny: Model, text: str) -> None:
    assert tiny.detokenize(tiny.tokenize(text)) == text


def test_special_tokens_in_a_text_are_read_as_such_and_not_shown(tiny: Model) -> None:
    tokens = tiny.tokenize("<|im_start|>A<|im_end|>")
    assert tokens == [TURN, ord("A"), END]
    assert tiny.detokenize(tokens) == "A"
    assert tiny.token_bytes(END) == b""
    assert tiny.token_bytes(END, special=True) == b"<|im_end|>"


def test_a_token_may_be_part_of_a_character(tiny: Model) -> None:
    assert b"".join(tiny.token_bytes(token) for token in tiny.tokenize("日")) == "日".encode()
    assert tiny.token_bytes(tiny.tokenize("日")[0]) == b"\xe6"
    assert tiny.detokenize(tiny.tokenize("日")[:1]) == "�"


def test_only_end_tokens_end_an_answer(tiny: Model) -> None:
    assert tiny.is_end(END)
    assert not any(tiny.is_end(token) for token in range(256))


def test_no_beginning_is_added_where_the_model_wants_none(tiny: Model) -> None:
    assert tiny.tokenize("A") == [ord("A")]


def test_the_beginning_is_added_once_where_the_model_wants_it(tiny_path: TinyPath, tmp_path: Path) -> None:
    flag = b"tokenizer.ggml.add_bos_token\x07\x00\x00\x00"
    with Model(patched(tiny_path("llama"), tmp_path / "bos.gguf", flag + b"\x00", flag + b"\x01"), threads=1) as model:
        assert model.tokenize("A") == [BEGIN, ord("A")]
        assert model.tokenize("A", add_special=False) == [ord("A")]
        assert model.tokenize("<|endoftext|>A") == [BEGIN, ord("A")]


# Files that cannot be opened


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.gguf.*models list"):
        Model(tmp_path / "absent.gguf")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        Model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGU", b"{}", b"PK\x03\x04" + b"\0" * 1000], ids=["empty", "short", "json", "zip"])
def test_a_file_of_another_kind_is_not_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{path} .*GGUF"):
        Model(path)


@pytest.mark.parametrize("kept", [4, 8, 20, 100, 1000, 5000, 20_000, 200_000, -100_000, -1])
def test_a_truncated_file_is_an_error_that_names_it(
    tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str], kept: int
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_path("llama").read_bytes()[:kept])
    with pytest.raises(ModelError, match=f"{path}.*cut short"):
        Model(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("version", [0, 1, 99])
def test_a_gguf_version_that_llama_cpp_does_not_know_is_an_error(tiny_path: TinyPath, tmp_path: Path, version: int) -> None:
    path = tmp_path / "version.gguf"
    path.write_bytes(b"GGUF" + version.to_bytes(4, "little") + tiny_path("llama").read_bytes()[8:])
    with pytest.raises(ModelError, match=str(path)):
        Model(path)


def test_missing_metadata_is_an_error_that_names_it(tiny_path: TinyPath, tmp_path: Path) -> None:
    path = patched(tiny_path("llama"), tmp_path / "shy.gguf", b"llama.embedding_length", b"llama.embedding_longth")
    with pytest.raises(ModelError, match=f"{path}.*embedding_length"):
        Model(path)


@pytest.mark.parametrize(
    ("architecture", "keys", "word"),
    [
        ("gptoss", {}, "newer llama.cpp"),
        ("clip", {}, "the model beside it"),
        ("llama", {"general.type": "mmproj"}, "the model beside it"),
        ("llama", {"general.type": "adapter"}, "LoRA"),
        ("controlvector", {}, "after -s"),
        ("llama", {"split.count": 3, "split.no": 1}, "part 2 of a model in 3 parts"),
    ],
)
def test_a_whole_file_that_is_no_model_is_not_said_to_be_cut_short(
    tmp_path: Path, architecture: str, keys: dict[str, str | int], word: str
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", architecture)
    for key, value in keys.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    write_out(writer)
    with pytest.raises(ModelError, match=word) as caught:
        Model(tmp_path / "other.gguf")
    assert "cut short" not in str(caught.value)


def test_a_part_of_a_split_model_is_told_the_first(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    for number, part in enumerate(parts[:2]):
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_uint16("split.count", 3)
        writer.add_uint16("split.no", number)
        writer.add_tensor(f"blk.{number}.attn_norm.weight", np.zeros((4, 8), np.float32))
        write_out(writer)
    with pytest.raises(ModelError, match=f"{parts[2].name} is not beside it"):
        Model(parts[0])
    with pytest.raises(ModelError, match=f"name the first one, {parts[0].name}"):
        Model(parts[1])


def test_what_a_file_says_commands_no_terminal(tmp_path: Path, tiny_path: TinyPath) -> None:
    document = Document.read(tiny_path("llama"))
    document.keys["general.name"] = 8, "\x1b[2Jtiny\n"
    path = tmp_path / "m.gguf"
    path.write_bytes(document.write())
    with Model(path, threads=1) as model:
        assert model.name == "?[2Jtiny?"
    document.keys["tokenizer.ggml.pre"] = 8, "\x1b[2J"
    path.write_bytes(document.write())
    with pytest.raises(ModelError, match=r"unknown pre-tokenizer type: '\?\[2J'"):
        Model(path)


# Closing


def test_a_closed_model_says_so(tiny_path: TinyPath) -> None:
    with Model(tiny_path("llama"), threads=1) as model:
        assert model.n_layer == 4
    with pytest.raises(ModelError, match=r"llama\.gguf.*closed"):
        model.metadata("general.name")
    model.close()


def test_half_a_character_is_refused(tiny: Model) -> None:
    with pytest.raises(LocalsteerError, match="character 4"):
        tiny.tokenize("bad \udc80 bytes")


def test_a_model_that_is_being_loaded_can_be_given_up(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes minutes, in which somebody may press Ctrl-C."""

    @contextlib.contextmanager
    def pressed() -> Iterator[Callable[[], bool]]:
        yield lambda: True
        raise KeyboardInterrupt

    monkeypatch.setattr("localsteer.llama.model.interrupts_after", pressed)
    loaded: list[object] = []
    load = library.load().llama_model_load_from_file
    monkeypatch.setattr(library.load(), "llama_model_load_from_file", lambda *given: loaded.append(load(*given)))
    with pytest.raises(KeyboardInterrupt):
        Model(tiny_path("llama"), threads=1)
    assert loaded == [None]


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal there")
def test_a_signal_whose_handler_goes_on_does_not_keep_a_model_from_being_loaded(
    tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a program that reads its settings anew by SIGHUP."""
    load = library.load().llama_model_load_from_file
    loaded: list[bool] = []

    def load_hung_up(*given: object) -> object:
        if not loaded:
            os.kill(os.getpid(), signal.SIGHUP)
        model = load(*given)
        loaded.append(bool(model))
        return model

    monkeypatch.setattr(library.load(), "llama_model_load_from_file", load_hung_up)
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _frame: heard.append(number))
    try:
        with Model(tiny_path("llama"), threads=1) as model:
            assert model.n_layer == 4
    finally:
        signal.signal(signal.SIGHUP, before)
    assert loaded == [False, True]
    assert heard == [signal.SIGHUP]
