"""Waiting, taking turns, hanging up, and what happens when something fails."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from localsteer.engine.batch import RunningBatch
from localsteer.engine.lane import Lane
from localsteer.engine.request import Request
from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.server.engine import BusyError, Engine, StoppingError
from localsteer.server.jobs import Ended, Event, Failed, Job, Piece
from tests.conftest import plan_of, random_edit, random_tokens
from tests.server.conftest import HELLO, PATIENCE, HeldBatch, Listen, Live, Serve, wait_until

PROMPT = random_tokens(20, seed=1)


class Told:
    """What the engine tells about a ticket, in its order."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def next(self) -> Event:
        return self._events.get(timeout=PATIENCE)

    def last(self) -> Ended | Failed:
        """Skips what comes before an end."""
        while isinstance(event := self.next(), Piece):
            pass
        return event


def job(max_tokens: int = 4, prompt: tuple[int, ...] = PROMPT) -> Job:
    return Job(Request(prompt, None, Sampling(temperature=0, seed=1), max_tokens))


def anchored_job(model: Model, max_tokens: int = 4) -> Job:
    """One that takes two places."""
    plan = plan_of(random_edit(model, seed=5), mode="anchored")
    return Job(Request(PROMPT, plan, Sampling(temperature=0, seed=1), max_tokens))


@pytest.fixture
def held(tiny: Model) -> Any:
    """An engine with one place, that stands still before a step as long as `go` is cleared."""
    batch = HeldBatch(tiny, parallel=1, n_ctx=64)
    with Engine(batch, queue=4) as engine:
        yield engine, batch
        batch.go.set()


def occupy(engine: Engine, batch: HeldBatch, jobs: int = 1) -> Told:
    """Fill the only place with an answer that does not go on."""
    batch.go.clear()
    told = Told()
    engine.submit([job()] * jobs, told)
    assert batch.standing.wait(PATIENCE)
    return told


# Waiting


def test_an_answer_is_told_piece_by_piece_and_ends(held: tuple[Engine, HeldBatch]) -> None:
    engine, _ = held
    told = Told()
    engine.submit([job(12)], told)
    text = ""
    while isinstance(event := told.next(), Piece):
        text += event.text
    assert isinstance(event, Ended)
    assert text == event.answer.text
    assert (event.answer.finish_reason, len(event.answer.tokens)) == ("length", 12)
    assert (engine.running, engine.waiting) == (0, 0)


def test_who_comes_when_the_queue_is_full_is_sent_away(held: tuple[Engine, HeldBatch]) -> None:
    engine, batch = held
    first = occupy(engine, batch)
    waiting = [Told() for _ in range(4)]
    for told in waiting:
        engine.submit([job()], told)
    assert (engine.running, engine.waiting) == (1, 4)
    for count in (1, 2):
        with pytest.raises(BusyError, match="4 answers wait already, and 4 may") as busy:
            engine.submit([job()] * count, Told())
        assert busy.value.retry_after >= 1
    batch.go.set()
    for told in (first, *waiting):
        assert isinstance(told.last(), Ended)
    engine.submit([job()], again := Told())
    assert isinstance(again.last(), Ended)


def test_the_time_to_wait_is_within_a_factor_of_two_of_the_truth(tiny: Model) -> None:
    """By a clock of which every step takes half a second."""
    steps = 0

    class Counted(HeldBatch):
        def step(self) -> list[Lane]:
            nonlocal steps
            ended = super().step()
            steps += 1
            return ended

    batch = Counted(tiny, parallel=1, n_ctx=64)
    with Engine(batch, queue=1, clock=lambda: steps / 2) as engine:
        engine.submit([job(8)], told := Told())
        assert isinstance(told.last(), Ended)
        ends: list[int] = []
        batch.go.clear()
        batch.standing.clear()
        engine.submit([job(30)], lambda event: ends.append(steps) if isinstance(event, Ended) else None)
        assert batch.standing.wait(PATIENCE)
        engine.submit([job(20)], waiting := Told())
        with pytest.raises(BusyError) as busy:
            engine.submit([job(5)], Told())
        before = steps
        batch.go.set()
        assert isinstance(waiting.last(), Ended)
        seconds = (ends[0] - before) / 2
        assert seconds / 2 <= busy.value.retry_after <= seconds * 2


