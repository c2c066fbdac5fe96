"""LiteLLM, by OpenAI's API and by Ollama's."""

from typing import Any

import litellm
from scene import ASKING, LENGTHS, MESSAGES, MODEL, SETTINGS, STEERED, TOOL, URL, WITH_TOOLS, tell


def complete(model: str, **more: Any) -> Any:
    given = SETTINGS | {"messages": MESSAGES} | more
    return litellm.completion(model=f"openai/{model}", api_base=f"{URL}/v1", api_key="none", **given)


def chat(model: str) -> str:
    return complete(model).choices[0].message.content


if WITH_TOOLS:
    found = [complete(model, messages=ASKING, tools=[TOOL], **LENGTHS).choices[0].message for model in (MODEL, STEERED)]
    tell(calls=[[call.function.arguments for call in one.tool_calls or ()] for one in found])
else:
    by_ollama = litellm.completion(model=f"ollama_chat/{MODEL}", api_base=URL, messages=MESSAGES, **SETTINGS)
    tell(
        plain=chat(MODEL),
        streamed="".join(chunk.choices[0].delta.content or "" for chunk in complete(MODEL, stream=True)),
        steered=chat(STEERED),
        by_ollama=by_ollama.choices[0].message.content,
    )
