"""`/api/...`, as programs for Ollama use it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import HELLO, Serve, Served
from tests.server.test_openai_api import policy_file, text_of
from tests.tiny_models import CHATML_TEMPLATE

DONE = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}


def lines(served: Served, path: str = "/api/chat", **body: Any) -> list[dict[str, Any]]:
    """The lines of a streamed answer."""
    options = {"num_predict": 6, "temperature": 0, **body.pop("options", {})}
    given = {"model": "demo", "messages": HELLO, "prompt": "good day", "options": options, **body}
    with served.client.stream("POST", path, json=given) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer.iter_lines()]


def refusal(served: Served, body: dict[str, Any], path: str = "/api/chat") -> tuple[int, str]:
    answer = served.client.post(path, json={"model": "demo", "messages": HELLO, "prompt": "good day", **body})
    (message,) = answer.json().values()
    assert set(answer.json()) == {"error"}
    assert isinstance(message, str)
    assert message
    return answer.status_code, message


def generated(served: Served, **body: Any) -> dict[str, Any]:
    options = {"num_predict": 6, "temperature": 0, **body.pop("options", {})}
    given = {"model": "demo", "prompt": "good day", "stream": False, "options": options, **body}
    answer = served.client.post("/api/generate", json=given)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_a_chat_answer(served: Served) -> None:
    document = served.ollama(steering="0.5 happy")
    assert document["message"] == {"role": "assistant", "content": text_of(served.chat(steering="0.5 happy"))}
    assert (document["model"], document["done"], document["done_reason"]) == ("demo", True, "length")
    assert set(document) >= DONE
    assert (document["prompt_eval_count"], document["eval_count"]) == (27, 6)
    assert document["steering"]["expression"] == "0.5 happy"
    assert datetime.fromisoformat(document["created_at"])


def test_a_stream_holds_the_same_as_the_answer(served: Served) -> None:
    whole = served.ollama(model="demo:happy=0.5:latest")
    told = lines(served, model="demo:happy=0.5:latest")
    assert "".join(line["message"]["content"] for line in told) == whole["message"]["content"]
    assert [line["done"] for line in told] == [False] * (len(told) - 1) + [True]
    assert set(told[-1]) >= DONE
    assert told[-1]["steering"] == whole["steering"]
    told = lines(served, "/api/generate")
    assert "".join(line["response"] for line in told) == generated(served)["response"]


def test_a_generated_answer(served: Served) -> None:
    assert generated(served)["response"] == served.ollama()["message"]["content"]
    system = [{"role": "system", "content": "be brief"}, *HELLO]
    assert generated(served, system="be brief")["response"] == served.ollama(messages=system)["message"]["content"]
    assert generated(served, raw=True)["response"] == text_of(served.complete())


def test_options_reach_the_sampler(served: Served) -> None:
    options = {"temperature": 1.2, "seed": 11, "num_predict": 20, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "repeat_penalty": 1.1}
    document = served.ollama(options=options)
    given = {name: value for name, value in options.items() if name != "num_predict"}
    assert document["message"]["content"] == text_of(served.chat(**given, max_tokens=20))
    assert document["seed"] == 11
    whole = document["message"]["content"]
    stop = next(one for one in whole[3:] if one.isascii() and one.isprintable())
    stopped = served.ollama(options={**options, "stop": [stop]})
    assert stopped["message"]["content"] == whole[: whole.index(stop)]
    assert stopped["done_reason"] == "stop"


def test_steering_may_stand_among_the_options(served: Served) -> None:
    assert served.ollama(options={"steering": "0.5 happy"})["steering"] == served.ollama(steering="0.5 happy")["steering"]
    both = served.ollama(steering="0.5 happy", options={"steering": "-0.5 happy"})
    assert both["steering"]["expression"] == "0.5 happy"


@pytest.mark.parametrize("count", [-1, -2, None])
def test_without_a_limit_an_answer_fills_the_context(serve: Serve, count: int | None) -> None:
    served = serve(n_ctx=64)
    document = served.ollama(options={"num_predict": count})
    assert document["prompt_eval_count"] + document["eval_count"] == 65
    assert document["done_reason"] == "length"


def test_an_answer_may_have_to_be_json(served: Served) -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["up", "down"]}}, "required": ["mood"]}
    document = served.ollama(format=schema, options={"temperature": 1, "num_predict": 60})
    assert json.loads(document["message"]["content"])["mood"] in ("up", "down")
    assert served.ollama(format="json")["message"]["content"].startswith("{")
    assert served.ollama(format="")["message"]["content"] == served.ollama()["message"]["content"]


def test_an_empty_request_loads_the_model(fresh: Served) -> None:
    for path, body in (("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""}), ("/api/generate", {})):
        document = fresh.client.post(path, json={"model": "demo", **body}).json()
        assert (document["done"], document["done_reason"]) == (True, "load")
    assert fresh.client.post("/api/generate", json={"model": "other:happy=1"}).status_code == 404
    assert fresh.engine.counters.answers == {}


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/api/chat", {"tools": [{"type": "function"}]}, "A tool is"),
        ("/api/chat", {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "tool call"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "Images"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x" * 600}]}, "context holds 512"),
        ("/api/chat", {"think": True}, "does not think"),
        ("/api/generate", {"think": "high", "prompt": "good day"}, "does not think"),
        ("/api/chat", {"format": "xml"}, "format"),
        ("/api/chat", {"format": {"type": "nonsense"}}, "grammar"),
        ("/api/chat", {"steering": "0.5 hapy"}, "happy"),
        ("/api/chat", {"model": "demo:hapy"}, "happy"),
        ("/api/chat", {"steering": "./happy.gguf"}, "can only name vectors"),
        ("/api/chat", {"options": {"temperature": -1}}, "temperature"),
        ("/api/chat", {"options": {"num_predict": -3}}, "num_predict"),
        ("/api/chat", {"options": {"mirostat": 2}}, "mirostat"),
        ("/api/chat", {"options": {"top_k": -2}}, "top_k"),
        ("/api/chat", {"options": 7}, "options"),
        ("/api/chat", {"model": 7}, "model"),
        ("/api/generate", {"suffix": "x"}, "fill in"),
        ("/api/generate", {"template": "x"}, "template"),
        ("/api/generate", {"template": "{{ range .Messages }}{{ end }}"}, "template"),
        ("/api/generate", {"template": "{{ .Prompt }}", "think": True}, "think"),
        ("/api/generate", {"context": [1, 10**9]}, "1000000000 is no token"),
        ("/api/generate", {"context": [1], "raw": True}, "context"),
        ("/api/generate", {"images": ["aGk="]}, "Images"),
    ],
)
def test_what_cannot_be_had_is_refused(served: Served, path: str, body: dict[str, Any], word: str) -> None:
    for stream in (False, True):
        status, message = refusal(served, {**body, "stream": stream}, path)
        assert status == 400
        assert word in message


def test_what_asks_for_nothing_is_let_through(served: Served) -> None:
    options = {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "num_gpu": 99, "num_thread": 4, "use_mmap": True, "num_ctx": 512}
    assert served.ollama(options=options)["message"] == served.ollama()["message"]


def test_minus_one_turns_a_filter_off(served: Served) -> None:
    drawn = {"temperature": 1, "seed": 1, "num_predict": 20}
    unfiltered = served.ollama(options={**drawn, "top_k": 0})["message"]
    assert served.ollama(options={**drawn, "top_k": -1})["message"] == unfiltered
    assert served.ollama(options={**drawn, "top_k": 2})["message"] != unfiltered


def test_a_larger_context_than_there_is_is_refused_if_the_model_has_it(serve: Serve) -> None:
    served = serve(n_ctx=128)
    status, message = refusal(served, {"options": {"num_ctx": 300}})
    assert status == 400
    assert "--context" in message
    refused = refusal(served, {"options": {"num_ctx": 10**6}})  # it stands for all that the model has
    assert refused[0] == 400
    whole = serve(n_ctx=served.model.n_ctx_train)
    assert whole.ollama(options={"num_ctx": 10**6})["done"]


def test_another_model_is_not_found(served: Served) -> None:
    assert refusal(served, {"model": "llama3:happy=1:latest"})[0] == 404
    assert served.ollama(model="llama3:latest")["model"] == "demo"
    for name in ("llama3", ""):
        assert served.client.post("/api/show", json={"model": name}).status_code == 404
    assert served.client.post("/api/show", json={}).status_code == 404


def test_the_model_is_listed_and_shown(serve: Serve) -> None:
    served = serve(presets={"cheerful": "0.6 happy"})
    for path in ("/api/tags", "/api/ps"):
        models = served.client.get(path).json()["models"]
        assert [one["name"] for one in models] == ["demo", "demo:cheerful"]
        assert all(one["size"] > 0 and datetime.fromisoformat(one["modified_at"]) for one in models)
        assert str(served.model.path.parent) not in json.dumps(models)
        assert {one["details"]["quantization_level"] for one in models} == {"F32"}
    (one, _) = served.client.get("/api/ps").json()["models"]
    assert datetime.fromisoformat(one["expires_at"]).year > 2300
    assert (one["size_vram"], one["context_length"]) == (0, served.engine.n_ctx)
    for key in ("model", "name"):
        document = served.client.post("/api/show", json={key: "demo:latest"}).json()
        assert document["model_info"]["llama.context_length"] == served.engine.n_ctx
        assert document["model_info"]["llama.block_count"] == 4
        assert document["parameters"] == f"num_ctx {served.engine.n_ctx}"
        assert "insert" not in document["capabilities"]
        assert document["template"] == CHATML_TEMPLATE
        assert str(served.model.path.parent) not in json.dumps(document)
    version = served.client.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)  # Visual Studio Code refuses older ones


def test_the_header_and_the_default_count_here_as_well(serve: Serve) -> None:
    served = serve(default="0.25 calm")
    assert served.ollama()["steering"]["expression"] == "0.25 calm"
    assert served.ollama(steering="")["steering"]["expression"] == ""
    body = {"model": "demo:mood", "messages": HELLO, "stream": False, "options": {"num_predict": 1}}
    answer = served.client.post("/api/chat", json=body, headers={"X-Steering": "0.5 formal"})
    assert answer.json()["steering"]["expression"] == "0.5 formal"
    assert served.ollama(steering="happy", steer_prompt=True)["steering"]["scope"] == "prompt"


def test_answers_are_anchored_here_as_well(serve: Serve) -> None:
    served = serve()
    options = {"num_predict": 12, "min_p": 0.5}
    anchored = served.ollama(steering="2 happy", anchored=True, options=options)
    assert anchored["steering"]["scope"] == "anchored"
    chat = served.chat(steering="2 happy", anchored=True, max_tokens=12, min_p=0.5)
    assert anchored["message"]["content"] == chat["choices"][0]["message"]["content"]
    assert served.ollama(steering="2 happy", options=options)["message"] != anchored["message"]
    assert refusal(served, {"steering": "happy", "anchored": True, "steer_prompt": True})[0] == 400
    among_options = served.ollama(options={**options, "steering": "2 happy", "anchored": True})
    assert (among_options["message"], among_options["steering"]["scope"]) == (anchored["message"], "anchored")
    assert served.ollama(steering="happy", options={"steer_prompt": True, "num_predict": 1})["steering"]["scope"] == "prompt"
    by_default = serve(anchored=True).ollama(steering="2 happy", options=options)
    assert (by_default["message"], by_default["steering"]["scope"]) == (anchored["message"], "anchored")
    free = serve(anchored=True).ollama(steering="2 happy", options={**options, "anchored": False})
    assert free["steering"]["scope"] == "response"
    free = serve(anchored=True).ollama(steering="2 happy", anchored=False, options={**options, "anchored": True})
    assert free["steering"]["scope"] == "response"  # the body goes first


def test_an_answer_goes_on_behind_the_context_of_the_one_before(served: Served) -> None:
    first = generated(served)
    second = generated(served, prompt="and now?", context=first["context"])
    more = "<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n"
    asked = {"prompt": [*first["context"], more], "n_predict": 6, "temperature": 0}
    plain = served.client.post("/completion", json=asked).json()
    assert second["prompt_eval_count"] == plain["tokens_evaluated"]
    assert second["response"] == plain["content"]
    assert len(second["context"]) == second["prompt_eval_count"] + 6
    assert "context" not in generated(served, raw=True)
    last = lines(served, "/api/generate")[-1]
    assert last["context"] == first["context"]


def test_a_request_may_bring_its_template(served: Served) -> None:
    template = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
    template += "<|im_start|>assistant\n{{ .Response }}<|im_end|>"
    for system in ({}, {"system": "be good"}):
        by_model, by_request = generated(served, **system), generated(served, **system, template=template)
        assert (by_request["response"], by_request["context"]) == (by_model["response"], by_model["context"])
    assert generated(served, template="{{ .Prompt }}")["response"] == generated(served, raw=True)["response"]


def test_a_requests_template_is_not_blamed_on_the_model(served: Served) -> None:
    for template in ("{{ range .Messages }}{{ .Content }}{{ end }}", "{{ if .System }}{{ .Prompt }}", "a"):
        answer = served.client.post("/api/generate", json={"model": "demo", "prompt": "good", "template": template})
        assert answer.status_code == 400
        assert "template" in answer.json()["error"]
        assert "model" not in answer.json()["error"]


def test_policy_decisions_are_told(serve: Serve, tmp_path: Path) -> None:
    served = serve(policy=policy_file(tmp_path, "  - {name: calm, when: asked, steer: push.gguf}\n"))
    pig = [{"role": "user", "content": "a pig"}]
    assert [one["action"] for one in served.ollama(messages=pig)["policy"]] == ["fire"]
    told = [one for line in lines(served, messages=pig) for one in line.get("policy", [])]
    assert [one["action"] for one in told] == ["fire"]
