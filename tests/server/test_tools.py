"""Calls of tools, and reasoning, through both APIs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from localsteer.llama.model import Model
from tests.server.conftest import HELLO, PATIENCE, Listen, Serve, Served, wait_until
from tests.server.test_openai_api import steering_of, stream
from tests.tiny_models import write_tiny_model

TURNS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
"""
WITH_TOOLS = "{% for t in tools %}{{ t | tojson }}{% endfor %}" + TURNS + "{% endif %}"
# The name stands outside, arguments have tags, and the mark of a call is a token that adds no text.
TAGS = (
    "{% for t in tools %}{{ t | tojson }}{% endfor %}"
    + TURNS.replace(
        "<tool_call>{{ c.function | tojson }}</tool_call>",
        "<|im_start|>call {{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
        "<k>{{ k }}</k><v>{{ v if v is string else v | tojson }}</v>{% endfor %}</call>",
    )
    + "{% endif %}"
)
THINKS = TURNS + "<think>\n{% endif %}{# </think> #}"
PAINT = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paints the boat.",
        "parameters": {"type": "object", "properties": {"in": {"type": "string", "enum": ["red", "blue"]}}, "required": ["in"]},
    },
}
SINK = {"type": "function", "function": {"name": "sink"}}
MUST = {
    "tools": [PAINT, SINK],
    "tool_choice": {"type": "function", "function": {"name": "paint"}},
    "max_tokens": 200,
    "temperature": 1,
}
RESULTS = [
    *HELLO,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": '{"in": "red"}'}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "done"},
]


def model_of(folder: Path, template: str) -> Model:
    return Model(write_tiny_model(folder / "model.gguf", chat_template=template), threads=1)


@pytest.fixture(params=["own", "tags", "explained"])
def calling(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Iterator[Served]:
    """Models whose templates know tools, and one to which they are explained."""
    if request.param == "explained":
        yield serve(n_ctx=1024)
        return
    with model_of(tmp_path, WITH_TOOLS if request.param == "own" else TAGS) as model:
        yield serve(model=model, vectors=None)


def assert_call(call: dict[str, Any]) -> None:
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "paint"
    assert json.loads(call["function"]["arguments"])["in"] in ("red", "blue")


def test_a_call_that_has_to_be_made_is_made(calling: Served) -> None:
    (choice,) = calling.chat(**MUST)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert_call(call)


def test_a_template_that_cannot_do_without_a_description_has_an_empty_one(tmp_path: Path, serve: Serve) -> None:
    strict = WITH_TOOLS.replace("{{ t | tojson }}", "{{ t.function.name + ': ' + t.function.description }}")
    with model_of(tmp_path, strict) as model:
        served = serve(model=model, vectors=None)
        few = served.chat(tools=[SINK])["usage"]["prompt_tokens"] - served.chat()["usage"]["prompt_tokens"]
        assert 0 < few < 20  # explained in words it takes a hundred


def test_a_call_is_streamed_while_it_is_written(calling: Served) -> None:
    (whole,) = calling.chat(**MUST, seed=3)["choices"][0]["message"]["tool_calls"]
    events = stream(calling, "/v1/chat/completions", **MUST, seed=3)
    deltas = [event["choices"][0]["delta"] for event in events]
    first, *more = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert len(more) > 3
    assert {call["index"] for call in (first, *more)} == {0}
    assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in more)
    first["function"]["arguments"] += "".join(call["function"]["arguments"] for call in more)
    assert_call(first)
    assert first["function"] == whole["function"]
    assert not "".join(delta.get("content") or "" for delta in deltas)
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_openai_client_puts_calls_together(listen: Listen, tmp_path: Path) -> None:
    offered: list[dict[str, Any]] = [PAINT, FREE_TEXT]
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in offered]
    with model_of(tmp_path, TAGS) as model:
        live = listen(model=model, vectors=None, n_ctx=2048)
        client = OpenAI(base_url=f"{live.url}/v1", api_key="none")
        for seed in range(4):
            asked: Any = {"model": "demo", "messages": HELLO, "max_tokens": 600, "temperature": 1, "seed": seed}
            asked |= {"tools": strict, "tool_choice": "required"}
            with client.chat.completions.stream(**asked) as told:
                deltas = [event.arguments_delta for event in told if event.type == "tool_calls.function.arguments.delta"]
                message: Any = told.get_final_completion().choices[0].message
            answer: Any = client.chat.completions.create(**asked).choices[0].message
            calls, whole = (
                [(one.function.name, one.function.arguments) for one in each.tool_calls] for each in (message, answer)
            )
            assert calls == whole
            assert len(deltas) > len(calls) > 0


