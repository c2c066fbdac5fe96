"""What every client here is given, and how it tells what it got: the arguments are the server's address and the model's name."""

from __future__ import annotations

import json
import sys
from typing import Any

URL, MODEL = sys.argv[1:3]
WITH_TOOLS = "--tools" in sys.argv
STEERED = f"{MODEL}:happy=1"
QUESTION = "How was your day?"
MAX_TOKENS = 32
SETTINGS: dict[str, Any] = {"temperature": 0, "seed": 1, "max_tokens": MAX_TOKENS}
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ORDER = "Use the tool to look up the weather, then answer in one short sentence."
WEATHER_QUESTION = "How warm is it in Lisbon?"
ASKING: Any = [{"role": "system", "content": ORDER}, {"role": "user", "content": WEATHER_QUESTION}]
LENGTHS: dict[str, Any] = SETTINGS | {"max_tokens": 120}  # room for a call and a sentence
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Current weather of a city.", "parameters": PARAMETERS},
}


def weather(city: str) -> str:
    """What the tool finds."""
    return f"In {city} it is 31 degrees and sunny."


def tell(**found: Any) -> None:
    """Hand over what was found, on the last line."""
    print(json.dumps(found))
