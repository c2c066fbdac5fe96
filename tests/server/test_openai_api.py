"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`, as programs for OpenAI's servers use them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import MAX_SEED, Sampling
from localsteer.reading.prompt import chat_tokens
from localsteer.steering.expression import parse_steering
from localsteer.vector.file import write_vector
from tests.conftest import LOGIT_NOISE, assert_greedy, run_alone
from tests.policy.made import push
from tests.server.conftest import HELLO, Serve, Served, tiny_vector
from tests.tiny_models import SPECIAL_TOKENS, VOCABULARY, write_tiny_model
from tests.vector.made_dosing import dosing

TEXT = "good day"
Events = list[dict[str, Any]]


def text_of(document: dict[str, Any], choice: int = 0) -> str:
    answer = document["choices"][choice]
    text = answer["message"]["content"] if "message" in answer else answer["text"]
    assert isinstance(text, str)
    return text


def steering_of(document: dict[str, Any]) -> str:
    expression = document["steering"]["expression"]
    assert isinstance(expression, str)
    return expression


def stream(served: Served, path: str = "/v1/chat/completions", **body: Any) -> Events:
    """The chunks of a streamed answer, which ends as it must."""
    given = {"messages": HELLO, "prompt": TEXT, "max_tokens": 6, "temperature": 0, "stream": True, **body}
    with served.client.stream("POST", path, json=given) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def streamed_text(events: Events, choice: int = 0) -> str:
    choices = [one for event in events for one in event["choices"] if one["index"] == choice]
    return "".join(one["delta"].get("content") or "" if "delta" in one else one["text"] for one in choices)


# Which steering counts


@pytest.mark.parametrize(
    ("body", "header", "name", "applied"),
    [
        ("0.5 happy", "0.5 formal", "demo:mood", "0.5 happy"),
        (None, "0.5 formal", "demo:mood", "0.5 formal"),
        (None, None, "demo:mood", "mood"),
        (None, None, "demo:mood=0.5,formal@2-3=-0.3", "0.5 mood - 0.3 formal@2-3"),
        (None, None, "demo:cheerful", "0.6 happy"),
        (None, None, "demo:cheerful:latest", "0.6 happy"),
        (None, None, "demo:latest", "0.25 calm"),
        (None, None, "demo", "0.25 calm"),
        (None, None, None, "0.25 calm"),
        ("", "0.5 formal", "demo:mood", ""),
        (" ", None, None, ""),
        (None, "", "demo:mood", ""),
        (None, None, "demo:plain", ""),
        (None, "0.5 formal", None, "0.5 formal"),
    ],
)
def test_the_first_that_is_there_counts(
    serve: Serve, body: str | None, header: str | None, name: str | None, applied: str
) -> None:
    served = serve(presets={"cheerful": "0.6 happy", "plain": ""}, default="0.25 calm")
    given: dict[str, Any] = {"messages": HELLO, "prompt": TEXT, "max_tokens": 2, "temperature": 0}
    if body is not None:
        given["steering"] = body
    if name is not None:
        given["model"] = name
    headers = {"X-Steering": header} if header is not None else {}
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = served.client.post(path, json=given, headers=headers)
        assert answer.status_code == 200, answer.text
        assert steering_of(answer.json()) == applied
        assert answer.json()["model"] == (name or "demo")


def test_what_is_said_of_the_steering_is_what_was_done(served: Served) -> None:
    document = served.complete(steering="0.5 happy + 0.5 formal", steer_prompt=True)
    plan = served.service.steerings.plan(parse_steering("0.5 happy + 0.5 formal"), "prompt")
    assert plan is not None
    told = document["steering"]
    terms = told.pop("terms")
    assert told == {
        "expression": "0.5 happy + 0.5 formal",
        "scope": "prompt",
        "relative_dose": pytest.approx(plan.relative_dose),
        "notes": [],
    }
    unsteered = {"expression": "", "scope": "response", "relative_dose": 0.0, "notes": [], "terms": []}
    assert served.complete()["steering"] == unsteered
    assert [(one["term"], one["vector"], one["strength"], one["layers"]) for one in terms] == [
        ("0.5 happy", "happy", 0.5, [1, 2]),
        ("0.5 formal", "formal", 0.5, [1, 2]),
    ]
    assert all(0 < one["relative_dose"] < plan.relative_dose for one in terms if plan.relative_dose)


def test_each_term_says_where_it_works(served: Served) -> None:
    steering = served.complete(steering="-2 happy@2 + !formal@1 + mood@thinking")["steering"]
    assert [(one["term"], one["strength"], one["removed"], one["phase"], one["layers"]) for one in steering["terms"]] == [
        ("-2 happy@2-2", -2.0, False, "answer", [2]),
        ("!formal@1-1", None, True, "answer", [1]),
        ("mood@thinking", 1.0, False, "thinking", [1, 2]),
    ]
    assert steering["terms"][1]["relative_dose"] is None


def test_a_stream_says_at_once_what_is_applied(served: Served) -> None:
    events = stream(served, steering="0.5 happy")
    assert events[0]["steering"] == events[-1]["steering"]
    assert events[0]["steering"]["terms"][0]["term"] == "0.5 happy"


@pytest.mark.parametrize("expression", ["", "0.5 happy", "-happy + 0.5 formal", "!mood"])
@pytest.mark.parametrize("steer_prompt", [False, True])
def test_the_answer_is_the_steered_models(served: Served, expression: str, steer_prompt: bool) -> None:
    model = served.model
    document = served.complete(prompt=TEXT, steering=expression, steer_prompt=steer_prompt, max_tokens=12, logprobs=0)
    plan = served.service.steerings.plan(parse_steering(expression), "prompt" if steer_prompt else "response")
    prompt = tuple(model.tokenize(TEXT))
    with Generator(model) as generator:
        alone = generator.generate(Request(prompt, plan, Sampling(temperature=0, seed=1), 12))
    assert text_of(document) == alone.text
    assert_greedy(model, prompt, alone.tokens, plan.edit if plan is not None else None, steer_prompt=steer_prompt)