def test_ollama_is_told_of_a_call_and_tells_of_its_result(calling: Served) -> None:
    shown = calling.ollama(tools=[PAINT], options={"num_predict": 4})
    assert shown["prompt_eval_count"] > calling.ollama()["prompt_eval_count"]
    calls = [{"function": {"name": "paint", "arguments": {"in": "red"}}}]
    turns = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "paint", "content": "ok"},
    ]
    assert calling.ollama(messages=turns, tools=[PAINT])["done"]


def test_results_of_calls_are_part_of_the_conversation(calling: Served) -> None:
    with_result = calling.chat(messages=RESULTS, tools=[PAINT])
    without = calling.chat(messages=RESULTS[:1], tools=[PAINT])
    assert with_result["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 10


def test_without_a_choice_the_tools_are_not_shown(calling: Served) -> None:
    plain = calling.chat()["usage"]["prompt_tokens"]
    assert calling.chat(tools=[PAINT], tool_choice="none")["usage"]["prompt_tokens"] == plain
    assert calling.chat(tools=[], tool_choice="auto")["usage"]["prompt_tokens"] == plain
    assert calling.chat(tools=[PAINT])["usage"]["prompt_tokens"] > plain


def test_a_call_is_steered_only_where_that_is_asked_for(served: Served) -> None:
    """So that a mood never breaks an argument."""
    asked = {**MUST, "seed": 3, "tools": [{"type": "function", "function": {"name": "paint", "parameters": FREE}}]}

    def arguments(**more: Any) -> str:
        (call,) = served.chat(**asked, **more)["choices"][0]["message"]["tool_calls"]
        return str(call["function"]["arguments"])

    unsteered = arguments()
    assert arguments(steering="4 happy") == unsteered
    assert arguments(steering="4 happy", steer_tools=True) != unsteered


FREE = {"type": "object", "properties": {"in": {"type": "string", "pattern": "^[a-z]{12}$"}}, "required": ["in"]}


def test_an_answer_in_a_form_is_steered_only_where_that_is_asked_for(served: Served) -> None:
    asked = {
        "response_format": {"type": "json_schema", "json_schema": {"schema": FREE}},
        "max_tokens": 99,
        "temperature": 1,
        "seed": 3,
    }
    unsteered = served.chat(**asked)["choices"]
    document = served.chat(**asked, steering="4 happy")
    assert document["choices"] == unsteered
    assert "steer_tools" in document["steering"]["notes"][0]
    assert served.chat(**asked, steering="4 happy", steer_tools=True)["choices"] != unsteered


# In tags its argument stands without quotes.
FREE_TEXT: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "say",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string", "minLength": 3, "maxLength": 9}},
            "required": ["what"],
        },
    },
}


@pytest.mark.parametrize("calling", ["own", "tags"], indirect=True)
def test_a_text_has_the_length_and_the_pattern_of_its_schema(calling: Served) -> None:
    coded = {"type": "object", "properties": {"what": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 9}}}
    for parameters in (FREE_TEXT["function"]["parameters"], {**coded, "required": ["what"]}):
        tool = {"type": "function", "function": {**FREE_TEXT["function"], "parameters": parameters}}
        for seed in range(3):
            asked = {"tools": [tool], "max_tokens": 200, "temperature": 1, "seed": seed}
            (choice,) = calling.chat(**asked, tool_choice="required", parallel_tool_calls=False)["choices"]
            (call,) = choice["message"]["tool_calls"]
            jsonschema.validate(json.loads(call["function"]["arguments"]), parameters)
            assert calling.chat(**asked | {"max_tokens": 4})["choices"]  # it may call, and need not


# A tool whose calls are long.
LONG: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {
                "in": {"type": "array", "minItems": 200, "items": {"type": "integer", "minimum": 1000, "maximum": 9999}}
            },
            "required": ["in"],
        },
    },
}
CUT = {"max_tokens": 80, "temperature": 0}


