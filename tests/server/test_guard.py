"""Who may talk to the server, and how much they may say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from localsteer.server.guard import MAX_BODY, Access, Guard, is_loopback
from tests.server.conftest import HELLO, PATIENCE, Listen, Serve, Served

CHAT = {"messages": HELLO, "max_tokens": 1}
KEY = "a secret"


def status(served: Served, headers: Mapping[str, str] | None = None, path: str = "/v1/models") -> int:
    return served.client.get(path, headers=dict(headers or {})).status_code


def test_the_address_that_a_connection_came_to_is_let_through() -> None:
    """As a phone in the same house writes it, where the server listens on 0.0.0.0."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def asked(host: bytes) -> int:
        statuses: list[int] = []

        async def send(message: Message) -> None:
            statuses.append(message.get("status", 0))

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        scope = {"type": "http", "path": "/health", "headers": [(b"host", host)], "server": ("192.168.1.5", 8080)}
        await Guard(app, Access())(scope, receive, send)
        return statuses[0]

    assert asyncio.run(asked(b"192.168.1.5:8080")) == 200
    assert asyncio.run(asked(b"192.168.1.6:8080")) == 403
    assert asyncio.run(asked(b"evil.example")) == 403


# Host: another name may have been made to point at this machine


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "127.0.0.1", "localhost", "localhost:1", "LocalHost:8080", "[::1]:8080", "[::1]", "my.host:80"]
)
def test_a_name_of_this_machine_is_let_through(serve: Serve, host: str) -> None:
    served = serve(access=Access(hosts=("localhost", "127.0.0.1", "::1", "My.Host")))
    assert status(served, {"Host": host}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example#localhost",
        "evil.example?localhost",
        "127.0.0.2",
        "0.0.0.0",
        "[::2]",
        "[::1",
        "::1",
        "",
        " ",
        ":8080",
        "\xe4",
    ],
)
def test_any_other_name_is_refused(served: Served, host: str) -> None:
    for path in ("/", "/health", "/v1/models", "/openapi.json", "/nothing"):
        answer = served.client.get(path, headers={b"Host": host.encode("latin-1")})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "wrong_host"
    assert set(served.client.get("/api/tags", headers={"Host": "evil.example"}).json()) == {"error"}


