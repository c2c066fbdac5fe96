"""`localsteer serve`: what it refuses, what it prints, and how it ends."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from localsteer.building.cache import cache_path, one_at_a_time
from localsteer.concepts.names import find_concept
from localsteer.vector.file import write_vector
from tests.commands.runner import assert_one_clear_line, run
from tests.conftest import TinyModel, TinyPath
from tests.server.conftest import HELLO, PATIENCE, tiny_vector
from tests.tiny_models import write_tiny_model

# What is refused before anything is loaded needs no model.
NO_MODEL = ("-m", "no-such-model.gguf")
Capture = pytest.CaptureFixture[str]


# What it refuses


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.77.88", "example.com", "", "127.0.0.1,0.0.0.0"])
def test_another_address_needs_a_key(capfd: Capture, host: str) -> None:
    result = run(capfd, "serve", "--host", host, *NO_MODEL)
    assert_one_clear_line(result, "can be reached from other machines", "--api-key")
    result = run(capfd, "serve", "--host", host, "--api-key", "", *NO_MODEL)
    assert_one_clear_line(result, "--api-key")


def test_a_key_that_no_header_can_hold_is_refused(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_clear_line(run(capfd, "serve", "--api-key", "clé", *NO_MODEL), "ASCII")
    monkeypatch.setenv("LOCALSTEER_API_KEY", "clé")
    assert_one_clear_line(run(capfd, "serve", *NO_MODEL), "ASCII")


@pytest.mark.parametrize("named", ["http://localhost:3000/page", "*.example.com", "http://", ""])
def test_an_origin_that_no_browser_would_send_is_refused(capfd: Capture, named: str) -> None:
    result = run(capfd, "serve", "--allow-origin", named, "-m", "missing.gguf")
    assert_one_clear_line(result, f'"{named}"', "http://localhost:3000")


def test_a_port_in_use_is_told_before_the_model_is_loaded(capfd: Capture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_clear_line(run(capfd, "serve", "--port", str(port), *NO_MODEL), f"127.0.0.1:{port}", "in use", "--port")


def test_an_address_of_another_machine_is_told(capfd: Capture) -> None:
    result = run(capfd, "serve", "--host", "192.0.2.1", "--api-key", "x", *NO_MODEL)
    assert_one_clear_line(result, "192.0.2.1")


@pytest.mark.parametrize("package", ["uvicorn", "fastapi", "sse_starlette", "prometheus_client"])
def test_a_missing_extra_is_told(capfd: Capture, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *arguments, **named)

    for module in [name for name in sys.modules if name.startswith("localsteer.server") or name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    assert_one_clear_line(run(capfd, "serve", *NO_MODEL), package, 'pip install "localsteer[server]"')


def test_what_cannot_be_used_is_one_clear_line(capfd: Capture, tiny_path: TinyPath, tmp_path: Path) -> None:
    def serve(*arguments: str | Path) -> Any:
        return run(capfd, "serve", "--port", "0", "-m", tiny_path("llama"), *arguments)

    assert_one_clear_line(run(capfd, "serve", "--port", "0", *NO_MODEL), "no-such-model.gguf")
    assert_one_clear_line(serve("-s", "0.5 hapy"), 'no vector "hapy"', "happy")
    assert_one_clear_line(serve("--vectors", tmp_path / "gone"), "gone", "not a folder")
    assert_one_clear_line(serve("--presets", tmp_path / "gone.yaml"), "gone.yaml")
    (tmp_path / "presets.yaml").write_text("presets:\n  latest: happy\n")
    assert_one_clear_line(serve("--presets", tmp_path / "presets.yaml"), "presets.yaml, line 2")
    assert_one_clear_line(serve("--policy", tmp_path / "gone.yaml"), "gone.yaml")
    assert_one_clear_line(serve("--anchored", "--parallel", "1"), "takes two places", "--parallel 2")
    assert_one_clear_line(serve("--think"), "does not think", "--think")
    for wrong in (("--parallel", "0"), ("--queue", "-1"), ("--context", "7"), ("--port", "65536"), ("--port", "x")):
        assert serve(*wrong).code == 2


# What it prints, and how it ends


@contextlib.contextmanager
def started(
    model: Path, *arguments: str | Path, environment: dict[str, str] | None = None, before: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, which runs `before` before it begins."""
    program = f"{before}\nfrom localsteer.commands import main; main()"
    command = [sys.executable, "-c", program, "serve", "-m", str(model), "--port", "0", "--json", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_document(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The JSON document on stdout, read as it comes."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            break
    document: dict[str, Any] = json.loads(text)
    return document


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers last longer than any test."""
    return write_tiny_model(tmp_path_factory.mktemp("endless") / "endless.gguf", n_layer=2, n_ctx_train=2_000_000)


def test_one_document_is_printed_and_the_server_answers_at_once(
    tiny_path: TinyPath, tiny_model: TinyModel, tmp_path: Path
) -> None:
    write_vector(tiny_vector(tiny_model("llama"), 1), tmp_path / "mood.gguf")
    (tmp_path / "presets.yaml").write_text("presets:\n  cheerful: 0.6 mood\n")
    options = ("--alias", "small", "--parallel", "3", "--context", "128", "--vectors", tmp_path, "-s", "0.5 mood", "--anchored")
    key = {"LOCALSTEER_API_KEY": "secret"}
    with started(tiny_path("llama"), *options, "--presets", tmp_path / "presets.yaml", environment=key) as process:
        document = first_document(process)
        assert {name: document[name] for name in ("model", "parallel", "context")} == {
            "model": "small",
            "parallel": 3,
            "context": 128,
        }
        assert document["url"].startswith("http://127.0.0.1:")
        url = document["url"]
        assert httpx.get(f"{url}/v1/models", timeout=PATIENCE).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        models = httpx.get(f"{url}/v1/models", headers=headers, timeout=PATIENCE).json()["data"]
        assert [one["id"] for one in models] == ["small", "small:cheerful"]
        body = {"messages": HELLO, "max_tokens": 2}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)
        assert answer.json()["steering"]["expression"] == "0.5 mood"
        assert answer.json()["steering"]["scope"] == "anchored"
        assert "server" not in answer.headers
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, "")
    assert "secret" not in err
    assert err.splitlines() == [f"small at {url} (Ctrl-C ends it)"]


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only")
def test_it_listens_on_several_addresses_with_what_it_was_told_of_answers(tiny_path: TinyPath) -> None:
    options = ("--host", "127.0.0.1, 127.0.0.2", "-n", "3", "--seed", "7", "--temperature", "0.5", "--no-think")
    with started(tiny_path("llama"), *options) as process:
        url = first_document(process)["url"]
        for address in (url, url.replace("127.0.0.1", "127.0.0.2")):
            params = httpx.get(f"{address}/props", timeout=PATIENCE).json()["default_generation_settings"]["params"]
            assert (params["n_predict"], params["seed"], params["temperature"]) == (3, 7, 0.5)


# All signals have one handler: each is tried with a part of what may be going on.
@pytest.mark.parametrize(
    ("number", "path"),
    [
        (signal.SIGINT, "/v1/chat/completions"),
        (signal.SIGTERM, "/api/chat"),
        (signal.SIGTERM, "not streamed"),
        (signal.SIGHUP, "nothing"),
    ],
)
def test_a_signal_ends_it_cleanly_while_a_request_streams(endless: Path, number: signal.Signals, path: str) -> None:
    with started(endless, "--alias", "demo", "--context", "1000000", "--parallel", "1") as process:
        url = first_document(process)["url"]
        body = {"model": "demo", "messages": HELLO, "stream": path != "not streamed", "options": {"num_predict": -1}}
        with contextlib.ExitStack() as stack:
            if path.startswith("/"):
                answer = stack.enter_context(httpx.stream("POST", f"{url}{path}", json=body, timeout=PATIENCE))
                lines = answer.iter_lines()
                next(lines)
            elif path == "not streamed":
                address = url.removeprefix("http://").split(":")
                connection = stack.enter_context(socket.create_connection((address[0], int(address[1]))))
                data = json.dumps(body).encode()
                head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + data)
                while httpx.get(f"{url}/health", timeout=PATIENCE).json()["running"] == 0:
                    pass
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert "rror" not in err


# Reads a concept's prompts again and again: as a large model does, it computes for minutes.
SLOW_BUILDS = """
import sys
import localsteer.building.library as library
def extract(*arguments, real=library.extract, **options):
    while True:
        real(*arguments, **options)
        print("still building", file=sys.stderr, flush=True)
library.extract = extract
"""


def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it never said {words}")


def test_ctrl_c_ends_it_while_the_default_is_built(tiny_path: TinyPath) -> None:
    with started(tiny_path("llama"), "-s", "happy", before=SLOW_BUILDS) as process:
        wait_for_line(process, "still building")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "localsteer: interrupted"
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_a_vector_is_built_for_a_request(tiny_path: TinyPath, number: signal.Signals) -> None:
    with started(tiny_path("llama"), before=SLOW_BUILDS) as process, ThreadPoolExecutor(1) as pool:
        url = first_document(process)["url"]
        waiting = pool.submit(httpx.post, f"{url}/v1/vectors/happy", timeout=PATIENCE)
        wait_for_line(process, "still building")
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert waiting.result().status_code == 503
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_ctrl_c_ends_it_while_another_process_builds_the_default(tiny_path: TinyPath, tiny_model: TinyModel) -> None:
    concept = find_concept("happy")
    path = cache_path("happy", concept.source(), tiny_model("llama").fingerprint.content)
    with one_at_a_time(path), started(tiny_path("llama"), "-s", "happy") as process:
        wait_for_line(process, "another process is building")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


def test_the_help_names_every_option(capfd: Capture) -> None:
    found = run(capfd, "serve", "--help").out
    for option in ("--host", "--port", "--api-key", "--allow-host", "--allow-origin", "--parallel", "--queue", "--context"):
        assert option in found
    for option in ("--presets", "--vectors", "--policy", "--max-dose", "--alias", "--json", "--steer", "--anchored"):
        assert option in found