def test_a_call_that_is_cut_at_its_limit_is_no_text_and_told_only_while_it_is_written(calling: Served) -> None:
    (choice,) = calling.chat(tools=[LONG], tool_choice="required", **CUT)["choices"]
    assert (choice["finish_reason"], choice["message"]["content"] or "") == ("length", "")
    assert not choice["message"].get("tool_calls")
    events = stream(calling, "/v1/chat/completions", tools=[LONG], tool_choice="required", **CUT)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    deltas = [event["choices"][0]["delta"] for event in events]
    assert not any(delta.get("content") for delta in deltas)
    told = [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(told).startswith('{"in": ')
    response = calling.client.post(
        "/v1/responses",
        json={
            "input": "Hello",
            "tools": [{"type": "function", **LONG["function"]}],
            "tool_choice": "required",
            "max_output_tokens": 40,
        },
    ).json()
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert not [item for item in response["output"] if item["type"] == "function_call"]
    message = calling.client.post(
        "/v1/messages",
        json={
            "messages": HELLO,
            "max_tokens": 40,
            "tools": [{"name": "paint", "input_schema": LONG["function"]["parameters"]}],
            "tool_choice": {"type": "any"},
        },
    ).json()
    assert message["stop_reason"] == "max_tokens"
    assert not [block for block in message["content"] if block["type"] == "tool_use"]


RED: dict[str, Any] = {"type": "object", "properties": {"in": {"const": "red"}}, "required": ["in"]}


def test_a_call_in_which_a_stop_string_stands_is_none(calling: Served) -> None:
    tool = {"type": "function", "function": {"name": "paint", "parameters": RED}}
    asked: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "max_tokens": 200, "stop": "ed"}
    (choice,) = calling.chat(**asked)["choices"]
    events = stream(calling, "/v1/chat/completions", **asked)
    told = [call["function"]["arguments"] for event in events for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert not choice["message"].get("tool_calls")
    assert '{"in": "red"}'.startswith("".join(told))
    assert choice["finish_reason"] == events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "string", "const": 1},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}},
    ],
)
@pytest.mark.parametrize("calling", ["own", "tags"], indirect=True)
def test_what_nobody_can_satisfy_is_refused_at_once(calling: Served, schema: object) -> None:
    parameters = {"type": "object", "properties": {"in": schema}, "required": ["in"]}
    if isinstance(schema, dict) and "$defs" in schema:
        parameters["$defs"] = schema["$defs"]
    tool = {"type": "function", "function": {"name": "paint", "parameters": parameters}}
    status, error = calling.refused({"tools": [tool], "tool_choice": "required", "max_tokens": 9999})
    assert status == 400
    assert "call0" not in error["message"]  # our own words
    assert calling.chat(max_tokens=2)["choices"]


def test_who_hangs_up_in_the_middle_of_a_call_frees_the_place(listen: Listen, long_model: Model) -> None:
    live = listen(model=long_model, vectors=None, parallel=1, n_ctx=20_000)
    batch = live.served.batch
    body = {"messages": HELLO, "stream": True, "max_tokens": 20_000, "tools": [LONG], "tool_choice": "required"}
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with live.connect() as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        live.wait_until(lambda health: health["running"] == 1)
        drawn = live.served.engine.counters.steps
        wait_until(lambda: live.served.engine.counters.steps > drawn + 20)
        batch.go.clear()
        assert batch.standing.wait(PATIENCE)
    batch.go.set()
    live.wait_until(lambda health: health["running"] == 0)
    assert live.served.engine.counters.answers == {"cancelled": 1}
    assert live.served.chat(max_tokens=2)["choices"]


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": ["paint"]}, "tools"),
        ({"tools": [PAINT, PAINT]}, "tools"),
        ({"tools": [SINK] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}]}, "tools"),
        ({"tools": [PAINT], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [PAINT], "tool_choice": {"type": "function", "function": {"name": "sink"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [PAINT], "response_format": {"type": "json_object"}}, "tools"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}, *HELLO]},
            "messages",
        ),
        ({"functions": [{"name": "f"}]}, None),
    ],
)
def test_tools_that_cannot_be_had_are_refused(served: Served, asked: dict[str, Any], parameter: str | None) -> None:
    status, error = served.refused(asked)
    assert status == 400
    if parameter is not None:
        assert error["param"] == parameter


