"""The chat and `generate`, each in a terminal, asked the same."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.measure import MeasurementError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from tests.end_to_end.chat_driver import CTRL_D, ENTER, ChatTerminal, Terminal

CHAT_TOKENS = 128
QUESTION = "Write a long list of animals, each with a sentence about where it lives."
# Where an answer stands when it is half said.
_PLACE = 128
_STEPS = 24
# At its default strength an answer is as long as an unsteered one.
_STEERING = "happy"


def chatting(model: Path, threads: int, repeats: int, folder: Path) -> list[tuple[float, float, float]]:
    """Milliseconds a token: of the chat's answer, of the same one by `generate`, and of three in one batch; once a round.

    Raises:
        MeasurementError: an answer was too short, or not the same.
    """
    log = folder / "chat.jsonl"
    timed: list[str | Path] = [sys.executable, "-m", "bench.timed", log]
    options: list[str | Path] = ["-m", model, "-n", str(CHAT_TOKENS), "--seed", "3", "-s", _STEERING, "--threads", str(threads)]
    rounds: list[tuple[float, float, float]] = []

    def ask(terminal: ChatTerminal, line: str, answers: int) -> None:
        """Ask, and wait until the log has so many answers, and the prompt is back."""
        terminal.line(line)
        terminal.unseen(lambda: log.exists() and len(log.read_text(encoding="utf-8").splitlines()) == answers)
        terminal.wait(lambda: terminal.ready, line)

    with ChatTerminal(*options, "--no-log", program=[*timed, "chat"]) as terminal:
        terminal.wait_ready()
        ask(terminal, QUESTION, 1)  # not counted: the pages of the model come into memory
        for _ in range(repeats):
            log.write_text("", encoding="utf-8")
            terminal.ask("/reset")
            ask(terminal, QUESTION, 1)
            ask(terminal, "/compare", 2)
            with Terminal([*timed, "generate", QUESTION, *options]) as other:
                other.unseen(lambda: not other.process.isalive())
                if other.end() != 0:
                    raise MeasurementError(f"generate failed:\n{other.everything}")
            talked, compared, generated = tuple(_read(log))
            if talked[0] != generated[0] or talked[0] < CHAT_TOKENS // 2:
                raise MeasurementError(f"the chat's answer has {talked[0]} tokens, and that of generate {generated[0]}")
            rounds.append((talked[1], generated[1], compared[1]))
        terminal.type(f"{CTRL_D}{ENTER}")
    log.unlink()
    return rounds


def bare_steps(path: Path, threads: int, repeats: int) -> list[tuple[float, float]]:
    """Milliseconds of a decode of one sequence and of three, a token each, by llama.cpp alone: nothing steered or drawn."""
    rounds = []
    with Model(path, threads=threads) as model, Context(model, n_ctx=3 * (_PLACE + _STEPS), n_seq=3) as context:
        for sequence in range(3):
            context.decode(Batch.of_one_sequence([*range(100, 100 + _PLACE)], start=0, sequence=sequence))
        for _ in range(repeats + 1):
            rounds.append((_step(context, 1), _step(context, 3)))
    return rounds[1:]


def _step(context: Context, count: int) -> float:
    taken = []
    for step in range(_STEPS):
        each = np.ones(count, np.int32)
        tokens, places = np.arange(count, dtype=np.int32) + 100 + step, each * np.int32(_PLACE + step)
        batch = Batch(tokens, places, each, np.arange(count, dtype=np.int32), each.astype(np.int8))
        start = time.perf_counter()
        context.decode(batch)
        context.logits(count - 1)
        taken.append(time.perf_counter() - start)
    for sequence in range(count):
        context.forget(sequence, _PLACE)
    return 1000 * statistics.median(taken)


def _read(log: Path) -> Iterator[tuple[int, float]]:
    """Of each answer (or several at once) the tokens of the longest one, and milliseconds for each of them."""
    for line in log.read_text(encoding="utf-8").splitlines():
        answered = json.loads(line)
        longest = max(answered["tokens"])
        yield longest, answered["seconds"] * 1000 / longest
