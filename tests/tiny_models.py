"""Tiny GGUF models with random weights: llama.cpp loads and runs one in milliseconds.

They say nothing sensible, but they have a real residual stream, a real byte-level BPE vocabulary and a real
chat template, so unit tests can exercise everything around a model without having one. All of them share one
vocabulary. Weight matrices are numpy arrays of shape (n_out, n_in), which a GGUF file lists as [n_in, n_out].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, LlamaFileType, TokenType

ARCHITECTURES: tuple[str, ...] = ("llama", "qwen2", "qwen3", "gemma3", "phi3", "granite", "starcoder2")
"""Steerable: control vectors work, `l_out-<il>` exists, and a token may belong to several sequences."""

RECURRENT_ARCHITECTURE = "mamba"
"""Steerable too, but `llama_model_is_recurrent`: tokens cannot be shared between sequences."""

UNSTEERABLE_ARCHITECTURE = "plamo2"
"""A hybrid decoder whose graph never applies a control vector (silently) and has no tensor `l_out-<il>`."""

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML. Line ends are inside string literals, so the result does not depend on Jinja's `trim_blocks`."""

N_HEAD = 4
N_HEAD_KV = 2
SLIDING_WINDOW = 64
"""Tokens that gemma3's even blocks can look back on; its odd blocks see everything."""

_RMS_EPSILON = 1e-5
_CONVOLUTION_WIDTH = 4
_STATE_SIZE = 16

_Array: TypeAlias = npt.NDArray[np.float32]


def _byte_characters() -> tuple[str, ...]:
    """GPT-2's stand-in character for each byte, shape (256): printable Latin-1 stays, the rest moves up."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters: list[str] = []
    n_moved = 0
    for byte in range(256):
        if byte in kept:
            characters.append(chr(byte))
        else:
            characters.append(chr(256 + n_moved))
            n_moved += 1
    return tuple(characters)


# llama.cpp refuses a BPE vocabulary without merges. With these a token is not always one byte.
_MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"))

SPECIAL_TOKENS: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Beginning of sequence, start of a chat turn, end of turn and of sequence: the vocabulary's last ids."""

VOCABULARY: tuple[str, ...] = (
    *_byte_characters(),
    *(left + right for left, right in _MERGES),
    *SPECIAL_TOKENS,
)
"""Token texts by id: 256 bytes (the id is the byte's value), the merges, the special tokens."""


@dataclass(frozen=True)
class _Tiny:
    """One model being written: its sizes, and its random tensors on their way into the file."""

    writer: GGUFWriter
    random: np.random.Generator
    n_layer: int
    n_embd: int
    n_expert: int = 0

    @property
    def n_ff(self) -> int:
        """Width of the feed-forward layer."""
        return 2 * self.n_embd

    @property
    def head_size(self) -> int:
        """Width of an attention head, where the architecture has no wider ones."""
        return self.n_embd // N_HEAD

    def normal(self, *shape: int) -> _Array:
        """Draw standard normal numbers of the given shape."""
        return self.random.standard_normal(shape, dtype=np.float32)

    def add(self, name: str, values: _Array) -> None:
        """Store a tensor under its GGUF name."""
        self.writer.add_tensor(name, values)

    def add_matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        """Store weights of shape (n_out, n_in) that turn unit variance into variance gain²."""
        self.add(name, self.normal(n_out, n_in) * np.float32(gain / n_in**0.5))

    def add_vector(self, name: str, *shape: int, mean: float = 0.0) -> None:
        """Store numbers of the given shape close to a mean: 0 for a bias, 1 for a norm's weights."""
        self.add(name, np.float32(mean) + np.float32(0.1) * self.normal(*shape))