def test_an_anchored_answer_is_generators(served: Served) -> None:
    body = {"prompt": TEXT, "steering": "2 happy", "max_tokens": 12, "min_p": 0.5}
    document = served.complete(**body, anchored=True)
    assert document["steering"]["scope"] == "anchored"
    plan = served.service.steerings.plan(parse_steering("2 happy"), "anchored")
    prompt = tuple(served.model.tokenize(TEXT))
    with Generator(served.model) as generator:
        alone = generator.generate(Request(prompt, plan, Sampling(temperature=0, min_p=0.5, seed=1), 12))
    assert text_of(document) == alone.text
    assert streamed_text(stream(served, "/v1/completions", **body, anchored=True)) == alone.text
    for other in ({}, {"anchored": False}, {"anchored": None}):
        plain = served.complete(**body, **other)
        assert plain["steering"]["scope"] == "response"
        assert text_of(plain) != alone.text
    # Where nothing is steered there is nothing to anchor.
    assert text_of(served.complete(prompt=TEXT, anchored=True)) == text_of(served.complete(prompt=TEXT))


def test_a_server_may_anchor_who_does_not_say(serve: Serve) -> None:
    served = serve(anchored=True, default="2 happy")
    body = {"prompt": TEXT, "max_tokens": 12, "min_p": 0.5}
    anchored = served.complete(**body)
    assert anchored["steering"]["scope"] == "anchored"
    assert text_of(anchored) == text_of(serve().complete(**body, steering="2 happy", anchored=True))
    plain = served.complete(**body, anchored=False)
    assert plain["steering"]["scope"] == "response"
    assert text_of(plain) == text_of(serve().complete(**body, steering="2 happy")) != text_of(anchored)
    assert served.complete(**body, steer_prompt=True)["steering"]["scope"] == "prompt"


def test_only_what_is_steered_needs_filters_to_be_anchored(serve: Serve) -> None:
    served = serve(anchored=True)
    body = {"prompt": TEXT, "max_tokens": 12, "top_k": 0, "top_p": 1, "min_p": 0}
    assert text_of(served.complete(**body)) == text_of(serve().complete(**body))


def test_an_anchored_answer_that_cannot_be_had_is_refused(serve: Serve) -> None:
    served = serve()
    steered = {"steering": "2 happy", "anchored": True}
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, error = served.refused({**steered, "steer_prompt": True}, path)
        assert (status, error["param"]) == (400, "anchored")
        assert "not together with steer_prompt" in error["message"]
        status, error = served.refused({**steered, "min_p": 0, "top_p": 1, "top_k": 0}, path)
        assert status == 400
        assert "needs top-k, top-p or min-p" in error["message"]
        assert served.refused({**steered, "anchored": "often"}, path)[0] == 400
        status, error = serve(parallel=1).refused(steered, path)
        assert status == 400
        assert "takes two places" in error["message"]
    # More than there will ever be room for.
    status, error = serve(parallel=4, queue=0).refused({**steered, "n": 3})
    assert (status, error["message"]) == (400, "3 answers are asked for, and 2 are allowed.")


def test_the_same_seed_gives_generators_text(served: Served) -> None:
    chat = served.chat(temperature=1.2, seed=11, max_tokens=20, top_p=0.9, top_k=50, min_p=0.01, repeat_penalty=1.1)
    prompt = chat_tokens(served.model, [Message("user", TEXT)])
    sampling = Sampling(1.2, top_k=50, top_p=0.9, min_p=0.01, repeat_penalty=1.1, seed=11)
    with Generator(served.model) as generator:
        alone = generator.generate(Request(prompt, None, sampling, 20))
    assert text_of(chat) == alone.text
    assert chat["choices"][0]["seed"] == 11
    assert chat["usage"]["prompt_tokens"] == len(prompt)


def test_steering_changes_the_answer_and_leaves_the_next_one_alone(served: Served) -> None:
    plain = text_of(served.chat())
    assert text_of(served.chat(steering="2 happy")) != plain
    assert text_of(served.chat()) == plain


# The form of an answer


def test_a_chat_answer(served: Served) -> None:
    document = served.chat(model="demo")
    assert document["object"] == "chat.completion"
    assert document["id"].startswith("chatcmpl-")
    assert document["choices"][0]["message"]["role"] == "assistant"
    assert document["choices"][0]["finish_reason"] == "length"
    assert document["choices"][0]["logprobs"] is None
    assert document["policy"] == []
    usage = document["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert served.chat(model="demo")["id"] != document["id"]


def test_a_text_answer(served: Served) -> None:
    document = served.complete()
    assert document["object"] == "text_completion"
    assert document["id"].startswith("cmpl-")
    assert document["usage"]["prompt_tokens"] == len(served.model.tokenize(TEXT))


def test_events_end_as_those_of_other_servers_do(served: Served) -> None:
    data = served.client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 2, "stream": True}).content
    assert b"\r" not in data
    assert data.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_holds_the_same_as_the_answer(served: Served, path: str) -> None:
    options = {"temperature": 1.0, "seed": 5, "n": 3, "max_tokens": 9, "steering": "0.5 happy"}
    whole = served._post(path, {"messages": HELLO, "prompt": TEXT, **options})
    events = stream(served, path, **options)
    assert len({event["id"] for event in events}) == 1
    for choice in range(3):
        assert streamed_text(events, choice) == text_of(whole, choice)
        of_choice = [one for event in events for one in event["choices"] if one["index"] == choice]
        assert [one["finish_reason"] for one in of_choice[:-1]] == [None] * (len(of_choice) - 1)
        assert of_choice[-1]["finish_reason"] == "length"
        if path.endswith("chat/completions"):
            assert of_choice[0]["delta"] == {"role": "assistant", "content": None}
    lasts = [event for event in events if event["choices"][0]["finish_reason"] is not None]
    assert [event["steering"] for event in lasts] == [whole["steering"]] * 3
    assert sorted(event["seed"] for event in lasts) == [one["seed"] for one in whole["choices"]]
    assert all("usage" not in event for event in events)