# Origin: another page in the same browser


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1:9999",
        "http://127.0.0.1",
        "http://localhost:8080",
        "https://127.0.0.1:8080.evil.example",
        "http://evil@127.0.0.1:8080",
        "file://127.0.0.1:8080",
        "null",
        "",
        "http://[",
        "127.0.0.1:8080",
    ],
)
def test_a_page_from_elsewhere_is_refused(served: Served, origin: str) -> None:
    before = dict(served.engine.counters.answers)
    assert status(served, {"Origin": origin}) == 403
    answer = served.client.post("/v1/chat/completions", json=CHAT, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "wrong_origin"
    assert "access-control-allow-origin" not in answer.headers
    asking = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    assert served.client.options("/v1/chat/completions", headers=asking).status_code == 403
    assert served.engine.counters.answers == before


def test_the_own_page_is_let_through(served: Served) -> None:
    assert status(served, {"Origin": "http://127.0.0.1:8080"}) == 200
    assert status(served, {"Origin": "http://LOCALHOST:1234", "Host": "localhost:1234"}) == 200


# Sec-Fetch-Site: an <img> or a script of another page asks without an Origin


@pytest.mark.parametrize("mode", ["no-cors", "cors", "navigate"])
@pytest.mark.parametrize("path", ["/v1/vectors/happy", "/v1/vectors", "/api/tags", "/metrics", "/health", "/page/page.js"])
def test_what_another_page_embeds_is_refused(served: Served, path: str, mode: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Referer": "https://evil.example/"}
    assert status(served, headers, path) == 403


def test_a_link_to_the_page_may_be_followed_and_the_page_used(served: Served) -> None:
    assert status(served, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, "/") == 200
    assert status(served, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "/") == 403
    # Another port of this machine is another page, too.
    assert status(served, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}) == 403
    for site in ("same-origin", "none"):
        assert status(served, {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}) == 200


def test_names_of_headers_are_spelt_as_usual(listen: Listen) -> None:
    with listen().connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert b"\r\nContent-Type: application/json\r\n" in answer


def test_nothing_is_begun_or_changed_by_asking(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_arguments: object) -> None:
        raise AssertionError("something was begun")

    for what, name in ((fresh.service.steerings, "build"), (fresh.engine, "submit"), (fresh.service.reading, "wait_for")):
        monkeypatch.setattr(what, name, begun)
    before = fresh.client.get("/v1/steering").json()
    paths = fresh.client.get("/openapi.json").json()["paths"]
    for path in [path for path, operations in paths.items() if "get" in operations]:
        for name in ("angry", "demo:angry=1", "../x"):  # one of the library's that is not built, and others
            for method in ("GET", "HEAD"):
                asked = path.replace("{name}", name).replace("{identity}", name)
                assert fresh.client.request(method, asked, params={"steering": "happy"}).status_code in (200, 404), asked
    for path in [path for path, operations in paths.items() if "post" in operations and "get" not in operations]:
        assert fresh.client.get(path).status_code in (404, 405), path
    assert fresh.client.get("/v1/steering").json() == before


# --allow-origin


@pytest.fixture
def shared(serve: Serve) -> Served:
    """A server with a key that a page elsewhere may use."""
    return serve(access=Access(origins=("http://localhost:3000",), api_key=KEY))


def test_an_allowed_page_may_ask_before_it_shows_its_key(shared: Served) -> None:
    asking = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-steering",
    }
    answer = shared.client.options("/v1/chat/completions", headers=asking)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(header in allowed for header in ("authorization", "content-type", "x-steering"))
    other = shared.client.options("/v1/chat/completions", headers={**asking, "Origin": "http://localhost:3001"})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_an_allowed_page_still_needs_the_key(shared: Served) -> None:
    origin = {"Origin": "http://localhost:3000"}
    refused = shared.client.post("/v1/chat/completions", json=CHAT, headers=origin)
    assert refused.status_code == 401
    # The page is to read why.
    assert refused.headers["access-control-allow-origin"] == "http://localhost:3000"
    answer = shared.client.post("/v1/chat/completions", json=CHAT, headers={**origin, "Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_an_allowed_page_may_be_of_another_site(shared: Served) -> None:
    headers = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site", "Authorization": f"Bearer {KEY}"}
    assert status(shared, headers) == 200


def test_every_page_may_be_allowed(serve: Serve) -> None:
    answer = serve(access=Access(origins=("*",))).client.get("/v1/models", headers={"Origin": "http://anywhere.example"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("named", "origin", "allowed"),
    [
        ("app.example", "https://app.example", True),
        ("app.example", "http://app.example:3000", True),
        ("app.example", "http://app.example.evil.example", False),
        ("app.example", "http://appxexample", False),
        ("localhost", "http://127.0.0.1:3000", True),
        ("localhost", "http://[::1]", True),
        ("localhost", "http://localhost.evil.example", False),
        ("localhost", "http://notlocalhost", False),
        ("http://localhost:3000", "http://localhost:3001", False),
    ],
)
def test_a_host_stands_for_all_its_pages(serve: Serve, named: str, origin: str, allowed: bool) -> None:
    answer = serve(access=Access(origins=(named,))).client.get("/v1/models", headers={"Origin": origin})
    assert answer.status_code == (200 if allowed else 403)
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)


def test_another_page_is_refused_all_the_same(shared: Served) -> None:
    answer = shared.client.get("/v1/models", headers={"Origin": "http://evil.example", "Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


# The key


def test_the_key_may_be_shown_as_other_programs_show_it(shared: Served) -> None:
    assert shared.client.get("/v1/models", headers={"X-Api-Key": KEY}).status_code == 200
    assert shared.client.get("/v1/models", headers={"X-Api-Key": f"{KEY}x"}).status_code == 401
    # What a program shows as OpenAI's do counts.
    wrong = {"Authorization": "Bearer wrong", "X-Api-Key": KEY}
    assert shared.client.get("/v1/models", headers=wrong).status_code == 401


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} "])
def test_the_key_opens(shared: Served, header: str) -> None:
    assert status(shared, {"Authorization": header}) == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Basic {KEY}",
        "Basic YSBzZWNyZXQ6",
        KEY,
        "Bearer clé",
        "Bearer \xff\xfe",
    ],
)
def test_anything_else_does_not(shared: Served, header: str | None) -> None:
    headers: dict[str, Any] = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = shared.client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert KEY not in answer.text
    answer = shared.client.get("/api/tags", headers=headers)
    assert answer.status_code == 401
    assert isinstance(answer.json()["error"], str)
    for path in ("/metrics", "/openapi.json", "/v1/steering", "/nothing", "/health/", "/page", "/PAGE/x"):
        assert status(shared, headers, path) == 401, path


def test_what_is_open_is_open(shared: Served) -> None:
    assert status(shared, path="/health") == 200
    assert status(shared, path="/") == 200
    assert status(shared, path="/page/index.html") == 200
    for path in ("/page/../v1/models", "/page/%2e%2e/v1/models", "/page/..%2fapp.py", "/page/%2e%2e%2fapp.py"):
        assert status(shared, path=path) in (401, 404), path


# Headers that a browser obeys


def test_nothing_is_sniffed(shared: Served) -> None:
    for path in ("/", "/health", "/v1/models", "/page/index.html", "/nothing"):
        answer = shared.client.get(path, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert shared.client.get("/v1/models").headers["x-content-type-options"] == "nosniff"


def test_the_page_asks_nobody_else_and_is_nobodys_frame(served: Served) -> None:
    headers = served.client.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["referrer-policy"] == "no-referrer"


# How much


def test_a_body_over_the_limit_is_refused(served: Served) -> None:
    most = {"messages": HELLO, "max_tokens": 1, "user": ""}

    for size, expected in ((MAX_BODY, 200), (MAX_BODY + 1, 413)):
        body = json.dumps({**most, "user": "x" * (size - len(json.dumps(most)))}).encode()
        assert len(body) == size
        answer = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == expected
    assert answer.json()["error"]["code"] == "body_too_large"
    assert "1,000,000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("path", "form"), [("/v1/chat/completions", dict), ("/api/chat", str), ("/v1/steering", dict)])
def test_a_body_without_a_length_is_limited_too(served: Served, path: str, form: type) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield b" " * 1_000_000

    method = "PUT" if path == "/v1/steering" else "POST"
    answer = served.client.request(method, path, content=parts(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert isinstance(answer.json()["error"], form)
    assert served.client.get("/health").status_code == 200


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "²", "9" * 30, "9" * 5000, "1000001"])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    sent: list[Any] = []

    async def app(*_: object) -> None:
        raise AssertionError("it was let through")

    async def receive() -> Any:
        raise AssertionError("its body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", length.encode("latin-1"))]
    asyncio.run(Guard(app, Access())({"type": "http", "path": "/v1/models", "headers": headers}, receive, send))
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("chunked", [False, True])
def test_fifty_megabytes_are_refused_and_the_server_goes_on(listen: Listen, chunked: bool) -> None:
    live = listen()
    with live.connect() as connection:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 50000000"
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + length + b"\r\n\r\n"
        )
        part = b" " * 100_000
        with contextlib.suppress(ConnectionError):  # it does not listen to all of it
            for _ in range(500):
                connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413"), answer[:100]
    assert live.health()["running"] == 0
    assert httpx.post(f"{live.url}/v1/chat/completions", json=CHAT, timeout=PATIENCE).status_code == 200


def test_what_is_a_loopback_address() -> None:
    for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.com", "", "127.0.0.1.example.com", "localhost."):
        assert not is_loopback(host)


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_body_is_json_whatever_it_is_called(served: Served, path: str, kind: str | None) -> None:
    """`curl -d` says that it is a form."""
    body = {**CHAT, "model": "demo", "stream": False, "options": {"num_predict": 1}}
    headers = {"Content-Type": kind} if kind is not None else {}
    assert served.client.post(path, content=json.dumps(body), headers=headers).status_code == 200
