"""Requests that nobody would write by hand: it never fails.

Those that are made from the server's own OpenAPI document: `make test` tries 8 of each kind, LOCALSTEER_EXAMPLES=40 that many.
Sound ones whose bodies and headers were mutated: LOCALSTEER_MUTATIONS of them in all, 400 in `make test`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
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
from tests.door_report import Door
from tests.mutations import EXAMPLES as MUTATIONS
from tests.mutations import in_time, mutated, one_more_gigabyte
from tests.server.conftest import HeldBatch, Served
from tests.server.made_requests import BODIES, PUT

EXAMPLES = int(os.environ.get("LOCALSTEER_EXAMPLES", "8"))
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
    ("post", "/v1/chat/completions/input_tokens"),
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
def test_no_request_makes_the_server_fail(
    door: Door, hostile: Served, document: schemathesis.BaseSchema, method: str, path: str
) -> None:
    operation = document[path][method.upper()]
    has_input = bool(operation.body) or bool(operation.path_parameters)
    count = EXAMPLES if has_input else 3
    door("requests made from the OpenAPI document, of every route", count)
    modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if has_input else [])]
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])

    @settings(
        max_examples=count,
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


# Mutated

HEADERS = [
    b"Host: 127.0.0.1:8080\nX-Steering: 0.5 happy\nAuthorization: Bearer x\nX-Api-Key: y\nAccept: text/html",
    b"Host: localhost\nContent-Type: application/json; charset=utf-8\nOrigin: http://localhost\nSec-Fetch-Site: same-origin",
    b"Host: [::1]:1\nContent-Length: 10\nTransfer-Encoding: chunked\nCookie: a=b\nAccept-Encoding: gzip\nRange: bytes=0-1",
]


def no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def tried(served: Served, path: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    method = "PUT" if path in PUT else "POST"
    with in_time():
        answer = served.client.request(method, path, content=body, headers=headers)
    assert answer.status_code < 500, answer.text
    kind = answer.headers["content-type"]
    if kind.startswith("application/json"):
        document = json.loads(answer.text, parse_constant=no_number)
        assert answer.status_code < 400 or "error" in document
    assert len(answer.content) < 3000 or answer.status_code < 400


def test_every_route_with_a_body_is_mutated(hostile: Served) -> None:
    paths = hostile.client.get("/openapi.json").json()["paths"]
    taken = {path.replace("{name}", "happy") for path, operations in paths.items() if "post" in operations or "put" in operations}
    assert set(BODIES) == taken


def sound_bodies() -> list[bytes]:
    return [json.dumps(body, indent=1).encode() for body in BODIES.values()]


@pytest.mark.parametrize("path", BODIES)
def test_no_body_makes_the_server_fail(door: Door, hostile: Served, path: str) -> None:
    count = -(-MUTATIONS // len(BODIES))
    door("bodies of requests, to every route that takes one", count)
    sound = json.dumps(BODIES[path], indent=1).encode()
    tried(hostile, path, sound, [])
    with one_more_gigabyte():
        for seed in range(count):
            random = Random(f"{path} {seed}")
            body = mutated([sound] if random.random() < 0.9 else sound_bodies(), random)
            try:
                tried(hostile, path, body, [])
            except BaseException as error:
                error.add_note(f"{path}, seed {seed}: {body[:2000]!r}")
                raise
    assert hostile.client.get("/health").json()["status"] == "ok"


def test_no_headers_make_the_server_fail(door: Door, hostile: Served) -> None:
    door("headers of requests", MUTATIONS)
    body = json.dumps(BODIES["/v1/chat/completions"]).encode()
    for seed in range(MUTATIONS):
        random = Random(seed)
        lines = [line.partition(b": ") for line in mutated(HEADERS, random).split(b"\n")]
        # What stands before these is refused by the HTTP parser.
        headers = [(name, value) for name, _, value in lines if name and name.replace(b"-", b"").isalnum()]
        path = random.choice(["/v1/chat/completions", "/api/show", "/tokenize", "/v1/vectors/happy", "/v1/messages"])
        try:
            tried(hostile, path, body, headers)
        except BaseException as error:
            error.add_note(f"{path}, seed {seed}: {headers!r}"[:3000])
            raise
    assert hostile.client.get("/health").json()["status"] == "ok"