def test_usage_is_streamed_where_it_is_asked_for(served: Served) -> None:
    whole = served.chat(n=2)
    events = stream(served, n=2, stream_options={"include_usage": True})
    last = events[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 12
    assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert "usage" not in stream(served, stream_options={"include_usage": False})[-1]


def test_tokens_that_were_in_the_cache_are_told(fresh: Served) -> None:
    first = fresh.chat()["usage"]
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    again = fresh.chat()["usage"]
    assert again["prompt_tokens_details"] == {"cached_tokens": first["prompt_tokens"] - 1}


# How an answer ends


def test_finish_reasons(tmp_path: Path, serve: Serve) -> None:
    from gguf import GGUFReader

    path = write_tiny_model(tmp_path / "ending.gguf")
    output = next(tensor.data for tensor in GGUFReader(path, "r+").tensors if tensor.name == "output.weight")
    output[VOCABULARY.index(SPECIAL_TOKENS[-1])] = output[65]
    with Model(path, threads=1) as model:
        served = serve(model=model, vectors=None)
        reasons = set()
        for seed in range(12):
            choice = served.chat(temperature=2, top_k=0, seed=seed, max_tokens=150)["choices"][0]
            reasons.add(choice["finish_reason"])
            assert "<|im_end|>" not in choice["message"]["content"]
        assert reasons == {"stop", "length"}
        served.engine.stop()  # before its model is closed


def test_stop_strings_end_the_answer_and_are_no_part_of_it(served: Served) -> None:
    whole = text_of(served.complete(temperature=1, seed=3, max_tokens=40))
    stops = [one for one in whole[5:] if one.isascii() and one.isprintable() and whole.count(one) == 1][:2]
    assert len(stops) == 2
    first = min(stops, key=whole.index)
    for stop in (first, stops, [*stops, ""], [first, "never said"]):
        document = served.complete(temperature=1, seed=3, max_tokens=40, stop=stop)
        assert text_of(document) == whole[: whole.index(first)]
        assert document["choices"][0]["finish_reason"] == "stop"
        events = stream(served, "/v1/completions", temperature=1, seed=3, max_tokens=40, stop=stop)
        assert streamed_text(events) == whole[: whole.index(first)]
    for nothing in ("", [], None, [""]):
        assert text_of(served.complete(temperature=1, seed=3, max_tokens=40, stop=nothing)) == whole


def test_how_long_an_answer_may_be(served: Served) -> None:
    for given, expected in (
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4}, 4),
        ({"max_completion_tokens": 4, "max_tokens": 9}, 4),
        ({"max_tokens": 0}, 0),
    ):
        document = served._post("/v1/chat/completions", {"messages": HELLO, **given})
        assert (document["usage"]["completion_tokens"], document["choices"][0]["finish_reason"]) == (expected, "length")
    assert served._post("/v1/completions", {"prompt": TEXT})["usage"]["completion_tokens"] == 16


def test_without_a_limit_an_answer_fills_the_context(serve: Serve) -> None:
    served = serve(n_ctx=64)
    for body in ({}, {"max_tokens": 10**7}, {"max_tokens": -1}, {"max_completion_tokens": -1}, {"max_tokens": None}):
        document = served._post("/v1/chat/completions", {"messages": HELLO, **body})
        assert document["choices"][0]["finish_reason"] == "length"
        # The last token is drawn, and needs no place.
        assert document["usage"]["total_tokens"] == 65


# Several answers


def test_each_of_several_answers_has_its_seed(served: Served) -> None:
    document = served.chat(n=5, seed=40, temperature=1.5, max_tokens=12)
    assert [one["index"] for one in document["choices"]] == [0, 1, 2, 3, 4]
    assert [one["seed"] for one in document["choices"]] == [40, 41, 42, 43, 44]
    assert document["usage"]["completion_tokens"] == 60
    for choice in document["choices"]:
        alone = served.chat(seed=choice["seed"], temperature=1.5, max_tokens=12)
        assert text_of(alone) == choice["message"]["content"]
    assert len({text_of(document, choice) for choice in range(5)}) == 5


@pytest.mark.parametrize("seed", [0, MAX_SEED, MAX_SEED + 1, 2**32, 2**63 - 1, -2, -(2**63)])
def test_any_64_bit_number_is_a_seed(served: Served, seed: int) -> None:
    first, second = (served.chat(seed=seed, temperature=1, n=2) for _ in range(2))
    assert [one["message"] for one in first["choices"]] == [one["message"] for one in second["choices"]]
    assert all(0 <= one["seed"] <= MAX_SEED for one in first["choices"])


@pytest.mark.parametrize("fields", [{}, {"seed": None}, {"seed": -1}], ids=["none", "null", "-1"])
def test_without_a_seed_another_answer_comes_each_time(served: Served, fields: dict[str, int | None]) -> None:
    seeds = {one["seed"] for _ in range(3) for one in served.chat(n=2, **fields)["choices"]}
    assert len(seeds) == 6


# Prompts


def test_prompts_may_be_lists_and_tokens(served: Served) -> None:
    tokens = served.model.tokenize(TEXT)
    single = text_of(served.complete())
    other = text_of(served.complete(prompt="bad night"))
    assert text_of(served.complete(prompt=tokens)) == single
    assert text_of(served.complete(prompt=[TEXT])) == single
    both = served.complete(prompt=[TEXT, "bad night"], n=2)
    assert [text_of(both, choice) for choice in range(4)] == [single, single, other, other]
    both = served.complete(prompt=[tokens, served.model.tokenize("bad night")])
    assert [text_of(both, choice) for choice in range(2)] == [single, other]
    assert both["usage"]["prompt_tokens"] == len(tokens) + len(served.model.tokenize("bad night"))


def test_a_message_may_be_empty(served: Served) -> None:
    """As programs send one to have the model begin."""
    contents: tuple[Any, ...] = ("", [], " ")
    for text in contents:
        assert text_of(served.chat(messages=[{"role": "user", "content": text}]))
    assert text_of(
        served.chat(messages=[{"role": "system", "content": ""}, *HELLO, {"role": "assistant", "content": ""}, *HELLO])
    )


