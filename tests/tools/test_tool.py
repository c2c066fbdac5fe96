from __future__ import annotations

import pytest

from localsteer.errors import LocalsteerError
from localsteer.tools.tool import tool_of
from tests.tools.made import WEATHER_DOCUMENT


def test_a_tool_is_told_as_openai_and_ollama_tell_it() -> None:
    tool = tool_of(WEATHER_DOCUMENT)
    assert (tool.name, list(tool.parameters["properties"]), tool.document) == ("get_weather", ["city", "days"], WEATHER_DOCUMENT)
    empty = tool_of({"type": "function", "function": {"name": "now"}})
    assert empty.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "document",
    [
        7,
        {},
        {"type": "retrieval"},
        {"type": "function"},
        {"type": "function", "function": {}},
        {"type": "function", "function": {"name": ""}},
        {"type": "function", "function": {"name": "a b"}},
        {"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}},
        {"type": "function", "function": {"name": "a", "parameters": []}} | {"function": {"name": "a", "parameters": [1]}},
    ],
)
def test_what_is_no_tool_is_refused(document: object) -> None:
    with pytest.raises(LocalsteerError, match="tool"):
        tool_of(document)
