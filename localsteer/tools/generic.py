"""Tools for models whose chat template knows none: they are described in words, and calls and results become texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from localsteer.llama.chat_template import Message
from localsteer.tools.tool import Tool

_MAY = "You may call one of these tools, or several, if that helps; if not, just answer."
_HOW = (
    'To call one, write nothing but {"name": NAME, "arguments": {...}}, arguments as its schema wants them; to call several, '
    "write a list of such objects. The result comes with the next message."
)


def described(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """A conversation for a template without tools: these are described in a system text, calls and results stand as texts.

    Args:
        messages: the turns.
        tools: what may be called; none leaves only the calls and results of before.
    """
    turns = [_as_text(message) for message in messages]
    if not tools:
        return turns
    about = "\n".join([_MAY, *(json.dumps(_shown(tool), ensure_ascii=False) for tool in tools), _HOW])
    if turns and turns[0].role == "system":
        return [replace(turns[0], content=f"{turns[0].content}\n\n{about}"), *turns[1:]]
    return [Message("system", about), *turns]


def _shown(tool: Tool) -> Mapping[str, Any]:
    function = tool.document.get("function", {})
    about = {"description": function["description"]} if function.get("description") else {}
    return {"name": tool.name, **about, "parameters": tool.parameters}


def _as_text(message: Message) -> Message:
    if message.role == "tool":
        name = f" of {message.name}" if message.name else ""
        return Message("user", f"Result{name}: {message.content}")
    if not message.tool_calls:
        return message
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
    text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
    return replace(message, content=f"{message.content}\n{text}".strip(), tool_calls=())