def test_a_prompt_may_be_echoed(served: Served) -> None:
    alone = served.complete(prompt=["good", "evening"])["choices"]
    echoed = served.complete(prompt=["good", "evening"], echo=True)["choices"]
    assert [one["text"] for one in echoed] == [f"good{alone[0]['text']}", f"evening{alone[1]['text']}"]
    assert streamed_text(stream(served, "/v1/completions", echo=True)) == TEXT + served.complete()["choices"][0]["text"]
    assert text_of(served.complete(echo=True, max_tokens=0)) == TEXT
    assert text_of(served.complete(prompt=served.model.tokenize(TEXT), echo=True, max_tokens=0)) == TEXT


def test_the_likeliest_of_several_answers_are_given(served: Served) -> None:
    asked = {"prompt": ["good", "evening"], "temperature": 3.0, "seed": 4, "max_tokens": 4}
    every = served.complete(**asked, n=4, logprobs=0)["choices"]
    given = served.complete(**asked, n=2, best_of=4)

    def likelihood(choice: dict[str, Any]) -> float:
        return float(sum(choice["logprobs"]["token_logprobs"])) / len(choice["logprobs"]["token_logprobs"])

    for prompt in (0, 1):
        best = sorted(every[prompt * 4 : prompt * 4 + 4], key=likelihood, reverse=True)[:2]
        assert [one["seed"] for one in given["choices"][prompt * 2 : prompt * 2 + 2]] == [one["seed"] for one in best]
    assert [one["index"] for one in given["choices"]] == [0, 1, 2, 3]
    assert all(one["logprobs"] is None for one in given["choices"])
    assert given["usage"]["completion_tokens"] == 8 * 4  # what was written counts


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 9}, "allowed"),
        ({"suffix": "x", "prompt": [5, 6]}, "suffix"),
    ],
)
def test_what_does_not_go_together_is_refused(served: Served, asked: dict[str, Any], word: str) -> None:
    status, error = served.refused(asked, "/v1/completions")
    assert status == 400
    assert word in error["message"]


def test_programs_may_leave_out_the_version(served: Served) -> None:
    assert text_of(served._post("/chat/completions", {"messages": HELLO, "max_tokens": 2, "temperature": 0})) == text_of(
        served.chat(max_tokens=2)
    )
    assert served.client.get("/models").json() == served.client.get("/v1/models").json()


def test_the_end_of_a_prompt_may_be_said(served: Served) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "I am"}]
    assert text_of(served.chat(messages=begun, continue_final_message=True, add_generation_prompt=False)) == text_of(
        served.chat(messages=begun)
    )
    assert text_of(served.chat(add_generation_prompt=False)) != text_of(served.chat())
    status, error = served.refused({"messages": begun, "continue_final_message": True, "add_generation_prompt": True})
    assert status == 400
    assert "continue_final_message" in error["message"]
    assert served.refused({"continue_final_message": True})[0] == 400


def test_messages_may_have_parts_and_other_roles(served: Served) -> None:
    single = text_of(served.chat())
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]
    assert text_of(served.chat(messages=[{"role": "user", "content": parts}])) == single
    system = [{"role": "system", "content": "be brief"}, *HELLO]
    developer = [{"role": "Developer", "content": "be brief"}, *HELLO]
    assert text_of(served.chat(messages=system)) == text_of(served.chat(messages=developer)) != single
    newer = [{"type": "input_text", "text": "good "}, {"type": "output_text", "text": "day"}]
    assert text_of(served.chat(messages=[{"role": "USER", "content": newer}])) == single


def test_a_base_model_takes_part_in_a_conversation(tmp_path: Path, serve: Serve) -> None:
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as model:
        served = serve(model=model, vectors=None)
        assert served.chat()["usage"]["prompt_tokens"] == len(model.tokenize("User: good day\nAssistant:"))
        served.engine.stop()


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"prompt": ""}, ("empty",)),
        ({"prompt": []}, ("empty",)),
        ({"prompt": [[]]}, ("empty",)),
        ({"prompt": [""]}, ("empty",)),
        ({"prompt": None}, ("prompt",)),
        ({"prompt": {}}, ("prompt",)),
        ({"prompt": [1, "a"]}, ("prompt",)),
        ({"prompt": [len(VOCABULARY)]}, ("is no token of this model",)),
        ({"prompt": [-1]}, ("-1 is no token",)),
        ({"prompt": [10**30]}, ("is no token",)),
        ({"prompt": "x" * 600}, ("600 tokens", "context holds 512")),
        ({"prompt": [65] * 512}, ("512 tokens",)),
        ({"prompt": ["x"] * 9}, ("9 answers", "8 are allowed")),
        ({"prompt": ["x"] * 3, "n": 3}, ("9 answers",)),
        ({"prompt": "half \ud800 a character"}, ("unicode",)),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(served: Served, body: dict[str, Any], parts: tuple[str, ...]) -> None:
    answer = served.client.post("/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    for part in parts:
        assert part in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "good day",
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "king", "content": "x"}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "function", "content": "y"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "function_call": {"name": "f"}}],
        [{"role": "user", "content": "\udfff"}],
    ],
)
def test_messages_that_cannot_be_answered_are_refused(served: Served, messages: object) -> None:
    body = json.dumps({"messages": messages, "max_tokens": 1})
    answer = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


# Log probabilities


