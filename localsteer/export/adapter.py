"""Steering as a LoRA adapter, which every program around llama.cpp loads; what is in it, `adapter_fit` finds."""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from localsteer.errors import ExportError, VectorError
from localsteer.export.adapter_fit import Fit, Row, fit
from localsteer.export.gguf_rewrite import Progress, open_model_file
from localsteer.export.llama_cpp import PROGRAMS, file_argument, vector_for_llama_cpp
from localsteer.export.ollama import adapter_modelfile, modelfile_path
from localsteer.export.verify import PLACES, Fidelity, predictions, reference
from localsteer.files.atomic import atomic_path, check_writable, writable
from localsteer.files.gguf_header import open_header
from localsteer.files.gguf_writing import write_out
from localsteer.llama.adapter import Adapter
from localsteer.llama.model import Model
from localsteer.steering.combination import describe, refuse_removal
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan, resolve, resolve_opposite
from localsteer.vector.control_vector import ControlVector, Floats, format_layers
from localsteer.vector.file import add_to_adapter

# Mean divergence up to which an adapter passes whatever the unsteered model does: twice the largest that 8-bit activations were
# seen to leave between two ways to compute the same. On Gemma 3 270M it is 0.005 (matrices that were only rewritten in F16 or
# Q8_0), where the unsteered model is 0.1 away from happy; on SmolLM2 0.003.
NOISE = 0.01
# Of the exchanges, those by which the best rows are told where there is a choice.
_TRIED = 4


@dataclass(frozen=True)
class Adapted:
    """An adapter file that was written.

    Attributes:
        label: what it does at scale 1, by the vectors' own names.
        plan: the same, resolved for the model.
        matrices: where it adds something.
        opposite: the scale at which it is the measured dose toward the other pole; None where an expression of several vectors
            has no such scale.
        size: bytes of the file.
        modelfile: the Ollama Modelfile beside it, if one was wanted.
        fidelity: how well the file does what our own steering does; None where that was not verified.
    """

    label: Steering
    plan: Plan
    matrices: tuple[str, ...]
    opposite: float | None
    size: int
    modelfile: Path | None
    fidelity: Fidelity | None


def export_adapter(
    steering: Steering,
    output: Path,
    load: Callable[[str], ControlVector],
    model: Model,
    *,
    verify: bool = True,
    force: bool = False,
    modelfile: bool = True,
    progress: Progress | None = None,
) -> Adapted:
    """Write an adapter that steers prompt and response of a model as an expression does, and an Ollama Modelfile beside it.

    Args:
        steering: what scale 1 does, at the doses that were measured for steering the prompt as well.
        output: the new file.
        load: the vector that a name or path in the expression stands for.
        model: the model that it is for.
        verify: load the file back, and compare what it does with our own steering.
        force: keep a file that does not steer as we do.
        modelfile: whether an Ollama Modelfile is written, too.
        progress: told what is going on.

    Raises:
        LocalsteerError: a term removes a component.
        VectorError: a vector is missing or damaged, or does not fit the model.
        ExportError: the model has no matrix to add to, the file cannot be written or is another one, or does not steer as we do.
            No file is left then.
    """
    beside = modelfile_path(output) if modelfile else None
    _check_place(output, beside)
    with contextlib.ExitStack() as stack:
        # It gets its name last: it is of no use alone.
        for_ollama = stack.enter_context(atomic_path(beside, ExportError)) if beside is not None else None
        temporary = stack.enter_context(atomic_path(output, ExportError))
        adapted = make_adapter(steering, temporary, load, model, verify=verify, force=force, progress=progress)
        if beside is not None and for_ollama is not None:
            with writable(beside, ExportError):
                for_ollama.write_text(
                    adapter_modelfile(output, adapted.label, model.path, model.template_beside), encoding="utf-8"
                )
    return replace(adapted, modelfile=beside)


