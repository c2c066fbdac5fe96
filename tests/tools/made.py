"""Two tools, and calls of them in all forms."""

from __future__ import annotations

import json
from typing import Any

from localsteer.tools.form import GENERIC, IDENTITY, LLAMA, Form, Tags
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
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_weather", {"city": 'a "b" </tool_call> [}é', "days": 3}),
    ("move", {"to": {"x": 1.5}, "how": "slow"}),
)
HERMES = Form("object", head='<tool_call>\n{"name": "', tail="}\n</tool_call>", between="\n")
QWEN_CODER = Form(
    "named",
    head="<tool_call>\n<function=",
    middle=">",
    tail="\n</function>\n</tool_call>",
    between="\n",
    tags=Tags("\n<parameter=", ">\n", ">\n", "\n</parameter>"),
)
GLM = Form(
    "named",
    head="<tool_call>",
    middle="",
    tail="\n</tool_call>",
    between="\n",
    tags=Tags("\n<arg_key>", "</arg_key>\n<arg_value>", "</arg_key>\n<arg_value>", "</arg_value>"),
)
DEEPSEEK_4 = Form(
    "named",
    opening="<｜DSML｜tool_calls>",
    head='\n<｜DSML｜invoke name="',
    middle='">',
    tail="\n</｜DSML｜invoke>",
    between="",
    closing="\n</｜DSML｜tool_calls>",
    tags=Tags('\n<｜DSML｜parameter name="', '" string="true">', '" string="false">', "</｜DSML｜parameter>"),
)
MISTRAL = Form("object", opening="[TOOL_CALLS][", closing="]")
NEW_MISTRAL = Form("named", head="[TOOL_CALLS]", middle=f"[CALL_ID]{IDENTITY}[ARGS]", tail="", between="")
KIMI = Form(
    "named",
    opening="<|tool_calls_section_begin|>",
    head="<|tool_call_begin|>functions.",
    middle=f":{IDENTITY}<|tool_call_argument_begin|>",
    tail="<|tool_call_end|>",
    between="",
    closing="<|tool_calls_section_end|>",
)
DEEPSEEK = Form(
    "named",
    opening="<｜tool▁calls▁begin｜>",
    head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    middle="\n```json\n",
    tail="\n```<｜tool▁call▁end｜>",
    between="\n",
    closing="<｜tool▁calls▁end｜>",
)
COMMAND = Form(
    "object",
    opening="<|START_ACTION|>[",
    head=f'\n    {{"tool_call_id": "{IDENTITY}", "tool_name": "',
    middle='", "parameters": ',
    between=",",
    closing="\n]<|END_ACTION|>",
    name="tool_name",
    key="parameters",
)
APERTUS = Form("named", opening="<|tools_prefix|>[", head='{"', middle='": ', between=", ", closing="]<|tools_suffix|>")
MINIMAX = Form("object", opening="<tool_calls>", head='\n{"name": "', between="", closing="\n</tool_calls>")
FUNCTIONARY = Form("named", head="<function=", middle=">", tail="</function>", between="")
FORMS = {
    "hermes": HERMES,
    "qwen coder": QWEN_CODER,
    "glm": GLM,
    "deepseek 4": DEEPSEEK_4,
    "deepseek": DEEPSEEK,
    "mistral": MISTRAL,
    "new mistral": NEW_MISTRAL,
    "kimi": KIMI,
    "command": COMMAND,
    "apertus": APERTUS,
    "minimax": MINIMAX,
    "functionary": FUNCTIONARY,
    "llama": LLAMA,
    "generic": GENERIC,
}


def called(*calls: tuple[str, dict[str, Any]]) -> list[str | ToolCall]:
    return [ToolCall(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]


def written(form: Form, *calls: tuple[str, dict[str, Any]], identity: str = "7") -> str:
    """Calls as the form's models write them."""
    each = [f"{form.head}{name}{form.middle}{_arguments(form, arguments)}{form.tail}" for name, arguments in calls]
    text = f"{form.opening}{(form.between or '').join(each)}{form.closing}".replace(IDENTITY, identity)
    return f"[{text}]" if form.kind == "bare" and len(calls) > 1 else text


def _arguments(form: Form, arguments: dict[str, Any]) -> str:
    tags = form.tags
    if tags is None:
        return json.dumps(arguments, ensure_ascii=False)
    return "".join(
        f"{tags.before}{key}{tags.text}{value}{tags.after}"
        if isinstance(value, str)
        else f"{tags.before}{key}{tags.other}{json.dumps(value)}{tags.after}"
        for key, value in arguments.items()
    )