def test_log_probabilities_of_a_chat(served: Served) -> None:
    whole = served.chat(logprobs=True, top_logprobs=3, steering="happy")
    content = whole["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    plan = served.service.steerings.plan(parse_steering("happy"))
    assert plan is not None
    prompt = chat_tokens(served.model, [Message("user", TEXT)])
    tokens = [one["bytes"][0] if len(one["bytes"]) == 1 else served.model.tokenize(one["token"])[0] for one in content]
    edits = [plan.edit if place >= len(prompt) - 1 else None for place in range(len(prompt) + 6)]
    logits = run_alone(served.model, (*prompt, *tokens), edits, read=False).logits[len(prompt) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for place, (one, token) in enumerate(zip(content, tokens, strict=True)):
        assert one["logprob"] == pytest.approx(expected[place, token], abs=LOGIT_NOISE)
        likeliest = one["top_logprobs"]
        assert len(likeliest) == 3
        assert likeliest[0]["bytes"] == one["bytes"]  # greedy
        assert [entry["logprob"] for entry in likeliest] == pytest.approx(np.sort(expected[place])[:-4:-1], abs=LOGIT_NOISE)
    events = stream(served, logprobs=True, top_logprobs=3, steering="happy")
    parts = [one["logprobs"] for event in events for one in event["choices"] if one.get("logprobs")]
    streamed = [entry for part in parts for entry in part["content"]]
    assert [one["bytes"] for one in streamed] == [one["bytes"] for one in content]


def test_log_probabilities_without_alternatives(served: Served) -> None:
    content = served.chat(logprobs=True)["choices"][0]["logprobs"]["content"]
    assert [one["top_logprobs"] for one in content] == [[]] * 6


def test_log_probabilities_of_a_text(served: Served) -> None:
    logprobs = served.complete(logprobs=2)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 6
    assert all(number <= 0 for number in logprobs["token_logprobs"])
    assert served.complete(logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] == [{}] * 6
    assert served.complete()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("stop", [None, "x"])
def test_every_token_has_its_log_probability_in_a_stream(served: Served, stop: str | None) -> None:
    # Bytes that are no characters by themselves come together with what makes them one.
    options = {"temperature": 1.5, "seed": 4, "max_tokens": 40, "logprobs": 0, "stop": stop}
    whole = served.complete(**options)
    events = stream(served, "/v1/completions", **options)
    parts = [one["logprobs"] for event in events for one in event["choices"] if one.get("logprobs")]
    assert sum(len(part["tokens"]) for part in parts) == whole["usage"]["completion_tokens"]


# Sampling


def test_penalties_keep_a_word_from_coming_again(served: Served) -> None:
    def most_often(**options: Any) -> int:
        entries = served.chat(max_tokens=60, logprobs=True, **options)["choices"][0]["logprobs"]["content"]
        said = [bytes(one["bytes"]) for one in entries]
        return max(said.count(one) for one in said)

    # The greedy answer of a random model runs in circles or does not: here it does, under this steering.
    plain = most_often(steering="3 happy")
    assert plain > 2
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"repeat_penalty": 10}):
        assert most_often(steering="3 happy", **penalty) < plain


# Answers that follow a grammar


@pytest.mark.parametrize(
    "bias",
    [{"88": 1000}, [[88, 1000]], [["X", 1000]], {"X": 1000}, [["88", 1000]], [[88, 2000], [65, False], ["88", -10]]],
)
def test_tokens_are_made_likely(served: Served, bias: object) -> None:
    answer = served.chat(logit_bias=bias, max_tokens=3, logprobs=True)
    assert text_of(answer) == "XXX"
    # As likely as the model alone has it.
    assert answer["choices"][0]["logprobs"]["content"][0]["logprob"] < -1


def test_tokens_are_ruled_out(served: Served) -> None:
    def drawn(**body: Any) -> set[int]:
        entries = served.chat(logprobs=True, **body)["choices"][0]["logprobs"]["content"]
        # A token of one byte has its number.
        return {entry["bytes"][0] for entry in entries if len(entry["bytes"]) == 1}

    first = drawn()
    assert first
    assert drawn(logit_bias=[[token, False] for token in first]).isdisjoint(first)


@pytest.mark.parametrize(
    "bias",
    [{"999999": 1}, {"-1": 1}, [[88]], [88], [[88, True]], [[88, "x"]], [[88, 1e300]], [[None, 1]], [[1.5, 1]], {"8": None}],
)
def test_a_bias_that_is_none_is_refused(served: Served, bias: object) -> None:
    status, error = served.refused({"logit_bias": bias})
    assert (status, error["param"]) == (400, "logit_bias")


def test_an_answer_has_as_many_tokens_as_it_is_to_have_at_least(served: Served) -> None:
    ends = {str(token): 1000 for token in served.model.end_tokens}
    counts = {}
    for name, value in (("min_tokens", 0), ("min_tokens", 4), ("ignore_eos", True)):
        answer = served.chat(logit_bias=ends, max_tokens=6, **{name: value})
        counts[name, value] = answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]
    assert counts == {("min_tokens", 0): (0, "stop"), ("min_tokens", 4): (4, "stop"), ("ignore_eos", True): (6, "length")}


def test_an_answer_is_json_where_that_is_asked_for(served: Served) -> None:
    for seed in range(0, 80, 8):
        document = served.chat(response_format={"type": "json_object"}, temperature=2, top_k=0, seed=seed, max_tokens=100, n=8)
        done = [one["message"]["content"] for one in document["choices"] if one["finish_reason"] == "stop"]
        assert all(one["message"]["content"].startswith("{") for one in document["choices"])
        if done:
            break
    assert [type(json.loads(one)) for one in done] == [dict] * len(done) != []


def test_an_answer_follows_a_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["up", "down"]}, "word": {"type": "string", "maxLength": 5}},
        "required": ["mood", "word"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": schema}}
    for steering in ("", "happy"):
        document = served.chat(response_format=form, steering=steering, temperature=1, max_tokens=100, n=2)
        for choice in (0, 1):
            assert document["choices"][choice]["finish_reason"] == "stop"
            assert set(json.loads(text_of(document, choice))) == {"mood", "word"}


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_object", "schema": {"enum": ["up", "down"]}}},
        {"json_schema": {"enum": ["up", "down"]}},
        {"grammar": r'root ::= "\"" ("up" | "down") "\""'},
        {"grammar": r'start: /"(up|down)"/'},
    ],
)
def test_llama_servers_words_for_it_are_understood(served: Served, body: dict[str, Any]) -> None:
    for document in (served.chat(**body), served.chat(steering="happy", anchored=True, **body)):
        assert text_of(document) in ('"up"', '"down"')
    assert served.complete(**body)["choices"][0]["text"] in ('"up"', '"down"')


def test_an_answer_that_is_cut_short_says_so(served: Served) -> None:
    document = served.chat(json_schema={"const": "a long word"}, max_tokens=5)
    assert (text_of(document), document["choices"][0]["finish_reason"]) == ('"a lo', "length")


