"""LangChain's ChatOpenAI."""

from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from scene import LENGTHS, MODEL, ORDER, QUESTION, SETTINGS, STEERED, URL, WEATHER_QUESTION, WITH_TOOLS, tell, weather


def model_of(name: str, settings: dict[str, Any] = SETTINGS) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=f"{URL}/v1", api_key="none", **settings)


@tool
def get_weather(city: str) -> str:
    """Current weather of a city."""
    return weather(city)


def agent(name: str, stream: bool) -> dict[str, Any]:
    """Two steps: the model calls, reads the result, and answers."""
    model = model_of(name, LENGTHS).bind_tools([get_weather])
    messages: list[Any] = [SystemMessage(ORDER), HumanMessage(WEATHER_QUESTION)]

    def ask() -> Any:
        if not stream:
            return model.invoke(messages)
        chunks = iter(model.stream(messages))
        whole = next(chunks)
        for chunk in chunks:
            whole += chunk
        return whole

    first = ask()
    messages.append(first)
    for call in first.tool_calls:
        messages.append(ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]))
    return {"calls": [call["args"] for call in first.tool_calls], "answer": ask().content}


if WITH_TOOLS:
    tell(agents=[agent(name, stream) for name in (MODEL, STEERED) for stream in (False, True)])
else:
    tell(
        plain=model_of(MODEL).invoke(QUESTION).content,
        streamed="".join(chunk.content for chunk in model_of(MODEL).stream(QUESTION)),
        steered=model_of(STEERED).invoke(QUESTION).content,
    )
