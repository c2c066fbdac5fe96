"""Requests that nobody would write by hand, made from the server's own OpenAPI document: it never fails.

`make test` tries 12 of each kind; LOCALSTEER_EXAMPLES=40 that many.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from starlette.testclient import TestClient

from localsteer.llama.model import Model
from localsteer.server.answers import Service
from localsteer.server.app import make_app
from localsteer.server.engine import Engine
from localsteer.server.guard import Access
from localsteer.server.steerings import Steerings
from localsteer.steering.expression import parse_steering
from tests.server.conftest import HeldBatch, Served

EXAMPLES = int(os.environ.get("LOCALSTEER_EXAMPLES", "12"))
# Every kind of request that the document describes, and of those that it does not allow.
OPERATIONS = [
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{name}"),
    ("get", "/v1/vectors"),
    ("get", "/v1/vectors/{name}"),
    ("post", "/v1/vectors/{name}"),
    ("post", "/v1/vectors/activations"),
    ("get", "/v1/steering"),
    ("put", "/v1/steering"),
    ("post", "/api/chat"),
    ("post", "/api/generate"),
    ("get", "/api/tags"),
    ("get", "/api/ps"),
    ("post", "/api/show"),
    ("get", "/api/version"),
    ("post", "/v1/embeddings"),
    ("post", "/embedding"),
    ("post", "/embeddings"),
    ("post", "/api/embed"),
    ("post", "/api/embeddings"),
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("get", "/props"),
    ("get", "/slots"),
    ("delete", "/v1/responses/{identity}"),
    ("get", "/v1/responses/{identity}"),
    ("post", "/apply-template"),
    ("post", "/completion"),
    ("post", "/infill"),
    ("post", "/v1/messages"),
    ("post", "/v1/messages/count_tokens"),
    ("post", "/v1/responses"),
    ("get", "/health"),
    ("get", "/metrics"),
]


@pytest.fixture(scope="module")
def hostile(tiny: Model, folder: Path) -> Iterator[Served]:
    """A server with a context so small that answers take no time."""
    batch = HeldBatch(tiny, parallel=2, n_ctx=48)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(batch))
        service = Service(tiny, engine, Steerings(tiny, "demo", folder=folder, presets={"cheerful": parse_steering("0.6 happy")}))
        stack.callback(service.stop)
        app = make_app(service, Access())
        # An exception that nothing handles is a failure of the test, whatever became of it on its way out.
        yield Served(app, batch, engine, service, TestClient(app, "http://127.0.0.1:8080"))


@pytest.fixture(scope="module")
def document(hostile: Served) -> schemathesis.BaseSchema:
    schema: schemathesis.BaseSchema = schemathesis.openapi.from_dict(hostile.client.get("/openapi.json").json())
    return schema


def test_every_operation_is_tried(hostile: Served) -> None:
    paths = hostile.client.get("/openapi.json").json()["paths"]
    assert {(method, path) for path, operations in paths.items() for method in operations} == set(OPERATIONS)


def sensible(body: dict[str, Any]) -> dict[str, Any]:
    """Names that there are for every other one that was made up: those end a request before anything else is looked at."""
    known: dict[str, Any] = {"model": "demo", "name": "demo", "steering": "0.5 happy"}
    found = {key: value for key, value in known.items() if isinstance(body.get(key), str) and len(body[key]) % 2}
    if isinstance(body.get("vectors"), list) and len(body["vectors"]) % 2:
        found["vectors"] = ["happy"]
    return found


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_makes_the_server_fail(hostile: Served, document: schemathesis.BaseSchema, method: str, path: str) -> None:
    operation = document[path][method.upper()]
    has_input = bool(operation.body) or bool(operation.path_parameters)
    modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if has_input else [])]
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])

    @settings(
        max_examples=EXAMPLES if has_input else 3,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def tried(case: schemathesis.Case[Any]) -> None:
        if isinstance(case.body, dict):
            case.body = {**case.body, **sensible(case.body)}
        answer = case.call(session=None, app=hostile.app, base_url="http://127.0.0.1:8080")
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert isinstance(error, str if path.startswith("/api/") else dict)

    tried()
    assert hostile.client.get("/health").json()["status"] == "ok"
    hostile.chat(max_tokens=2)
    assert (hostile.engine.running, hostile.engine.waiting) == (0, 0)