def _add_vocabulary(writer: GGUFWriter, chat_template: str | None) -> None:
    """Write the tokenizer: byte-level BPE over VOCABULARY, adding no token of its own accord."""
    n_ordinary = len(VOCABULARY) - len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # detokenizing keeps spaces before commas; after "gpt-2" it would not
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([TokenType.NORMAL] * n_ordinary + [TokenType.CONTROL] * len(SPECIAL_TOKENS))
    writer.add_token_merges([f"{left} {right}" for left, right in _MERGES])
    writer.add_bos_token_id(VOCABULARY.index("<|endoftext|>"))
    writer.add_eos_token_id(VOCABULARY.index("<|im_end|>"))
    writer.add_eot_token_id(VOCABULARY.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _add_embeddings(tiny: _Tiny, embedding_gain: float = 1.0) -> None:
    """Write token embeddings and output weights, both (n_vocab, n_embd).

    The special tokens' output rows are zero: their logit is exactly 0 where the others have deviation 3, so a
    generation practically never ends by chance.
    """
    n_vocab = len(VOCABULARY)
    tiny.add("token_embd.weight", tiny.normal(n_vocab, tiny.n_embd) * np.float32(embedding_gain))
    tiny.add_vector("output_norm.weight", tiny.n_embd, mean=1.0)
    output = tiny.normal(n_vocab, tiny.n_embd) * np.float32(3.0 / tiny.n_embd**0.5)
    output[-len(SPECIAL_TOKENS) :] = 0.0
    tiny.add("output.weight", output)


def _add_attention_sizes(tiny: _Tiny, head_size: int, n_head_kv: int | list[int] = N_HEAD_KV) -> None:
    """Write the metadata of the attention and feed-forward layers; n_head_kv may be one number a block."""
    tiny.writer.add_head_count(N_HEAD)
    tiny.writer.add_head_count_kv(n_head_kv)
    tiny.writer.add_feed_forward_length(tiny.n_ff)
    tiny.writer.add_rope_freq_base(10000.0)
    tiny.writer.add_key_length(head_size)
    tiny.writer.add_value_length(head_size)
    tiny.writer.add_rope_dimension_count(head_size)


def _add_attention(tiny: _Tiny, block: str, head_size: int) -> None:
    """Write query (N_HEAD · head_size, n_embd), key and value (N_HEAD_KV · head_size, n_embd), and output."""
    tiny.add_matrix(f"{block}.attn_q.weight", N_HEAD * head_size, tiny.n_embd)
    tiny.add_matrix(f"{block}.attn_k.weight", N_HEAD_KV * head_size, tiny.n_embd)
    tiny.add_matrix(f"{block}.attn_v.weight", N_HEAD_KV * head_size, tiny.n_embd)
    tiny.add_matrix(f"{block}.attn_output.weight", tiny.n_embd, N_HEAD * head_size, gain=0.5)


def _add_fused_attention(tiny: _Tiny, block: str) -> None:
    """Write query, key and value as one ((N_HEAD + 2 · N_HEAD_KV) · head_size, n_embd), and the output."""
    head_size = tiny.head_size
    tiny.add_matrix(f"{block}.attn_qkv.weight", (N_HEAD + 2 * N_HEAD_KV) * head_size, tiny.n_embd)
    tiny.add_matrix(f"{block}.attn_output.weight", tiny.n_embd, N_HEAD * head_size, gain=0.5)


def _add_feed_forward(tiny: _Tiny, block: str) -> None:
    """Write a gated feed-forward layer: gate and up (n_ff, n_embd), down (n_embd, n_ff)."""
    tiny.add_vector(f"{block}.ffn_norm.weight", tiny.n_embd, mean=1.0)
    tiny.add_matrix(f"{block}.ffn_gate.weight", tiny.n_ff, tiny.n_embd)
    tiny.add_matrix(f"{block}.ffn_up.weight", tiny.n_ff, tiny.n_embd)
    tiny.add_matrix(f"{block}.ffn_down.weight", tiny.n_embd, tiny.n_ff)


def _add_fused_feed_forward(tiny: _Tiny, block: str) -> None:
    """Write a gated feed-forward layer with gate and up as one (2 · n_ff, n_embd), down (n_embd, n_ff)."""
    tiny.add_vector(f"{block}.ffn_norm.weight", tiny.n_embd, mean=1.0)
    tiny.add_matrix(f"{block}.ffn_up.weight", 2 * tiny.n_ff, tiny.n_embd)
    tiny.add_matrix(f"{block}.ffn_down.weight", tiny.n_embd, tiny.n_ff)


def _add_experts(tiny: _Tiny, block: str) -> None:
    """Write a router (n_expert, n_embd) and the experts' feed-forward layers, one behind the other."""
    n_expert = tiny.n_expert
    tiny.add_vector(f"{block}.ffn_norm.weight", tiny.n_embd, mean=1.0)
    tiny.add_matrix(f"{block}.ffn_gate_inp.weight", n_expert, tiny.n_embd)
    for name, n_out, n_in in (("gate", tiny.n_ff, tiny.n_embd), ("up", tiny.n_ff, tiny.n_embd), ("down", tiny.n_embd, tiny.n_ff)):
        tiny.add(f"{block}.ffn_{name}_exps.weight", tiny.normal(n_expert, n_out, n_in) * np.float32(n_in**-0.5))


def _add_llama(tiny: _Tiny) -> None:
    """Write the plain pre-norm transformer, or a mixture of experts."""
    _add_attention_sizes(tiny, tiny.head_size)
    _add_embeddings(tiny)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        tiny.add_vector(f"{block}.attn_norm.weight", tiny.n_embd, mean=1.0)
        _add_attention(tiny, block, tiny.head_size)
        (_add_experts if tiny.n_expert else _add_feed_forward)(tiny, block)


def _add_qwen2(tiny: _Tiny) -> None:
    """Write llama with biases (N_HEAD · head_size or N_HEAD_KV · head_size) on query, key and value."""
    _add_llama(tiny)
    for il in range(tiny.n_layer):
        for part, n_head in (("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV)):
            tiny.add_vector(f"blk.{il}.attn_{part}.bias", n_head * tiny.head_size)


def _add_qwen3(tiny: _Tiny) -> None:
    """Write llama with heads twice as wide, and norms (head_size) on query and key."""
    head_size = 2 * tiny.head_size
    _add_attention_sizes(tiny, head_size)
    _add_embeddings(tiny)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        tiny.add_vector(f"{block}.attn_norm.weight", tiny.n_embd, mean=1.0)
        _add_attention(tiny, block, head_size)
        tiny.add_vector(f"{block}.attn_q_norm.weight", head_size, mean=1.0)
        tiny.add_vector(f"{block}.attn_k_norm.weight", head_size, mean=1.0)
        _add_feed_forward(tiny, block)


def _add_gemma3(tiny: _Tiny) -> None:
    """Write qwen3 with norms after attention and feed-forward too, and a sliding window in the even blocks.

    llama.cpp multiplies gemma's embeddings by the root of n_embd, so they are written that much smaller.
    """
    head_size = 2 * tiny.head_size
    _add_attention_sizes(tiny, head_size)
    tiny.writer.add_sliding_window(SLIDING_WINDOW)
    tiny.writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
    _add_embeddings(tiny, embedding_gain=tiny.n_embd**-0.5)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        tiny.add_vector(f"{block}.attn_norm.weight", tiny.n_embd, mean=1.0)
        _add_attention(tiny, block, head_size)
        tiny.add_vector(f"{block}.attn_q_norm.weight", head_size, mean=1.0)
        tiny.add_vector(f"{block}.attn_k_norm.weight", head_size, mean=1.0)
        tiny.add_vector(f"{block}.post_attention_norm.weight", tiny.n_embd, mean=1.0)
        _add_feed_forward(tiny, block)
        tiny.add_vector(f"{block}.post_ffw_norm.weight", tiny.n_embd, mean=1.0)


def _add_granite(tiny: _Tiny) -> None:
    """Write llama whose blocks add half of what their layers give."""
    tiny.writer.add_residual_scale(0.5)
    tiny.writer.add_embedding_scale(1.0)
    tiny.writer.add_attention_scale(tiny.head_size**-0.5)
    tiny.writer.add_logit_scale(1.0)
    _add_llama(tiny)


def _add_starcoder2(tiny: _Tiny) -> None:
    """Write layer norms with biases, no gate, and a bias on every matrix."""
    tiny.writer.add_layer_norm_eps(_RMS_EPSILON)
    _add_attention_sizes(tiny, tiny.head_size)
    _add_embeddings(tiny)
    tiny.add_vector("output_norm.bias", tiny.n_embd)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        _add_attention(tiny, block, tiny.head_size)
        for part, n_out in (("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV)):
            tiny.add_vector(f"{block}.attn_{part}.bias", n_out * tiny.head_size)
        tiny.add_vector(f"{block}.attn_output.bias", tiny.n_embd)
        for norm in ("attn_norm", "ffn_norm"):
            tiny.add_vector(f"{block}.{norm}.weight", tiny.n_embd, mean=1.0)
            tiny.add_vector(f"{block}.{norm}.bias", tiny.n_embd)
        tiny.add_matrix(f"{block}.ffn_up.weight", tiny.n_ff, tiny.n_embd)
        tiny.add_vector(f"{block}.ffn_up.bias", tiny.n_ff)
        tiny.add_matrix(f"{block}.ffn_down.weight", tiny.n_embd, tiny.n_ff)
        tiny.add_vector(f"{block}.ffn_down.bias", tiny.n_embd)


def _add_phi3(tiny: _Tiny) -> None:
    """Write llama with fused query-key-value and gate-up matrices."""
    _add_attention_sizes(tiny, tiny.head_size)
    _add_embeddings(tiny)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        tiny.add_vector(f"{block}.attn_norm.weight", tiny.n_embd, mean=1.0)
        _add_fused_attention(tiny, block)
        _add_fused_feed_forward(tiny, block)


def _add_state_space(tiny: _Tiny, block: str, *, n_time_step: int, n_step: int, decay: _Array) -> None:
    """Write a selective state space: n_inner = 2 · n_embd channels, each with _STATE_SIZE numbers of memory.

    The time step has n_time_step inputs and n_step outputs: one a channel, or one a head of channels. `decay`
    is negative, (n_step, _STATE_SIZE) or (n_step).
    """
    n_inner = 2 * tiny.n_embd
    tiny.add_matrix(f"{block}.ssm_in.weight", 2 * n_inner, tiny.n_embd)
    tiny.add_matrix(f"{block}.ssm_conv1d.weight", n_inner, _CONVOLUTION_WIDTH)
    tiny.add_matrix(f"{block}.ssm_x.weight", n_time_step + 2 * _STATE_SIZE, n_inner)
    tiny.add_matrix(f"{block}.ssm_dt.weight", n_step, n_time_step)
    tiny.add_vector(f"{block}.ssm_dt.bias", n_step, mean=-2.0)  # steps of softplus(-2) = 0.13
    tiny.add(f"{block}.ssm_a", decay)
    tiny.add(f"{block}.ssm_d", np.ones(n_step, dtype=np.float32))
    tiny.add_matrix(f"{block}.ssm_out.weight", tiny.n_embd, n_inner, gain=0.5)


def _add_state_space_sizes(tiny: _Tiny, n_time_step: int) -> None:
    """Write the metadata of the state space layers."""
    tiny.writer.add_ssm_conv_kernel(_CONVOLUTION_WIDTH)
    tiny.writer.add_ssm_inner_size(2 * tiny.n_embd)
    tiny.writer.add_ssm_state_size(_STATE_SIZE)
    tiny.writer.add_ssm_time_step_rank(n_time_step)


def _add_mamba(tiny: _Tiny) -> None:
    """Write a stack of state spaces, without attention and without feed-forward layers."""
    n_time_step = max(1, tiny.n_embd // 16)
    n_inner = 2 * tiny.n_embd
    _add_state_space_sizes(tiny, n_time_step)
    tiny.writer.add_head_count(0)
    tiny.writer.add_feed_forward_length(0)
    _add_embeddings(tiny)
    decay = -np.arange(1, _STATE_SIZE + 1, dtype=np.float32) * np.ones((n_inner, 1), dtype=np.float32)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        tiny.add_vector(f"{block}.attn_norm.weight", tiny.n_embd, mean=1.0)
        _add_state_space(tiny, block, n_time_step=n_time_step, n_step=n_inner, decay=decay)
        tiny.add_vector(f"{block}.ssm_conv1d.bias", n_inner)


def _add_plamo2(tiny: _Tiny) -> None:
    """Write state spaces (even blocks) and attention (odd blocks), each followed by a feed-forward layer."""
    if tiny.n_layer < 2:
        raise ValueError("plamo2 wants n_layer >= 2: llama.cpp aborts unless it has blocks of both kinds")
    n_time_step = max(64, tiny.n_embd // 16)  # as llama.cpp computes it
    # A block without key-value heads is a state space.
    _add_attention_sizes(tiny, tiny.head_size, [N_HEAD_KV if il % 2 else 0 for il in range(tiny.n_layer)])
    _add_state_space_sizes(tiny, N_HEAD)  # the key of that name holds the number of heads here
    tiny.writer.add_ssm_group_count(0)
    _add_embeddings(tiny)
    for il in range(tiny.n_layer):
        block = f"blk.{il}"
        tiny.add_vector(f"{block}.attn_norm.weight", tiny.n_embd, mean=1.0)
        if il % 2:
            _add_fused_attention(tiny, block)
            tiny.add_vector(f"{block}.attn_q_norm.weight", N_HEAD, tiny.head_size, mean=1.0)
            tiny.add_vector(f"{block}.attn_k_norm.weight", N_HEAD_KV, tiny.head_size, mean=1.0)
        else:
            decay = -np.arange(1, N_HEAD + 1, dtype=np.float32)
            _add_state_space(tiny, block, n_time_step=n_time_step, n_step=N_HEAD, decay=decay)
            tiny.add_vector(f"{block}.ssm_dt_norm", n_time_step, mean=1.0)
            tiny.add_vector(f"{block}.ssm_b_norm", _STATE_SIZE, mean=1.0)
            tiny.add_vector(f"{block}.ssm_c_norm", _STATE_SIZE, mean=1.0)
        tiny.add_vector(f"{block}.post_attention_norm", tiny.n_embd, mean=1.0)
        _add_fused_feed_forward(tiny, block)
        tiny.add_vector(f"{block}.post_ffw_norm", tiny.n_embd, mean=1.0)


_ADD_WEIGHTS: dict[str, Callable[[_Tiny], None]] = {
    "llama": _add_llama,
    "qwen2": _add_qwen2,
    "qwen3": _add_qwen3,
    "gemma3": _add_gemma3,
    "phi3": _add_phi3,
    "granite": _add_granite,
    "starcoder2": _add_starcoder2,
    "mamba": _add_mamba,
    "plamo2": _add_plamo2,
}


def write_tiny_model(
    path: Path,
    architecture: str = "llama",
    *,
    n_layer: int = 4,
    n_embd: int = 64,
    n_ctx_train: int = 512,
    seed: int = 0,
    chat_template: str | None = CHATML_TEMPLATE,
    n_expert: int = 0,
    infill: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """Write a model file with random float32 weights, and return its path.

    The residual stream is n_embd wide (a multiple of 8) through n_layer blocks. The same arguments give the
    same bytes. With `chat_template=None` the file has no chat template. With `n_expert` a llama is a mixture of so many experts,
    two of which read each token. `infill` says which tokens mark the parts of a text that is to be filled in ("pre", "suf", ...).
    """
    if architecture not in _ADD_WEIGHTS:
        raise ValueError(f"architecture {architecture!r}: want one of {', '.join(_ADD_WEIGHTS)}")
    if n_layer < 1 or n_embd < 8 or n_embd % 8:
        raise ValueError(f"n_layer={n_layer}, n_embd={n_embd}: want n_layer >= 1, n_embd a multiple of 8")
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")  # llama.cpp strips spaces after special tokens where "phi3" occurs in the name
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_layer_norm_rms_eps(_RMS_EPSILON)
    if n_expert:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)
    _add_vocabulary(writer, chat_template)
    for name, token in infill.items():
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", token)
    _ADD_WEIGHTS[architecture](_Tiny(writer, np.random.default_rng(seed), n_layer, n_embd, n_expert))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
