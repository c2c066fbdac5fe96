"""Two tools, and calls of them in all forms."""

from __future__ import annotations

import json
from typing import Any

from localsteer.tools.form import GENERIC, HERMES, LLAMA, MISTRAL, QWEN_CODER, Form
from localsteer.tools.tool import Tool, ToolCall, tool_of

WEATHER_DOCUMENT: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city"],
        },
    },
}
WEATHER = tool_of(WEATHER_DOCUMENT)
MOVE = tool_of(
    {
        "type": "function",
        "function": {
            "name": "move",
            "parameters": {
                "type": "object",
                "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
                "properties": {"to": {"$ref": "#/$defs/point"}, "how": {"type": "string", "enum": ["fast", "slow"]}},
                "required": ["to", "how"],
            },
        },
    }
)
TOOLS: tuple[Tool, ...] = (WEATHER, MOVE)
CALLS = (("get_weather", {"city": 'a "b" </tool_call> [}é', "days": 3}), ("move", {"to": {"x": 1.5}, "how": "slow"}))
FORMS = {"hermes": HERMES, "qwen coder": QWEN_CODER, "mistral": MISTRAL, "llama": LLAMA, "generic": GENERIC}


def called(*calls: tuple[str, dict[str, Any]]) -> list[str | ToolCall]:
    return [ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]


def written(form: Form, *calls: tuple[str, dict[str, Any]]) -> str:
    """Calls as the form's models write them."""
    bodies = [json.dumps({"name": name, form.key: arguments}, ensure_ascii=False) for name, arguments in calls]
    if form is MISTRAL:
        return f"[TOOL_CALLS][{', '.join(bodies)}]"
    if form is HERMES:
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    if form is QWEN_CODER:
        return "\n".join(_in_tags(name, arguments) for name, arguments in calls)
    return bodies[0] if len(bodies) == 1 else f"[{', '.join(bodies)}]"


def _in_tags(name: str, arguments: dict[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    parameters = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"
