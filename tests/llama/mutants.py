"""Model files with something wrong in them, of every kind: what their keys say, their tensors, tokens, template and bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from localsteer.errors import ModelError
from localsteer.files.gguf_header import open_header
from localsteer.files.gguf_layout import ARRAY_TYPE, SCALARS, STRING_TYPE, align
from tests.made_files import text

_NUMBERS = [-1, 0, 1, 2, 3, 5, 7, 8, 63, 100, 255, 257, 512, 513, 1000, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62]
_FLOATS = [0.0, -1.0, 1e-45, 1e30, float("inf"), float("-inf"), float("nan")]
_TEXTS = ["", "x", "llama", "none", "longrope", "yarn", "a" * 70_000, "\x1b[2J", "\0", "é" * 40]
_TOKENIZERS = [
    "llama",
    "gpt2",
    "bert",
    "t5",
    "rwkv",
    "plamo2",
    "gemma4",
    "hybriddna",
    "whitespace",
    "test",
    "none",
    "no_vocab",
    "x",
]
_PRE_TOKENIZERS = [
    "default",
    "llama3",
    "deepseek-llm",
    "gpt-2",
    "kimi-k2",
    "qwen2",
    "tekken",
    "gpt-4o",
    "superbpe",
    "gemma4",
    "x",
]
_ARCHITECTURES = """
llama llama4 deci falcon grok gpt2 mpt baichuan starcoder bert nomic-bert bloom stablelm qwen qwen2 qwen2moe qwen2vl
qwen3 qwen3moe qwen3next phi2 phi3 plamo plamo2 orion internlm2 minicpm gemma gemma2 gemma3 gemma3n gemma4 starcoder2
mamba mamba2 jamba falcon-h1 command-r cohere2 dbrx olmo olmo2 deepseek deepseek2 chatglm glm4 bitnet t5 jais nemotron
exaone4 rwkv6 rwkv7 granite granitemoe granitehybrid smollm3 gpt-oss lfm2 dream clip wavtokenizer-dec unknown
""".split()  # noqa: SIM905
# Those of other architectures, too: llama.cpp reads many of them whatever the architecture.
_KEYS = """
vocab_size context_length embedding_length embedding_length_out block_count leading_dense_block_count
feed_forward_length expert_feed_forward_length expert_count expert_used_count expert_shared_count expert_group_count
expert_group_used_count expert_gating_func nextn_predict_layers pooling_type logit_scale residual_scale embedding_scale
attn_logit_softcapping final_logit_softcapping attention.head_count attention.head_count_kv attention.clamp_kqv
attention.key_length attention.value_length attention.layer_norm_epsilon attention.layer_norm_rms_epsilon
attention.causal attention.sliding_window attention.sliding_window_pattern attention.scale attention.shared_kv_layers
attention.recurrent_layers attention.key_length_swa attention.value_length_swa attention.temperature_length
rope.dimension_count rope.dimension_count_swa rope.dimension_sections rope.freq_base rope.scaling.type
rope.scaling.factor rope.scaling.original_context_length rope.scaling.attn_factor ssm.conv_kernel ssm.inner_size
ssm.state_size ssm.time_step_rank ssm.group_count ssm.dt_b_c_rms wkv.head_size classifier.output_labels
decoder_block_count
""".split()  # noqa: SIM905
_TOKENIZER_KEYS = """
bos_token_id eos_token_id eot_token_id unknown_token_id padding_token_id add_bos_token add_eos_token add_space_prefix
remove_extra_whitespaces precompiled_charsmap suppress_tokens token_type_count scores fim_pre_token_id
seperator_token_id mask_token_id
""".split()  # noqa: SIM905
TEMPLATES = [
    "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "{% set ns = namespace(t='x' * 1000) %}{% for a in range(1000) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
    "{{ 'x' * 10**9 }}",
    "{{ 'x' * 10**5 * messages|length }}" * 2000,
    "{{ ('a' * 40) | wordwrap(1) }}{{ '%0999999999d' % 1 }}",
    "{{ '{:>999999999}'.format('x') }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages | map('string') | join | replace('', 'x' * 10000) | replace('x', 'y' * 10000) }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ range(10**8) | list }}",
    "{{ messages | tojson(indent=10**8) }}",
    "{{ ('(' * 5000) }}{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if " + "not " * 20_000 + "x %}{% endif %}",
    "{% include 'x' %}",
    "{{ raise_exception('\x1b[2J' * 1000) }}",
    "{% endfor %}",
    "",
    "\x00",
    "chatml",
]


@dataclass
class Document:
    """A GGUF file taken apart: each key's type and value (for an array the type of its elements, and them), and each tensor."""

    keys: dict[str, tuple[int, Any]]
    tensors: list[tuple[str, list[int], int, bytes]]
    alignment: int = 32

    @staticmethod
    def read(path: Path) -> Document:
        with open_header(path, ModelError) as header:
            keys = {name: _value(field.kind, header.read(field.value_start, field.stop)) for name, field in header.fields.items()}
            tensors = [(one.name, list(one.shape), one.kind, header.tensor_bytes(one)) for one in header.tensors.values()]
        return Document(keys, tensors)

    @property
    def architecture(self) -> str:
        return str(self.keys["general.architecture"][1])

    def write(self) -> bytes:
        keys = [text(name) + struct.pack("<I", kind) + _bytes(kind, value) for name, (kind, value) in self.keys.items()]
        entries, data = [], b""
        for name, shape, kind, content in self.tensors:
            entries.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data)))
            data += content + bytes(align(len(content), self.alignment) - len(content))
        head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(keys)) + b"".join(keys) + b"".join(entries)
        return head + bytes(align(len(head), self.alignment) - len(head)) + data


