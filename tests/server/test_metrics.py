from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.server.guard import Access
from tests.server.conftest import HELLO, Serve, Served, read_metrics
from tests.server.test_openai_api import policy_file


def test_answers_and_tokens_add_up(fresh: Served) -> None:
    first = fresh.chat(max_tokens=5)
    again = fresh.chat(max_tokens=5, n=2)
    fresh.complete(max_tokens=3)
    metrics = fresh.metrics()
    assert metrics["localsteer_answers_total", "length"] == 4
    assert metrics["localsteer_generated_tokens_total",] == 5 + 10 + 3
    read = 3 * first["usage"]["prompt_tokens"] + len(fresh.model.tokenize("good day"))
    assert metrics["localsteer_prompt_tokens_total",] + metrics["localsteer_prompt_tokens_reused_total",] == read
    assert metrics["localsteer_prompt_tokens_reused_total",] >= again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert metrics["localsteer_batches_total",] >= 5
    assert metrics["localsteer_answers_running",] == metrics["localsteer_answers_waiting",] == 0
    assert metrics["localsteer_kv_tokens",] == fresh.engine.kept_tokens > 0


def test_answers_are_counted_by_their_reason(fresh: Served) -> None:
    text = fresh.complete(max_tokens=30, temperature=1, seed=3)["choices"][0]["text"]
    stop = next(one for one in text[3:] if one.isascii() and one.isprintable())
    fresh.complete(max_tokens=30, temperature=1, seed=3, stop=stop)
    fresh.batch.failure = RuntimeError()
    with pytest.raises(RuntimeError):
        fresh.chat()
    metrics = fresh.metrics()
    assert {key[1]: value for key, value in metrics.items() if key[0] == "localsteer_answers_total"} == {
        "length": 1,
        "stop": 1,
        "error": 1,
    }


def test_requests_are_counted_by_route_and_status(fresh: Served) -> None:
    fresh.chat()
    fresh.refused({"model": "other:happy=1"})
    fresh.refused({"n": 0})
    fresh.client.get("/v1/vectors/mood")
    fresh.client.get("/v1/vectors/hapy")
    fresh.client.get("/v1/models/demo:happy=0.5")
    for number in range(3):
        fresh.client.get(f"/anything/{number}")
    fresh.client.get("/page/index.html")
    metrics = fresh.metrics()
    requests = {key[1:]: value for key, value in metrics.items() if key[0] == "localsteer_requests_total"}
    assert requests == {
        ("/v1/chat/completions", "200"): 1,
        ("/v1/chat/completions", "404"): 1,
        ("/v1/chat/completions", "400"): 1,
        ("/v1/vectors/{name}", "200"): 1,
        ("/v1/vectors/{name}", "404"): 1,
        ("/v1/models/{name:path}", "200"): 1,
        ("other", "404"): 3,
        ("other", "200"): 1,
    }


def test_what_is_refused_at_the_door_is_counted(serve: Serve) -> None:
    served = serve(access=Access(api_key="secret", origins=("http://localhost:3000",)))
    for number in range(3):
        served.client.get("/v1/models", headers={"Authorization": f"Bearer {number}"})
    served.client.get("/v1/models", headers={"Host": "evil.example"})
    served.client.get("/v1/models", headers={"Origin": "http://evil.example"})
    served.client.post("/v1/chat/completions", headers={"Content-Length": "9999999"})
    key = {"Authorization": "Bearer secret"}
    served.client.get("/v1/models", headers=key)
    metrics = read_metrics(served.client.get("/metrics", headers=key).text)
    assert {key[1:]: value for key, value in metrics.items() if key[0] == "localsteer_requests_total"} == {
        ("other", "401"): 3,
        ("other", "403"): 2,
        ("other", "413"): 1,
        ("/v1/models", "200"): 1,
    }


def test_policy_decisions_are_counted(serve: Serve, tmp_path: Path) -> None:
    served = serve(policy=policy_file(tmp_path, '  - {name: "calm \\"down\\"", when: asked, steer: push.gguf}\n'))
    served.chat(messages=[{"role": "user", "content": "a pig"}], n=2)
    served.chat(messages=HELLO)
    metrics = served.metrics()
    assert metrics["localsteer_policy_decisions_total", "fire", 'calm "down"'] == 2
    assert metrics["localsteer_policy_decisions_total", "pass", 'calm "down"'] == 1


def test_health_says_how_busy_it_is(served: Served) -> None:
    assert served.client.get("/health").json() == {"status": "ok", "model": "demo", "running": 0, "waiting": 0}


def test_health_tells_where_one_answer_after_another_fails(fresh: Served) -> None:
    fresh.batch.failures = 3
    failing = fresh.client.get("/health")
    assert (failing.status_code, failing.json()["status"]) == (503, "failing")
    fresh.chat()  # one that goes well
    well = fresh.client.get("/health")
    assert (well.status_code, well.json()["status"]) == (200, "ok")
