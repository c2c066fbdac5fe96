"""Steering baked into a model file, for programs that cannot load a control vector.

A control vector adds the same row to the output of block k at every token. Where the last thing that a block does is to add what
its feed-forward layer gives, the bias of that layer's last matrix, `blk.k.ffn_down.bias`, adds it just as well; the loaders of
some architectures take one though their models have none. For all others, what an adapter would do is merged into the matrices.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from localsteer.building.library import loader
from localsteer.errors import ExportError, shown
from localsteer.export.adapter import best_rows
from localsteer.export.adapter_fit import fit
from localsteer.export.gguf_rewrite import ModelFile, Progress, Replacement, open_model_file, residual_scale, rewrite
from localsteer.export.merge import merge
from localsteer.export.ollama import modelfile, modelfile_path
from localsteer.export.verify import Fidelity, Reference, predictions, reference
from localsteer.files.atomic import atomic_path, check_writable, writable
from localsteer.files.gguf_header import type_name
from localsteer.llama.model import Model
from localsteer.steering.combination import describe, refuse_removal
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.control_vector import Floats, format_layers

# Architectures whose `load_arch_tensors` takes LLM_TENSOR_FFN_DOWN "bias", required or not, and whose graph hands it to
# `build_ffn` and adds the result to the residual stream right before `build_cvec`: read in src/models/<name>.cpp of the llama.cpp
# that llama-cpp-python 0.3.36 brings. refact and llada load the tensor and never use it; qwen2, qwen3, gemma3, phi3 and most
# others refuse a file that holds it.
TAKES_BIAS = frozenset(
    {
        "bloom",
        "codeshell",
        "deci",
        "falcon-h1",
        "gpt2",
        "gptneox",
        "granite",
        "jais",
        "jais2",
        "llama",
        "mistral3",
        "mpt",
        "nemotron",
        "phi2",
        "starcoder",
        "starcoder2",
    }
)
# 126 biases of 16,384 float32, those of the largest open model of them, are 8 MB.
_ROOM = 16 << 20


@dataclass(frozen=True)
class Baked:
    """A model file that was written.

    Attributes:
        label: what is baked in, by the vectors' own names.
        plan: the same, resolved for the model.
        layers: the steered blocks.
        merged: the matrices that were changed, with the names of their types; none where biases were added.
        size: bytes of the file.
        grown: how many more that is than before.
        modelfile: the Ollama Modelfile beside it.
        fidelity: how well the file does what our own steering does; None where that was not verified.
    """

    label: Steering
    plan: Plan
    layers: tuple[int, ...]
    merged: Mapping[str, str]
    size: int
    grown: int
    modelfile: Path
    fidelity: Fidelity | None


def bake(
    source: Path,
    steering: Steering,
    output: Path,
    *,
    verify: bool = True,
    open_model: Callable[[Path], Model] = Model,
    progress: Progress | None = None,
) -> Baked:
    """Write a model anew with steering of prompt and response baked in, and an Ollama Modelfile beside it.

    Args:
        source: the model's file, or the first part of a split model.
        steering: what to bake in, at the doses that were calibrated for steering the prompt as well.
        output: the new file, a single one.
        verify: open the new file and compare what it predicts with our own steering of the old one.
        open_model: how to open both.
        progress: told about vectors that are built, and what is written.

    Raises:
        LocalsteerError: the expression removes a component.
        VectorError: a vector is missing or damaged, or does not fit the model.
        ExportError: the model takes no bias and has no matrix to change, a file cannot be written, or does not steer as we do. No
            new file is left then, and an old one of that name is as it was.
    """
    refuse_removal(steering)
    for_ollama = modelfile_path(output)
    if for_ollama == output:
        raise ExportError(f"{output} is the name of the Modelfile.", hint=f"Name the model {output.with_suffix('.gguf')}.")
    for path in (output, for_ollama):
        check_writable(path, ExportError)
    ours: Reference | None = None
    fidelity: Fidelity | None = None
    # The Modelfile gets its name last: it is of no use alone, and cannot fail but where the model's own renaming would.
    with atomic_path(for_ollama, ExportError) as beside, atomic_path(output, ExportError) as temporary:
        with open_model_file(source) as file:
            refuse_baked(file)
            check_room(output, file, _ROOM)
            before = sum(part.size for part in file.parts)
            with open_model(source) as model:
                load = functools.cache(loader(model, progress))
                plan = resolve(steering, model.fingerprint, load, "prompt")
                label, template = describe(steering, load), model.template_beside
                baking = prepare(plan, label, file, model, temporary, progress)
                check_room(output, file, baking.grows(file))
                if verify:
                    ours = reference(model, plan.edit.added)
            with writable(for_ollama, ExportError):
                beside.write_text(modelfile(output, label, template), encoding="utf-8")
            rewrite(file, temporary, tensors=baking.tensors, replaced=baking.replaced, keys=baking.keys, progress=progress)
        if ours is not None:
            with open_model(temporary) as baked:
                fidelity = ours.compare(predictions(baked, ours.texts))
            fidelity.refuse_if_far()
    size = output.stat().st_size
    merged = {name: type_name(one.kind) for name, one in baking.replaced.items()}
    return Baked(label, plan, baking.layers, merged, size, size - before, for_ollama, fidelity)


@dataclass(frozen=True, eq=False)
class Baking:
    """What goes into a model file.

    Attributes:
        tensors: biases by name, (n_embd,) float32.
        replaced: matrices by name; either of the two is empty.
        keys: texts that say what was baked.
        layers: the steered blocks.
    """

    tensors: Mapping[str, Floats]
    replaced: Mapping[str, Replacement]
    keys: Mapping[str, str]
    layers: tuple[int, ...]

    def grows(self, file: ModelFile) -> int:
        """By how many bytes about, that file."""
        known = file.tensors
        return _ROOM + sum(one.size - known[name].size for name, one in self.replaced.items())


def refuse_baked(file: ModelFile) -> None:
    """Make sure that nothing was baked into a model before.

    Raises:
        ExportError: something was.
    """
    header = file.first
    if (before := header.text("localsteer.baked.expression")) is not None:
        raise ExportError(
            f'{header.path} has "{shown(before)}" baked in already.',
            hint="Bake the whole expression into the model that it was made from.",
        )


def prepare(
    plan: Plan, label: Steering, file: ModelFile, model: Model, scratch: Path, progress: Progress | None = None
) -> Baking:
    """Turn a plan for a model into tensors for its file.

    Args:
        plan: what is added to prompt and answer alike.
        label: the expression as the new file shall name it.
        file: the model's file.
        model: the same model.
        scratch: a file that may be written.
        progress: told what is going on.

    Raises:
        ExportError: the plan adds nothing, a bias that is there already is not F32, or the model takes none and has no matrix to
            change.
    """
    added = plan.edit.added
    layers = tuple(int(layer) for layer in np.flatnonzero(added.any(axis=1)))
    if not layers:
        raise ExportError(f'"{plan.steering}" adds nothing at any layer.')
    tensors: Mapping[str, Floats] = {}
    replaced: Mapping[str, Replacement] = {}
    if takes_biases(file, layers):
        tensors = _biases(file, added, layers)
    else:
        replaced = merge(file, best_rows(model, fit(model, file, added, progress), added, scratch))
    dose = f"{plan.relative_dose:.4f}" if plan.relative_dose is not None else "unknown"
    keys = {
        "localsteer.baked.expression": str(label),
        "localsteer.baked.layers": format_layers(layers),
        "localsteer.baked.relative_dose": dose,
        "localsteer.baked.model": model.fingerprint.content,
        "localsteer.baked.by": f"localsteer {version('localsteer')}",
    }
    return Baking(tensors, replaced, keys, layers)


def takes_biases(file: ModelFile, layers: Collection[int]) -> bool:
    """Whether llama.cpp takes a bias for the feed-forward layers of these blocks; experts have none in common."""
    architecture, known = file.first.text("general.architecture"), file.tensors
    return architecture in TAKES_BIAS and all(
        f"blk.{layer}.ffn_down.weight" in known and f"blk.{layer}.ffn_down.scale" not in known for layer in layers
    )


def _biases(file: ModelFile, added: Floats, layers: Collection[int]) -> dict[str, Floats]:
    scale, known, tensors = residual_scale(file), file.tensors, {}
    for layer in layers:
        name, bias = f"blk.{layer}.ffn_down.bias", added[layer] / np.float32(scale)
        tensors[name] = (bias + file.floats(name) if name in known else bias).astype(np.float32)
    return tensors


def check_room(target: Path, file: ModelFile, more: int) -> None:
    """Find out before gigabytes are written that they cannot be.

    Args:
        target: the new file.
        file: the model.
        more: bytes that the new one has more than that.

    Raises:
        ExportError: the target is a part of the model itself, or the disk has no room for it.
    """
    if target.exists() and any(target.samefile(part.path) for part in file.parts):
        raise ExportError(f"{target} is the model itself.", hint="Give the baked model another name.")
    size = sum(part.size for part in file.parts) + more
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise ExportError(f"{target} will have about {size:,} bytes, and its disk has {free:,} left.")
