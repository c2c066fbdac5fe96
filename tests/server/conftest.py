"""A server of a tiny model: called in process, or by uvicorn in a thread where streams and disconnects matter."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from localsteer.engine.batch import RunningBatch
from localsteer.engine.lane import Lane
from localsteer.llama.model import Model
from localsteer.policy.arm import ArmedPolicy, arm
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.server.answers import Service
from localsteer.server.app import make_app
from localsteer.server.defaults import Defaults
from localsteer.server.engine import Engine
from localsteer.server.guard import Access
from localsteer.server.listener import configured
from localsteer.server.steerings import Steerings
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import parse_steering
from localsteer.vector.control_vector import ControlVector, Provenance
from localsteer.vector.file import write_vector
from tests.conftest import random_rows
from tests.tiny_models import write_tiny_model

# Longer than any test waits for what surely happens.
PATIENCE = 60.0
# Small letters and a space, each a token of its own but for the vocabulary's few merges.
HELLO = [{"role": "user", "content": "good day"}]


def tiny_vector(model: Model, seed: int, *, positive: str = "up", negative: str = "down") -> ControlVector:
    """A vector that changes a tiny model's answers, and knows its hidden norms."""
    rows = random_rows(model, (1, 2), seed)
    provenance = Provenance(
        concept="made",
        description="made for tests",
        positive=positive,
        negative=negative,
        model=model.fingerprint,
        hidden_norm=np.array([np.nan, *[8.0] * (model.n_layer - 1)], np.float32),
    )
    return ControlVector({layer: rows[layer] for layer in (1, 2)}, provenance)


@pytest.fixture(scope="session")
def folder(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of the tiny model: happy, formal, calm (which hide the library's) and mood."""
    folder = tmp_path_factory.mktemp("a folder of vectors")
    for seed, name in enumerate(("happy", "formal", "calm", "mood")):
        write_vector(tiny_vector(tiny, seed), folder / f"{name}.gguf")
    return folder


class HeldBatch(RunningBatch):
    """A batch that can be made to stand still before a step, so that what waits can be looked at."""

    def __init__(self, model: Model, *, parallel: int = 4, n_ctx: int | None = None) -> None:
        super().__init__(model, parallel=parallel, n_ctx=n_ctx)
        self.go = threading.Event()
        self.go.set()
        self.standing = threading.Event()
        self.failure: Exception | None = None

    def step(self) -> list[Lane]:
        if not self.go.is_set():
            self.standing.set()
            assert self.go.wait(PATIENCE)
            self.standing.clear()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return super().step()


@dataclass(frozen=True)
class Served:
    """Everything about one server."""

    app: ASGIApp
    batch: HeldBatch
    engine: Engine
    service: Service
    client: TestClient

    @property
    def model(self) -> Model:
        return self.service.model

    def chat(self, **body: Any) -> dict[str, Any]:
        """The answer to a chat that must succeed."""
        return self._post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 6, "temperature": 0, **body})

    def complete(self, **body: Any) -> dict[str, Any]:
        """The answer to a text that must succeed."""
        return self._post("/v1/completions", {"prompt": "good day", "max_tokens": 6, "temperature": 0, **body})

    def ollama(self, **body: Any) -> dict[str, Any]:
        """The answer to a chat of Ollama's that must succeed."""
        options = {"num_predict": 6, "temperature": 0, **body.pop("options", {})}
        return self._post("/api/chat", {"model": "demo", "messages": HELLO, "stream": False, "options": options, **body})

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def refused(self, body: Mapping[str, Any], path: str = "/v1/chat/completions", **options: Any) -> tuple[int, dict[str, Any]]:
        """The status and error of a request that OpenAI's part of the server must refuse."""
        answer = self.client.post(path, json={"messages": HELLO, "prompt": "good", "max_tokens": 2, **body}, **options)
        error = answer.json()["error"]
        size = {"n_prompt_tokens", "n_ctx"} if error["code"] == "context_length_exceeded" else set()
        assert set(error) == {"message", "type", "param", "code", *size}
        assert isinstance(error["message"], str)
        assert error["message"]
        return answer.status_code, error

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Every number of /metrics, by its name and the values of its labels."""
        return read_metrics(self.client.get("/metrics").text)


def read_metrics(text: str) -> dict[tuple[str, ...], float]:
    """As Prometheus reads it; labels are in the order of their names."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