def test_log_probabilities_are_the_models_own_whatever_an_answer_must_follow(served: Served) -> None:
    free = served.chat(logprobs=True, top_logprobs=3, max_tokens=1)["choices"][0]["logprobs"]["content"][0]
    bound = served.chat(logprobs=True, top_logprobs=3, max_tokens=1, grammar='root ::= "z"')["choices"][0]["logprobs"]["content"][
        0
    ]
    assert bound["token"] == "z"
    assert bound["top_logprobs"] == free["top_logprobs"]
    assert bound["logprob"] < 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"json_schema": {"type": "nonsense"}}, "json_schema"),
        ({"json_schema": {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}}, "json_schema"),
        ({"json_schema": 7}, "json_schema"),
        ({"grammar": 'root ::= "a'}, "grammar"),
        ({"grammar": "start: nothing"}, "grammar"),
        ({"grammar": 7}, "grammar"),
        ({"grammar": 'root ::= "a"', "json_schema": {}}, "grammar"),
        ({"response_format": {"type": "json_object"}, "json_schema": {}}, "json_schema"),
    ],
)
def test_what_cannot_be_followed_is_refused(served: Served, body: dict[str, Any], param: str) -> None:
    answer = served.client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_plain_text_may_be_asked_for_as_well(served: Served) -> None:
    assert text_of(served.chat(response_format={"type": "text"})) == text_of(served.chat())


@pytest.mark.parametrize(
    "form",
    [
        {"type": "xml"},
        {"type": 7},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": {"schema": 7}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "string", "maxLength": 10**12}}},
        {"type": "json_schema", "json_schema": {"strict": False, "schema": {"not": {}}}},
        {"type": "json_object", "schema": {"type": "nonsense"}},
        {"type": "json_object", "schema": 7},
        {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "^\ud800$"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}},
        "json",
    ],
)
def test_another_form_is_refused(served: Served, form: object) -> None:
    body = json.dumps({"messages": HELLO, "response_format": form, "max_tokens": 1})
    answer = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"


# What is refused


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"functions": [{"name": "f"}]}, "Functions"),
        ({"audio": {"voice": "x"}}, "Audio"),
    ],
)
def test_what_is_not_offered_is_refused(served: Served, asked: dict[str, Any], word: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, error = served.refused(asked, path)
        assert status == 400
        assert word in error["message"]
        assert "not offered" in error["message"]


@pytest.mark.parametrize(("name", "value"), [("suffix", "end"), ("best_of", 2), ("echo", True)])
def test_what_texts_alone_have_is_refused_elsewhere(served: Served, name: str, value: object) -> None:
    asked: dict[str, Any] = {name: value}
    for path in ("/v1/chat/completions", "/completion"):
        status, error = served.refused(asked, path)
        assert status == 400
        assert f"{name} is not offered" in error["message"]


@pytest.mark.parametrize("name", ["mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range", "top_n_sigma"])
def test_a_sampler_that_is_not_there_is_refused(served: Served, name: str) -> None:
    asked: dict[str, Any] = {name: 1.5}
    status, error = served.refused(asked)
    assert status == 400
    assert f"{name} is not offered" in error["message"]


def test_what_asks_for_nothing_is_let_through(served: Served) -> None:
    served.chat(
        tools=[], functions=None, logit_bias={}, echo=False, best_of=1, suffix="", tool_choice="none", user="me", store=True
    )
    served.chat(top_logprobs=0, logprobs=None, n=None, stream=None or False, seed=-1, stop=["x"] * 20)
    served.chat(logprobs=False, top_logprobs=0, response_format={"type": "text"}, temperature=None, top_p=None)


def test_minus_one_turns_a_filter_off(served: Served) -> None:
    unfiltered = text_of(served.chat(temperature=1, seed=1, top_k=0, max_tokens=20))
    assert text_of(served.chat(temperature=1, seed=1, top_k=-1, max_tokens=20)) == unfiltered
    assert text_of(served.chat(temperature=1, seed=1, top_k=2, max_tokens=20)) != unfiltered


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_tokens": 10**20}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 10**9}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"stop": ["x"] * 65}, None),
        ({"stop": 7}, None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": "perhaps"}, "stream"),
        ({"steering": 7}, "steering"),
        ({"steering": "0.5 + happy"}, None),
        ({"steering": "x" * 1001}, None),
        ({"steering": " + ".join(["happy"] * 9)}, None),
        ({"steering": "9 happy"}, None),
        ({"steering": "/etc/passwd"}, None),
        ({"steering": "./happy.gguf"}, None),
        ({"model": "demo:happy=lots"}, None),
        ({"model": "demo:./happy.gguf"}, None),
        ({"model": 7}, "model"),
    ],
)
def test_a_value_that_cannot_be_had_is_refused(served: Served, asked: dict[str, Any], parameter: str | None) -> None:
    status, error = served.refused(asked)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    if parameter is not None:
        assert error["param"] == parameter


def test_not_a_number_is_no_number(served: Served) -> None:
    for name in ("temperature", "top_p", "min_p", "frequency_penalty", "repeat_penalty"):
        for value in ("NaN", "Infinity", "-Infinity", "1e999"):
            body = f'{{"messages": [{{"role": "user", "content": "x"}}], "max_tokens": 1, "{name}": {value}}}'
            answer = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400, (name, value)


def test_an_unknown_vector_is_refused_with_the_nearest_names(served: Served) -> None:
    for asked in ({"steering": "0.5 hapy"}, {"model": "demo:hapy=0.5"}):
        status, error = served.refused(asked)
        assert status == 400
        assert 'There is no vector "hapy"' in error["message"]
        assert "happy" in error["message"]


def test_a_header_that_cannot_be_used_is_refused(served: Served) -> None:
    for header in ("0.5 hapy", "./x.gguf", "9 happy", "0.5 + happy", "caf\xe9"):
        status, _ = served.refused({}, headers={"X-Steering": header.encode("latin-1")})
        assert status == 400


