"""An hour of mixed requests to `localsteer serve`: whether memory, descriptors, threads and speed stay what they were.

`python -m bench.soak --minutes 60` writes what it found into docs/reliability.md. Each minute the clients rest until all answers
are through, and the server is looked at then: so that every look sees it doing the same, which is nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
import psutil

from bench.measure import ROOT, MeasurementError
from bench.models import demo_model
from bench.questions import question_sets
from handbook.pages import RELIABILITY, keep

MARKERS = ("<!-- soak: `python -m bench.soak` -->", "<!-- end of the soak -->")
# The places of the batch, and more clients than that: some always wait.
_PARALLEL, _CLIENTS = 4, 6
_CONTEXT = 1024
# Main memory for conversations that lost their place, in MiB: few, so that it is full before the first third is over.
_CACHE = 64
_PATIENCE = 300.0
# Seconds of work between two looks.
_MINUTE = 60.0
_POLICY = """\
version: 1
classifiers:
  cross: {type: rule, watch: prompt, words: [stupid]}
  gushing: {type: rule, watch: output, words: [great, amazing, happy, wonderful, excited]}
rules:
  - {name: be-kind, when: cross, steer: "0.5 happy"}
  - {name: stay-sober, when: gushing, steer: "-0.3 happy", rewind: 8, hold: 16, ramp: 4}
