"""Whether a model, a context and a request go together, asked before an answer begins."""

from __future__ import annotations

from collections.abc import Sequence

from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.llama.steerability import steerability

# Room for a long conversation, and 90 MB of KV cache on the demo model where its full 8,192 tokens take 190.
DEFAULT_CONTEXT = 4096


def check_prompt(prompt: Sequence[int], n_ctx: int) -> None:
    """Make sure that a prompt can be answered in a context of this many tokens.

    Raises:
        LocalsteerError: it is empty, or leaves no room.
    """
    if not prompt:
        raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
    if len(prompt) >= n_ctx:
        raise LocalsteerError(
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


def default_context(model: Model) -> int:
    """Tokens of context where nobody asks for a number."""
    return min(DEFAULT_CONTEXT, model.n_ctx_train or DEFAULT_CONTEXT)


def needs_tap(edits: Sequence[Edit | None], model: Model) -> bool:
    """Whether a batch needs the tap: different edits, removals, or an architecture without a control vector of its own.

    Raises:
        ModelError: the model allows neither way.
    """
    if all(edit is None for edit in edits):
        return False
    same = all(edit is edits[0] for edit in edits)
    removes = any(edit is not None and edit.removed for edit in edits)
    possible = steerability(model)
    if same and not removes and possible.native:
        return False
    if possible.readable:
        return True
    what = "steered" if not possible.native else "steered in this way (removal, or several steerings at once)"
    raise ModelError(
        f"{model.name} (architecture {model.architecture}) cannot be {what}: {possible.reason}.",
        hint="Another architecture can: `localsteer doctor -m MODEL` says which way a model allows.",
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
