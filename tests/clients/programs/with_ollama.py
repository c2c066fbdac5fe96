"""Ollama's own client."""

from typing import Any

from ollama import Client
from scene import ASKING, MAX_TOKENS, MESSAGES, MODEL, QUESTION, STEERED, TOOL, URL, WITH_TOOLS, tell, weather

client = Client(URL)
options = {"temperature": 0, "seed": 1, "num_predict": MAX_TOKENS}


def chat(model: str) -> str | None:
    return client.chat(model=model, messages=MESSAGES, options=options).message.content


def agent(model: str, stream: bool) -> dict[str, Any]:
    """Two steps: the model calls, reads the result, and answers."""
    messages = list(ASKING)
    length = options | {"num_predict": 120}

    def ask() -> tuple[str, list[Any]]:
        if not stream:
            message = client.chat(model=model, messages=messages, tools=[TOOL], options=length).message
            return message.content or "", list(message.tool_calls or ())
        parts = [one.message for one in client.chat(model=model, messages=messages, tools=[TOOL], options=length, stream=True)]
        return "".join(one.content or "" for one in parts), [call for one in parts for call in one.tool_calls or ()]

    content, calls = ask()
    messages.append({"role": "assistant", "content": content, "tool_calls": calls})
    for call in calls:
        messages.append({"role": "tool", "tool_name": call.function.name, "content": weather(**call.function.arguments)})
    return {"calls": [dict(call.function.arguments) for call in calls], "answer": ask()[0]}


if WITH_TOOLS:
    tell(agents=[agent(model, stream) for model in (MODEL, STEERED) for stream in (False, True)])
else:
    tell(
        plain=chat(MODEL),
        streamed="".join(
            one.message.content or "" for one in client.chat(model=MODEL, messages=MESSAGES, options=options, stream=True)
        ),
        steered=chat(STEERED),
        generated=client.generate(model=MODEL, prompt=QUESTION, options=options).response,
        names=[one.model for one in client.list().models],
        embedding=len(client.embed(model=MODEL, input="A sunny day.").embeddings[0]),
    )
