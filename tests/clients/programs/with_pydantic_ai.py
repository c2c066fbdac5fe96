"""pydantic-ai's agents."""

import asyncio
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from scene import LENGTHS, MODEL, ORDER, QUESTION, SETTINGS, STEERED, URL, WEATHER_QUESTION, WITH_TOOLS, tell, weather


def agent_of(name: str, settings: Any = SETTINGS, **more: Any) -> Agent:
    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
    return Agent(OpenAIChatModel(name, provider=provider), model_settings=settings, **more)


async def stream_of(agent: Agent, question: str) -> str:
    async with agent.run_stream(question) as running:
        return "".join([part async for part in running.stream_text(delta=True)])


async def weather_agent(name: str, stream: bool) -> dict[str, Any]:
    """Two steps: the model calls, reads the result, and answers."""
    calls: list[dict[str, str]] = []
    agent = agent_of(name, LENGTHS, system_prompt=ORDER)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Current weather of a city."""
        calls.append({"city": city})
        return weather(city)

    answer = await stream_of(agent, WEATHER_QUESTION) if stream else (await agent.run(WEATHER_QUESTION)).output
    return {"calls": calls, "answer": answer}


async def main() -> None:
    if WITH_TOOLS:
        tell(agents=[await weather_agent(name, stream) for name in (MODEL, STEERED) for stream in (False, True)])
    else:
        tell(
            plain=(await agent_of(MODEL).run(QUESTION)).output,
            streamed=await stream_of(agent_of(MODEL), QUESTION),
            steered=(await agent_of(STEERED).run(QUESTION)).output,
        )


asyncio.run(main())