audit: audit.jsonl
audit_max_bytes: 1000000
"""
_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 20}}, "required": ["place"]},
    },
}
_PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}}}


@dataclass(frozen=True)
class Look:
    """The server at rest, after a minute of work.

    Attributes:
        minute: since the first work that counts began.
        memory: resident, in MiB.
        descriptors: open ones.
        threads: that it has.
        per_second: tokens drawn in a second of that minute.
        per_processor_second: tokens drawn in a second of its processor time, whatever else the machine did.
        log: what it has written to stderr so far, in kB.
    """

    minute: float
    memory: float
    descriptors: float
    threads: float
    per_second: float
    per_processor_second: float
    log: float


NAMES = ("memory, MiB", "descriptors", "threads", "tokens a second", "tokens a second of processor time", "log so far, kB")
Ask = Callable[[httpx.Client, Random, dict[str, Any]], None]


# ---- what is asked


def _chat(**more: Any) -> Ask:
    def ask(client: httpx.Client, _random: Random, body: dict[str, Any]) -> None:
        client.post("/v1/chat/completions", json=body | more).raise_for_status()

    return ask


def _steered(client: httpx.Client, random: Random, body: dict[str, Any]) -> None:
    names = random.sample(["happy", "formal", "concise", "confident"], 2)
    steering = " + ".join(f"{random.choice([-0.6, -0.3, 0.3, 0.6])} {name}" for name in names).replace("+ -", "- ")
    body |= {"steering": steering, "steer_prompt": random.random() < 0.3}
    client.post("/v1/chat/completions", json=body).raise_for_status()


def _streamed(client: httpx.Client, random: Random, body: dict[str, Any]) -> None:
    """Read to its end, slowly, or given up in the middle."""
    body |= {"stream": True, "steering": random.choice(["", "0.5 happy", "!formal"])}
    stop_after, pause = random.choice([(1000, 0.0), (1000, 0.2), (random.randrange(12), 0.0)])
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for number, _line in enumerate(answer.iter_lines()):
            if number > stop_after:
                return
            time.sleep(pause)


def _unread(client: httpx.Client, _random: Random, body: dict[str, Any]) -> None:
    """Nobody reads for seconds, and then hangs up."""
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}):
        time.sleep(5)


def _elsewhere(client: httpx.Client, random: Random, body: dict[str, Any]) -> None:
    """In the other APIs."""
    messages, model = body["messages"], {"model": "demo"}
    path, asked = random.choice(
        [
            ("/api/chat", {**model, "messages": messages, "stream": False, "options": {"num_predict": 24}}),
            ("/v1/messages", {**model, "messages": messages, "max_tokens": 24}),
            ("/v1/responses", {**model, "input": messages, "max_output_tokens": 24}),
            ("/v1/embeddings", {**model, "input": [one["content"] for one in messages]}),
            ("/completion", {"prompt": messages[-1]["content"], "n_predict": 24}),
        ]
    )
    client.post(path, json=asked).raise_for_status()


def _bad(client: httpx.Client, random: Random, body: dict[str, Any]) -> None:
    asked: list[Any] = [
        "{",
        {},
        body | {"steering": "0.5 (happy"},
        body | {"steering": "nobody-has-built-this"},
        body | {"temperature": "hot"},
        body | {"messages": [{"role": "user", "content": "long " * 5000}]},
        body | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "what"}}}},
        [[[]]],
    ]
    chosen = random.choice(asked)
    content = chosen if isinstance(chosen, str) else json.dumps(chosen)
    found = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    if not 400 <= found.status_code < 500:
        raise MeasurementError(f"{content[:200]} was answered by {found.status_code}.")


def _looked_at(client: httpx.Client, random: Random, _body: dict[str, Any]) -> None:
    client.get(random.choice(["/", "/metrics", "/v1/models", "/v1/vectors", "/props", "/slots"])).raise_for_status()
    client.get("/no/such/page")


# What is asked, and how often beside the others.
KINDS: dict[str, tuple[Ask, int]] = {
    "plain": (_chat(), 2),
    "steered": (_steered, 4),
    "anchored": (_chat(steering="0.6 happy", anchored=True), 2),
    "removal": (_chat(steering="!happy"), 1),
    "two answers": (_chat(n=2, steering="0.4 happy"), 1),
    "tools": (_chat(tools=[_WEATHER], tool_choice="required", max_tokens=60), 1),
    "in a form": (_chat(response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}), 1),
    "streamed": (_streamed, 5),
    "unread": (_unread, 1),
    "another API": (_elsewhere, 3),
    "bad": (_bad, 3),
    "pages": (_looked_at, 1),
}


class Clients:
    """Ask all the time, but for the rests.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._may_ask, self._ends = threading.Event(), threading.Event()
        self._busy: Counter[int] = Counter()
        self.asked: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._work, args=[number], daemon=True) for number in range(_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def work(self, seconds: float) -> float:
        """Let them ask for so long, and then come to rest; how long that took in all."""
        start = time.monotonic()
        self._may_ask.set()
        time.sleep(seconds)
        self._may_ask.clear()
        while any(self._busy.values()):
            time.sleep(0.05)
        with httpx.Client(base_url=self._url, timeout=_PATIENCE) as client:
            while (health := client.get("/health").json())["running"] or health["waiting"]:
                time.sleep(0.05)
        return time.monotonic() - start

    def end(self) -> None:
        """They are no longer needed."""
        self._ends.set()
        self._may_ask.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        random, questions = Random(number), question_sets()["everyday"]
        names, weights = list(KINDS), [weight for _, weight in KINDS.values()]
        while not self._ends.is_set():
            # Some keep their connection, for as long as they are not at rest; some come anew each time.
            with httpx.Client(base_url=self._url, timeout=_PATIENCE) as client:
                for _ in range(random.choice([1, 1, 8])):
                    self._busy[number] = 0
                    if not self._may_ask.is_set():
                        break
                    self._busy[number] = 1
                    name = random.choices(names, weights)[0]
                    question = random.choice(questions) + random.choice(["", " And be quick, stupid.", f" ({random.random()})"])
                    body = {"messages": [{"role": "user", "content": question}], "max_tokens": random.choice([8, 24, 48])}
                    try:
                        KINDS[name][0](client, random, body)
                    except (httpx.HTTPError, MeasurementError) as error:
                        text = f"{name}: {error}".splitlines()[0]
                        self.failures[text] += 1
                        print(text, file=sys.stderr, flush=True)
                    self.asked[name] += 1
            self._busy[number] = 0
            self._may_ask.wait()


# ---- the server


@contextlib.contextmanager
def _serving(folder: Path, threads: int) -> Iterator[tuple[str, psutil.Process, Path]]:
    """A server of the demo model with a policy: its address, its process, and what it writes to stderr."""
    policy, log = folder / "policy.yaml", folder / "stderr"
    policy.write_text(_POLICY, encoding="utf-8")
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "-m", str(demo_model()), "--threads", str(threads), "--json"]
    command += ["--port", "0", "--parallel", str(_PARALLEL), "--context", str(_CONTEXT), "--cache-ram", str(_CACHE)]
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, "--policy", str(policy)], stdout=subprocess.PIPE, stderr=said, text=True, env=os.environ
        )
        try:
            assert process.stdout is not None
            told = "".join(itertools.takewhile(lambda line: line != "}\n", process.stdout)) + "}"
            yield json.loads(told)["url"], psutil.Process(process.pid), log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def soak(minutes: float, threads: int) -> tuple[list[Look], Clients]:
    """Look at a server about every minute for so many, before which it has had one to warm up.

    Raises:
        MeasurementError: it did not end well.
    """
    looks: list[Look] = []
    with tempfile.TemporaryDirectory(prefix="localsteer-soak-") as name:
        with _serving(Path(name), threads) as (url, process, log):
            clients = Clients(url)
            clients.work(_MINUTE)
            tokens, processor, start = _drawn(url), _processor(process), time.monotonic()
            while (now := (time.monotonic() - start) / 60) < minutes:
                took = clients.work(min(_MINUTE, 60 * (minutes - now)))
                drawn, used = _drawn(url) - tokens, _processor(process) - processor
                tokens, processor = tokens + drawn, processor + used
                look = Look(
                    now + took / 60,
                    process.memory_info().rss / 2**20,
                    process.num_fds(),
                    process.num_threads(),
                    drawn / took,
                    drawn / used,
                    log.stat().st_size / 1000,
                )
                looks.append(look)
                told = ", ".join(f"{name} {value:.1f}" for name, value in zip(("minute", *NAMES), astuple(look), strict=True))
                print(f"{told}; {clients.asked.total()} requests", file=sys.stderr, flush=True)
            clients.end()
        if words := log.read_text(errors="replace"):
            print(words[-3000:], file=sys.stderr)
    return looks, clients


