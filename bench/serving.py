"""Tokens a second of our server and of llama-server, with several programs asking at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench.measure import ROOT, Comparison, MeasurementError, Section, Series, Target
from bench.questions import question_sets

PARALLEL = (1, 4, 8)
# Each program asks so often, one answer after the other.
_ANSWERS = 2
_TOKENS = 96
_CONTEXT = 1024
_STRENGTHS = (-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0)


def serving(model: Path, threads: int, repeats: int, llama_server: Path) -> Section:
    """Both servers run all the time, and are asked in turn."""
    comparisons = []
    for parallel in PARALLEL:
        ours_command = [sys.executable, "cli.py", "serve", "-m", str(model), "--threads", str(threads), "--alias", "demo"]
        ours_command += ["--parallel", str(parallel), "--context", str(_CONTEXT)]
        theirs_command = [str(llama_server), "-m", str(model), "-t", str(threads), "-np", str(parallel)]
        theirs_command += ["-c", str(_CONTEXT * parallel), "--no-webui"]
        with _running(ours_command) as ours_url, _running(theirs_command) as theirs_url:
            steered = ["happy"] * parallel
            different = [f"{strength:g} happy" for strength in _STRENGTHS[-parallel:]]
            for url, steerings in ((ours_url, steered), (theirs_url, [None] * parallel)):
                _tokens_per_second(url, steerings, 0)  # the vector is loaded, both are warm
            rounds = [
                (
                    _tokens_per_second(ours_url, [None] * parallel, 2 * number),
                    _tokens_per_second(theirs_url, [None] * parallel, 2 * number),
                    _tokens_per_second(ours_url, different, 2 * number + 1),
                )
                for number in range(1, repeats + 1)
            ]
        ours, theirs, mixed = (Series(values) for values in zip(*rounds, strict=True))
        at = f"{parallel} at once"
        target = Target(0.85, at_least=True)
        ratio = "ours / theirs"
        comparisons += [
            Comparison(f"unsteered, {at}", "tokens/s", ours, "llama-server", theirs, ours.over(theirs), ratio, target),
            Comparison(
                f"each steered differently, {at}", "tokens/s", mixed, "llama-server, unsteered", theirs, mixed.over(theirs), ratio
            ),
        ]
    return Section(
        "Serving",
        "`localsteer serve` and `llama-server`, both running with the same number of threads, parallel answers and tokens of "
        f"context, asked in turn over HTTP, streaming: so many programs at once, {_ANSWERS} answers of {_TOKENS} tokens at most "
        "each, in turn, default sampling; from the first request to the end of the last answer. No question comes twice: "
        "llama-server keeps old prompts in memory, and what is measured here is its work. It cannot steer requests differently.",
        tuple(comparisons),
    )


def returning(model: Path, threads: int, llama_server: Path) -> Section:
    """Both servers hold many conversations, and go on with each of them once more."""
    conversations, places, n_ctx = 20, 4, 2560
    ours_command = [sys.executable, "cli.py", "serve", "-m", str(model), "--threads", str(threads), "--alias", "demo"]
    ours_command += ["--parallel", str(places), "--context", str(n_ctx)]
    theirs_command = [str(llama_server), "-m", str(model), "-t", str(threads), "-np", str(places), "-c", str(n_ctx * places)]
    found = []
    for command in (ours_command, [*theirs_command, "--no-webui"]):
        with _running(command) as url:
            found.append(_go_back(url, conversations))
    (ours, our_seconds), (theirs, their_seconds) = found
    target = Target(50, at_least=False)
    ones = Series((1.0,) * conversations)
    return Section(
        "Going back to an earlier conversation",
        f"{conversations} conversations of some 2,000 tokens, one after another, {places} places; then each goes on with a new "
        "message. Tokens of the prompt that were computed again, and how long the first token took. One server "
        "runs after the other, not in turn: the seconds are a hint. Both keep what lost its "
        "place in main memory.",
        (
            Comparison("computed again", "tokens", ours, "(one token)", ones, ours.over(ones), "tokens", target),
            Comparison("computed again, llama-server", "tokens", theirs, "(one token)", ones, theirs.over(ones), "tokens"),
            Comparison(
                "first token", "s", our_seconds, "llama-server", their_seconds, our_seconds.over(their_seconds), "ours / theirs"
            ),
        ),
    )


def _go_back(url: str, conversations: int) -> tuple[Series, Series]:
    """For each conversation the prompt's tokens that are computed when it goes on, and the seconds to its first token."""
    questions = question_sets()["everyday"]
    talks: list[list[dict[str, str]]] = []
    for number in range(conversations):
        text = " ".join(f"Note {number}.{line}: {questions[(number + line) % len(questions)]}" for line in range(110))
        message = {"role": "user", "content": f"{text}\nWhich note is the shortest?"}
        answer = _posted(url, [message])["choices"][0]["message"]["content"]
        talks.append([message, {"role": "assistant", "content": answer}, {"role": "user", "content": "And the longest?"}])
    computed, seconds = [], []
    for talk in talks:
        start = time.perf_counter()
        usage = _posted(url, talk, max_tokens=1)["usage"]
        seconds.append(time.perf_counter() - start)
        computed.append(float(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]))
    return Series(tuple(computed)), Series(tuple(seconds))


def _posted(url: str, messages: Sequence[dict[str, str]], max_tokens: int = 16) -> Any:
    body = {"model": "demo", "messages": messages, "max_tokens": max_tokens, "seed": 1}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600).raise_for_status().json()


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[str]:
    """A server on a free port, from when it answers until we are done with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as said:
        whole = [*command, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=ROOT, env=os.environ)
        try:
            for _ in range(240):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                if process.poll() is not None:
                    said.seek(0)
                    raise MeasurementError(f"{said.read().decode(errors='replace')[-2000:]}\n{' '.join(whole)} failed.")
                time.sleep(0.25)
            else:
                raise MeasurementError(f"{' '.join(whole)} does not answer.")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _tokens_per_second(url: str, steerings: Sequence[str | None], time_of_asking: int) -> float:
    """All programs at once, a steering for each; at another time of asking they ask something else."""
    barrier = threading.Barrier(len(steerings) + 1)
    with ThreadPoolExecutor(len(steerings)) as pool:
        asking = [pool.submit(_ask, url, number, steering, barrier, time_of_asking) for number, steering in enumerate(steerings)]
        barrier.wait()
        start = time.perf_counter()
        tokens = sum(one.result() for one in asking)
        return tokens / (time.perf_counter() - start)


def _ask(url: str, number: int, steering: str | None, barrier: threading.Barrier, time_of_asking: int) -> int:
    questions = question_sets()["everyday"]
    tokens = 0
    barrier.wait()
    for turn in range(_ANSWERS):
        question = questions[(number * _ANSWERS + turn) % len(questions)]
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": f"{time_of_asking + 1}. {question}"}],
            "max_tokens": _TOKENS,
            "seed": number * _ANSWERS + turn,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"steering": steering} if steering is not None else {}),
        }
        # A connection of its own each time: llama-server may close one behind a stream.
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as response:
            for line in response.iter_lines():
                if '"usage"' in line:
                    tokens += (json.loads(line.removeprefix("data: ")).get("usage") or {}).get("completion_tokens", 0)
    return tokens
