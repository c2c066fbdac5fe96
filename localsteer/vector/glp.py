"""GLP (GGUF Layer Projection): the keys of a control vector that is to be projected out of the residual stream, not added.

Readers of GLP (`weightless`, hf2q) compute h - alpha (h . d) d after a block, with d of length 1. llama.cpp knows none of these
keys, and adds what it should take away.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from localsteer.errors import VectorError, shown
from localsteer.files.gguf_header import GGUFHeader

if TYPE_CHECKING:
    from gguf import GGUFWriter

# The second is an older name of the first.
_PREFIXES = ("glp", "dspark")
# Where a block's output is read and changed here; at others (what a block writes before that) a direction does something else.
_HOOK = "residual_stream_post_layer"
# More than its readers' own files ask for, of which the strongest say 4.
_MAX_ALPHA = 16.0


def is_glp(header: GGUFHeader) -> bool:
    """Whether a file says anything of GLP's."""
    return any(key.startswith(f"{prefix}.") for prefix in _PREFIXES for key in header.fields)


def removal_of(header: GGUFHeader) -> float | None:
    """How many times the component along each direction is to be taken away; None for a vector that is to be added.

    Raises:
        VectorError: the file asks for something else, or for what cannot be done here.
    """
    for prefix in _PREFIXES:
        if any(key.startswith(f"{prefix}.") for key in header.fields):
            return _read(header, prefix)
    return None


def _read(header: GGUFHeader, prefix: str) -> float | None:
    def refused(key: str, value: object, why: str) -> VectorError:
        return VectorError(f"{header.path} says {prefix}.{key} = {shown(value)}, and {why}.", hint="Ask whoever made it.")

    mode = header.text(f"{prefix}.mode")
    if mode not in (None, "add", "project"):
        raise refused("mode", mode, "what that does is not known here")
    hook = header.text(f"{prefix}.hook_point")
    if hook not in (None, _HOOK):
        raise refused("hook_point", hook, f"here only the output of a block can be steered ({_HOOK})")
    rank = header.whole_number(f"{prefix}.rank")
    if rank not in (None, 1):
        raise refused("rank", rank, "one direction for each block is all that can be read here")
    structure = header.text(f"{prefix}.structure")
    if structure is not None and structure.startswith("per-execution"):
        raise refused("structure", structure, "a block has the same direction here at each of its executions")
    for key in ("layer_scales", "dir_scales"):
        if f"{prefix}.{key}" in header.fields:
            raise refused(key, "…", "a scale for each direction cannot be had here")
    alpha = header.value(f"{prefix}.alpha_default")
    if alpha is not None and not (isinstance(alpha, int | float) and math.isfinite(alpha) and 0 < alpha <= _MAX_ALPHA):
        raise refused("alpha_default", alpha, f"it must be a number above 0 and not above {_MAX_ALPHA:g}")
    if mode != "project":
        if alpha not in (None, 1):
            raise refused("alpha_default", alpha, "a vector that is added has its strength in its directions")
        return None
    return float(alpha) if alpha is not None else 1.0


def write_removal(writer: GGUFWriter, alpha: float) -> None:
    """Say that a vector is to be taken away so many times, not added."""
    writer.add_uint32("glp.spec_version", 1)
    writer.add_string("glp.mode", "project")
    writer.add_string("glp.hook_point", _HOOK)
    writer.add_uint32("glp.rank", 1)
    writer.add_float32("glp.alpha_default", alpha)
