"""`localsteer export`: steering for other programs, as a control vector for llama.cpp's own or baked into a model file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from localsteer.building.library import load_for_showing, loader
from localsteer.commands.options import (
    ModelOptions,
    Number,
    check_output,
    expression_argument,
    force_option,
    json_option,
    output_option,
    with_model_options,
)
from localsteer.commands.output import format_bytes, note, print_json, progress_bar
from localsteer.concepts.names import is_path
from localsteer.errors import ExportError
from localsteer.export.adapter import adapter_command_lines, export_adapter
from localsteer.export.bake import Baked
from localsteer.export.bake import bake as bake_into
from localsteer.export.glp import export_removal
from localsteer.export.knobs import export_knobs, server_command
from localsteer.export.llama_cpp import at_strength, command_lines, export_vector
from localsteer.export.verify import Fidelity
from localsteer.steering.expression import Steering
from localsteer.vector.control_vector import format_layers

_VERIFY = click.option(
    "--verify/--no-verify",
    default=True,
    help="Load the file back and compare what it predicts with localsteer's own steering (the default).",
)

_KEEP = click.option("--force", is_flag=True, help="Keep a file that does not steer as localsteer does.")


@click.group()
def command() -> None:
    """Steering for other programs."""


@command.command("llama-cpp")
@expression_argument
@output_option
@click.option("--strength", type=Number(), default=1.0, show_default=True, help="Multiply the whole expression by this.")
@_VERIFY
@force_option
@json_option
@with_model_options
def llama_cpp(
    steering: Steering,
    output: Path,
    strength: float,
    verify: bool,
    force: bool,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Write the control vector file that EXPRESSION is for llama.cpp's own programs.

    They steer the prompt as well as the answer: at scale 1 the file is the dose that was calibrated for that. With --no-verify
    and files alone no model is opened. An expression that begins with a minus goes after --, last of all.
    """
    steering = at_strength(steering, strength)
    check_output(output, force=force, error=ExportError)
    named = any(not is_path(term.vector) for term in steering.terms)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bar())
        model = stack.enter_context(model_options.open()) if verify or named else None
        load = loader(model, progress) if model is not None else load_for_showing
        exported = export_vector(steering, output, load, model, verify=verify)
        lines = command_lines(output, model.path if model is not None else Path("MODEL.gguf"))
    vector, plan = exported.vector, exported.plan
    note(*(plan.notes if plan is not None else ()))
    if as_json:
        print_json(
            {
                "vector": str(output),
                "expression": str(steering),
                "layers": list(vector.layers),
                "relative_dose": plan.relative_dose if plan is not None else None,
                "verification": _document(exported.fidelity),
                "commands": lines,
            }
        )
        return
    click.echo(f"{output}: {steering}, layers {format_layers(vector.layers)}{_dose(plan.relative_dose if plan else None)}")
    _print_fidelity(exported.fidelity)
    for line in lines:
        click.echo(f"  {line}")
    note(
        f"--control-vector-scaled {output}:0.5 is half as strong. Ollama, LM Studio and koboldcpp load no control vectors: "
        "`localsteer export lora` writes an adapter for those that load one, `export bake` a steered model (docs/export.md)."
    )


@command.command()
@expression_argument
@output_option
@force_option
@json_option
@with_model_options
def glp(steering: Steering, output: Path, force: bool, as_json: bool, model_options: ModelOptions) -> None:
    """Write what EXPRESSION removes, such as '!happy', as a GLP file (glp.mode = project).

    For the runtimes that project a direction out of the residual stream behind each block. llama.cpp's own programs know no
    such files, and would add the direction.
    """
    check_output(output, force=force, error=ExportError)
    with progress_bar() as progress, model_options.open() as model:
        vector = export_removal(steering, output, loader(model, progress), model)
    if as_json:
        print_json({"vector": str(output), "expression": str(steering), "layers": list(vector.layers)})
        return
    click.echo(f"{output}: {steering}, layers {format_layers(vector.layers)}")
    note("llama.cpp's own programs would add this direction instead of taking it away.")


