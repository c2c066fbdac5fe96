"""Ask a model, not a list of architectures, whether its residual stream can be read and steered."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ModelError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap


@dataclass(frozen=True)
class Steerability:
    """What can be done with a model.

    Attributes:
        readable: every block's output can be read (and rewritten) through the evaluation callback.
        native: llama.cpp's own control vector moves the block that it names, by what it says, and no block below.
        reason: what failed; empty when nothing did.
    """

    readable: bool
    native: bool
    reason: str = ""


_measured: WeakKeyDictionary[Model, Steerability] = WeakKeyDictionary()


def steerability(model: Model) -> Steerability:
    """What a model allows, measured once for each opened model (six short decodes)."""
    if model not in _measured:
        _measured[model] = probe_steerability(model)
    return _measured[model]


def probe_steerability(model: Model) -> Steerability:
    """Run a few tokens with no, a zero and a random control vector, and compare what comes out.

    A random direction at one block must move `l_out-k` by itself (up to float32 rounding) and leave `l_out-(k-1)` as it is.
    """
    if model.n_layer < 2:
        return Steerability(False, False, "it has only block 0, which cannot be steered")
    layer = model.n_layer // 2
    tokens = model.tokenize("A") or [0]
    plain = np.zeros((model.n_layer, model.n_embd), np.float32)
    steered = plain.copy()
    tap = ResidualTap(model.n_layer, model.n_embd)
    with Context(model, n_ctx=64, tap=tap) as context:

        def run(added: NDArray[np.float32] | None) -> NDArray[np.float32]:
            context.clear()
            context.set_control_vector(added)
            context.decode(Batch.of_one_sequence(tokens, start=0))
            return context.logits(len(tokens) - 1).copy()

        unsteered = run(None)
        if not np.isfinite(unsteered).all():
            return Steerability(False, False, "its logits are not finite numbers")
        try:
            tap.watch((layer - 1, layer))
            run(None)
            before = {index: tap.rows(index) for index in (layer - 1, layer)}
        except ModelError as error:
            tap.watch(())
            # Ten times the width is far from anything a residual stream holds: if this changes nothing, nothing will.
            steered[1:] = 10.0 * np.random.default_rng(0).standard_normal(steered[1:].shape)
            moves = bool(np.abs(run(steered) - unsteered).max() > 0)
            return Steerability(False, moves, error.message)
        norm = float(np.linalg.norm(before[layer], axis=1).mean())
        direction = np.random.default_rng(0).standard_normal(model.n_embd).astype(np.float32)
        steered[layer] = direction * norm / np.linalg.norm(direction)
        run(plain)
        idle = bool(np.array_equal(tap.rows(layer), before[layer]))
        run(steered)
        below = bool(np.array_equal(tap.rows(layer - 1), before[layer - 1]))
        moved = tap.rows(layer) - before[layer]
        # Float32 rounding of h + v - h is below 1e-6 of the norm; a row that goes elsewhere differs by all of it.
        exact = bool(np.abs(moved - steered[layer]).max() <= 1e-4 * norm)
        native = idle and below and exact
        # The tap must find every block, and its own edits in them just once: one whose name appears twice would be edited twice.
        tap.watch(range(model.n_layer))
        tap.edit([Edit(steered)] * len(tokens))
        try:
            run(None)
        except ModelError as error:
            return Steerability(False, native, error.message)
        readable = bool(np.array_equal(tap.rows(layer), before[layer]))
    if not readable:
        return Steerability(False, native, f"block {layer} shows more than one output")
    return Steerability(True, native, "" if native else "llama.cpp ignores control vectors for this architecture")