def _value(kind: int, data: bytes) -> tuple[int, Any]:
    if kind == STRING_TYPE:
        return kind, data[8:].decode()
    if kind != ARRAY_TYPE:
        return kind, struct.unpack(SCALARS[kind], data)[0]
    element, count = struct.unpack_from("<IQ", data)
    if element != STRING_TYPE:
        return kind, (element, [value for (value,) in struct.iter_unpack(SCALARS[element], data[12:])])
    texts, at = [], 12
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        texts.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return kind, (element, texts)


def _bytes(kind: int, value: Any) -> bytes:
    if kind == STRING_TYPE:
        return text(value)
    if kind == ARRAY_TYPE:
        element, values = value
        return struct.pack("<IQ", element, len(values)) + b"".join(_bytes(element, one) for one in values)
    form = SCALARS[kind]
    if form[1] in "fd":
        return struct.pack("<f", value) if form == "<f" else struct.pack("<d", value)
    if form == "<?":
        return bytes([int(value) & 0xFF])
    size = struct.calcsize(form)
    return (int(value) & (1 << 8 * size) - 1).to_bytes(size, "little")


def _any_value(random: Random) -> tuple[int, Any]:
    """A value of any type."""
    kind = random.choice([*SCALARS, STRING_TYPE, ARRAY_TYPE])
    if kind == STRING_TYPE:
        return kind, random.choice(_TEXTS)
    if kind == ARRAY_TYPE:
        element = random.choice([*SCALARS, STRING_TYPE])
        return kind, (element, [_like(element, random) for _ in range(random.choice([0, 1, 2, 4, 600]))])
    return kind, _like(kind, random)


def _like(kind: int, random: Random) -> Any:
    if kind == STRING_TYPE:
        return random.choice(_TEXTS[:8])
    return random.choice(_FLOATS) if kind in (6, 12) else random.choice(_NUMBERS)


def _other_value(file: Document, random: Random) -> None:
    """Another value of the same type."""
    name = random.choice([name for name in file.keys if name != "general.architecture"])
    kind, value = file.keys[name]
    if kind == ARRAY_TYPE:
        element, values = value
        for _ in range(random.choice([1, 1, 3])):
            if values:
                values[random.randrange(len(values))] = _like(element, random)
    else:
        file.keys[name] = kind, _like(kind, random)


