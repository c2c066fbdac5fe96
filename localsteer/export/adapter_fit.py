"""The rows of an adapter that stands for a control vector: where they add, and what they multiply.

A control vector adds the same row v to the output of a block at every token. An adapter adds `b (a . x)` to what a matrix makes
of its input x. At a matrix whose result is added to the residual stream, b = v does the same wherever a . x = 1: such a row a
exists, near enough, since the inputs of one matrix have much in common. It is found by ridge regression on the inputs at some
1,500 tokens, unsteered and steered either way, so that it holds at any scale between.

The last matrix of the feed-forward layer adds at the very place where a control vector does; the attention's adds before the
feed-forward layer, which sees it a block too early, but its inputs are more alike, and mixtures of experts have it, too. On
SmolLM2-135M (calm and angry at strength 1 and -1, 16 blocks) the first alone was 2.8 and 2.3 % of the unsteered model's
divergence away from our own steering, the second 4.4 and 3.7 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml
from numpy.typing import NDArray

from localsteer.concepts.names import shipped_folder
from localsteer.errors import ExportError
from localsteer.export.gguf_rewrite import ModelFile, Progress, residual_scale
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.vector.control_vector import Floats

# Of the mean square of the inputs.
RIDGE = 0.03
# Times the vector, at which the inputs are read.
_SCALES = (0.0, 1.0, -1.0)
# Of each exchange so many tokens are fitted: the first ones, which a model makes other things of than of the rest (attention
# sinks), and others, evenly.
_FIRST, _KEPT = 4, 32
# Standard deviation of a . x above which the feed-forward layer's matrix is left alone: on SmolLM2-135M it is 0.01 to 0.07, and
# 0.6 at the one block that makes the attention sink; the attention's is 0.004 to 0.023. What differs from token to token differs
# from block to block as well, and weighs less than what a block sees too early: random models of six architectures, with 0.02 to
# 0.18, were 0 to 2 % of the unsteered model's divergence away, and 12 to 25 % where one of two blocks took the attention's.
UNLIKE = 0.25
# What is added before a norm may be no larger than what is there, or nothing of that is left behind it.
_LEAST_ROOM = 0.25


@dataclass(frozen=True, eq=False)
class Row:
    """What an adapter does at one matrix: `b (a . x)`.

    Attributes:
        matrix: its name.
        a: (n_in,) the product with the matrix's input is about 1.
        b: (n_embd,) what is added to what it gives.
        deviation: standard deviation of that product.
    """

    matrix: str
    a: Floats
    b: Floats
    deviation: float


def fit(model: Model, file: ModelFile, added: Floats, progress: Progress | None = None) -> list[Row]:
    """The rows of an adapter, one for each block that is steered.

    Args:
        model: the model.
        file: the same.
        added: (n_layer, n_embd), residual-stream units: what is added to the output of each block.
        progress: told how many exchanges are read, and of how many.

    Raises:
        ExportError: a block that is steered has no such matrix, nor one of those above it.
    """
    doors = _doors(model, file, added)
    inputs, sizes = _inputs(model, [door for candidates, _ in doors.values() for door in candidates], added, progress)
    scale, rows = residual_scale(file), []
    for candidates, row in doors.values():
        found = [
            _row(door, inputs[door.matrix], sizes.get(door.matrix), row / np.float32(scale))
            for door in candidates
            if door.matrix in inputs
        ]
        if not found:
            raise ExportError(f"llama.cpp does not show what goes into {candidates[0].matrix} of {model.name}.")
        rows.append(next((one for one in found if one.deviation <= UNLIKE), found[-1]))
    return rows


@dataclass(frozen=True)
class _Door:
    """A matrix whose result is added to the residual stream.

    Attributes:
        matrix: its name.
        width: of its input.
        nodes: what llama.cpp may call the node that holds that; the last of them that has this width is it.
        norm: the weights of a norm that its result goes through first (Gemma); None where it is added as it is.
        result: what llama.cpp may call the node that holds the result, which is only read where there is such a norm.
    """

    matrix: str
    width: int
    nodes: tuple[str, ...]
    norm: Floats | None = None
    result: tuple[str, ...] = ()


# By the matrix, in the order of preference: what `build_ffn` and `build_attn` of llama-graph.cpp call its input.
_INPUTS = {
    "ffn_down": tuple(f"ffn_{what}" for what in ("swiglu", "geglu", "reglu", "silu", "gelu", "relu", "sqr(relu)", "gate_par")),
    "attn_output": ("kqv_out",),
}


def _doors(model: Model, file: ModelFile, added: Floats) -> dict[int, tuple[list[_Door], Floats]]:
    """Where what is added at a block can be added: there, or, where that has no such matrix, at the next block that has one."""
    at: dict[int, list[_Door]] = {}
    for layer in range(model.n_layer):
        for kind, nodes in _INPUTS.items():
            tensor = file.tensors.get(f"blk.{layer}.{kind}.weight")
            if tensor is not None and len(tensor.shape) == 2:
                names = tuple(f"{node}-{layer}" for node in nodes)
                after = f"blk.{layer}.post_ffw_norm.weight"
                if after not in file.tensors:
                    at.setdefault(layer, []).append(_Door(tensor.name, tensor.shape[0], names))
                elif kind == "ffn_down":
                    result = (f"ffn_down-{layer}", f"ffn_out-{layer}")
                    at.setdefault(layer, []).append(_Door(tensor.name, tensor.shape[0], names, file.floats(after), result))
    found: dict[int, tuple[list[_Door], Floats]] = {}
    for layer in np.flatnonzero(added.any(axis=1)).tolist():
        place = next((one for one in sorted(at) if one >= layer), None)
        if place is None:
            raise ExportError(
                f"{model.name} (architecture {model.architecture}) has no matrix at block {layer} or above that an adapter could "
                "add to.",
                hint="`localsteer export llama-cpp` writes a control vector for llama.cpp's own programs.",
            )
        doors, row = found.get(place, (at[place], np.zeros_like(added[layer])))
        found[place] = doors, row + added[layer]
    return found


def _inputs(
    model: Model, doors: Sequence[_Door], added: Floats, progress: Progress | None
) -> tuple[dict[str, NDArray[np.float16]], dict[str, Floats]]:
    """What goes into each matrix, (n_tokens, n_in), and before a norm the root mean square of what comes out, (n_tokens,).

    Those that llama.cpp does not show are left out. In half precision: of both matrices of a 7B model's 16 steered blocks these
    are 900 MB.
    """
    texts = _passages(model)
    longest = max(len(text) for text in texts)
    tap = ResidualTap(model.n_layer, model.n_embd)
    read: dict[str, list[NDArray[np.float16]]] = {}
    sizes: dict[str, list[Floats]] = {}
    done, total = 0, len(texts) * len(_SCALES)
    with Context(model, n_ctx=longest, n_ubatch=longest, n_outputs=longest, tap=tap) as context:
        tap.watch_nodes(node for door in doors for node in (*door.nodes, *door.result))
        for scale in _SCALES:
            edit = Edit(added, scale=scale) if scale else None
            for text in texts:
                context.clear()
                batch = Batch.of_one_sequence(text, start=0)
                batch.outputs[:] = 1  # the last block computes no other tokens
                tap.edit([edit] * len(text) if edit is not None else [])
                context.decode(batch)
                kept = np.unique(
                    np.concatenate([np.arange(_FIRST), np.linspace(_FIRST, len(text) - 1, _KEPT - _FIRST, dtype=int)])
                )
                for door in doors:
                    shown = [values for node, values in tap.nodes.items() if node in door.nodes and values.shape[1] == door.width]
                    result = [values for node, values in tap.nodes.items() if node in door.result]
                    if shown and (result or door.norm is None):
                        read.setdefault(door.matrix, []).append(shown[-1][kept].astype(np.float16))
                        if result:
                            sizes.setdefault(door.matrix, []).append(np.sqrt((result[-1][kept] ** 2).mean(axis=1)))
                done += 1
                if progress is not None:
                    progress("reading exchanges", done, total)
    inputs = {matrix: np.concatenate(parts) for matrix, parts in read.items()}
    return inputs, {matrix: np.concatenate(parts) for matrix, parts in sizes.items()}


def _passages(model: Model) -> list[tuple[int, ...]]:
    """Exchanges as this model reads them: not those by which an export is judged."""
    entries = yaml.safe_load((shipped_folder() / "passages.yaml").read_text(encoding="utf-8"))
    template = model.chat_template
    texts = []
    for entry in entries:
        asked = f"{entry['ask']}\n\n" if template is None else template.render([Message("user", entry["ask"])])
        texts.append(tuple(model.tokenize(asked + entry["answer"])))
    return texts


def _row(door: _Door, inputs: NDArray[np.float16], sizes: Floats | None, added: Floats) -> Row:
    """The row whose product with each of the inputs (n, n_in) is nearest to 1: ridge regression, in its dual form.

    A norm divides what comes out of the matrix by its root mean square and multiplies it by its weights: before one the product
    shall be that size, and what is added is divided by the weights. The more is added, the more the norm takes from it again.
    """
    values = inputs.astype(np.float32)
    products = (values @ values.T).astype(np.float64)
    ridge = RIDGE * float(np.trace(products)) / len(values)
    wanted = np.ones(len(values)) if sizes is None else (sizes / sizes.mean()).astype(np.float64)
    weights = np.linalg.solve(products + ridge * np.eye(len(values)), wanted)
    # What the ridge makes too small is made up for.
    weights *= wanted.mean() / (products @ weights).mean()
    deviation = float((products @ weights - wanted).std())
    if door.norm is not None and sizes is not None:
        before: Floats = (added / np.where(door.norm == 0, np.finfo(np.float32).max, door.norm)).astype(np.float32)
        left = 1 - float((before**2).mean())
        added = before * np.float32(sizes.mean() / math.sqrt(max(left, _LEAST_ROOM)))
    a: Floats = (values.T @ weights.astype(np.float32)).astype(np.float32)
    return Row(door.matrix, a, added, deviation)