Serve = Callable[..., Served]


@contextlib.contextmanager
def serving(tiny: Model, folder: Path) -> Iterator[Serve]:
    """Makes servers of a tiny model, and ends them."""
    with contextlib.ExitStack() as stack:

        def make(
            *,
            model: Model = tiny,
            name: str = "demo",
            presets: Mapping[str, str] | None = None,
            default: str = "",
            anchored: bool = False,
            vectors: Path | None = folder,
            max_dose: float | None = None,
            parallel: int = 2,
            queue: int = 32,
            n_ctx: int | None = None,
            policy: Path | None = None,
            access: Access | None = None,
            strict: bool = False,
            fixed: bool = False,
            list_steerings: int = 0,
            defaults: Defaults | None = None,
            raise_server_exceptions: bool = True,
        ) -> Served:
            batch = HeldBatch(model, parallel=parallel, n_ctx=n_ctx)
            engine = stack.enter_context(Engine(batch, queue=queue))
            stack.callback(batch.go.set)
            limit = DoseLimit(max_dose, read_hidden_norm(model)) if max_dose is not None else None
            steerings = Steerings(
                model,
                name,
                folder=vectors,
                presets={preset: parse_steering(text) for preset, text in (presets or {}).items()},
                default=parse_steering(default),
                mode="anchored" if anchored else "response",
                limit=limit,
                strict=strict,
                fixed=fixed,
                list_steerings=list_steerings,
            )
            armed: ArmedPolicy | None = stack.enter_context(arm(policy, model, limit=limit)) if policy is not None else None
            service = Service(model, engine, steerings, armed, defaults)
            stack.callback(service.stop)
            app = make_app(service, access or Access())
            client = TestClient(app, "http://127.0.0.1:8080", raise_server_exceptions=raise_server_exceptions)
            return Served(app, batch, engine, service, client)

        yield make


@pytest.fixture
def serve(tiny: Model, folder: Path) -> Iterator[Serve]:
    """Makes servers of a tiny model."""
    with serving(tiny, folder) as make:
        yield make


@pytest.fixture(scope="module")
def served(tiny: Model, folder: Path) -> Iterator[Served]:
    """A server with nothing special about it, for all tests of a module: they leave it as it was."""
    with serving(tiny, folder) as make:
        yield make()


@pytest.fixture
def fresh(serve: Serve) -> Served:
    """One of the same kind that has not been asked anything yet, and may be left in any state."""
    return serve()


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A tiny model with a context so long that an answer lasts until nobody wants it any more."""
    path = write_tiny_model(tmp_path_factory.mktemp("long") / "long.gguf", n_layer=2, n_ctx_train=200_000)
    with Model(path, threads=1) as model:
        yield model


@dataclass(frozen=True)
class Live:
    """A server that listens."""

    url: str
    served: Served
    server: uvicorn.Server

    def health(self) -> dict[str, Any]:
        document: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=PATIENCE).json()
        return document

    def wait_until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Ask /health, as a supervisor does, until it says so."""
        wait_until(lambda: condition(self.health()))

    def connect(self) -> socket.socket:
        """A bare connection, for what no HTTP client would send."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        # What hangs up is told at once, with a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return connection


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again, where nothing tells of it."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.01)


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[tuple[str, uvicorn.Server]]:
    """uvicorn in a thread, at a free port of 127.0.0.1."""
    server = uvicorn.Server(configured(app, closing=1))
    started = threading.Event()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(2048)

        def run() -> None:
            started.set()
            server.run(sockets=[bound])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert started.wait(PATIENCE)
            # It listens already: the first request waits until it is accepted.
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", server
        finally:
            wait_until(lambda: server.started or not thread.is_alive())
            server.should_exit = True
            thread.join()


Listen = Callable[..., Live]


@pytest.fixture
def listen(serve: Serve) -> Iterator[Listen]:
    """Makes servers that listen."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Live:
            served = serve(**options)
            stack.callback(served.batch.go.set)
            url, server = stack.enter_context(listening(served.app))
            return Live(url, served, server)

        yield make
