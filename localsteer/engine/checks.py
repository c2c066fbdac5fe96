"""Whether a model, a context and a request go together, asked before an answer begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama import library, rpc
from localsteer.llama.memory import free_memory
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.llama.steerability import steerability

# A conversation of some hours, or a long document. The KV cache is cleared at the start: on two slow cores that took 0.4 s for
# the demo model's 8,192 tokens (180 MB), 0.8 s for 16,384 of Qwen2.5-Coder 1.5B (450 MB), and 1.6 s for all of its 32,768.
_LONGEST_DEFAULT = 16_384
# Of the memory that is free once the weights are loaded: the rest is for what else runs on a laptop.
_SHARE_OF_MEMORY = 0.25
# llama.cpp itself rounds up to this many.
_LEAST_DEFAULT = 256


class ContextLengthError(LocalsteerError):
    """A conversation that is longer than the context.

    Attributes:
        n_prompt: its tokens.
        n_ctx: those of the context.
    """

    def __init__(self, n_prompt: int, n_ctx: int, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


def default_context(model: Model, parallel: int = 1) -> int:
    """Tokens of context of each of several conversations where nobody asks for a number: what the model and the memory allow."""
    room = int(free_memory() * _SHARE_OF_MEMORY) // (model.kv_bytes * parallel)
    allowed = max(_LEAST_DEFAULT, room // _LEAST_DEFAULT * _LEAST_DEFAULT)
    return min(_LONGEST_DEFAULT, allowed, model.n_ctx_train or _LONGEST_DEFAULT)


def check_memory(model: Model, n_cells: int) -> None:
    """Make sure that a context of so many tokens fits into the memory: the system ends whoever takes more than there is.

    Raises:
        ModelError: it does not.
    """
    elsewhere = rpc.connected() or (library.build_features().gpu and model.gpu_layers != 0)
    if elsewhere or not model.sequences_share_tokens:
        return  # what is free there, or what a recurrent model's states take, is not known
    needed, free = model.kv_bytes * n_cells, free_memory(swapping=True)
    if needed > free:
        raise ModelError(
            f"A context of {n_cells:,} tokens takes {needed / 1e9:,.1f} GB of memory with {model.name}, and {free / 1e9:,.1f} GB "
            "are free.",
            hint="Try a smaller one with --context.",
        )


def check_prompt(prompt: Sequence[int], n_ctx: int) -> None:
    """Make sure that a prompt can be answered in a context of this many tokens.

    Raises:
        LocalsteerError: it is empty.
        ContextLengthError: it leaves no room.
    """
    if not prompt:
        raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
    if len(prompt) >= n_ctx:
        raise ContextLengthError(
            len(prompt),
            n_ctx,
            f"The prompt has {len(prompt)} tokens, and the context holds {n_ctx}.",
            hint="Shorten it, or ask for more with --context.",
        )


def check_anchored(model: Model, sampling: Sampling) -> None:
    """Make sure that the unsteered model can read a steered answer along, and has a say in it.

    Raises:
        LocalsteerError: sampling keeps everything, whatever a model finds plausible.
        ModelError: the model keeps a state that two readings of one text cannot share.
    """
    if not sampling.filters:
        raise LocalsteerError(
            "An anchored answer needs top-k, top-p or min-p: they say what the unsteered model finds plausible.",
            hint="By default all three are on.",
        )
    if not model.sequences_share_tokens:
        raise ModelError(
            f"{model.name} (architecture {model.architecture}) is recurrent, and cannot anchor an answer.",
            hint="Steer it without anchoring.",
        )


def check_anchored_batch(model: Model, sampling: Sampling, parallel: int) -> None:
    """Make sure that a batch of so many places can anchor an answer that is drawn in this way.

    Raises:
        LocalsteerError: it cannot.
    """
    check_anchored(model, sampling)
    if parallel < 2:
        raise LocalsteerError(
            "An anchored answer takes two places, its own and one for the unsteered model, and there is only one here.",
            hint="Serve with --parallel 2 or more.",
        )


def check_steering(model: Model, edits: Sequence[Edit | None], *, tapped: bool = False) -> None:
    """Make sure that a model can be steered by each of these edits.

    Args:
        model: the model.
        edits: what is done to tokens.
        tapped: its residual stream must be read, or steered otherwise than by a vector.

    Raises:
        ModelError: it cannot.
    """
    steered = [edit for edit in edits if edit is not None]
    if not steered and not tapped:
        return
    with np.errstate(over="ignore"):
        # Models divide by the root of the squares' sum: where float32 does not hold that, nothing but zeros is left.
        if not all(np.isfinite(np.square(edit.added).sum(axis=1)).all() for edit in steered):
            raise ModelError("The steering is too strong for any model.", hint="Lower its strength.")
    possible = steerability(model)
    tapped = tapped or any(edit.removed for edit in steered)
    if possible.readable or (possible.native and not tapped):
        return
    what = "steered in this way (removal, a probe, or an anchored answer)" if possible.native else "steered"
    raise ModelError(
        f"{model.name} (architecture {model.architecture}) cannot be {what}: {possible.reason}.",
        hint="Another architecture can: `localsteer doctor -m MODEL` says which way a model allows.",
    )


def needs_tap(model: Model, edits: Sequence[Edit | None]) -> bool:
    """Whether a decode needs the tap for what it does to its tokens: llama.cpp's own control vector adds the same to all."""
    first = edits[0]
    if any(edit != first for edit in edits[1:]):
        return True
    return first is not None and (bool(first.removed) or not steerability(model).native)