def test_a_free_place_counts_as_one_more_that_may_come(tiny: Model) -> None:
    batch = HeldBatch(tiny, parallel=3, n_ctx=64)
    with Engine(batch, queue=0) as engine:
        told = Told()
        engine.submit([job()] * 3, told)
        assert [type(told.last()) for _ in range(3)] == [Ended] * 3
        with pytest.raises(BusyError):
            engine.submit([job()] * 4, told)


def test_requests_take_turns(held: tuple[Engine, HeldBatch]) -> None:
    engine, batch = held
    batch_ended: list[str] = []

    def teller(name: str, done: threading.Event, count: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            if isinstance(event, Ended):
                batch_ended.append(name)
                if batch_ended.count(name) == count:
                    done.set()

        return tell

    occupy(engine, batch)
    many, single = threading.Event(), threading.Event()
    engine.submit([job()] * 3, teller("many", many, 3))
    engine.submit([job()], teller("single", single, 1))
    batch.go.set()
    assert many.wait(PATIENCE)
    assert single.wait(PATIENCE)
    assert batch_ended == ["many", "single", "many", "many"]


def test_who_needs_two_places_is_not_overtaken_by_who_needs_one(tiny: Model) -> None:
    batch = HeldBatch(tiny, parallel=2, n_ctx=64)
    with Engine(batch, queue=4) as engine:
        occupy(engine, batch)
        ended: list[str] = []

        def teller(name: str) -> Callable[[Event], None]:
            return lambda event: ended.append(name) if isinstance(event, Ended) else None

        engine.submit([anchored_job(tiny, 12)], teller("anchored"))
        engine.submit([job(1)], teller("plain"))
        batch.go.set()
        wait_until(lambda: len(ended) == 2)
        assert ended == ["anchored", "plain"]


def test_who_needs_two_places_runs_beside_another_like_it(tiny: Model) -> None:
    batch = HeldBatch(tiny, parallel=5, n_ctx=64)
    with Engine(batch, queue=4) as engine:
        batch.go.clear()
        engine.submit([anchored_job(tiny)] * 3, told := Told())
        assert batch.standing.wait(PATIENCE)
        assert (engine.running, engine.waiting, batch.places) == (2, 1, 1)
        # The place that is left is for nobody who comes later.
        engine.submit([job()], other := Told())
        batch.go.set()
        answers = [told.last() for _ in range(3)]
        assert all(isinstance(answer, Ended) for answer in [*answers, other.last()])
        assert batch.places == 5


def test_places_that_are_free_count_for_as_many_as_fit(tiny: Model) -> None:
    batch = HeldBatch(tiny, parallel=5, n_ctx=64)
    with Engine(batch, queue=1) as engine:
        assert (engine.most(job()), engine.most(anchored_job(tiny))) == (6, 3)
        with pytest.raises(BusyError):
            engine.submit([anchored_job(tiny)] * 4, Told())
        batch.go.clear()
        engine.submit([anchored_job(tiny)] * 2, told := Told())
        assert batch.standing.wait(PATIENCE)
        with pytest.raises(BusyError):
            engine.submit([anchored_job(tiny)] * 2, Told())
        engine.submit([anchored_job(tiny)], told)
        with pytest.raises(BusyError):
            engine.submit([job()], Told())
        batch.go.set()
        assert all(isinstance(told.last(), Ended) for _ in range(3))


def test_who_needs_more_places_than_there_are_fails_and_blocks_nobody(held: tuple[Engine, HeldBatch], tiny: Model) -> None:
    engine, _ = held
    engine.submit([anchored_job(tiny), job()], told := Told())
    ends = [told.last(), told.last()]
    assert sorted(type(end).__name__ for end in ends) == ["Ended", "Failed"]
    (failed,) = [end for end in ends if isinstance(end, Failed)]
    assert "takes two places" in str(failed.error)


# Going away


def test_who_waits_and_hangs_up_frees_the_queue(held: tuple[Engine, HeldBatch]) -> None:
    engine, batch = held
    occupy(engine, batch)
    tickets = [engine.submit([job()] * 2, Told()) for _ in range(2)]
    with pytest.raises(BusyError):
        engine.submit([job()], Told())
    for ticket in tickets:
        engine.cancel(ticket)
    engine.submit([job()], told := Told())  # at once: the batch still stands
    batch.go.set()
    assert isinstance(told.last(), Ended)
    assert engine.counters.answers == {"length": 2, "cancelled": 4}


def test_who_hangs_up_while_it_is_answered_frees_the_place(long_model: Model) -> None:
    batch = RunningBatch(long_model, parallel=1, n_ctx=20_000)
    with Engine(batch) as engine:
        told = Told()
        ticket = engine.submit([job(20_000)], told)
        assert isinstance(told.next(), Piece)
        engine.submit([job()], other := Told())
        engine.cancel(ticket)
        assert isinstance(other.last(), Ended)
        assert engine.counters.answers == {"cancelled": 1, "length": 1}


# Failing


def test_stopping_ends_who_waits_and_who_is_answered(held: tuple[Engine, HeldBatch]) -> None:
    engine, batch = held
    running = occupy(engine, batch)
    engine.submit([job()] * 2, waiting := Told())
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    wait_until(lambda: engine._stopping)
    with pytest.raises(StoppingError):
        engine.submit([job()], Told())
    batch.go.set()
    stopping.join()
    for told in (running, waiting, waiting):
        event = told.last()
        assert isinstance(event, Failed)
        assert isinstance(event.error, StoppingError)
    engine.stop()  # again does no harm


@pytest.mark.parametrize("failure", [RuntimeError("of ours"), MemoryError(), LocalsteerError("llama.cpp")])
def test_a_failure_of_the_batch_leaves_nobody_waiting(held: tuple[Engine, HeldBatch], failure: Exception) -> None:
    engine, batch = held
    running = occupy(engine, batch)
    engine.submit([job()] * 2, waiting := Told())
    batch.failure = failure
    batch.go.set()
    for told in (running, waiting, waiting):
        assert isinstance(told.last(), Failed)
    engine.submit([job()], again := Told())
    assert isinstance(again.last(), Ended)
    assert (engine.running, engine.waiting, batch.places) == (0, 0, 1)


@pytest.mark.parametrize("where", ["_drop_cancelled", "_next_jobs", "_count_decisions", "_join", "_end"])
def test_a_mistake_anywhere_in_the_thread_leaves_nobody_waiting(
    held: tuple[Engine, HeldBatch], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    engine, batch = held
    right = getattr(engine, where)

    def wrong(*arguments: object) -> None:
        monkeypatch.setattr(engine, where, right)
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(engine, where, wrong)
    engine.submit([job()] * 2, told := Told())
    ends = [told.last() for _ in range(2)]
    assert any(isinstance(end, Failed) for end in ends) or where == "_count_decisions"
    engine.submit([job()], again := Told())
    assert isinstance(again.last(), Ended)
    assert (engine.running, engine.waiting, batch.places) == (0, 0, 1)


def test_who_cannot_be_told_keeps_nobody_from_an_answer(held: tuple[Engine, HeldBatch]) -> None:
    engine, _ = held

    def deaf(event: Event) -> None:
        raise RuntimeError("nobody is there")

    engine.submit([job()], deaf)
    engine.submit([job()], told := Told())
    assert isinstance(told.last(), Ended)
    engine.submit([job()], told)
    assert isinstance(told.last(), Ended)


def test_a_request_that_cannot_be_answered_fails_alone(held: tuple[Engine, HeldBatch]) -> None:
    engine, _ = held
    with pytest.raises(LocalsteerError, match="context holds 64"):
        engine.check(job(prompt=random_tokens(64, seed=1)).request)
    engine.submit([job(prompt=random_tokens(64, seed=1)), job()], told := Told())
    ends = [told.last(), told.last()]
    assert sorted(type(end).__name__ for end in ends) == ["Ended", "Failed"]


# Through HTTP


def test_a_full_queue_is_told_with_the_time_to_wait(listen: Listen, tiny: Model) -> None:
    live = listen(parallel=1, queue=1)
    batch = live.served.batch
    body = {"messages": HELLO, "max_tokens": 2, "temperature": 0}
    batch.go.clear()
    found: list[httpx.Response] = []
    askers = [threading.Thread(target=lambda: found.append(post(live, "/v1/chat/completions", body))) for _ in range(2)]
    askers[0].start()
    assert batch.standing.wait(PATIENCE)
    askers[1].start()
    live.wait_until(lambda health: health["waiting"] == 1)
    for path, streaming in (("/v1/chat/completions", False), ("/v1/chat/completions", True), ("/api/chat", True)):
        answer = post(live, path, {"model": "demo", **body, "stream": streaming})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
    assert post(live, "/v1/chat/completions", body).json()["error"]["code"] == "too_many_requests"
    batch.go.set()
    for asker in askers:
        asker.join()
    assert [answer.status_code for answer in found] == [200, 200]


def post(live: Live, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{live.url}{path}", json=body, timeout=PATIENCE)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate"])
def test_who_hangs_up_frees_the_place(listen: Listen, long_model: Model, path: str, streaming: bool) -> None:
    live = listen(model=long_model, vectors=None, parallel=1, n_ctx=20_000)
    body = {
        "model": "demo",
        "messages": HELLO,
        "prompt": "good day",
        "stream": streaming,
        "max_tokens": 20_000,
        "options": {"num_predict": 20_000},
    }
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with live.connect() as connection, live.connect() as waiting:
        connection.sendall(head.encode() + data)
        live.wait_until(lambda health: health["running"] == 1)
        if streaming:
            assert connection.recv(10)
        waiting.sendall(head.encode() + data)
        live.wait_until(lambda health: health["waiting"] == 1)
        waiting.close()
        live.wait_until(lambda health: health["waiting"] == 0)
        assert live.health()["running"] == 1
    live.wait_until(lambda health: health["running"] == 0)
    assert live.served.engine.counters.answers == {"cancelled": 2}
    short = {**body, "stream": False, "max_tokens": 2, "options": {"num_predict": 2}}
    assert post(live, path, short).status_code == 200


def test_who_hangs_up_before_the_first_event_frees_the_place(listen: Listen, long_model: Model) -> None:
    live = listen(model=long_model, vectors=None, parallel=1, n_ctx=20_000)
    batch = live.served.batch
    batch.go.clear()
    data = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 20_000}).encode()
    with live.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        assert batch.standing.wait(PATIENCE)
    batch.go.set()
    live.wait_until(lambda health: health["running"] == 0)
    assert live.served.engine.counters.answers == {"cancelled": 1}


