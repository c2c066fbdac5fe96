"""Programs that people use, pointed at `localsteer serve` and otherwise unchanged: they chat, stream, steer and call tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from tests.clients.conftest import Client, Served, node_client, python_client

pytestmark = pytest.mark.models

MAKERS: Mapping[str, Callable[[], Client]] = {
    "openai": partial(python_client, "openai", "openai==3.57.0"),
    "ollama": partial(python_client, "ollama", "ollama==0.6.3"),
    "litellm": partial(python_client, "litellm", "litellm==1.110.2"),
    "langchain": partial(python_client, "langchain", "langchain-openai==1.7.4"),
    "pydantic_ai": partial(python_client, "pydantic_ai", "pydantic-ai-slim[openai]==2.68.0"),
    "instructor": partial(python_client, "instructor", "instructor==1.17.0"),
    "llm": partial(python_client, "llm", "llm==0.36"),
    "anthropic": partial(python_client, "anthropic", "anthropic==2.14.0"),
    "node_openai": partial(node_client, "openai", "openai@6.49.0"),
    "node_ai_sdk": partial(node_client, "ai_sdk", "ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7"),
}
CHATTING = [
    "openai",
    "ollama",
    "litellm",
    "langchain",
    "pydantic_ai",
    "llm",
    "anthropic",
    "node_openai",
    "node_ai_sdk",
]
AGENTS = [one for one in CHATTING if one not in ("litellm", "llm")]


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Client:
    """Made before each test gets an empty home of its own."""
    return MAKERS[request.param]()


def same_beginning(text: str, other: str) -> bool:
    """What is drawn at temperature 0 may part at a near tie, later on."""
    return text.split()[:3] == other.split()[:3]


def check_chat(found: Mapping[str, Any]) -> None:
    assert found["plain"].strip()
    assert same_beginning(found["streamed"], found["plain"])
    assert found["steered"].strip()
    assert found["steered"].strip() != found["plain"].strip()


@pytest.mark.parametrize("client", CHATTING, indirect=True)
def test_it_chats_streams_and_steers_by_the_models_name(client: Client, demo_server: Served) -> None:
    found = client.ask(demo_server)
    check_chat(found)
    for text in ("generated", "by_ollama"):
        assert same_beginning(found.get(text, found["plain"]), found["plain"])
    assert found.get("embedding", 576) == 576
    assert set(found.get("names", ["demo:happy"])) >= {"demo:happy"}
    assert found.get("tokens", 1) > 0


@pytest.mark.parametrize("client", CHATTING, indirect=True)
def test_it_does_with_a_larger_model(client: Client, real_server: Served) -> None:
    check_chat(client.ask(real_server))


@pytest.mark.parametrize("client", AGENTS, indirect=True)
def test_an_agent_calls_a_tool_and_answers_from_its_result(client: Client, real_server: Served) -> None:
    agents = client.ask(real_server, "--tools")["agents"]
    assert len(agents) == 4  # unsteered and steered, whole and streamed
    for agent in agents:
        assert [call["city"].partition(",")[0] for call in agent["calls"]] == ["Lisbon"]
        assert "31" in agent["answer"]


@pytest.mark.parametrize("client", ["litellm"], indirect=True)
def test_litellm_hands_over_tools(client: Client, real_server: Served) -> None:
    calls = client.ask(real_server, "--tools")["calls"]
    assert [[json.loads(call)["city"] for call in one] for one in calls] == [["Lisbon"]] * 2


@pytest.mark.parametrize("client", ["instructor"], indirect=True)
def test_instructor_gets_objects(client: Client, demo_server: Served) -> None:
    days = client.ask(demo_server)["days"]
    assert [day["mood"] in ("good", "bad") for day in days] == [True, True]


@pytest.mark.parametrize("client", ["instructor"], indirect=True)
def test_instructor_gets_objects_by_tools_too(client: Client, real_server: Served) -> None:
    days = client.ask(real_server, "--tools")["days"]
    assert [day["mood"] in ("good", "bad") for day in days] == [True] * 4
