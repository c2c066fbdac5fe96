"""`localsteer doctor`: what works on this machine, and on this model."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import click

from localsteer.building.library import FoundVector, find_vector
from localsteer.commands.options import ModelOptions, json_option, with_model_options
from localsteer.commands.output import for_this_model, note, print_facts, print_json, print_table
from localsteer.concepts.names import concepts
from localsteer.errors import LocalsteerError
from localsteer.llama import library
from localsteer.llama.model import Model
from localsteer.llama.steerability import steerability
from localsteer.llama.template_errors import TemplateError
from localsteer.steering.worth import SHORT, in_short, pole_name, worth
from localsteer.vector.calibration import POLES, SIGN

Vectors = Mapping[str, FoundVector | str | None]
"""By concept its vector for the model, why it cannot be read, or None where it is not built yet."""
_UNDOSED = "there, and never dosed: what strength 1 does was not measured"


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
        _show({**facts, "model": f"none: {error.message}"}, {}, as_json)
        return
    vectors: Vectors = {}
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
            vectors = _vectors(opened)
    _show(facts, vectors, as_json)
    if not (found.readable or found.native):
        raise SystemExit(1)


def _vectors(model: Model) -> Vectors:
    found: dict[str, FoundVector | str | None] = {}
    for name, concept in concepts().items():
        try:
            found[name] = find_vector(concept, concept.source(), model.fingerprint.content)
        except LocalsteerError as error:  # a concept of the user's that cannot be read
            found[name] = error.message
    return found


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


def _show(facts: dict[str, Any], vectors: Vectors, as_json: bool) -> None:
    missing = [name for name, found in vectors.items() if found is None]
    unbuilt = {"not built for it yet": f"{', '.join(missing)} (`localsteer vectors build`, or the first use)"} if missing else {}
    if as_json:
        document = {key.replace(" ", "_").replace("'", "").replace(".", "_"): value for key, value in facts.items()}
        print_json({**document, **({"vectors": _told(vectors) | unbuilt} if vectors else {})})
        return
    shown = {True: "yes", False: "no"}
    told = {**facts, **{key: for_this_model(value) for key, value in unbuilt.items()}}
    print_facts([(key, shown[value] if isinstance(value, bool) else str(value)) for key, value in told.items()])
    if rows := list(_rows(vectors)):
        print_table(("strength", "toward", "what it is worth on this model", "cost"), rows)
        note(f"{SHORT} `localsteer vectors show NAME` says more.")


def _told(vectors: Vectors) -> dict[str, str]:
    """What each is worth, in sentences."""
    told: dict[str, str] = {}
    for name, found in vectors.items():
        if isinstance(found, str):
            told[name] = found
        elif found is not None:
            sides = {f"{SIGN[pole]:+.0f} {name}": said for pole, said in worth(found.vector)}
            told |= sides or {name: f"{_UNDOSED} ({found.path})."}
    return told


def _rows(vectors: Vectors) -> Iterator[tuple[str, str, str, str]]:
    """The same in short."""
    for name, found in vectors.items():
        if isinstance(found, str):
            yield name, "", found, ""
        elif found is not None:
            sides = [(pole, said) for pole in POLES if (said := in_short(found.vector, pole)) is not None]
            for pole, said in sides:
                yield f"{SIGN[pole]:+.0f} {name}", pole_name(found.vector, pole), *said
            if not sides:
                yield name, "", _UNDOSED, ""
