"""What a model file's header tells before llama.cpp reads it: values for which llama.cpp would end the whole process.

What llama.cpp refuses by itself is left to it. Each check names the assertion that it stands for, in llama.cpp of
llama-cpp-python 0.3.36; `model_trial` finds what none of them does.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from localsteer.errors import ModelError
from localsteer.files.gguf_header import GGUFHeader, open_header
from localsteer.files.gguf_layout import ARRAY_TYPE, SCALARS, STRING_TYPE
from localsteer.llama.model_file import model_parts

_MOST_BLOCKS = 512  # LLAMA_MAX_LAYERS of llama-hparams.h
_MOST_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
# TENSOR_ALIGNMENT of ggml-impl.h: "buffer pointer must be aligned" (ggml_backend_cpu_buffer_from_ptr), of what is mapped.
_MAPPED_ALIGNMENT = 32
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon")


def check_header(path: Path) -> None:
    """Look at the header of a model, or of all its parts.

    Raises:
        ModelError: a file cannot be read, or is damaged; or llama.cpp would not survive what it says.
    """
    parts = model_parts(path)
    if missing := next((part for part in parts if not part.is_file()), None):
        raise ModelError(f"{path} is one of {len(parts)} parts of a model, and {missing.name} is not beside it.")
    for part in parts:
        with open_header(part, ModelError, kind="model file", measure=False) as header:
            _Check(header).tensors()
            if part == parts[0]:
                _Check(header).sizes()
                _Check(header).tokens()


class _Check:
    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
        self._architecture = self._text("general.architecture") or ""

    def _refuse(self, problem: str) -> ModelError:
        hint = "It is damaged, or made to do harm: download it again, or take another one."
        return ModelError(f"{self._header.path} cannot be used: {problem}.", hint=hint)

    def _text(self, key: str) -> str | None:
        """A text; None where there is none, or another kind of value, which llama.cpp refuses."""
        field = self._header.fields.get(key)
        return self._header.text(key) if field is not None and field.kind == STRING_TYPE else None

    def _number(self, key: str) -> int | float | None:
        """A number of this architecture's; None as for texts."""
        key = f"{self._architecture}.{key}"
        field = self._header.fields.get(key)
        value = self._header.value(key) if field is not None and field.kind in SCALARS else None
        return value if isinstance(value, int | float) else None

    def _each(self, key: str) -> list[int]:
        """A number of this architecture's for each block, or one for all; none where there is none."""
        field = self._header.fields.get(f"{self._architecture}.{key}")
        if field is not None and field.kind == ARRAY_TYPE and self._element_type(field.value_start) in SCALARS:
            numbers = self._header.numbers(f"{self._architecture}.{key}")
            return [] if numbers is None else [int(number) for number in numbers if math.isfinite(number)]
        number = self._number(key)
        return [] if number is None or not math.isfinite(number) else [int(number)]

    def _element_type(self, start: int) -> int:
        return int.from_bytes(self._header.read(start, start + 4), "little")

    def tensors(self) -> None:
        tensors = self._header.tensors.values()
        first = min((tensor.offset for tensor in tensors), default=None)
        if first is not None and (self._header.data_start + first) % _MAPPED_ALIGNMENT:
            raise self._refuse(f"its tensors are not aligned to {_MAPPED_ALIGNMENT} bytes")
        for tensor in tensors:
            if 0 in tensor.shape:
                raise self._refuse(f"the tensor {tensor.name} is empty")

    def sizes(self) -> None:
        blocks = self._number("block_count")
        if blocks is not None and not 0 < blocks <= _MOST_BLOCKS:  # load_hparams
            raise self._refuse(f"it says that it has {blocks} blocks, where 1 to {_MOST_BLOCKS} are possible")
        if self._number("embedding_length") == 0:
            raise self._refuse("its embedding_length is 0")
        for key in _EPSILONS:
            epsilon = self._number(key)
            if epsilon is not None and not 0 <= epsilon < math.inf:  # ggml_compute_forward_rms_norm_f32
                raise self._refuse(f"its {key} is {epsilon}")
        self._heads()
        self._experts()
        scaling = self._text(f"{self._architecture}.rope.scaling.type")
        if scaling is not None and scaling not in _ROPE_SCALINGS:  # load_hparams
            raise self._refuse("it scales positions in a way that llama.cpp does not know")

    def _heads(self) -> None:
        heads, shared = self._each("attention.head_count"), self._each("attention.head_count_kv")
        if len(heads) in (1, len(shared)):
            heads = heads * len(shared) if len(heads) == 1 else heads
            for count, of in zip(heads, shared, strict=True):
                if of and count % of:  # ggml_can_mul_mat
                    raise self._refuse(f"{of} heads for keys and values do not fit {count} attention heads")

    def _experts(self) -> None:
        if self._architecture.startswith("hunyuan"):  # where one expert means none
            return
        experts, used = self._number("expert_count") or 0, self._each("expert_used_count")
        if experts > _MOST_EXPERTS or max(used, default=0) > experts or (experts and max(used, default=0) == 0):  # load_hparams
            raise self._refuse(f"it uses {max(used, default=0)} of {experts} experts")

    def tokens(self) -> None:
        if self._text("tokenizer.ggml.model") in ("none", "no_vocab"):  # "Tokenizer not initialized" in tokenize
            raise self._refuse("it has no tokenizer")
        key = "tokenizer.ggml.tokens"
        field = self._header.fields.get(key)
        if field is None or field.kind != ARRAY_TYPE or self._element_type(field.value_start) != STRING_TYPE:
            return  # llama.cpp refuses it, or makes a vocabulary of its own
        data = self._header.read(field.value_start, field.stop)
        (count,) = struct.unpack_from("<Q", data, 4)
        if count == 0:
            raise self._refuse("it has no tokens")
        known: set[bytes] = set()
        at, length_of = 12, struct.Struct("<Q").unpack_from
        for number in range(count):
            start = at + 8
            at = start + length_of(data, at)[0]
            known.add(data[start:at] or b"[EMPTY_%d]" % number)  # as llama_vocab::impl::load calls it
        if len(known) < count:  # "id_to_token.size() == token_to_id.size()" there
            raise self._refuse("it has the same token twice")
