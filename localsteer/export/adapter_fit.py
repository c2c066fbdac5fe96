"""The rows of an adapter that stands for a control vector: where they add, and what they multiply.

A control vector adds the same row v to the output of a block at every token. An adapter adds `b (a . x)` to what a matrix makes
of its input x. At a matrix whose result is added to the residual stream, b = v does the same wherever a . x = 1: such a row a
exists, near enough, since the inputs of one matrix have much in common. It is found by ridge regression on the inputs at some
2,000 tokens, steered either way, so that it holds at any scale between.

The last matrix of the feed-forward layer adds at the very place where a control vector does; the attention's adds before the
feed-forward layer, which sees it too early, but its inputs are more alike, and mixtures of experts have it, too. On
SmolLM2-135M, calm at 1 and -1 was 2.4 and 1.8 % of the unsteered model's divergence away from our own steering by the first
alone, 3.7 and 2.8 % by the second (`python -m bench.exports --compare-doors --model demo calm`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

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
from localsteer.llama.steerability import steerability
from localsteer.vector.control_vector import Floats

# Of the mean square of the inputs. More of it, and a . x on unseen text is nearer to 1 but for the first token, whose inputs are
# small and which all others attend to: on SmolLM2-135M, French toward its pole was 1.4 % of the unsteered model's divergence away
# with 0.1, 2.1 % with 0.3, 2.7 % with 1 (11 % where the first ones are left out), and 3.4 % with 0.03 and half of the tokens.
RIDGE = 0.1
# Times the vector, at which the inputs are read; what holds at both holds between.
_SCALES = (1.0, -1.0)
# Of each exchange so many tokens are fitted at most: the first ones, and others, evenly.
_FIRST, _KEPT = 4, 64
# Standard deviation of a . x, on what the row was fitted on, above which the feed-forward layer's matrix is left alone. Seen were
# 0.02 on Gemma 3 270M, 0.1 to 0.2 on random models of six architectures, and on SmolLM2-135M 0.03 to 0.72, the most at the one
# block that makes the attention sink (the attention's is 0.01 to 0.04). What differs from token to token differs from block to
# block as well, and weighs less than what a block sees too early: the random models were 12 to 25 % of the unsteered model's
# divergence away where one of two blocks took the attention's, and 5 % at most otherwise.
UNLIKE = 0.25
# Before a norm (Gemma) so much is added at most, of the mean square of what is there, since the norm takes as much away from
# that. Where its weights are next to nothing, as at some dimensions of half of the blocks of Gemma 3 270M, nothing that is added
# comes through: that falls to the next blocks. Which is best depends on the vector. Happy and sad there, at a dose of 0.15, were
# 20 and 16 % of the unsteered model's divergence away with 0.003, 4.1 and 2.6 with 0.01, 8.9 and 5.1 with 0.03, 32 and 17 with
# 0.1; a random vector of a random model took 0.1.
ROOMS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
# Of what is added at a block before norms, so much is added behind the attention already, and the rest behind the feed-forward
# layer: what a norm takes away grows with the square of what comes through it. French on Gemma 3 270M was 15.6 % of the
# unsteered model's divergence away with nothing there, 11.1 % with 0.3, 8.8 % with 0.5.
SHARES = (0.5, 0.0)
# What falls to the next blocks is let go of where it is less than this, of the length of all that is added.
_NOTHING = 1e-3

# By the matrix, in the order of preference: what `build_ffn` and `build_attn` of llama-graph.cpp, and some models, call its
# input.
_FFN = "swiglu geglu reglu silu gelu relu sqr(relu) act xielu swiglu_oai swiglu_limited gate_par"
_INPUTS = {"ffn_down": tuple(f"ffn_{what}" for what in _FFN.split()), "attn_output": ("kqv_out", "attn_gated", "attn_sub_norm")}
KINDS = tuple(_INPUTS)


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


@dataclass(frozen=True, eq=False)
class _Place:
    """A block at which something may be added.

    Attributes:
        added: (n_embd,) what, before anything falls to it from a block below.
        matrix: where.
        a: as in `Row`.
        deviation: likewise.
        norm: (n_embd,) the weights of a norm behind the matrix; None without one.
        shared: only a share is added here, and the rest at the other matrix of the same block.
    """

    added: Floats
    matrix: str
    a: Floats
    deviation: float
    norm: Floats | None
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Fit:
    """What was fitted for one adapter.

    Attributes:
        places: ascending.
        scale: what a model multiplies the results of its matrices by.
        texts: the exchanges that it was fitted on.
    """

    places: tuple[_Place, ...]
    scale: float
    texts: tuple[tuple[int, ...], ...]

    @property
    def rooms(self) -> tuple[float, ...]:
        """Which to choose from, for `rows`: one will do where no norm comes in between."""
        return ROOMS if any(place.norm is not None for place in self.places) else ROOMS[:1]

    @property
    def shares(self) -> tuple[float, ...]:
        """Likewise."""
        return SHARES if any(place.shared for place in self.places) else SHARES[:1]

    def rows(self, room: float, share: float) -> list[Row]:
        """The rows of the adapter.

        Args:
            room: the most that is added before a norm, of the mean square of what is there.
            share: of what is added at a block, how much behind the attention where norms follow both of its matrices.
        """
        length = math.sqrt(sum(float((place.added**2).sum()) for place in self.places))
        rows: list[Row] = []
        left = np.zeros_like(self.places[0].added)
        for place in self.places:
            left = place.added + left
            added = left * np.float32(share) if place.shared else left
            if np.linalg.norm(added) <= _NOTHING * length:
                continue
            if place.norm is None:
                b, left = added / np.float32(self.scale), np.zeros_like(left)
            else:
                before = _before_norm(added, place.norm, room)
                left = left - before * place.norm
                b = before / np.float32(math.sqrt(1 - float((before**2).mean())))
            rows.append(Row(place.matrix, place.a, b, place.deviation))
        return rows


def fit(model: Model, file: ModelFile, added: Floats, progress: Progress | None = None, *, kinds: Collection[str] = KINDS) -> Fit:
    """Find the rows of an adapter, one for each block that is steered.

    Args:
        model: the model.
        file: the same.
        added: (n_layer, n_embd), residual-stream units: what is added to the output of each block.
        progress: told how many exchanges are read, and of how many.
        kinds: at which matrices something may be added.

    Raises:
        ExportError: the model cannot be read, or a block that is steered has no such matrix, nor one of those above it.
    """
    if not steerability(model).readable:
        raise ExportError(
            f"What goes on in {model.name} (architecture {model.architecture}) cannot be read: {steerability(model).reason}.",
            hint="`localsteer doctor -m MODEL` says what can be done with a model.",
        )
    doors, texts = _doors(model, file, added, kinds), _passages(model)
    inputs = _inputs(model, file, [door for candidates, _ in doors.values() for door in candidates], added, texts, progress)
    places = []
    for candidates, row in doors.values():
        found: list[_Place] = []
        for door in candidates:
            values = inputs.pop(door.matrix, None)
            if values is not None and (door.norm is not None or not (found and found[0].deviation <= UNLIKE)):
                a, deviation = _constant(values)
                found.append(_Place(row, door.matrix, a, deviation, door.norm))
        known = [one for one in found if math.isfinite(one.deviation)]
        if not known:
            raise ExportError(f"llama.cpp does not show what goes into {candidates[0].matrix} of {model.name}.")
        if known[0].norm is None:
            places.append(known[0] if known[0].deviation <= UNLIKE else min(known, key=lambda one: one.deviation))
            continue
        # The attention, where it is a candidate, adds before the feed-forward layer.
        *rest, last = reversed(known)
        places += [replace(place, shared=True) for place in rest]
        places.append(replace(last, added=np.zeros_like(row)) if rest else last)
    return Fit(tuple(places), residual_scale(file), texts)


@dataclass(frozen=True)
class _Door:
    """A matrix whose result is added to the residual stream.

    Attributes:
        matrix: its name.
        width: of its input.
        nodes: what llama.cpp may call the node that holds that; the last of them that has this width is it.
        norm: the weights of a norm that its result goes through first (Gemma); None where it is added as it is.
        result: what llama.cpp may call the node that holds the result, which is only read where there is such a norm. Where it
            has no name (the attention's), it is computed.
    """

    matrix: str
    width: int
    nodes: tuple[str, ...]
    norm: Floats | None = None
    result: tuple[str, ...] = ()


def _doors(model: Model, file: ModelFile, added: Floats, kinds: Collection[str]) -> dict[int, tuple[list[_Door], Floats]]:
    """Where what is added at a block can be added: there, or, where that has no such matrix, at the next block that has one."""
    at: dict[int, list[_Door]] = {}
    for layer in range(model.n_layer):
        block = f"blk.{layer}."
        # plamo3 calls it by the shorter name.
        norm = next((name for name in (f"{block}post_ffw_norm.weight", f"{block}post_ffw_norm") if name in file.tensors), None)
        behind_attention = f"{block}post_attention_norm.weight"
        for kind, nodes in _INPUTS.items():
            tensor = file.tensors.get(f"{block}{kind}.weight") if kind in kinds else None
            # llama.cpp multiplies what such a matrix gives by its scale, or refuses an adapter there by ending the process.
            if tensor is None or tensor.shape[1:] != (model.n_embd,) or f"{block}{kind}.scale" in file.tensors:
                continue
            names = tuple(f"{node}-{layer}" for node in nodes)
            if norm is None:
                at.setdefault(layer, []).append(_Door(tensor.name, tensor.shape[0], names))
            elif kind == "ffn_down":
                result = (f"ffn_down-{layer}", f"ffn_out-{layer}")
                at.setdefault(layer, []).append(_Door(tensor.name, tensor.shape[0], names, file.floats(norm), result))
            elif layer in at and behind_attention in file.tensors:
                at[layer].append(_Door(tensor.name, tensor.shape[0], names, file.floats(behind_attention)))
    found: dict[int, tuple[list[_Door], Floats]] = {}
    steered = np.flatnonzero(added.any(axis=1)).tolist()
    # What does not come through a norm falls to the next blocks.
    behind = [layer for layer in at if layer > steered[-1] and at[layer][0].norm is not None]
    for layer in [*steered, *behind]:
        place = next((one for one in sorted(at) if one >= layer), None)
        if place is None:
            raise ExportError(
                f"{model.name} (architecture {model.architecture}) has no matrix at block {layer} or above to which "
                "steering could be added.",
                hint="`localsteer export llama-cpp` writes a control vector for llama.cpp's own programs.",
            )
        doors, row = found.get(place, (at[place], np.zeros_like(added[layer])))
        # Gemma 4 multiplies the residual stream itself by a number at the end of each block.
        times = f"blk.{place}.layer_output_scale.weight"
        found[place] = doors, row + added[layer] / (file.floats(times) if times in file.tensors else np.float32(1))
    return found


def _inputs(
    model: Model,
    file: ModelFile,
    doors: Sequence[_Door],
    added: Floats,
    texts: Sequence[tuple[int, ...]],
    progress: Progress | None,
) -> dict[str, NDArray[np.float16]]:
    """(n_tokens, n_in) by matrix, what goes into it; before a norm, over the root mean square of what comes out, as there.

    Those that llama.cpp does not show are left out. In half precision: of both matrices of a 7B model's 16 steered blocks these
    are 1 GB.
    """
    longest = max(len(text) for text in texts)
    tap = ResidualTap(model.n_layer, model.n_embd)
    read: dict[str, list[NDArray[np.float16]]] = {}
    done, total = 0, len(texts) * len(_SCALES)
    most = np.finfo(np.float16).max
    with Context(model, n_ctx=longest, n_ubatch=longest, n_outputs=longest, tap=tap) as context:
        tap.watch((max(int(door.matrix.split(".")[1]) for door in doors),), stop=True)
        tap.watch_nodes(node for door in doors for node in (*door.nodes, *door.result))
        for scale in _SCALES:
            edit = Edit(added, scale=scale)
            for text in texts:
                context.clear()
                batch = Batch.of_one_sequence(text, start=0)
                batch.outputs[:] = 1  # the last block computes no other tokens
                tap.edit([edit] * len(text))
                context.decode(batch)
                kept = np.unique(
                    np.concatenate([np.arange(_FIRST), np.linspace(_FIRST, len(text) - 1, _KEPT - _FIRST, dtype=int)])
                )
                for door in doors:
                    shown = [values for node, values in tap.nodes.items() if node in door.nodes and values.shape[1] == door.width]
                    result = [values for node, values in tap.nodes.items() if node in door.result]
                    if shown and (result or not (door.norm is not None and door.result)):
                        values = shown[-1][kept]
                        if result:
                            values = values / np.sqrt((result[-1][kept] ** 2).mean(axis=1, keepdims=True))
                        read.setdefault(door.matrix, []).append(np.clip(values, -most, most).astype(np.float16))
                done += 1
                if progress is not None:
                    progress("reading exchanges", done, total)
    inputs = {matrix: np.concatenate(read.pop(matrix)) for matrix in list(read)}
    for door in doors:
        if door.norm is not None and not door.result and door.matrix in inputs:
            values = inputs[door.matrix].astype(np.float32)
            size = np.sqrt(((values @ file.matrix(door.matrix).T) ** 2).mean(axis=1, keepdims=True))
            inputs[door.matrix] = np.clip(values / size, -most, most).astype(np.float16)
    return inputs


def _passages(model: Model) -> tuple[tuple[int, ...], ...]:
    """Exchanges as this model reads them: not those by which an export is judged."""
    entries = yaml.safe_load((shipped_folder() / "passages.yaml").read_text(encoding="utf-8"))
    template = model.chat_template
    texts = []
    for entry in entries:
        asked = f"{entry['ask']}\n\n" if template is None else template.render([Message("user", entry["ask"])])
        texts.append(tuple(model.tokenize(asked + entry["answer"])))
    return tuple(texts)


def _constant(inputs: NDArray[np.float16]) -> tuple[Floats, float]:
    """The row (n_in,) whose product with each of the inputs (n, n_in) is nearest to 1, and how far from that the products are.

    Ridge regression, in whichever form has the smaller matrix.
    """
    values = inputs.astype(np.float32)
    n, n_in = values.shape
    products = (values.T @ values if n_in < n else values @ values.T).astype(np.float64)
    ridge = RIDGE * float(np.trace(products)) / n * np.eye(len(products))
    if n_in < n:
        row = np.linalg.solve(products + ridge, values.sum(axis=0, dtype=np.float64)).astype(np.float32)
    else:
        row = values.T @ np.linalg.solve(products + ridge, np.ones(n)).astype(np.float32)
    found = values @ row
    # What the ridge makes too small is made up for.
    return row / found.mean(), float((found / found.mean()).std())


def _before_norm(added: Floats, norm: Floats, room: float) -> Floats:
    """What to add before a norm with these weights: what is to be added behind it over them, as far as the room goes.

    A norm multiplies what it has made of one size by its weights. Nearest comes ridge regression, with as much of a ridge as the
    room asks for.
    """

    def within(ridge: float) -> Floats:
        found: Floats = (added * norm / (norm**2 + np.float32(ridge))).astype(np.float32)
        return found

    # A hundredth of the largest weight counts as nothing: the room is for what comes through.
    low, high = 1e-4 * float((norm**2).max()), 1e3 * float((norm**2).max() + np.abs(added * norm).max())
    if (within(low) ** 2).mean() <= room:
        return within(low)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if (within(middle) ** 2).mean() <= room else (middle, high)
    return within(high)