# gpt-oss's form.
HARMONY = """{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|start|>{{ m.role }}
{%- for c in m.tool_calls or [] %} to=functions.{{ c.function.name }}<|channel|>commentary json<|message|>
{{- c.function.arguments | tojson }}<|call|>{% else %}<|message|>{{ m.content }}<|end|>{% endfor %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|>analysis<|message|> #}"""


@pytest.fixture
def harmony(tmp_path: Path, serve: Serve) -> Iterator[Served]:
    """A model that writes messages in channels, calls among them."""
    with model_of(tmp_path, HARMONY) as model:
        yield serve(model=model, vectors=None)


def test_a_call_in_a_channel_has_to_be_made(harmony: Served) -> None:
    for choice in ("required", MUST["tool_choice"]):
        asked: dict[str, Any] = {**MUST, "tools": [PAINT], "tool_choice": choice, "seed": 3}
        (answer,) = harmony.chat(**asked)["choices"]
        assert (answer["finish_reason"], answer["message"]["content"]) == ("tool_calls", None)
        assert "reasoning_content" not in answer["message"]
        (call,) = answer["message"]["tool_calls"]
        assert_call(call)
        events = stream(harmony, **asked)
        told = [one for event in events for one in event["choices"][0]["delta"].get("tool_calls", ())]
        assert "".join(one["function"]["arguments"] for one in told) == call["function"]["arguments"]
        assert len(told) > 3
    turns = [*HELLO, {**answer["message"]}, {"role": "tool", "tool_call_id": call["id"], "content": "done"}]
    assert harmony.chat(messages=turns, tools=[PAINT], tool_choice="required", max_tokens=200)["choices"][0]["message"][
        "tool_calls"
    ]
    assert harmony.refused({**MUST, "tools": [PAINT], "think": True})[1]["param"] == "think"


@pytest.fixture
def thinking(tmp_path: Path, serve: Serve, folder: Path) -> Iterator[Served]:
    """A model whose replies begin inside the reasoning."""
    with model_of(tmp_path, THINKS) as model:
        yield serve(model=model, vectors=folder)


def test_what_is_thought_is_no_part_of_the_answer(thinking: Served) -> None:
    message = thinking.chat(max_tokens=12)["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"] == ""
    deltas = [event["choices"][0]["delta"] for event in stream(thinking, max_tokens=12)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == message["reasoning_content"]
    assert not "".join(delta.get("content") or "" for delta in deltas)
    document = thinking.ollama(options={"num_predict": 12})
    assert document["message"]["thinking"] == message["reasoning_content"]
    assert "thinking" in thinking.client.post("/api/show", json={"model": "demo"}).json()["capabilities"]


def test_thinking_can_be_turned_off(thinking: Served) -> None:
    for asked in ({"think": False}, {"enable_thinking": False}, {"reasoning_effort": "none"}):
        message = thinking.chat(max_tokens=12, **asked)["choices"][0]["message"]
        assert message["content"]
        assert "reasoning_content" not in message
    assert thinking.ollama(think=False)["message"]["content"]


def test_the_reasoning_is_steered_only_where_that_is_asked_for(thinking: Served) -> None:
    def thought(**more: Any) -> str:
        return str(thinking.chat(max_tokens=12, **more)["choices"][0]["message"]["reasoning_content"])

    assert thought(steering="2 happy") == thought()
    assert thought(steering="2 happy@thinking") != thought()
    document = thinking.chat(steering="2 happy@thinking - formal")
    assert steering_of(document) == "2 happy@thinking - formal"


def test_who_steers_the_reasoning_of_a_model_that_has_none_is_told(served: Served) -> None:
    document = served.chat(steering="2 happy@thinking")
    assert document["choices"][0]["message"] == served.chat()["choices"][0]["message"]
    assert "@thinking" in document["steering"]["notes"][0]


def test_an_answer_in_a_form_begins_at_once(thinking: Served) -> None:
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["red", "blue"]}}}}
    message = thinking.chat(max_tokens=40, **form)["choices"][0]["message"]
    assert json.loads(message["content"]) in ("red", "blue")
    assert thinking.refused({**form, "think": True})[1]["param"] == "think"
