"""A tool, and a call of one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localsteer.errors import LocalsteerError

_NAME = re.compile(r"[\w.:/-]{1,128}")


@dataclass(frozen=True)
class Tool:
    """What a model may call.

    Attributes:
        name: letters, digits, and _ . : / -
        parameters: the JSON schema of its arguments, an object.
        document: all that is said of it, as OpenAI's API has it.
    """

    name: str
    parameters: Mapping[str, Any]
    document: Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A call.

    Attributes:
        name: of the tool.
        arguments: a JSON object, as it was written.
    """

    name: str
    arguments: str

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are complete; those of a call that is told while it is written may be cut off."""
        try:
            json.loads(self.arguments)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class MoreArguments:
    """More of the arguments of the latest call, which is told while it is written: they go on behind what was told of them.

    Attributes:
        text: of the JSON object.
    """

    text: str


def tool_of(document: object) -> Tool:
    """A tool as OpenAI's API and Ollama's describe one.

    Raises:
        LocalsteerError: it is no function, or has no name, or a name or parameters that cannot be.
    """
    function = document.get("function") if isinstance(document, dict) and document.get("type") == "function" else None
    if not isinstance(document, dict) or not isinstance(function, dict):
        raise LocalsteerError('A tool is {"type": "function", "function": {"name": ..., "parameters": {...}}}.')
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LocalsteerError("The name of a tool has 1 to 128 letters, digits, and _ . : / -")
    parameters = function.get("parameters") or {"properties": {}}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise LocalsteerError(f'The parameters of the tool "{name}" are no JSON schema of an object.')
    return Tool(name, {"type": "object", **parameters}, document)