def test_max_dose_holds_wherever_the_steering_stands(serve: Serve) -> None:
    served = serve(max_dose=0.3, presets={"loud": "4 happy"})
    for body, header in (
        ({"steering": "4 happy"}, ""),
        ({}, "4 happy"),
        ({"model": "demo:happy=4"}, ""),
        ({"model": "demo:loud"}, ""),
    ):
        status, error = served.refused(body, headers={"X-Steering": header} if header else {})
        assert status == 400
        assert "--max-dose allows 0.3" in error["message"]
    assert steering_of(served.chat(steering="0.1 happy")) == "0.1 happy"


@pytest.mark.parametrize("name", ["gpt-4o", "demos", "demo/../x", "llama3:8b"])
def test_the_served_model_answers_for_another_one_and_says_so(served: Served, name: str) -> None:
    document = served.chat(model=name)
    assert text_of(document) == text_of(served.chat())
    assert document["model"] == "demo"
    assert name in document["steering"]["notes"][0]


@pytest.mark.parametrize("name", ["", None])
def test_no_name_is_the_served_models(served: Served, name: str | None) -> None:
    document = served.chat(model=name)
    assert (document["model"], document["steering"]["notes"]) == ("demo", [])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("body", "header"),
    [
        ({"steering": "-1 happy"}, None),
        ({"steering": ""}, None),
        ({"anchored": True}, None),
        ({"steer_prompt": True}, None),
        ({"model": "demo:happy=-1"}, None),
        ({}, "0.1 happy"),
    ],
)
def test_where_steering_is_fixed_no_request_has_one_of_its_own(
    serve: Serve, path: str, body: dict[str, Any], header: str | None
) -> None:
    served = serve(default="0.5 happy", presets={"sad": "-0.5 happy"}, fixed=True, list_steerings=5)
    status, error = served.refused(body, path, headers={"X-Steering": header} if header else {})
    assert status == 400
    assert "--fixed-steering" in error["message"]


@pytest.mark.parametrize("form", [{"grammar": r"root ::= [\x00-\U0010FFFF]*"}, {"response_format": {"type": "json_object"}}])
def test_where_steering_is_fixed_a_form_is_no_way_out(serve: Serve, form: dict[str, Any]) -> None:
    told = serve(default="2 happy").chat(**form)["steering"]["notes"]
    assert any("form is not steered" in note for note in told)
    fixed = serve(default="2 happy", fixed=True).chat(**form)["steering"]["notes"]
    assert not any("form is not steered" in note for note in fixed)


def test_where_steering_is_fixed_there_are_the_default_and_the_presets(serve: Serve) -> None:
    served = serve(default="0.5 happy", presets={"sad": "-0.5 happy"}, fixed=True, list_steerings=5)
    assert served.chat()["steering"]["expression"] == "0.5 happy"
    assert served.chat(steering="0.5 happy")["steering"]["expression"] == "0.5 happy"  # as the page says it
    assert served.chat(model="demo:sad")["steering"]["expression"] == "-0.5 happy"
    assert [one["id"] for one in served.client.get("/v1/models").json()["data"]] == ["demo", "demo:sad"]
    assert served.client.put("/v1/steering", json={"steering": ""}).status_code == 400
    assert served.chat()["steering"]["expression"] == "0.5 happy"


def test_another_model_is_not_found_where_that_is_asked_for(serve: Serve) -> None:
    served = serve(strict=True)
    status, error = served.refused({"model": "gpt-4o"})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "demo" in error["message"]


def test_a_steering_of_another_model_is_refused(served: Served) -> None:
    """What it asks for would be dropped."""
    assert served.refused({"model": "gpt-4o:happy=0.5"})[0] == 404


def test_an_error_in_a_request_to_stream_has_its_status(served: Served) -> None:
    assert served.refused({"stream": True, "steering": "0.5 hapy"})[0] == 400
    assert served.refused({"stream": True, "model": "other:happy=1"})[0] == 404


# Models


def test_models_are_listed_with_their_presets(serve: Serve) -> None:
    served = serve(name="someone/qwen:0.5b", presets={"cheerful": "0.6 happy"})
    document = served.client.get("/v1/models").json()
    assert document["object"] == "list"
    names = [one["id"] for one in document["data"]]
    assert names == ["someone/qwen:0.5b", "someone/qwen:0.5b:cheerful"]
    for name in [*names, "someone/qwen:0.5b:happy=0.5"]:
        one = served.client.get(f"/v1/models/{name}")
        assert one.status_code == 200
        assert (one.json()["id"], one.json()["object"]) == (name, "model")
        served.chat(model=name)
    assert served.client.get("/v1/models/other").status_code == 404
    assert served.client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_what_is_known_to_do_something_is_offered_by_name(serve: Serve, tiny: Model, tmp_path: Path) -> None:
    for name, shown in (("sure", True), ("doubtful", False), ("measured", True)):
        vector = tiny_vector(tiny, 1)
        provenance = replace(vector.provenance, dosing=dosing(shown=shown))
        write_vector(replace(vector, provenance=provenance), tmp_path / f"{name}.gguf")
    write_vector(tiny_vector(tiny, 2), tmp_path / "unknown.gguf")
    served = serve(vectors=tmp_path, presets={"cheerful": "0.6 sure"}, list_steerings=3)
    names = [one["id"] for one in served.client.get("/v1/models").json()["data"]]
    assert names == ["demo", "demo:cheerful", "demo:measured", "demo:measured=-1", "demo:sure"]
    assert [one["name"] for one in served.client.get("/api/tags").json()["models"]] == names
    for name, expression in ((names[2], "measured"), (names[3], "-measured")):
        assert steering_of(served.chat(model=name)) == expression


# Policies


def policy_file(folder: Path, rules: str, classifiers: str = "") -> Path:
    push(folder)
    path = folder / "policy.yaml"
    path.write_text(
        "version: 1\nclassifiers:\n"
        "  asked: {type: rule, words: [pig], watch: prompt}\n"
        "  said: {type: rule, patterns: ['.'], watch: output}\n"
        f"{classifiers}rules:\n{rules}"
    )
    return path


