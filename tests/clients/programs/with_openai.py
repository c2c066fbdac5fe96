"""OpenAI's own client."""

import json
from typing import Any

from openai import OpenAI
from scene import ASKING, LENGTHS, MESSAGES, MODEL, SETTINGS, STEERED, TOOL, URL, WITH_TOOLS, tell, weather

client = OpenAI(base_url=f"{URL}/v1", api_key="none")
create = client.chat.completions.create


def chat(model: str) -> str | None:
    return create(model=model, messages=MESSAGES, **SETTINGS).choices[0].message.content


def streamed() -> str:
    chunks = create(model=MODEL, messages=MESSAGES, stream=True, **SETTINGS)
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def agent(model: str, stream: bool) -> dict[str, Any]:
    """Two steps: the model calls, reads the result, and answers."""
    messages = list(ASKING)

    def ask() -> Any:
        if not stream:
            return create(model=model, messages=messages, tools=[TOOL], **LENGTHS).choices[0].message
        with client.chat.completions.stream(model=model, messages=messages, tools=[TOOL], **LENGTHS) as events:
            for _ in events:
                pass
            return events.get_final_completion().choices[0].message

    first = ask()
    calls = [json.loads(call.function.arguments) for call in first.tool_calls or ()]
    messages.append(first.to_dict())
    for call, arguments in zip(first.tool_calls or (), calls, strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": weather(**arguments)})
    return {"calls": calls, "answer": ask().content}


if WITH_TOOLS:
    tell(agents=[agent(model, stream) for model in (MODEL, STEERED) for stream in (False, True)])
else:
    tell(
        plain=chat(MODEL),
        streamed=streamed(),
        steered=chat(STEERED),
        names=[one.id for one in client.models.list()],
        embedding=len(client.embeddings.create(model=MODEL, input="A sunny day.").data[0].embedding),
    )
