"""The chat and `generate`, each in a terminal, asked the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.measure import MeasurementError
from tests.end_to_end.chat_driver import CTRL_D, ENTER, ChatTerminal, Terminal

CHAT_TOKENS = 128
QUESTION = "Write a long list of animals, each with a sentence about where it lives."
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


def _read(log: Path) -> Iterator[tuple[int, float]]:
    """Of each answer (or several at once) the tokens of the longest one, and milliseconds for each of them."""
    for line in log.read_text(encoding="utf-8").splitlines():
        answered = json.loads(line)
        longest = max(answered["tokens"])
        yield longest, answered["seconds"] * 1000 / longest
