"""Vectors that are built at their first use: who waits for one, who does not, and what becomes of it later."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from localsteer.building.cache import cache_folder
from localsteer.building.library import load_vector, save_vector
from localsteer.concepts import names
from localsteer.errors import VectorError
from localsteer.files.yaml_lines import YamlFile
from localsteer.llama.model import Model
from localsteer.reading.projection import project
from localsteer.server import steerings as steerings_module
from localsteer.server import vectors_api
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector
from tests.calibration.made import calibrated
from tests.server.conftest import HELLO, PATIENCE, Listen, Live, Serve, Served, tiny_vector, wait_until

CHAT = {"messages": HELLO, "max_tokens": 1, "temperature": 0}


class Builds:
    """Takes the place of `load_vector`: it stands still, or fails, and counts."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[str] = []
        self.failure: Exception | None = None

    def __call__(self, name: str, model: Model, progress: object = None) -> ControlVector:
        self.begun.append(name)
        assert self.go.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        return load_vector(name, model)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Builds]:
    builds = Builds()
    monkeypatch.setattr(steerings_module, "load_vector", builds)
    yield builds
    builds.go.set()


@contextlib.contextmanager
def clients(live: Live) -> Iterator[tuple[httpx.Client, ThreadPoolExecutor]]:
    """A client for up to 48 threads."""
    limits = httpx.Limits(max_connections=64)
    with httpx.Client(base_url=live.url, timeout=PATIENCE, limits=limits) as client, ThreadPoolExecutor(48) as pool:
        yield client, pool


def test_all_else_is_answered_while_many_wait_for_one_vector(listen: Listen, builds: Builds) -> None:
    live = listen()
    bodies: list[tuple[str, object]] = [
        ("/v1/vectors/french", None),
        ("/v1/chat/completions", {**CHAT, "steering": "0.5 french"}),
        ("/v1/vectors/activations", {"texts": ["good day"], "vectors": ["french"]}),
    ]
    with clients(live) as (client, pool):
        waiting = [pool.submit(client.post, path, json=body) for path, body in 16 * bodies]
        wait_until(lambda: sum(one.done() for one in waiting) == 16)
        assert builds.begun == ["french"]
        # More than may wait are told so, and when to come back.
        for one in waiting:
            if one.done():
                assert one.result().status_code == 429
                assert int(one.result().headers["Retry-After"]) >= 1
        for path in ("/", "/v1/models", "/api/tags", "/health", "/metrics", "/v1/vectors", "/v1/vectors/happy", "/v1/steering"):
            assert client.get(path).status_code == 200
        assert client.post("/v1/chat/completions", json={**CHAT, "steering": "0.5 happy"}).status_code == 200
        assert client.post("/v1/vectors/activations", json={"texts": ["good"], "vectors": ["happy"]}).status_code == 200
        states = {one["id"]: one["state"] for one in client.get("/v1/vectors").json()["data"]}
        assert (states["happy"], states["french"], states["pirate"]) == ("ready", "being built", "built at first use")
        builds.go.set()
        assert sorted(one.result().status_code for one in waiting) == [200] * 32 + [429] * 16
        assert builds.begun == ["french"]
        assert client.get("/v1/vectors/french").json()["state"] == "ready"


