"""Anthropic's own client."""

from typing import Any

from anthropic import Anthropic
from scene import MAX_TOKENS, MESSAGES, MODEL, ORDER, PARAMETERS, STEERED, URL, WEATHER_QUESTION, WITH_TOOLS, tell, weather

# In the body: the client's own calls take no `temperature` in 2.14.0.
GREEDY = {"temperature": 0}
client = Anthropic(base_url=URL, api_key="none")
TOOL: Any = {"name": "get_weather", "description": "Current weather of a city.", "input_schema": PARAMETERS}


def chat(model: str) -> str:
    answer = client.messages.create(model=model, messages=MESSAGES, max_tokens=MAX_TOKENS, extra_body=GREEDY)
    return "".join(block.text for block in answer.content if block.type == "text")


def streamed() -> str:
    with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=MAX_TOKENS, extra_body=GREEDY) as stream:
        return "".join(stream.text_stream)


def agent(model: str, stream: bool) -> dict[str, Any]:
    """Two steps: the model calls, reads the result, and answers."""
    messages: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    given: dict[str, Any] = {"model": model, "max_tokens": 120, "system": ORDER, "tools": [TOOL], "extra_body": GREEDY}

    def ask() -> Any:
        if not stream:
            return client.messages.create(messages=messages, **given)
        with client.messages.stream(messages=messages, **given) as events:
            return events.get_final_message()

    first = ask()
    calls = [block for block in first.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": weather(**call.input)} for call in calls]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    answer = "".join(block.text for block in ask().content if block.type == "text")
    return {"calls": [call.input for call in calls], "answer": answer}


if WITH_TOOLS:
    tell(agents=[agent(model, stream) for model in (MODEL, STEERED) for stream in (False, True)])
else:
    tell(
        plain=chat(MODEL),
        streamed=streamed(),
        steered=chat(STEERED),
        tokens=client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens,
    )
