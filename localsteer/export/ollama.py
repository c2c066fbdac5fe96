"""Modelfiles, by which Ollama takes in a steered model or an adapter that lies beside them."""

from __future__ import annotations

from pathlib import Path

from localsteer.steering.expression import Steering


def modelfile_path(path: Path) -> Path:
    """Where the Modelfile of a file goes: named for it, so that two can share a folder."""
    return path.with_suffix(".Modelfile")


def modelfile(baked: Path, label: Steering, template: str | None = None) -> str:
    """The Modelfile of a baked model; with the template that Ollama kept beside the model, where that has none of its own."""
    name = baked.stem.lower()
    return (
        f"# {label}, baked in by localsteer. Ollama takes the model in with\n"
        f"#   ollama create {name} -f {modelfile_path(baked).name}\n"
        "# It finds the chat template in the file; should it say that it knows no such template, add a TEMPLATE here.\n"
        f"FROM ./{baked.name}\n{_template(template)}"
    )


def adapter_modelfile(adapter: Path, label: Steering, model: Path, template: str | None = None) -> str:
    """The Modelfile of an adapter for a model; with its template likewise."""
    return (
        f"# {label}, by localsteer. Ollama takes it in with\n"
        f"#   ollama create {adapter.stem.lower()} -f {modelfile_path(adapter).name}\n"
        f"FROM {model.absolute()}\n"
        f"ADAPTER ./{adapter.name}\n{_template(template)}"
    )


def _template(template: str | None) -> str:
    return f'TEMPLATE """{template}"""\n' if template is not None and '"""' not in template else ""
