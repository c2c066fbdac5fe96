"""`/v1/messages` and `/v1/messages/count_tokens`, as programs for Anthropic's servers use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localsteer.server.guard import Access
from tests.server.conftest import HELLO, Serve, Served
from tests.server.test_tools import THINKS, WITH_TOOLS, model_of

PATH = "/v1/messages"
SCHEMA = {"type": "object", "properties": {"in": {"type": "string", "enum": ["red", "blue"]}}, "required": ["in"]}
PAINT = {"name": "paint", "description": "Paints the boat.", "input_schema": SCHEMA}
MUST = {"tools": [PAINT], "tool_choice": {"type": "tool", "name": "paint"}, "max_tokens": 200, "temperature": 1}
RESULTS: list[dict[str, Any]] = [
    *HELLO,
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "red or blue", "signature": ""},
            {"type": "text", "text": "let us see"},
            {"type": "tool_use", "id": "toolu_1", "name": "paint", "input": {"in": "red"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"}]},
]


def ask(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.client.post(PATH, json={"messages": HELLO, "max_tokens": 6, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def stream(served: Served, **body: Any) -> list[dict[str, Any]]:
    """The events of a streamed answer, each of which is called by its type."""
    given = {"messages": HELLO, "max_tokens": 6, "temperature": 0, "stream": True, **body}
    answer = served.client.post(PATH, json=given)
    assert answer.status_code == 200
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [event["type"] for event in events]
    return events


def count(served: Served, **body: Any) -> int:
    answer = served.client.post(f"{PATH}/count_tokens", json={"messages": HELLO, **body})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["input_tokens"])


@pytest.fixture
def calling(tmp_path: Path, serve: Serve) -> Iterator[Served]:
    with model_of(tmp_path, WITH_TOOLS) as model:
        yield serve(model=model, vectors=None)


@pytest.fixture
def thinking(tmp_path: Path, serve: Serve) -> Iterator[Served]:
    with model_of(tmp_path, THINKS) as model:
        yield serve(model=model, vectors=None)


def test_an_answer_is_the_one_of_the_other_api(served: Served) -> None:
    document = ask(served)
    other = served.chat()
    assert document["content"] == [{"type": "text", "text": other["choices"][0]["message"]["content"]}]
    assert (document["type"], document["role"], document["model"]) == ("message", "assistant", "demo")
    assert (document["stop_reason"], document["stop_sequence"]) == ("max_tokens", None)
    usage = document["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == other["usage"]["prompt_tokens"] == count(served)
    assert usage["output_tokens"] == 6


def test_a_stream_holds_the_same(served: Served) -> None:
    whole, events = ask(served), stream(served)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == whole["content"][0]["text"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    assert events[-2]["usage"]["output_tokens"] == 6


def test_a_stop_sequence_is_told(served: Served) -> None:
    text = served.chat()["choices"][0]["message"]["content"]
    document = ask(served, stop_sequences=["never met", text[2]])
    assert (document["stop_reason"], document["stop_sequence"]) == ("stop_sequence", text[2])
    assert document["content"] == [{"type": "text", "text": text[: text.index(text[2])]}]


def test_the_system_prompt_is_a_text_or_blocks(served: Served) -> None:
    text = ask(served, system="be good")["usage"]
    blocks = ask(served, system=[{"type": "text", "text": "be "}, {"type": "text", "text": "good"}])["usage"]
    chat = served.chat(messages=[{"role": "system", "content": "be good"}, *HELLO])["usage"]["prompt_tokens"]
    for usage in (text, blocks):
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat


def test_it_is_steered_by_body_and_name(served: Served) -> None:
    for asked in ({"steering": "0.5 happy"}, {"model": "demo:happy=0.5"}):
        assert ask(served, **asked)["steering"]["expression"] == "0.5 happy"
    assert stream(served, steering="0.5 happy")[-2]["steering"]["expression"] == "0.5 happy"
    document = ask(served, model="claude-opus")
    assert document["model"] == "demo"
    assert "claude-opus" in document["steering"]["notes"][0]


@pytest.mark.parametrize("choice", [{"type": "tool", "name": "paint"}, {"type": "any", "disable_parallel_tool_use": True}])
def test_a_tool_is_called(calling: Served, choice: dict[str, Any]) -> None:
    document = ask(calling, **{**MUST, "tool_choice": choice})
    assert document["stop_reason"] == "tool_use"
    (call,) = document["content"]
    assert (call["type"], call["name"], call["id"][:6]) == ("tool_use", "paint", "toolu_")
    assert call["input"]["in"] in ("red", "blue")


def test_a_call_is_streamed(calling: Served) -> None:
    events = stream(calling, **MUST)
    (begun,) = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert (begun["type"], begun["input"]) == ("tool_use", {})
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(delta["partial_json"] for delta in deltas))["in"] in ("red", "blue")
    assert len(deltas) > 3
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_call_in_which_a_stop_string_stands_is_none(calling: Served) -> None:
    red = {**SCHEMA, "properties": {"in": {"const": "red"}}}
    asked = {**MUST, "tools": [{**PAINT, "input_schema": red}], "stop_sequences": ["ed"]}
    document = ask(calling, **asked)
    ends = {"stop_reason": "stop_sequence", "stop_sequence": "ed"}
    assert not [block for block in document["content"] if block["type"] == "tool_use"]
    assert {key: document[key] for key in ends} == stream(calling, **asked)[-2]["delta"] == ends


def test_results_of_calls_are_part_of_the_conversation(calling: Served) -> None:
    assert count(calling, messages=RESULTS, tools=[PAINT]) > count(calling, tools=[PAINT]) + 10
    failed = [*RESULTS[:-1], {"role": "user", "content": [{**RESULTS[-1]["content"][0], "is_error": True}]}]
    assert count(calling, messages=failed, tools=[PAINT]) > count(calling, messages=RESULTS, tools=[PAINT])
    assert ask(calling, messages=RESULTS, tools=[PAINT])["content"]
    assert count(calling, tools=[PAINT], tool_choice={"type": "none"}) == count(calling)


def test_what_is_thought_is_a_block_of_its_own(thinking: Served) -> None:
    (block,) = ask(thinking, max_tokens=12)["content"]
    assert block["type"] == "thinking"
    deltas = [event["delta"] for event in stream(thinking, max_tokens=12) if event["type"] == "content_block_delta"]
    assert "".join(delta["thinking"] for delta in deltas).strip() == block["thinking"]
    assert ask(thinking, max_tokens=12, thinking={"type": "disabled"})["content"][0]["type"] == "text"
    document = ask(thinking, thinking={"type": "enabled", "budget_tokens": 1024})
    assert document["content"][0]["type"] == "thinking"
    assert "budget_tokens" in document["steering"]["notes"][0]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "document"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "think"),
        ({"tool_choice": {"type": "any"}}, "tool"),
        ({"steering": "0.5 nothing-like-it"}, "nothing-like-it"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(served: Served, asked: dict[str, Any], named: str) -> None:
    answer = served.client.post(PATH, json={"messages": HELLO, "max_tokens": 6, **asked})
    document = answer.json()
    assert answer.status_code == 400
    assert (document["type"], document["error"]["type"]) == ("error", "invalid_request_error")
    assert named in document["error"]["message"]


def test_the_key_may_be_given_as_anthropics_clients_do(serve: Serve) -> None:
    served = serve(access=Access(api_key="a secret"))
    body = {"messages": HELLO}
    refused = served.client.post(f"{PATH}/count_tokens", json=body, headers={"x-api-key": "another"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    headers = {"x-api-key": "a secret", "anthropic-version": "2023-06-01"}
    assert served.client.post(f"{PATH}/count_tokens", json=body, headers=headers).status_code == 200


def test_other_models_are_refused_where_that_is_asked_for(serve: Serve) -> None:
    served = serve(strict=True)
    for path in (PATH, f"{PATH}/count_tokens"):
        answer = served.client.post(path, json={"messages": HELLO, "model": "claude-opus", "max_tokens": 2})
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_a_stream_that_fails_says_so(fresh: Served) -> None:
    fresh.batch.failure = ValueError("/secret/place is wrong")
    last = stream(fresh)[-1]
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert "secret" not in last["error"]["message"]