def _other_type(file: Document, random: Random) -> None:
    file.keys[random.choice(list(file.keys))] = _any_value(random)


def _no_key(file: Document, random: Random) -> None:
    del file.keys[random.choice(list(file.keys))]


def _new_key(file: Document, random: Random) -> None:
    if random.random() < 0.3:
        name = f"tokenizer.ggml.{random.choice(_TOKENIZER_KEYS)}"
    else:
        name = f"{file.architecture}.{random.choice(_KEYS)}"
    common = (random.choice([4, 4, 5]), random.choice(_NUMBERS)), (6, random.choice(_FLOATS)), (7, random.random() < 0.5)
    file.keys[name] = _any_value(random) if random.random() < 0.4 else random.choice(common)


def _architecture(file: Document, random: Random) -> None:
    """Another one, for which the keys are there by their names."""
    before, after = file.architecture, random.choice(_ARCHITECTURES)
    head = f"{before}."
    file.keys = {after + name[len(before) :] if name.startswith(head) else name: value for name, value in file.keys.items()}
    file.keys["general.architecture"] = STRING_TYPE, after


def _tokens(file: Document, random: Random) -> None:
    lists = [name for name in file.keys if name.startswith("tokenizer.ggml.") and file.keys[name][0] == ARRAY_TYPE]
    element, values = file.keys[random.choice(lists)][1]
    place = random.randrange(len(values))
    how = random.choice(["empty", "twice", "cut", "more", "huge", "none", "shuffled", "any"])
    if how == "empty":
        for other in [place, *random.sample(range(len(values)), random.choice([0, 0, len(values) // 2]))]:
            values[other] = "" if element == STRING_TYPE else 0
    elif how == "twice":
        values[place] = values[random.randrange(len(values))]
    elif how == "cut":
        del values[place:]
    elif how == "more":
        values += values[: random.choice([1, 100])]
    elif how == "huge":
        values[place] = "a" * random.choice([100, 70_000, 2_000_000]) if element == STRING_TYPE else 2**31 - 1
    elif how == "none":
        values.clear()
    elif how == "shuffled":
        random.shuffle(values)
    else:
        values[place] = _like(element, random)


def _tokenizer(file: Document, random: Random) -> None:
    if random.random() < 0.5:
        file.keys["tokenizer.ggml.model"] = STRING_TYPE, random.choice(_TOKENIZERS)
    if random.random() < 0.5:
        file.keys["tokenizer.ggml.pre"] = STRING_TYPE, random.choice(_PRE_TOKENIZERS)


def _template(file: Document, random: Random) -> None:
    file.keys["tokenizer.chat_template"] = STRING_TYPE, random.choice(TEMPLATES)


def _tensor(file: Document, random: Random) -> None:
    place = random.randrange(len(file.tensors))
    name, shape, kind, data = file.tensors[place]
    how = random.choice(["shape", "dimensions", "type", "type", "type of all", "name", "none", "twice", "numbers", "cut"])
    if how == "shape":
        shape[random.randrange(len(shape))] = random.choice(_NUMBERS) % 2**64
    elif how == "dimensions":
        shape = random.choice([[], [1], shape[::-1], [*shape, 1], [*shape, 2], [1] * 6])
    elif how == "type":
        kind = random.randrange(45)
    elif how == "name":
        name = random.choice(["", "x", "blk.99.attn_q.weight", "output.bias", file.tensors[0][0], "x" * 70])
    elif how == "numbers":
        data = struct.pack("<f", random.choice(_FLOATS)) * (len(data) // 4)
    elif how == "cut":
        data = data[: len(data) // 2]
    file.tensors[place] = (name, shape, kind, data)
    if how == "none":
        del file.tensors[place]
    elif how == "twice":
        file.tensors.append(file.tensors[place])
    elif how == "type of all":  # in their sizes, as a converter would write them
        import gguf

        kind = random.choice([kind.value for kind in gguf.GGML_QUANT_SIZES])
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        for number, (name, shape, _, data) in enumerate(file.tensors):
            if shape[0] % block == 0 and (len(shape) > 1 or random.random() < 0.1):
                file.tensors[number] = name, shape, kind, random.randbytes(len(data) // 4 // block * size)


def _consistent(file: Document, random: Random) -> None:
    """A model of another size, in whose tensors nothing is wrong: no blocks, tokens or width, or very many of them."""
    architecture, how = file.architecture, random.choice(["blocks", "width", "vocabulary", "all zero"])
    if how == "blocks":
        blocks = random.choice([0, 1, 511, 512, 513, 100_000])
        file.keys[f"{architecture}.block_count"] = 4, blocks
        file.tensors = [one for one in file.tensors if not one[0].startswith("blk.") or int(one[0].split(".")[1]) < blocks]
    elif how == "width":
        before = file.keys[f"{architecture}.embedding_length"][1]
        width = random.choice([0, 1, 2, 3, 33])
        file.keys[f"{architecture}.embedding_length"] = 4, width
        for number, (name, shape, kind, data) in enumerate(file.tensors):
            shape = [width if size == before else size for size in shape]
            length = 4
            for size in shape:
                length *= size
            file.tensors[number] = name, shape, kind, (data * 2)[:length]
    elif how == "vocabulary":
        left = random.choice([0, 1, 2, 10, 255])
        for name in ("tokens", "token_type"):
            del file.keys[f"tokenizer.ggml.{name}"][1][1][left:]
        for number, (name, shape, kind, data) in enumerate(file.tensors):
            if name in ("token_embd.weight", "output.weight"):
                file.tensors[number] = name, [shape[0], left], kind, data[: 4 * shape[0] * left]
    else:
        for name, (kind, _) in file.keys.items():
            if name.startswith(architecture) and kind == 4:
                file.keys[name] = kind, 0


def _alignment(file: Document, random: Random) -> None:
    alignment = random.choice([0, 1, 2, 3, 4, 8, 16, 64, 2**12, 2**20, 2**31])
    file.keys["general.alignment"] = random.choice([4, 4, 4, 5, 10]), alignment
    if alignment in (1, 2, 4, 8, 16, 64, 2**12) and random.random() < 0.8:
        file.alignment = alignment


def _bytes_changed(data: bytes, random: Random) -> bytes:
    """Bytes that lie, most often in the header, where all is."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8])):
        at = random.randrange(min(len(data), random.choice([40, 400, 9000, len(data)])))
        how = random.random()
        if how < 0.4:
            changed[at : at + 1] = bytes([random.randrange(256)])
        elif how < 0.6:
            changed[at : at + 8] = struct.pack("<Q", random.choice(_NUMBERS) % 2**64)
        elif how < 0.8:
            changed[at : at + 4] = struct.pack("<I", random.choice(_NUMBERS) % 2**32)
        elif how < 0.9:
            del changed[at : at + random.randint(1, 64)]
        elif how < 0.96:
            changed[at:at] = bytes(random.randint(1, 64))
        else:
            del changed[at:]
    return bytes(changed)


MUTATIONS: dict[str, Callable[[Document, Random], None] | None] = {
    "a key's value": _other_value,
    "a key's type": _other_type,
    "a key gone": _no_key,
    "a key too many": _new_key,
    "another architecture": _architecture,
    "token lists": _tokens,
    "another tokenizer": _tokenizer,
    "the chat template": _template,
    "a tensor": _tensor,
    "another size": _consistent,
    "the alignment": _alignment,
    "bytes": None,
}


def mutant(number: int, originals: list[Path]) -> tuple[str, bytes]:
    """What was changed, and the file; the same for the same number."""
    random = Random(number)
    kind = list(MUTATIONS)[number % len(MUTATIONS)]
    mutate = MUTATIONS[kind]
    original = originals[number // len(MUTATIONS) % len(originals)]
    if mutate is None:
        return kind, _bytes_changed(original.read_bytes(), random)
    file = Document.read(original)
    mutate(file, random)
    if random.random() < 0.1:
        mutate(file, random)
    return kind, file.write()
