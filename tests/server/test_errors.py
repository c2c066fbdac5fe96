"""Errors as both APIs write them, and what they never tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.server.answers import RequestError
from localsteer.server.engine import BusyError, StoppingError
from localsteer.server.errors import error_document, without_paths
from localsteer.server.steerings import SteeringError, UnknownModelError
from localsteer.vector.file import write_vector
from tests.conftest import TinyPath
from tests.server.conftest import HELLO, Serve, Served, tiny_vector
from tests.tiny_models import write_tiny_model

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("error", "status", "kind", "parameter", "code"),
    [
        (LocalsteerError("wrong", hint="Do it right."), 400, "invalid_request_error", None, None),
        (RequestError("wrong", "n"), 400, "invalid_request_error", "n", None),
        (SteeringError("wrong"), 400, "invalid_request_error", None, None),
        (UnknownModelError("wrong"), 404, "invalid_request_error", "model", "model_not_found"),
        (BusyError("wrong", 3), 429, "rate_limit_error", None, "too_many_requests"),
        (StoppingError("wrong"), 503, "server_error", None, "stopping"),
        (ValueError("/secret/place is wrong"), 500, "server_error", None, None),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int, kind: str, parameter: str | None, code: str | None) -> None:
    found, document = error_document(error)
    assert found == status
    (content,) = document.values()
    assert {key: content[key] for key in ("type", "param", "code")} == {"type": kind, "param": parameter, "code": code}
    assert "secret" not in content["message"]
    if isinstance(error, LocalsteerError):
        assert content["message"] == str(error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/models/x.gguf is damaged.", "x.gguf is damaged."),
        ('"/home/me/x.gguf": damaged', '"x.gguf": damaged'),
        ("~/vectors/x.gguf", "x.gguf"),
        ("C:\\Users\\me\\x.gguf", "x.gguf"),
        ("c:/Users/me/x.gguf", "x.gguf"),
        ("(see /a/b and /c/d)", "(see b and d)"),
        ("no vector x/y here", "no vector x/y here"),
        ("1/2 and 0.5/s, and/or", "1/2 and 0.5/s, and/or"),
        ("GET /v1/vectors lists them.", "GET /v1/vectors lists them."),
        ("half \ud800 a character", "half ? a character"),
        ("", ""),
    ],
)
def test_paths_are_shortened(text: str, told: str) -> None:
    assert without_paths(text) == told


def test_a_long_text_is_searched_in_no_time() -> None:
    for part in ("/", "a/", "/a", "~", "C:\\", "/a b", "//"):
        assert len(without_paths(part * 100_000)) <= 100_000 * len(part)


# No path of this machine


@pytest.fixture
def damaged(serve: Serve, tiny: Model, tmp_path: Path, tiny_path: TinyPath) -> Served:
    """A server with vectors that cannot be used, in a folder whose name has a space."""
    folder = tmp_path / "my own vectors"
    folder.mkdir()
    (folder / "torn.gguf").write_bytes(b"GGUF\3\0\0\0")
    (folder / "none.gguf").write_bytes(b"no GGUF at all")
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "model.gguf").write_bytes(tiny_path("llama").read_bytes())
    (folder / "folder.gguf").mkdir()
    (folder / "link.gguf").symlink_to(tmp_path / "gone.gguf")
    whole = folder / "good.gguf"
    write_vector(tiny_vector(tiny, 1), whole)
    (folder / "cut.gguf").write_bytes(whole.read_bytes()[:-100])
    other = write_tiny_model(tmp_path / "wide.gguf", n_embd=128)
    with Model(other, threads=1) as model:
        write_vector(tiny_vector(model, 1), folder / "wide.gguf")
    return serve(vectors=folder)


@pytest.mark.parametrize("name", ["torn", "none", "empty", "model", "folder", "link", "cut", "wide"])
def test_a_vector_that_cannot_be_used_is_told_by_its_name(damaged: Served, tmp_path: Path, name: str) -> None:
    for document in (
        damaged.refused({"steering": f"0.5 {name}"}),
        damaged.refused({"model": f"demo:{name}"}),
        damaged.refused({}, headers={"X-Steering": name}),
        damaged.refused({"texts": ["x"], "vectors": [name]}, "/v1/vectors/activations"),
    ):
        status, error = document
        assert status == 400
        assert name in error["message"]
        for part in (*tmp_path.parts[1:], "my own", "own vectors", "/home", "/tmp"):
            assert part not in error["message"], error["message"]
    for answer in (
        damaged.client.get(f"/v1/vectors/{name}"),
        damaged.client.put("/v1/steering", json={"steering": name}),
        damaged.client.post("/api/chat", json={"model": f"demo:{name}", "messages": HELLO}),
    ):
        assert answer.status_code == 400
        assert "my own" not in answer.text
        assert str(tmp_path) not in answer.text
    assert name not in {one["id"] for one in damaged.client.get("/v1/vectors").json()["data"]}
    assert "good" in {one["id"] for one in damaged.client.get("/v1/vectors").json()["data"]}


# Bodies that are none


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe{}",
        b'{"messages": "\xff"}',
        b'{"model": "\xc3\x28", "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
        b'{"messages": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 4000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": 1e30}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}',
        b'{"messages": [{"role": "user", "content": "x"}], "model": "demo:\\ud800"}',
        b'{"messages": [{"role": "user", "content": "x"}], "steering": "\\udc00"}',
        b'{"messages": [{"role": "\\ud800", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "\\ud800"}]}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "\\ud800"}}',
        b'{"messages": [{"role": "user", "content": "x"}], "tools": {"\\ud800": 1}}',
        '{"messages": [{"role": "user", "content": "x"}], "n": "²"}'.encode(),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_and_the_server_goes_on(served: Served, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/vectors/activations"):
        answer = served.client.post(path, content=body, headers=JSON)
        assert 400 <= answer.status_code < 500, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for path in ("/api/chat", "/api/generate", "/api/show"):
        answer = served.client.post(path, content=body, headers=JSON)
        assert 400 <= answer.status_code < 500, answer.text
        assert isinstance(answer.json()["error"], str)
    assert served.client.put("/v1/steering", content=body, headers=JSON).status_code == 400
    served.chat()


def test_a_body_of_another_type_is_refused(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = served.client.post("/v1/chat/completions", content=b"messages=x", headers={"Content-Type": kind})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_half_a_character_in_a_schema_is_refused(served: Served) -> None:
    schemas: list[dict[str, Any]] = [{"const": "\ud800"}, {"properties": {"\ud800": {}}}, {"\ud800": 1}, {"type": "\ud800"}]
    for schema in schemas:
        body = {"messages": HELLO, "max_tokens": 1, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        answer = served.client.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)
        assert answer.status_code == 400
        body = {"model": "demo", "messages": HELLO, "format": schema, "stream": False}
        assert served.client.post("/api/chat", content=json.dumps(body), headers=JSON).status_code == 400


# What is not there


def test_an_unknown_path_or_method_is_told_in_the_same_form(served: Served) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/page/nothing.js", 404),
    ):
        answer = served.client.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for method, path, status in (("GET", "/api/nothing", 404), ("GET", "/api/chat", 405), ("POST", "/api/pull", 404)):
        answer = served.client.request(method, path)
        assert answer.status_code == status
        assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models", "/v1/vectors", "/api/version", "/api/tags"])
def test_head_is_answered_wherever_get_is(served: Served, path: str) -> None:
    asked, told = served.client.head(path), served.client.get(path)
    assert (asked.status_code, asked.headers["content-type"]) == (200, told.headers["content-type"])
    assert asked.content == b""


def test_a_conversation_that_is_too_long_has_its_own_code(served: Served) -> None:
    for body in ({"messages": [{"role": "user", "content": "x" * 600}]}, {"messages": HELLO * 60, "stream": True}):
        status, error = served.refused(body)
        assert (status, error["code"], error["type"]) == (400, "context_length_exceeded", "exceed_context_size_error")
        assert error["n_prompt_tokens"] >= error["n_ctx"] == served.engine.n_ctx


def test_a_mistake_of_the_server_tells_nothing_of_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(raise_server_exceptions=False)

    def fail(*_: object) -> None:
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(type(served.service.steerings), "list_vectors", fail)
    answer = served.client.get("/v1/vectors")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
