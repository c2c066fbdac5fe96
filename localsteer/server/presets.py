"""The file of presets: names for expressions, which requests use as part of the model's name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from localsteer.errors import LocalsteerError
from localsteer.server.steerings import SteeringError, Steerings
from localsteer.text_file import read_text
from localsteer.yaml_file import YamlFile

# What stands behind the colon of a model's name must not look like a steering.
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class _PresetsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    presets: dict[_Name, str]


def load_presets(path: Path) -> dict[str, str]:
    """Read the file.

    Raises:
        SteeringError: it is missing or broken; the message names the line.
    """
    text = read_text(path, SteeringError, kind="file of presets")
    file = YamlFile.parse(text, where=str(path), kind="a file of presets", page="docs/server.md", error=SteeringError)
    presets = file.validate(_PresetsFile).presets
    for name, expression in presets.items():
        if name == "latest":
            raise file.mistake(("presets", name), "programs for Ollama add this to every model's name")
        try:
            Steerings.check(expression)
        except LocalsteerError as error:
            raise file.mistake(("presets", name), error.message) from None
    return presets
