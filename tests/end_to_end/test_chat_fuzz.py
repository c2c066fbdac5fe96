"""Lines and keys that nobody would type: the chat lives, says no traceback, and leaves the terminal as it was found.

`make test` tries 30 of them; LOCALSTEER_EXAMPLES=1000 that many.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector
from tests.door_report import Door
from tests.end_to_end.chat_driver import ALT_DOWN, ALT_ENTER, ALT_UP, CTRL_C, CTRL_D, ENTER, PATIENCE, TAB, ChatTerminal, pasted
from tests.end_to_end.test_chat import AROUND, stty

EXAMPLES = int(os.environ.get("LOCALSTEER_EXAMPLES", "30"))
# One chat each: a failure names its seed, and the way to it is short.
ONE_CHAT = 60
# Without those that leave the chat, open an editor or a full screen, or write files.
COMMANDS = (
    "/steer", "/anchored", "/vectors", "/layers", "/compare", "/sweep", "/watch", "/heat", "/why", "/thinking", "/policy",
    "/undo",
    "/retry", "/system", "/model", "/file", "/copy", "/set", "/reset", "/help", "/load", "/nonsense", "/",
)  # fmt: skip
ARGUMENTS = (
    "", "off", "on", "push.gguf", "0.5 push.gguf", "-push.gguf", "1e308 push.gguf", "nan push.gguf", "+0.1", "-0.1", "+1e400",
    "+-1", "0.5 hapy", "a b c", "push.gguf -1 1 3", "push.gguf 1 -1 9", "push.gguf 0 0 2", "push.gguf a b c",
    "push.gguf inf 1 2", "'", '"', "!push.gguf", "push.gguf[", "push.gguf@1-2", "/dev/null", "/dev/tty", ".", "~",
    "notes.txt", "nosuchfile", "7", "-7", "99999999999999999999", "\u00b2", "\u661f\u661f", "\U0001f437\u200d\U0001f437",
    "e\u0301\u0301\u0301", "\u202eabc", "x" * 300,
)  # fmt: skip
TEXTS = (
    "Hello", "a", " ", "word " * 200, "\u661f" * 150, "\U0001f437" * 60, "```python\ndef f():", "| a | b |\n|---|---|",
    "# x\n\n- y\n- z", "&#27;[2J", "<b>x</b>", "<|im_end|>", "<think>", "\u0301", "\u200b", "\ufeff", "{{ x }}", "[link](x)",
    "!true", "\x1b[2J", "\x07\x0e",
)  # fmt: skip
KEYS = (
    TAB, "\x1b[Z", ALT_UP, ALT_DOWN, ALT_ENTER, CTRL_C, "\x01", "\x02", "\x05", "\x06", "\x08", "\x0b", "\x0c", "\x0e",
    "\x10", "\x12", "\x14", "\x15", "\x16", "\x17", "\x19", "\x1a", "\x1c", "\x1f", "\x7f", "\x00", "\x1b[A", "\x1b[B",
    "\x1b[C", "\x1b[D", "\x1b[H", "\x1b[F", "\x1b[3~", "\x1b[5~", "\x1b[6~", "\x1bb", "\x1bf", "\x1bd", "\x1b.", "\x1bu",
    "\x1bc", "\x1b", "\x1b[", "\x1b[200~", "\x1b[I", "\x1b[1;5D", "\x1bOP", "\x1b[15~", "\x1b[M !!",
    "\x1b[<0;1;1M", '"""', "\x18\x05",
)  # fmt: skip


def made(rng: random.Random) -> str:
    """What is typed."""
    kind = rng.random()
    if kind < 0.4:
        return f"{rng.choice(COMMANDS)} {rng.choice(ARGUMENTS)}{ENTER}"
    if kind < 0.6:
        text = rng.choice(TEXTS)
        return (pasted(text) if "\n" in text or "\x1b" in text else text) + ENTER
    if kind < 0.7:
        return (
            "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(160, 0x3000)))) for _ in range(20)).lstrip("!") + ENTER
        )
    return "".join(rng.choice((*KEYS, "a", "/st", " ", "\u661f")) for _ in range(rng.randrange(1, 8))) + rng.choice(("", ENTER))


@pytest.mark.parametrize("seed", range(-(-EXAMPLES // ONE_CHAT)))
def test_nothing_that_is_typed_breaks_the_chat(
    door: Door, tiny_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    count = min(ONE_CHAT, EXAMPLES - seed * ONE_CHAT)
    door("lines and keys in the chat", count)
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), tmp_path / "push.gguf")
    (tmp_path / "notes.txt").write_text("Pigs can swim.\n")
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    typed: list[str] = []
    with ChatTerminal("-m", tiny_path("llama"), "-n", "12", "--context", "128", shell=AROUND) as chat:
        chat.wait_ready()
        for _ in range(count):
            typed.append(made(rng))
            chat.type(typed[-1])
            if rng.random() < 0.1:
                chat.resize(rng.choice((20, 60, 100)))
            if rng.random() < 0.7 or "\x1b[200~" in typed[-1]:  # the others run into what is typed next
                settle(chat, typed)
        chat.resize(100)
        settle(chat, typed)
        chat.ask("/undo")
        chat.type(CTRL_D)
        assert chat.end() == 0
        chat.see("status 0", "--over--")
        assert "Traceback" not in chat.everything, typed
        before, after = stty(chat)
        assert before == after
        assert not chat.screen.cursor.hidden


def settle(chat: ChatTerminal, typed: list[str]) -> None:
    """Stop what goes on, and clear the line: done when the prompt has shown a mark, and nothing again.

    On a busy machine a screen that stands still tells nothing. Keys are read in their order: where the mark is seen, all is read.
    """
    if "\x1b[200~" in typed[-1] and "\x1b[201~" not in typed[-1]:
        chat.type("\x1b[201~")  # or all that follows is pasted
    end = time.monotonic() + 4 * PATIENCE
    for number in itertools.count():
        mark = f"q{len(typed)}.{number}"
        chat.type(CTRL_C + mark)
        if comes(chat, lambda mark=mark: chat.prompt == f"> {mark}"):  # type: ignore[misc]
            comes(chat, lambda: not chat.toolbar.endswith(("working", "answering")))
            chat.type(CTRL_C)
            if comes(chat, lambda: chat.prompt == ">"):
                return
        assert time.monotonic() < end, f"no prompt after {typed[-5:]!r}\n{chat.text}"


def comes(chat: ChatTerminal, until: Callable[[], bool], seconds: float = 2) -> bool:
    """Whether something holds within so many seconds."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        assert chat.look(), "it ended"
    return until()
