"""Control vectors from elsewhere -> ours: what made them, which block each direction belongs to, and what has to be moved.

`direction.k` of llama.cpp is added to the output of block k. Not every program that writes such files means that:

| made by | told by | its `direction.k` is of |
|---|---|---|
| localsteer, its LoRA adapters among them | keys `localsteer.*` | block k |
| repeng (`ControlVector.export_gguf`) | an unsigned `layer_count`, the number of its directions | block k |
| llama-cvector-generator (`export_gguf`) | a signed `layer_count` | block k - 1 |
| jukofyork/control-vectors (`ModelHandler.export_gguf`) | an unsigned `layer_count` above their number | block k - 1 |
| writers of GLP (see `glp`) | keys `glp.*` | block k |

That of jukofyork reads what a block adds to its input instead of what comes out of it: of the same block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from localsteer.errors import VectorError, shown
from localsteer.files.arrays import read_arrays
from localsteer.files.gguf_header import GGUFHeader
from localsteer.files.gguf_layout import INT32_TYPE, MAGIC
from localsteer.files.home import expanded
from localsteer.files.text import readable
from localsteer.llama.fingerprint import Fingerprint
from localsteer.vector.control_vector import ControlVector, Floats, Provenance, format_layers
from localsteer.vector.file import MAX_LAYERS, is_adapter, read_directions, read_provenance, read_vector_header
from localsteer.vector.glp import is_glp

_LAYER_COUNT = "controlvector.layer_count"
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True)
class Imported:
    """A vector from elsewhere, and what was done to it.

    Attributes:
        vector: ours from now on.
        kind: what the file is, such as "llama-cvector-generator".
        shift: added to each layer number of the file.
        findings: one sentence each, for the user.
    """

    vector: ControlVector
    kind: str
    shift: int
    findings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Found:
    """What a file holds: directions by its own numbers, 0 included."""

    kind: str
    rows: Mapping[int, Floats]
    shift: int
    why: str
    provenance: Provenance


def import_vector(path: Path, *, shift: int | None = None, name: str | None = None, model: Fingerprint | None = None) -> Imported:
    """Read a vector that another program made.

    Args:
        path: a GGUF, `.npz` or `.safetensors` file. Its arrays are one of (layer, n_embd), or one of (n_embd,) for each layer,
            with its number in the name.
        shift: what to add to the file's layer numbers to get blocks, counted from 0; None finds it out.
        name: what to call the vector; None keeps its name, or takes the file's.
        model: the model that it is for: its shape is compared, and tells arrays that begin with the embeddings.

    Raises:
        VectorError: the file is missing, damaged, too large, a pickle or no vector, or does not fit the model.
    """
    path = expanded(path, VectorError)
    found = _find(path, model, told=shift is not None)
    moved_by = found.shift if shift is None else shift
    findings = [f"{path.name} is {found.why}."]
    if shift is not None and shift != found.shift:
        findings.append(f"Its layer numbers were moved by {shift:+d} as asked, not by {found.shift:+d}.")
    elif moved_by:
        findings.append(f"Its layer numbers were moved by {moved_by:+d} to where each direction was read.")
    directions = {number + moved_by: row for number, row in found.rows.items()}
    below = sorted(layer - moved_by for layer in directions if layer < 1)
    if below:
        findings.append(f"{_plural(below)} left out: llama.cpp cannot steer block 0.")
    with np.errstate(invalid="ignore"):  # numpy warns of some kinds of NaN, which are refused below
        empty = [layer for layer, row in directions.items() if layer >= 1 and not row.any()]
    if empty:
        findings.append(f"Blocks {format_layers(empty)} left out: nothing but zeros.")
    kept = {layer: row for layer, row in directions.items() if layer >= 1 and layer not in empty}
    if not kept:
        raise VectorError(f"{path} holds no direction for a block that can be steered.", hint="Is --shift right?")
    provenance = found.provenance
    if found.kind != "localsteer":
        moved = f", layer numbers moved by {moved_by:+d}" if moved_by else ""
        hint = model.architecture if model is not None and not provenance.model_hint else provenance.model_hint
        provenance = replace(
            provenance, concept=path.stem, model_hint=hint, origin=f"imported from {path.name} ({found.kind}){moved}"
        )
    elif moved_by:  # what was measured was measured elsewhere
        provenance = replace(provenance, estimate=None, dosing=None, calibration=None, probe=None)
    try:
        vector = ControlVector(kept, provenance)
    except VectorError as error:
        raise VectorError(f"{path}: {error.message}", hint=error.hint) from None
    if name is not None:
        vector = vector.named(name)
    fit = vector.check_fits(model, name=path.name) if model is not None else None
    return Imported(vector, found.kind, moved_by, (*findings, *([fit] if fit is not None else [])))


def _find(path: Path, model: Fingerprint | None, told: bool) -> _Found:
    """What the file holds; `told` where the user says how to number it."""
    with readable(path, VectorError, ordinary=True), path.open("rb") as file:
        is_gguf = file.read(4) == MAGIC
    return _find_in_gguf(read_vector_header(path), model) if is_gguf else _find_in_arrays(path, model, told)


def _find_in_gguf(header: GGUFHeader, model: Fingerprint | None) -> _Found:
    rows, provenance = read_directions(header), read_provenance(header)
    if not rows:
        raise VectorError(f"{header.path} holds no directions.")
    if "localsteer.version" in header.fields:
        why = "an adapter of localsteer's: its scale 1 becomes strength 1" if is_adapter(header) else "localsteer's own"
        return _Found("localsteer", rows, 0, why, provenance)
    if is_glp(header):
        why = "a GLP file, every direction at the block where it was read"
        if provenance.removal is not None:
            times = "" if provenance.removal == 1 else f" {provenance.removal:g} times"
            why += f", to be taken away{times}, not added (!{header.path.stem})"
        return _Found("GLP", rows, 0, why, provenance)
    counted = header.fields.get(_LAYER_COUNT)
    if counted is not None and counted.kind == INT32_TYPE:
        why = "of llama-cvector-generator (its layer count is a signed number), which writes every direction one block late"
        return _Found("llama-cvector-generator", rows, -1, why, provenance)
    count = header.whole_number(_LAYER_COUNT)
    if count is not None and count > len(rows):
        why = (
            f"of jukofyork/control-vectors (it counts {count} layers and has {len(rows)} directions), "
            "which writes every direction one block late"
        )
        return _Found("jukofyork/control-vectors", rows, -1, why, provenance)
    if model is not None and max(rows) == model.n_layer:
        why = f"one block late: its last direction is {max(rows)}, and the last block of {model.name} {max(rows) - 1}"
        return _Found("GGUF", rows, -1, why, provenance)
    if count == len(rows):
        why = "laid out as repeng writes it, every direction at the block where it was read"
        return _Found("repeng", rows, 0, why, provenance)
    why = "a control vector of unknown make: each direction is taken for that of the block it names (--shift changes that)"
    return _Found("GGUF", rows, 0, why, provenance)


def _find_in_arrays(path: Path, model: Fingerprint | None, told: bool) -> _Found:
    arrays = read_arrays(path)
    kind = path.suffix.lower().removeprefix(".") or "npz"
    rows = _as_rows(path, arrays)
    widths = sorted({len(row) for row in rows.values()})
    if model is None:
        why = (
            f"{len(rows)} rows of {widths[-1]} numbers; row k is taken for block k (with -m MODEL this is checked, and rows that "
            "begin with the embeddings are recognised)"
        )
        return _Found(kind, rows, 0, why, Provenance())
    if widths != [model.n_embd]:
        turned = " Are its rows and columns the wrong way round?" if len(rows) == model.n_embd else ""
        raise VectorError(f"{path} holds rows of {widths[-1]} numbers, and {model.name} has n_embd {model.n_embd}.{turned}")
    last = max(rows)
    if last == model.n_layer:
        why = f"{len(rows)} rows up to number {last}, one more than {model.name} has blocks: row 0 is the embeddings"
        return _Found(kind, rows, -1, why, Provenance())
    if told or len(arrays) > 1 or last == model.n_layer - 1:
        return _Found(kind, rows, 0, f"{len(rows)} rows, row k for block k of {model.name}", Provenance())
    raise VectorError(
        f"{path} holds {len(rows)} rows, and {model.name} has {model.n_layer} blocks: "
        f"{model.n_layer} rows (one a block) or {model.n_layer + 1} (the embeddings first) were expected.",
        hint="Save one row for each block, or one array for each block with its number in the name.",
    )


def _as_rows(path: Path, arrays: Mapping[str, Floats]) -> dict[int, Floats]:
    """Rows (n_embd,) by number: of the one array of a file, or of arrays whose names hold their numbers."""
    if not arrays:
        raise VectorError(f"{path} holds no arrays.")
    shapes = {name: _without_ones(array) for name, array in arrays.items()}
    if len(shapes) == 1 and (only := next(iter(shapes.values()))).ndim == 2:
        if len(only) > MAX_LAYERS + 1:
            raise VectorError(f"{path} holds {len(only):,} rows: no model has so many layers.")
        return dict(enumerate(only))
    rows: dict[int, Floats] = {}
    for name, array in shapes.items():
        numbers = _NUMBERS.findall(name)
        if array.ndim != 1 or not array.size or len(numbers) != 1 or len(numbers[0]) > 4 or int(numbers[0]) > MAX_LAYERS:
            raise VectorError(
                f"{shown(name)} in {path} is of shape {arrays[name].shape}: expected one array of (layer, n_embd), "
                'or one of (n_embd,) for each layer with its number in the name, such as "layer_12".'
            )
        if int(numbers[0]) in rows:
            raise VectorError(f"{path} holds two arrays for layer {int(numbers[0])}.")
        rows[int(numbers[0])] = array
    return rows


def _without_ones(array: Floats) -> Floats:
    """Without leading dimensions of length 1, down to one dimension."""
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return array


def _plural(numbers: list[int]) -> str:
    return f"Number {numbers[0]} was" if len(numbers) == 1 else f"Numbers {format_layers(numbers)} were"
