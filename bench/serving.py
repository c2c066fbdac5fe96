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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench.measure import ROOT, Comparison, MeasurementError, Section, Series, Target, run_cli
from bench.questions import question_sets

PARALLEL = (1, 4, 8)
# Each program asks so often, one answer after the other.
_ANSWERS = 2
_TOKENS = 96
_CONTEXT = 1024
# Those of `export knobs`, how far each is turned, and how many answers a repeat takes: one alone scatters by a tenth.
_KNOBS, _TURNED, _DECODES = ("happy", "formal", "concise", "confident"), 0.5, 3
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


def knobs(models: Mapping[str, tuple[Path, float | None]], threads: int, repeats: int, llama_server: Path) -> Section:
    """An unmodified llama-server with four adapters of ours beside one without any; both run all the time.

    Args:
        models: by what they are called, with the least share of the speed that they are to keep.
        threads: CPU threads of each server.
        repeats: rounds.
        llama_server: the program.
    """
    comparisons = []
    for label, (model, least) in models.items():
        command = [str(llama_server), "-m", str(model), "-t", str(threads), "-np", "1", "-c", str(_CONTEXT), "--no-webui"]
        with tempfile.TemporaryDirectory(prefix="localsteer-knobs-") as folder:
            shared = ["-m", str(model), "--threads", str(threads)]
            run_cli("export", "knobs", *_KNOBS, "-o", folder, "--no-verify", *shared)
            adapters = [part for name in _KNOBS for part in ("--lora", str(Path(folder) / f"{name}.gguf"))]
            off = [{"id": number, "scale": 0.0} for number in range(len(_KNOBS))]
            turned = [{**one, "scale": _TURNED} for one in off]
            with _running(command) as plain_url, _running([*command, *adapters]) as knobs_url:
                asked: list[tuple[str, Sequence[Mapping[str, float]] | None]] = [
                    (plain_url, None),
                    (knobs_url, off),
                    (knobs_url, turned),
                ]
                for url, lora in asked:
                    _decode_speed(url, lora, 0)  # all are warm
                rounds = []
                for number in range(1, repeats * _DECODES + 1):
                    # Forth and back, so that none always runs behind the same one.
                    order = asked if number % 2 else asked[::-1]
                    speeds = [_decode_speed(url, lora, number) for url, lora in order]
                    rounds.append(speeds if number % 2 else speeds[::-1])
        without, idle, in_use = (Series(values) for values in zip(*rounds, strict=True))
        target = Target(least, at_least=True) if least is not None else None
        ratio = "with / without"
        comparisons += [
            Comparison(f"in use, {label}", "tokens/s", in_use, "no adapters", without, in_use.over(without), ratio, target),
            Comparison(f"loaded, none turned up, {label}", "tokens/s", idle, "no adapters", without, idle.over(without), ratio),
        ]
    return Section(
        "Volume knobs in llama-server",
        f"Decode speed of an unmodified llama-server, as it tells itself: {_TOKENS} tokens, greedy, one answer at a time; with "
        f"the adapters of `localsteer export knobs {' '.join(_KNOBS)}`, each at scale {_TURNED:g}, and without any; {_DECODES} "
        "answers for each repeat, forth and back.",
        tuple(comparisons),
    )


def _decode_speed(url: str, lora: Sequence[Mapping[str, float]] | None, number: int) -> float:
    """Tokens a second of one answer; another number, another question."""
    questions = question_sets()["everyday"]
    body: dict[str, Any] = {
        "prompt": f"{number}. {questions[number % len(questions)]}\n",
        "n_predict": _TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        **({"lora": lora} if lora is not None else {}),
    }
    found = httpx.post(f"{url}/completion", json=body, timeout=600).raise_for_status().json()
    if found["tokens_predicted"] != _TOKENS:
        raise MeasurementError(f"llama-server ended after {found['tokens_predicted']} tokens.")
    return float(found["timings"]["predicted_per_second"])


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
