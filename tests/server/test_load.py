"""Many requests, thirty-two at a time, a third of which the client gives up in mid-stream.

`make test` asks twice a hundred; LOCALSTEER_REQUESTS=500 twice that many.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from localsteer.engine.lane import Lane
from localsteer.llama.model import Model
from localsteer.server.answers import Answers
from localsteer.server.jobs import Job, Ticket
from tests.server.conftest import PATIENCE, Listen, Live, read_metrics, wait_until

REQUESTS = int(os.environ.get("LOCALSTEER_REQUESTS", "100"))
CONCURRENCY = 32
PARALLEL = 8
N_CTX = 256
# An answer to be given up is longer than any client reads before it goes.
SHORT, LONG = 6, 200
STEERINGS = ("", "0.5 happy", "-0.5 happy + 0.5 formal", "!mood")
# What each request makes, and nothing keeps: the request itself as the engine has it, and its answers as they are told.
MADE = (Answers, Ticket, Job, Lane)


@dataclass
class Round:
    """How requests ended for their clients."""

    reasons: Counter[str]
    refused: int = 0
    given_up: int = 0


def body_of(number: int, *, long: bool) -> dict[str, Any]:
    # A third of the prompts begin alike.
    text = "good day" if number % 3 == 0 else f"request number {number} of many"
    return {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": LONG if long else SHORT,
        "seed": number,
        "stream": long or number % 2 == 0,
        "steering": STEERINGS[number % len(STEERINGS)],
        "steer_prompt": number % 5 == 0,
    }


async def ask(client: httpx.AsyncClient, url: str, number: int, found: Round) -> None:
    long = number % 3 == 1
    body = body_of(number, long=long)
    while True:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status_code == 429:
                found.refused += 1
                await answer.aread()
                await asyncio.sleep(0)
                continue
            assert answer.status_code == 200
            if not body["stream"]:
                found.reasons[json.loads(await answer.aread())["choices"][0]["finish_reason"]] += 1
                return
            events = 0
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    events += 1
                    reason = json.loads(line.removeprefix("data: "))["choices"][0]["finish_reason"]
                    if reason is not None:
                        found.reasons[reason] += 1
                if long and events > number % 7:
                    found.given_up += 1
                    return
        return


async def run_round(url: str) -> Round:
    found = Round(Counter())
    waiting = iter(range(REQUESTS))
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(timeout=PATIENCE, limits=limits) as client:

        async def work() -> None:
            for number in waiting:
                await ask(client, url, number, found)

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return found


def answers_of(live: Live) -> dict[str, float]:
    metrics = read_metrics(httpx.get(f"{live.url}/metrics", timeout=PATIENCE).text)
    return {key[1]: value for key, value in metrics.items() if key[0] == "localsteer_answers_total"}


def left_over() -> int:
    gc.collect()
    return sum(isinstance(one, MADE) for one in gc.get_objects())


def test_under_load_everybody_is_answered_and_nothing_is_left_behind(listen: Listen, tiny: Model) -> None:
    live = listen(model=tiny, parallel=PARALLEL, queue=CONCURRENCY, n_ctx=N_CTX)
    before = left_over()
    for number in (1, 2):
        found = asyncio.run(run_round(live.url))
        given_up = len([one for one in range(REQUESTS) if one % 3 == 1])
        assert found.reasons == {"length": REQUESTS - given_up}
        assert found.given_up == given_up
        assert found.refused == 0
        live.wait_until(lambda health: (health["running"], health["waiting"]) == (0, 0))
        answers = answers_of(live)
        assert sum(answers.values()) == number * REQUESTS
        # Some of those were done before their clients were gone.
        assert set(answers) == {"length", "cancelled"}
        assert answers["cancelled"] <= number * given_up
        assert live.served.batch.places == PARALLEL
        assert live.served.engine.kept_tokens <= PARALLEL * N_CTX
        wait_until(lambda: left_over() == before)
    # It serves as on its first day.
    again = httpx.post(f"{live.url}/v1/chat/completions", json={**body_of(0, long=False), "stream": False}, timeout=PATIENCE)
    assert again.json()["choices"][0]["finish_reason"] == "length"
