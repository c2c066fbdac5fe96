"""What a server was started with counts for requests that leave it open, in every API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.server.defaults import Defaults
from tests.server.conftest import HELLO, Serve, Served
from tests.server.test_template_wishes import CLOSED, THINKS
from tests.tiny_models import write_tiny_model

PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "good day"},
    "/completion": {"prompt": "good day"},
    "/v1/responses": {"input": "good day"},
    "/v1/messages": {"messages": HELLO},
    "/api/chat": {"model": "demo", "messages": HELLO, "stream": False},
}
# Where an answer says how many tokens it took.
COUNTS = ("completion_tokens", "output_tokens", "tokens_predicted", "eval_count")


def posted(served: Served, path: str, **body: Any) -> dict[str, Any]:
    answer = served.client.post(path, json={**PATHS[path], **body})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def written(document: dict[str, Any]) -> int:
    counted = {**document, **document.get("usage", {})}
    return next(int(counted[name]) for name in COUNTS if name in counted)


@pytest.mark.parametrize("path", PATHS)
def test_they_count_in_every_api(serve: Serve, path: str) -> None:
    served = serve(defaults=Defaults(Sampling(temperature=0, ignore_eos=True, seed=7), max_tokens=5))
    document = posted(served, path)
    assert written(document) == 5
    seed = document["choices"][0]["seed"] if "choices" in document else document["seed"]
    assert seed == 7


def test_a_request_that_says_otherwise_has_its_way(serve: Serve) -> None:
    served = serve(defaults=Defaults(Sampling(temperature=0, ignore_eos=True, seed=7), max_tokens=5))
    asked = posted(served, "/completion", n_predict=3, seed=8, temperature=1.5)
    settings = asked["generation_settings"]
    assert (written(asked), settings["seed"], settings["temperature"]) == (3, 8, 1.5)
    assert posted(served, "/completion", seed=-1)["seed"] != 7
    assert written(posted(served, "/completion", n_predict=-1)) > 5


def test_the_server_tells_them(serve: Serve) -> None:
    served = serve(defaults=Defaults(Sampling(temperature=0.25, seed=7), max_tokens=5))
    told = served.client.get("/props").json()["default_generation_settings"]["params"]
    assert (told["temperature"], told["seed"], told["n_predict"]) == (0.25, 7, 5)


def test_a_server_may_be_told_not_to_think(tmp_path: Path, serve: Serve) -> None:
    with Model(write_tiny_model(tmp_path / "thinks.gguf", chat_template=THINKS), threads=1) as model:
        served = serve(model=model, vectors=None, defaults=Defaults(think=False))

        def prompt(**body: Any) -> str:
            answer = served.client.post("/apply-template", json={"messages": HELLO, **body})
            return str(answer.json()["prompt"])

        assert prompt().endswith(f"<think>\n{CLOSED}")
        for says in ({"think": True}, {"chat_template_kwargs": {"enable_thinking": True}}):
            assert prompt(**says).endswith("<think>\n")
