"""`localsteer doctor`: what works on this machine, and on this model."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

from localsteer.building.library import find_vector
from localsteer.commands.options import ModelOptions, json_option, with_model_options
from localsteer.commands.output import print_facts, print_json
from localsteer.concepts.names import concepts
from localsteer.errors import LocalsteerError
from localsteer.llama import library
from localsteer.llama.model import Model
from localsteer.llama.steerability import steerability
from localsteer.llama.template_errors import TemplateError
from localsteer.steering.worth import worth
from localsteer.vector.calibration import SIGN


@click.command()
@json_option
@with_model_options
def command(as_json: bool, model_options: ModelOptions) -> None:
    """What this build of llama.cpp can do, whether the model can be read and steered, and how far its vectors go.

    Exits with 1 where the model can be neither.
    """
    features = library.build_features()
    facts: dict[str, Any] = {
        "localsteer": importlib.metadata.version("localsteer"),
        "python": platform.python_version(),
        "llama-cpp-python": features.version,
        "system": features.system,
        "gpu": features.gpu,
        "rpc": features.rpc,
        "sequences in one batch": features.max_sequences,
        "threads": model_options.threads or library.default_threads(),
    }
    try:
        model_options.path()
    except LocalsteerError as error:
        if model_options.model is not None:
            raise
        _show({**facts, "model": f"none: {error.message}"}, as_json)
        return
    with model_options.open() as opened:
        found = steerability(opened)
        facts |= {
            "model": opened.name,
            "architecture": opened.architecture,
            "n_layer": opened.n_layer,
            "n_embd": opened.n_embd,
            "chat template": _template(opened),
            "vectors can be extracted": found.readable,
            "llama.cpp's control vector works": found.native,
            "removal and mixed batches work": found.readable,
            "prompts share tokens in a batch": opened.sequences_share_tokens,
        }
        if found.reason:
            facts["because"] = found.reason
        if found.readable:
            facts["vectors"] = _vectors(opened)
    _show(facts, as_json)
    if not (found.readable or found.native):
        raise SystemExit(1)


def _vectors(model: Model) -> dict[str, str]:
    """What the concepts of the library are worth on this model, as far as their vectors are there."""
    known, missing = {}, []
    for name, concept in concepts().items():
        try:
            found = find_vector(concept, concept.source(), model.fingerprint.content)
        except LocalsteerError as error:  # a concept of the user's that cannot be read
            known[name] = error.message
            continue
        if found is None:
            missing.append(name)
            continue
        told = {f"{SIGN[pole]:+.0f} {name}": said for pole, said in worth(found.vector)}
        known |= told or {name: f"there, and never dosed: what strength 1 does was not measured ({found.path})."}
    if missing:
        known["not built for it yet"] = f"{', '.join(missing)} (`localsteer vectors build`, or the first use)"
    return known


def _template(model: Model) -> str:
    try:
        template = model.chat_template
        if template is None:
            return "none (a base model)"
        if template.opens_thinking:
            return "yes; it opens a thinking block: the model thinks before it answers"
        return "yes" if template.thinking is None else "yes; the model may think before it answers"
    except TemplateError as error:
        return f"cannot be used: {error.message}"


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({key.replace(" ", "_").replace("'", "").replace(".", "_"): value for key, value in facts.items()})
    else:
        shown = {True: "yes", False: "no"}
        rows = [
            (key, shown[value] if isinstance(value, bool) else str(value)) for key, value in facts.items() if key != "vectors"
        ]
        rows += facts.get("vectors", {}).items()
        print_facts(rows)