def _drawn(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=_PATIENCE).text
    found = re.search(r"^localsteer_generated_tokens_total (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


# ---- what is told


def slope(minutes: Sequence[float], values: Sequence[float]) -> float:
    """By how much they rise in an hour, by least squares over the last two thirds."""
    late = slice(len(values) // 3, None)
    return float(np.polyfit(minutes[late], values[late], 1)[0]) * 60 if len(values[late]) > 1 else 0.0


def report(looks: Sequence[Look], asked: Counter[str], failures: Counter[str], threads: int) -> str:
    """The table, and what was asked."""
    count = len(looks)
    around = max(1, count // 12)  # what is told of a time is the mean of the minutes up to it, or those from the start
    ends = (around, max(around, count // 3), max(around, 2 * count // 3), count)
    lines = ["| | start | a third | two thirds | end | slope in an hour |", "|---|--:|--:|--:|--:|--:|"]
    minutes = [look.minute for look in looks]
    for name, field in zip(NAMES, fields(Look)[1:], strict=True):
        values = [float(getattr(look, field.name)) for look in looks]
        cells = [f"{np.mean(values[end - around : end]):.1f}" for end in ends]
        lines.append(f"| {name} | {' | '.join(cells)} | {round(slope(minutes, values), 2) + 0.0:+.2f} |")
    kinds = ", ".join(f"{number} {name}" for name, number in asked.most_common())
    failed = "none failed" if not failures else f"**{failures.total()} failed**"
    text = (
        f"{date.today().isoformat()}, `python -m bench.soak --minutes {minutes[-1]:.0f} --threads {threads}`: {asked.total():,} "
        f"requests by {_CLIENTS} clients at a time ({kinds}); {failed}. After each minute of work the server was looked at while "
        f"nobody asked, {count} times; the mean of {around} such looks is told, and the slope is by least squares over the last "
        "two thirds."
    )
    return "\n".join(["", *textwrap.wrap(text, 130), "", *lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=int, default=60, metavar="N", help="how long (default 60)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the server (default 1)")
    parser.add_argument("--dry", action="store_true", help="print what is found, and leave the page as it is")
    options = parser.parse_args()
    if options.minutes < 1:
        parser.error("--minutes must be at least 1")
    # As an exception, so that the server and the temporary files do not outlive this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    looks, clients = soak(options.minutes, options.threads)
    told = report(looks, clients.asked, clients.failures, options.threads)
    print(told)
    if not options.dry:
        keep(told, RELIABILITY, MARKERS)
    return int(bool(clients.failures))


if __name__ == "__main__":
    sys.exit(main())