def test_reading_texts_waits_in_no_thread_that_others_need(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        assert go.wait(PATIENCE)
        return project(*arguments, **options)

    monkeypatch.setattr(vectors_api, "project", slow)
    live = listen()
    body = {"texts": ["good day"], "vectors": ["happy"]}
    with clients(live) as (client, pool):
        waiting = [pool.submit(client.post, "/v1/vectors/activations", json=body) for _ in range(48)]
        wait_until(lambda: sum(one.done() for one in waiting) == 16)
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        go.set()
        assert sorted(one.result().status_code for one in waiting) == [200] * 32 + [429] * 16


def test_who_hangs_up_no_longer_waits(listen: Listen, builds: Builds) -> None:
    live = listen()
    head = b"POST /v1/vectors/french HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    with clients(live) as (client, pool), contextlib.ExitStack() as stack:
        connections = [stack.enter_context(live.connect()) for _ in range(40)]
        for connection in connections:
            connection.sendall(head)
        wait_until(lambda: len(select.select(connections, [], [], 0)[0]) == 8)  # sent away: 32 wait
        stack.close()

        def insist() -> None:
            wait_until(lambda: client.post("/v1/vectors/pirate").status_code == 200)

        staying = pool.submit(insist)
        wait_until(lambda: "pirate" in live.served.service.building)
        builds.go.set()
        staying.result()
    assert builds.begun == ["french", "pirate"]


def test_a_build_that_fails_is_tried_again_by_the_next_request(fresh: Served, builds: Builds) -> None:
    builds.go.set()
    builds.failure = VectorError("The two sides do not differ.")
    for _ in range(2):
        answer = fresh.client.post("/v1/vectors/french")
        assert answer.status_code == 400
        assert "do not differ" in answer.json()["error"]["message"]
    builds.failure = None
    assert fresh.client.post("/v1/vectors/french").json()["state"] == "ready"
    assert builds.begun == ["french"] * 3


def test_no_get_builds_anything(fresh: Served, builds: Builds) -> None:
    described = fresh.client.get("/v1/vectors/french").json()
    assert described["state"] == "built at first use"
    assert described["positive"] == "french"
    assert "POST /v1/vectors/french" in described["hint"]
    for path in ("/v1/vectors", "/v1/models/demo:french=0.5", "/v1/steering", "/metrics", "/"):
        assert fresh.client.get(path).status_code == 200
    assert builds.begun == []


def test_a_default_that_is_no_longer_there_is_shown_and_built_by_who_needs_it(serve: Serve, builds: Builds) -> None:
    builds.go.set()
    served = serve(default="0.5 french")
    for file in cache_folder().glob("french-*.gguf"):
        file.unlink()
    shown = served.client.get("/v1/steering").json()
    assert (shown["steering"], shown["relative_dose"]) == ("0.5 french", None)
    assert "french" in shown["notes"][0]
    assert builds.begun == ["french"]
    assert served.chat()["steering"]["expression"] == "0.5 french"
    assert builds.begun == ["french"] * 2


def test_what_cannot_be_kept_is_built_once(serve: Serve, tiny: Model, builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise VectorError("The folder cannot be written.")

    monkeypatch.setattr("localsteer.building.library.write_vector", refuse)
    builds.go.set()
    served = serve()
    for _ in range(2):
        assert served.chat(steering="0.5 french")["steering"]["expression"] == "0.5 french"
    assert builds.begun == ["french"]


# A vector is what its file is at the time


def dose(served: Served, name: str) -> float:
    (dose,) = {
        served.chat(steering=name)["steering"]["relative_dose"],
        served.client.get(f"/v1/vectors/{name}").json()["relative_dose"],
    }
    return float(dose)


def test_a_concept_that_is_calibrated_meanwhile_has_its_new_dose(fresh: Served) -> None:
    """By `localsteer calibrate french` in another terminal."""
    assert fresh.client.post("/v1/vectors/french").json()["calibrated"] is False
    before = dose(fresh, "french")
    plan = fresh.service.steerings.plan(steerings_module.parse_requested("french"))
    assert fresh.service.steerings.plan(steerings_module.parse_requested("french")) is plan
    old = fresh.service.steerings.vector("french")
    made = calibrated(fresh.model.fingerprint)
    save_vector("french", replace(made, provenance=replace(made.provenance, source=old.provenance.source)), fresh.model)
    after = fresh.client.get("/v1/vectors/french").json()
    assert after["calibrated"] is True
    assert after["calibration"] is not None
    assert dose(fresh, "french") == pytest.approx(after["relative_dose"]) != pytest.approx(before)
    listed = {one["id"]: one for one in fresh.client.get("/v1/vectors").json()["data"]}
    assert listed["french"]["calibrated"] is True


def test_a_file_of_the_folder_is_read_again_where_it_has_changed(serve: Serve, tiny: Model, tmp_path: Path) -> None:
    write_vector(tiny_vector(tiny, 1), tmp_path / "mood.gguf")
    served = serve(vectors=tmp_path, default="mood")
    first = dose(served, "mood")
    stronger = tiny_vector(tiny, 1)
    write_vector(
        ControlVector({layer: 2 * row for layer, row in stronger.directions.items()}, stronger.provenance), tmp_path / "mood.gguf"
    )
    assert dose(served, "mood") == pytest.approx(2 * first)
    assert served.chat()["steering"]["relative_dose"] == pytest.approx(2 * first)
    (tmp_path / "mood.gguf").unlink()
    assert served.refused({"steering": "mood"})[0] == 400
    write_vector(tiny_vector(tiny, 2), tmp_path / "new.gguf")
    assert dose(served, "new") > 0


def test_a_concept_that_is_reworded_is_another_vector(serve: Serve, builds: Builds) -> None:
    builds.go.set()
    concept = names.user_folder() / "french" / names.CONCEPT_FILE
    concept.parent.mkdir(parents=True)
    source = (names.shipped_folder() / "french" / names.CONCEPT_FILE).read_text(encoding="utf-8")
    concept.write_text(source, encoding="utf-8")
    served = serve()
    assert served.client.post("/v1/vectors/french").json()["state"] == "ready"
    concept.write_text(f"{source}\n# another wording\n", encoding="utf-8")
    assert served.client.get("/v1/vectors/french").json()["state"] == "built at first use"
    assert served.client.post("/v1/vectors/french").json()["state"] == "ready"
    assert builds.begun == ["french"] * 2


def test_a_concept_file_is_parsed_once(fresh: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh.client.get("/v1/vectors").json()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it is parsed again")

    monkeypatch.setattr(YamlFile, "parse", fail)
    assert fresh.client.get("/v1/vectors").json() == first