def test_policy_decisions_are_told(serve: Serve, tmp_path: Path) -> None:
    path = policy_file(tmp_path, "  - {name: calm, when: asked, steer: push.gguf}\n")
    served = serve(policy=path)
    pig = [{"role": "user", "content": "a pig"}]
    document = served.chat(messages=pig)
    fired = document["policy"][0]
    assert (fired["rule"], fired["action"], fired["position"], fired["classifier"]) == ("calm", "fire", 0, "asked")
    assert [one["action"] for one in served.chat()["policy"]] == ["pass"]
    assert text_of(served.chat()) == text_of(serve().chat())
    assert text_of(document) != text_of(serve().chat(messages=pig))
    # Every request is a conversation of its own.
    both = served.chat(messages=pig, n=2)
    assert [one["action"] for one in both["policy"]] == ["fire", "fire"]
    assert len({one["conversation"] for one in both["policy"]}) == 2


def test_what_a_policy_steers_is_anchored_where_that_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    served = serve(policy=policy_file(tmp_path, "  - {name: calm, when: asked, steer: push.gguf}\n"))
    scopes = [served.chat(anchored=anchored, min_p=0.5)["steering"]["scope"] for anchored in (True, False)]
    assert scopes == ["anchored", "response"]


def test_policy_decisions_are_streamed_in_the_chunk_after_them(serve: Serve, tmp_path: Path) -> None:
    rules = "  - {name: calm, when: asked, steer: push.gguf}\n  - {name: hush, when: said, steer: push.gguf, hold: 2}\n"
    served = serve(policy=policy_file(tmp_path, rules))
    pig = [{"role": "user", "content": "a pig"}]
    whole = served.chat(messages=pig)
    events = stream(served, messages=pig)
    told = [one for event in events for one in event.get("policy", [])]

    def gist(decisions: Events) -> list[tuple[str, str, int]]:
        return [(one["rule"], one["action"], one["position"]) for one in decisions]

    assert gist(told) == gist(whole["policy"])
    assert ("calm", "fire", 0) in gist(told)
    assert any(rule == "hush" and position > 0 for rule, _, position in gist(told))
    early = next(number for number, event in enumerate(events) if event.get("policy"))
    assert early < len(events) - 2  # not only with the last one


def test_what_a_policy_decides_does_not_wait_for_the_words_that_it_holds_back(serve: Serve, tmp_path: Path) -> None:
    rules = (
        "  - {name: calm, when: asked, steer: push.gguf}\n  - {name: hush, when: asked and said, steer: push.gguf, rewind: 8}\n"
    )
    served = serve(policy=policy_file(tmp_path, rules))
    pig = [{"role": "user", "content": "a pig"}]
    events = stream(served, messages=pig, max_tokens=20)
    fired = next(number for number, event in enumerate(events) if event.get("policy"))
    first_text = next(number for number, event in enumerate(events) if event["choices"][0]["delta"].get("content"))
    assert fired < first_text
    assert streamed_text(events) == text_of(served.chat(messages=pig, max_tokens=20))


def test_what_a_policy_takes_back_is_never_streamed(serve: Serve, tmp_path: Path) -> None:
    rules = "  - {name: hush, when: said, steer: 3 push.gguf, rewind: 4}\n"
    served = serve(policy=policy_file(tmp_path, rules))
    whole = served.chat(max_tokens=20, logprobs=True)
    events = stream(served, max_tokens=20, logprobs=True)
    assert streamed_text(events) == text_of(whole)
    assert "rewind" in {one["action"] for one in whole["policy"]}
    parts = [one["logprobs"] for event in events for one in event["choices"] if one.get("logprobs")]
    assert sum(len(part["content"]) for part in parts) == whole["usage"]["completion_tokens"]
    assert len(whole["choices"][0]["logprobs"]["content"]) == whole["usage"]["completion_tokens"]


def test_an_answer_that_a_policy_ends_is_marked(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from localsteer.policy import pattern_classifier as rule

    path = policy_file(tmp_path, "  - {name: calm, when: asked, steer: push.gguf}\non_error: stop\n")
    served = serve(policy=path)

    def fail(*_: object) -> float:
        raise OSError(f"{tmp_path}/gone.gguf has vanished")

    monkeypatch.setattr(rule._Whole, "observe", fail)
    document = served.chat()
    assert document["choices"][0]["finish_reason"] == "content_filter"
    assert document["policy"][0]["action"] == "error"
    assert str(tmp_path) not in json.dumps(document)
    assert str(tmp_path) not in json.dumps(stream(served))
    assert stream(served)[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_a_policys_answers_are_anchored_where_that_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    path = policy_file(tmp_path, "  - {name: calm, when: asked, steer: 2 push.gguf}\n")
    served, free = serve(policy=path), serve(vectors=tmp_path)
    body = {"messages": [{"role": "user", "content": "a pig"}], "max_tokens": 12, "min_p": 0.5}
    anchored = served.chat(**body, anchored=True)
    assert [one["action"] for one in anchored["policy"]] == ["fire"]
    assert text_of(anchored) == text_of(free.chat(**body, steering="2 push", anchored=True))
    plain = text_of(served.chat(**body))
    assert plain == text_of(free.chat(**body, steering="2 push"))
    assert text_of(anchored) != plain
    # It may steer, so that there must be two places for it.
    assert serve(policy=path, parallel=1).refused({"anchored": True})[0] == 400


def test_a_model_whose_file_was_touched_or_renamed_is_served_on(serve: Serve, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf")
    with Model(path, threads=1) as model:
        served = serve(model=model, vectors=None, list_steerings=4)
        path.touch()
        assert text_of(served.chat()) == streamed_text(stream(served))
        before = served.client.get("/api/tags").json()
        path.rename(tmp_path / "other.gguf")
        assert served.chat()["choices"]
        assert served.client.get("/v1/models").json()["data"]
        assert served.client.get("/api/tags").json() == before
        assert served.client.get("/api/ps").json()["models"]
        assert served.client.post("/api/show", json={"model": "demo"}).json()["modified_at"] == before["models"][0]["modified_at"]