def test_many_answers_of_one_request_do_not_starve_another(listen: Listen, long_model: Model) -> None:
    live = listen(model=long_model, vectors=None, parallel=2, n_ctx=4000)
    many = {"messages": HELLO, "n": 8, "max_tokens": 300, "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=many, timeout=PATIENCE) as answers:
        lines = answers.iter_lines()
        next(lines)
        live.wait_until(lambda health: health["running"] == 2)
        assert post(live, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}).status_code == 200
        assert live.served.engine.counters.answers["length"] < 8
        ends = [line for line in lines if '"finish_reason": "length"' in line]
    assert len(ends) == 8


def test_stopping_the_engine_ends_requests_with_503(listen: Listen) -> None:
    live = listen(parallel=1)
    served = live.served
    served.batch.go.clear()
    body = {"messages": HELLO, "max_tokens": 2}
    found: list[httpx.Response] = []
    askers = [
        threading.Thread(target=lambda path=path: found.append(post(live, path, {"model": "demo", "stream": False, **body})))
        for path in ("/v1/chat/completions", "/api/chat")
    ]
    for asker in askers:
        asker.start()
    live.wait_until(lambda health: health["running"] + health["waiting"] == 2)
    stopping = threading.Thread(target=served.engine.stop)
    stopping.start()
    wait_until(lambda: served.engine._stopping)
    served.batch.go.set()
    for thread in (*askers, stopping):
        thread.join()
    assert [answer.status_code for answer in found] == [503, 503]
    late = post(live, "/v1/chat/completions", body)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")


def test_a_failure_in_mid_stream_is_told_in_the_stream(serve: Serve) -> None:
    served = serve(raise_server_exceptions=False)
    served.batch.failure = RuntimeError("/secret/place")
    with served.client.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in "".join(lines)
    assert "[DONE]" not in lines[-1]
    served.batch.failure = RuntimeError("/secret/place")
    with served.client.stream("POST", "/api/chat", json={"model": "demo", "messages": HELLO}) as answer:
        told = [json.loads(line) for line in answer.iter_lines()]
    assert isinstance(told[-1]["error"], str)
    served.batch.failure = RuntimeError("/secret/place")
    answer = served.client.post("/v1/chat/completions", json={"messages": HELLO})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    served.chat()
