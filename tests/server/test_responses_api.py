"""`/v1/responses`, as programs for OpenAI's servers use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localsteer.server.kept_responses import Kept, KeptResponses, UnknownResponseError
from tests.server.conftest import HELLO, Serve, Served
from tests.server.test_tools import THINKS, WITH_TOOLS, model_of

PATH = "/v1/responses"
SCHEMA = {"type": "object", "properties": {"in": {"type": "string", "enum": ["red", "blue"]}}, "required": ["in"]}
PAINT = {"type": "function", "name": "paint", "description": "Paints the boat.", "parameters": SCHEMA}
MUST = {
    "tools": [PAINT],
    "tool_choice": {"type": "function", "name": "paint"},
    "max_output_tokens": 200,
    "temperature": 1,
}


def ask(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.client.post(PATH, json={"input": "good day", "max_output_tokens": 6, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def stream(served: Served, **body: Any) -> list[dict[str, Any]]:
    """The events of a streamed answer: called by their types, and counted."""
    given = {"input": "good day", "max_output_tokens": 6, "temperature": 0, "stream": True, **body}
    answer = served.client.post(PATH, json=given)
    assert answer.status_code == 200
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def text_of(document: dict[str, Any]) -> str:
    (item,) = document["output"]
    (part,) = item["content"]
    assert (item["type"], part["type"]) == ("message", "output_text")
    return str(part["text"])


def read(document: dict[str, Any]) -> int:
    return int(document["usage"]["input_tokens"])


@pytest.fixture
def calling(tmp_path: Path, serve: Serve) -> Iterator[Served]:
    with model_of(tmp_path, WITH_TOOLS) as model:
        yield serve(model=model, vectors=None)


@pytest.fixture
def thinking(tmp_path: Path, serve: Serve) -> Iterator[Served]:
    with model_of(tmp_path, THINKS) as model:
        yield serve(model=model, vectors=None)


def test_an_answer_is_the_one_of_the_older_api(served: Served) -> None:
    document, other = ask(served), served.chat()
    assert text_of(document) == other["choices"][0]["message"]["content"]
    assert (document["object"], document["status"]) == ("response", "incomplete")
    assert document["incomplete_details"] == {"reason": "max_output_tokens"}
    assert read(document) == other["usage"]["prompt_tokens"]
    assert document["usage"]["total_tokens"] == read(document) + 6


def test_the_input_is_a_text_or_items(served: Served) -> None:
    whole = ask(served, input="good day", instructions="be good")
    system = {"role": "developer", "content": [{"type": "input_text", "text": "be good"}]}
    items = ask(served, input=[system, {"type": "message", **HELLO[0]}])
    assert text_of(items) == text_of(whole)
    assert read(items) == read(whole) > read(ask(served))


def test_a_stream_holds_the_same(served: Served) -> None:
    whole, events = ask(served), stream(served)
    kinds = list(dict.fromkeys(event["type"].removeprefix("response.") for event in events))
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    last = events[-1]["response"]
    assert "".join(deltas) == text_of(last) == text_of(whole)
    assert last["output"] == [events[-2]["item"]]
    assert last["usage"]["output_tokens"] == 6


def test_it_is_steered_by_body_and_name(served: Served) -> None:
    for asked in ({"steering": "0.5 happy"}, {"model": "demo:happy=0.5"}):
        assert ask(served, **asked)["steering"]["expression"] == "0.5 happy"
    assert stream(served, steering="0.5 happy")[-1]["response"]["steering"]["expression"] == "0.5 happy"
    document = ask(served, model="gpt-5")
    assert document["model"] == "demo"
    assert "gpt-5" in document["steering"]["notes"][0]


def test_a_tool_is_called_and_its_result_is_read(calling: Served) -> None:
    document = ask(calling, **MUST)
    (call,) = document["output"]
    assert (document["status"], call["type"], call["name"]) == ("completed", "function_call", "paint")
    assert json.loads(call["arguments"])["in"] in ("red", "blue")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
    kept = ask(calling, input=[result], previous_response_id=document["id"], tools=[PAINT])
    sent = ask(calling, input=[*HELLO, call, result], tools=[PAINT])
    assert kept["output"][0]["content"] == sent["output"][0]["content"]
    assert read(kept) == read(sent) > read(ask(calling, tools=[PAINT])) + 10


def test_a_call_is_streamed(calling: Served) -> None:
    events = stream(calling, **MUST)
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert "".join(deltas) == done["arguments"] == events[-1]["response"]["output"][0]["arguments"]
    assert len(deltas) > 3
    assert events[-1]["type"] == "response.completed"


def test_a_call_that_is_cut_off_is_told_and_not_gone_on_with(calling: Served) -> None:
    events = stream(calling, **{**MUST, "max_output_tokens": 49})
    last = events[-1]["response"]
    (call,) = last["output"]
    assert (events[-1]["type"], call["type"], call["status"]) == ("response.incomplete", "function_call", "incomplete")
    assert '{"in": "blue"}'.startswith(call["arguments"][:7])
    assert ask(calling, input="and now?", previous_response_id=last["id"])["output"]


def test_an_answer_follows_a_form(served: Served) -> None:
    form = {"type": "json_schema", "name": "colour", "schema": SCHEMA, "strict": True}
    assert json.loads(text_of(ask(served, text={"format": form}, max_output_tokens=60)))["in"] in ("red", "blue")


def test_what_is_thought_is_an_item_of_its_own(thinking: Served) -> None:
    document = ask(thinking, max_output_tokens=12)
    (item,) = document["output"]
    assert (item["type"], item["summary"]) == ("reasoning", [])
    assert document["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    events = stream(thinking, max_output_tokens=12)
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas).strip() == item["content"][0]["text"]
    assert text_of(ask(thinking, max_output_tokens=12, reasoning={"effort": "none"}))
    sent = ask(thinking, input=[*HELLO, item, {"role": "assistant", "content": "ok"}, *HELLO])
    assert sent["status"] == "incomplete"


@pytest.mark.parametrize("how", [ask, lambda served: stream(served)[-1]["response"]])
def test_a_conversation_goes_on_from_what_is_kept(served: Served, how: Any) -> None:
    first = how(served)
    second = ask(served, input="more", previous_response_id=first["id"])
    sent = [*HELLO, {"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "more"}]
    assert text_of(second) == text_of(ask(served, input=sent))
    assert read(second) == read(ask(served, input=sent))
    assert second["previous_response_id"] == first["id"]
    third = ask(served, input="more", previous_response_id=second["id"])
    assert read(third) > read(second) > read(first)


def test_instructions_are_not_taken_over(served: Served) -> None:
    plain, told = ask(served), ask(served, instructions="be good")
    assert text_of(told)
    again = [ask(served, input="more", previous_response_id=one["id"], max_output_tokens=1) for one in (plain, told)]
    tokens = [len(served.model.tokenize(text_of(one), add_special=False)) for one in (plain, told)]
    assert read(again[0]) - tokens[0] == read(again[1]) - tokens[1]


def test_what_is_kept_can_be_read_and_deleted(served: Served) -> None:
    document = ask(served)
    path = f"{PATH}/{document['id']}"
    assert served.client.get(path).json() == document
    assert served.client.delete(path).json() == {"id": document["id"], "object": "response", "deleted": True}
    for answer in (served.client.get(path), served.client.delete(path)):
        assert answer.status_code == 404
        assert document["id"] in answer.json()["error"]["message"]


def test_what_is_not_kept_cannot_be_gone_on_from(served: Served) -> None:
    document = ask(served, store=False)
    answer = served.client.post(PATH, json={"input": "more", "previous_response_id": document["id"]})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "previous_response_id"
    assert document["id"] in answer.json()["error"]["message"]


def test_the_oldest_is_dropped() -> None:
    kept = KeptResponses()
    for number in range(300):
        kept.keep(Kept({"id": str(number)}, ()))
    assert kept.find("299").document == {"id": "299"}
    with pytest.raises(UnknownResponseError, match='"0"'):
        kept.find("0")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ({"reasoning": {"effort": "high"}}, "reasoning_effort"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(served: Served, asked: dict[str, Any], named: str) -> None:
    answer = served.client.post(PATH, json={"input": "good day", **asked})
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["error"]["message"]


def test_a_stream_that_fails_says_so(fresh: Served) -> None:
    fresh.batch.failure = ValueError("/secret/place is wrong")
    last = stream(fresh)[-1]
    assert last["type"] == "response.failed"
    assert (last["response"]["status"], last["response"]["error"]["code"]) == ("failed", "server_error")
    assert "secret" not in last["response"]["error"]["message"]
    assert fresh.client.get(f"{PATH}/{last['response']['id']}").status_code == 404