@command.command()
@expression_argument
@output_option
@_VERIFY
@_KEEP
@json_option
@with_model_options
def lora(steering: Steering, output: Path, verify: bool, force: bool, as_json: bool, model_options: ModelOptions) -> None:
    """Write the LoRA adapter that EXPRESSION is, for koboldcpp, Ollama, llama-server and all others that load one.

    It takes 0.1 to 3 MB, for this model and its quantisations. Scale 1 is the dose that was measured for prompt and
    answer, and any other scale so many times that; llama-server takes one for each request. An expression that begins with a
    minus goes after --, last of all.
    """
    with progress_bar() as progress, model_options.open() as model:
        adapted = export_adapter(steering, output, loader(model, progress), model, verify=verify, force=force, progress=progress)
        lines = adapter_command_lines(output, model.path)
    note(*adapted.plan.notes)
    if as_json:
        print_json(
            {
                "adapter": str(output),
                "modelfile": str(adapted.modelfile),
                "expression": str(adapted.label),
                "matrices": list(adapted.matrices),
                "relative_dose": adapted.plan.relative_dose,
                "opposite_scale": adapted.opposite,
                "bytes": adapted.size,
                "verification": _document(adapted.fidelity),
                "commands": lines,
            }
        )
        return
    dose = _dose(adapted.plan.relative_dose)
    click.echo(f"{output}: {adapted.label}, {len(adapted.matrices)} matrices{dose}, {format_bytes(adapted.size)}")
    _print_fidelity(adapted.fidelity)
    for line in lines:
        click.echo(f"  {line}")
    click.echo(f"{adapted.modelfile}: for `ollama create {output.stem.lower()} -f {adapted.modelfile}`")
    if adapted.opposite is not None:
        note(f"Scale 0.5 is half as strong, and {adapted.opposite:.2g} the other pole.")


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder.")
@_VERIFY
@_KEEP
@json_option
@with_model_options
def knobs(names: tuple[str, ...], output: Path, verify: bool, force: bool, as_json: bool, model_options: ModelOptions) -> None:
    """Write a LoRA adapter for each vector, and how llama-server takes a scale of each with every request.

    An unmodified llama-server then has a volume knob for each of the NAMEs (or files of vectors).
    """
    with progress_bar() as progress, model_options.open() as model:
        made = export_knobs(names, output, loader(model, progress), model, verify=verify, force=force, progress=progress)
        line = server_command(made, model.path)
    note(*dict.fromkeys(told for knob in made for told in knob.adapted.plan.notes))
    if as_json:
        print_json(
            {
                "knobs": [
                    {
                        "id": knob.number,
                        "name": knob.name,
                        "adapter": str(knob.file),
                        "relative_dose": knob.adapted.plan.relative_dose,
                        "opposite_scale": knob.adapted.opposite,
                        "verification": _document(knob.adapted.fidelity),
                    }
                    for knob in made
                ],
                "command": line,
            }
        )
        return
    for knob in made:
        click.echo(f"{knob.file}: id {knob.number}, {format_bytes(knob.adapted.size)}{_dose(knob.adapted.plan.relative_dose)}")
        _print_fidelity(knob.adapted.fidelity)
    click.echo(f"  {line}")
    note(f"{output / 'README.md'} says how it is asked.")


@command.command()
@expression_argument
@output_option
@_VERIFY
@json_option
@with_model_options
def bake(steering: Steering, output: Path, verify: bool, as_json: bool, model_options: ModelOptions) -> None:
    """Write the model anew with EXPRESSION baked in, for Ollama, LM Studio, koboldcpp and all that run GGUF models.

    Where llama.cpp takes biases for the architecture, everything in the model file keeps its bytes; for others an adapter is
    merged into the matrices of the steered layers. A split model becomes one file. An Ollama Modelfile is written beside it.
    """
    with progress_bar() as progress:
        baked = bake_into(model_options.path(), steering, output, verify=verify, open_model=model_options.open, progress=progress)
    note(*baked.plan.notes)
    if as_json:
        print_json(
            {
                "model": str(output),
                "modelfile": str(baked.modelfile),
                "expression": str(steering),
                "layers": list(baked.layers),
                "relative_dose": baked.plan.relative_dose,
                "way": "merged" if baked.merged else "biases",
                "merged": dict(baked.merged),
                "bytes": baked.size,
                "bytes_more": baked.grown,
                "verification": _document(baked.fidelity),
            }
        )
        return
    dose = _dose(baked.plan.relative_dose)
    click.echo(f"{output}: {baked.label}, layers {format_layers(baked.layers)}{dose}, {format_bytes(baked.size)}")
    click.echo(_how(baked))
    _print_fidelity(baked.fidelity)
    click.echo(f"{baked.modelfile}: for `ollama create {output.stem.lower()} -f {baked.modelfile}`")


def _how(baked: Baked) -> str:
    """By which way it was baked."""
    if not baked.merged:
        return f"baked as {len(baked.layers)} biases: everything else keeps its bytes"
    kinds, more = " and ".join(sorted(set(baked.merged.values()))), format_bytes(baked.grown)
    return (
        f"baked by merging an adapter into {len(baked.merged)} matrices, which are {kinds} now: {more} more (it takes no biases)"
    )


def _dose(relative_dose: float | None) -> str:
    return f", relative dose {relative_dose:.2f}" if relative_dose is not None else ""


def _document(fidelity: Fidelity | None) -> dict[str, Any] | None:
    if fidelity is None:
        return None
    return {
        "positions": fidelity.places,
        "kl_mean": fidelity.mean,
        "kl_largest": fidelity.largest,
        "unsteered_kl_mean": fidelity.unsteered_mean,
        "unsteered_kl_largest": fidelity.unsteered_largest,
    }


def _print_fidelity(fidelity: Fidelity | None) -> None:
    if fidelity is None:
        note("Not verified.")
        return
    click.echo(
        f"verified over {fidelity.places} positions: KL divergence from localsteer's own steering {fidelity.mean:.2g} nats on "
        f"average, {fidelity.largest:.2g} at most (the unsteered model: {fidelity.unsteered_mean:.2g} and "
        f"{fidelity.unsteered_largest:.2g})"
    )
