"""Connections that stand still, and more of them than there is room for."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from localsteer.llama.model import Model
from localsteer.server import connections, guard
from localsteer.server.connections import Connection, room
from tests.server.conftest import HELLO, PATIENCE, Listen, Live, wait_until
from tests.tiny_models import write_tiny_model

SOON = 0.3
BODY = json.dumps({"messages": HELLO, "max_tokens": 2}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def everything(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def still_answers(live: Live) -> None:
    answer = httpx.post(f"{live.url}/v1/chat/completions", content=BODY, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /health HTTP/1.1\r\nHost: local"], ids=["nothing", "a byte", "half a head"])
def test_half_a_request_is_hung_up_on(listen: Listen, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", SOON)
    live = listen()
    with live.connect() as connection:
        connection.sendall(begun)
        assert everything(connection) == b""
    still_answers(live)


def test_bytes_now_and_then_keep_no_connection(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also behind an answer: uvicorn forgets its own limit with the first byte of a next request."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", SOON)
    live = listen()
    with live.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.settimeout(SOON / 10)
        while True:
            connection.sendall(b"X")
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    break
    still_answers(live)


def test_a_body_that_does_not_come_is_told(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", SOON)
    live = listen()
    with live.connect() as connection:
        connection.sendall(HEAD % len(BODY) + BODY[:10])
        head, _, content = everything(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(content)["error"]["code"] == "body_too_slow"
    still_answers(live)


def test_an_answer_may_take_longer_than_a_request(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", SOON)
    monkeypatch.setattr(guard, "BODY_SECONDS", SOON)
    live = listen()
    live.served.batch.go.clear()
    with live.connect() as connection:
        connection.sendall(HEAD % len(BODY) + BODY)
        live.wait_until(lambda health: health["running"] == 1)
        connection.settimeout(3 * SOON)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        live.served.batch.go.set()
        connection.settimeout(PATIENCE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_reads_is_torn_off(listen: Listen, monkeypatch: pytest.MonkeyPatch, long_model: Model) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", SOON)
    live = listen(model=long_model, n_ctx=100_000)
    body = json.dumps({"messages": HELLO, "stream": True, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}).encode()
    with live.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD % len(body) + body)
        live.wait_until(lambda health: health["running"] == 1)
        live.wait_until(lambda health: health["running"] == 0)
        assert live.served.engine.counters.answers == {"cancelled": 1}


# More than there is room for


@pytest.fixture
def narrow(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> Live:
    live = listen()
    monkeypatch.setattr(Connection, "limit", 3)
    return live


@contextlib.contextmanager
def connected(live: Live, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(live.connect()) for _ in range(count)]


def test_who_asks_for_nothing_makes_room(narrow: Live) -> None:
    with connected(narrow, 3) as idle:
        wait_until(lambda: len(narrow.server.server_state.connections) == 3)
        still_answers(narrow)
        assert everything(idle[0]) == b""


def test_where_all_are_answered_a_new_one_is_told_to_wait(narrow: Live) -> None:
    narrow.served.batch.go.clear()
    with connected(narrow, 3) as busy:
        for connection in busy:
            connection.sendall(HEAD % len(BODY) + BODY)
        wait_until(lambda: narrow.served.engine.running + narrow.served.engine.waiting == 3)
        answer = httpx.post(f"{narrow.url}/v1/chat/completions", content=BODY, timeout=PATIENCE)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "too_many_connections"
        narrow.served.batch.go.set()
        for connection in busy:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    still_answers(narrow)


def test_there_is_room_for_some() -> None:
    assert 1 <= room() <= connections.MOST


FEW = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
from localsteer.commands import main; main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of this kind")
def test_few_descriptors_and_many_connections_leave_it_answering(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m.gguf", n_layer=2, n_embd=8)
    log = tmp_path / "log"
    command = [sys.executable, "-c", FEW, "serve", "-m", str(model), "--port", "0", "--json", "--alias", "demo"]
    with log.open("w") as err, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True) as process:
        try:
            assert process.stdout is not None
            document = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
            host, _, port = document["url"].removeprefix("http://").partition(":")
            with contextlib.ExitStack() as stack:
                for _ in range(400):
                    stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE))
                for _ in range(5):
                    assert httpx.post(f"{document['url']}/v1/chat/completions", content=BODY, timeout=PATIENCE).status_code == 200
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert log.stat().st_size < 10_000, log.read_text()[:2000]