def make_adapter(
    steering: Steering,
    file: Path,
    load: Callable[[str], ControlVector],
    model: Model,
    *,
    verify: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Adapted:
    """Write an adapter as `export_adapter` does, into a file that gets its name later.

    Raises:
        LocalsteerError: as `export_adapter`.
        OSError: the disk is full.
    """
    refuse_removal(steering)
    loaded = functools.cache(load)
    plan = resolve(steering, model.fingerprint, loaded, "prompt")
    label = describe(steering, loaded)
    if not plan.edit.added.any():
        raise VectorError(f'"{label}" adds nothing at any layer.')
    with open_model_file(model.path) as weights:
        fitted = fit(model, weights, plan.edit.added, progress)
    ours = reference(model, plan.edit.added) if verify else None
    fidelity: Fidelity | None = None
    other = resolve_opposite(steering, model.fingerprint, loaded, "prompt")
    opposite = _times(plan.edit.added, other.edit.added) if other is not None else None
    keys, vector = _about(label, plan, model, opposite), vector_for_llama_cpp(steering, loaded)
    rows = best_rows(model, fitted, plan.edit.added, file)
    write_adapter(file, model.architecture, str(label), rows, keys, vector)
    if ours is not None:
        with Adapter(model, file) as adapter:
            fidelity = ours.compare(predictions(model, ours.texts, adapters=[(adapter, 1.0)]))
        if not force:
            fidelity.refuse_if_far(noise=NOISE, hint="--force keeps it.")
        keys |= {"kl": f"{fidelity.mean:.4g}", "unsteered_kl": f"{fidelity.unsteered_mean:.4g}"}
        write_adapter(file, model.architecture, str(label), rows, keys, vector)
    return Adapted(label, plan, tuple(row.matrix for row in rows), opposite, file.stat().st_size, None, fidelity)


def _about(label: Steering, plan: Plan, model: Model, opposite: float | None) -> dict[str, str]:
    """What the file says of itself."""
    keys = {
        "expression": str(label),
        "layers": format_layers(tuple(np.flatnonzero(plan.edit.added.any(axis=1)).tolist())),
        "model": model.fingerprint.content,
        "relative_dose": "unknown" if plan.relative_dose is None else f"{plan.relative_dose:.4g}",
        "by": f"localsteer {version('localsteer')}",
    }
    return keys | ({"opposite_scale": f"{opposite:.4g}"} if opposite is not None else {})


def best_rows(model: Model, fitted: Fit, added: Floats, scratch: Path) -> list[Row]:
    """Of the rows that were fitted, those that come nearest to our own steering, toward both poles, on what they were fitted on.

    Args:
        model: the model.
        fitted: from `fit`.
        added: (n_layer, n_embd) what it was fitted for.
        scratch: an adapter is written here for each that is tried.
    """
    ways = [(room, share) for share in fitted.shares for room in fitted.rooms]
    if len(ways) == 1:
        return fitted.rows(*ways[0])
    texts = [text for text in fitted.texts[:_TRIED] if len(text) >= PLACES]
    sides = {scale: reference(model, added * np.float32(scale), texts) for scale in (1.0, -1.0)}

    def divergence(rows: list[Row]) -> float:
        write_adapter(scratch, model.architecture, "tried", rows, {})
        with Adapter(model, scratch) as adapter:
            return sum(
                ours.compare(predictions(model, ours.texts, adapters=[(adapter, scale)])).mean for scale, ours in sides.items()
            )

    return min((fitted.rows(*way) for way in ways), key=divergence)


def _check_place(path: Path, beside: Path | None) -> None:
    """Find out before the work that no adapter can be written; one that is there is made again in no time, and is replaced."""
    if beside == path:
        raise ExportError(f"{path} is the name of the Modelfile.", hint=f"Name the adapter {path.with_suffix('.gguf')}.")
    for place in (path, beside) if beside is not None else (path,):
        check_writable(place, ExportError)
    before = beside.read_text(encoding="utf-8", errors="replace") if beside is not None and beside.is_file() else None
    if before is not None and f"ADAPTER ./{path.name}" not in before.splitlines():
        raise ExportError(f"{beside} is there already, and of something else.", hint="Give the adapter another name.")
    if path.is_file() and path.stat().st_size:
        with contextlib.suppress(ExportError), open_header(path, ExportError, kind="adapter") as header:
            if header.text("localsteer.adapter.by") is not None:
                return
        raise ExportError(
            f"{path} is there already, and no adapter of localsteer's.", hint="Give another name, or remove it first."
        )


def adapter_command_lines(adapter: Path, model: Path) -> list[str]:
    """What to type for each of llama.cpp's programs, and for koboldcpp."""
    name = shlex.quote(str(model))
    lines = [f"{program} -m {name} --lora {file_argument(adapter)}" for program in PROGRAMS]
    return [*lines, f"koboldcpp --model {name} --lora {shlex.quote(str(adapter))}"]


def write_adapter(
    path: Path, architecture: str, name: str, rows: Sequence[Row], keys: Mapping[str, str], vector: ControlVector | None = None
) -> None:
    """A file that llama.cpp loads as a LoRA adapter (`llama_adapter_lora_init_impl`), with texts about it, and its vector."""
    from gguf import GGUFWriter  # 0.07 s, for nothing but this

    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    # Divided by the rank, this is what the scale is multiplied by.
    writer.add_float32("adapter.lora.alpha", 1.0)
    for key, text in keys.items():
        writer.add_string(f"localsteer.adapter.{key}", text)
    if vector is not None:
        add_to_adapter(writer, vector)
    for row in rows:
        writer.add_tensor(f"{row.matrix}.lora_a", np.ascontiguousarray(row.a[None, :], np.float32))
        writer.add_tensor(f"{row.matrix}.lora_b", np.ascontiguousarray(row.b[:, None], np.float32))
    write_out(writer)


def _times(rows: Floats, other: Floats) -> float | None:
    """By what rows are multiplied to become others; None where they point elsewhere."""
    factor = float((rows * other).sum() / (rows**2).sum())
    return factor if np.allclose(rows * np.float32(factor), other, atol=1e-4 * float(np.abs(other).max())) else None
