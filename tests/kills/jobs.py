"""What is killed: every command that writes, chats and a server, all of them with tiny models and in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np

from localsteer.llama.model import Model
from localsteer.vector.file import write_vector
from tests.policy.made import low_and_high, push
from tests.server.conftest import tiny_vector
from tests.tiny_models import write_tiny_model

ROOT = Path(__file__).parents[2]
# So few pairs that nobody asks how well their halves agree: those of a random model do not.
CONCEPT = """\
name: loud
poles: {positive: loud, negative: quiet}
pairs:
  - {positive: I AM HERE, negative: I am here}
  - {positive: GO AWAY NOW, negative: please go away}
held_out: {questions: ["How are you?", "Who is there?", "Where is it?", "When was it?"]}
"""
_POLICY = """\
version: 1
classifiers: {greeted: {type: rule, watch: prompt, words: [hello]}}
rules: [{name: nod, when: greeted, steer: push.gguf}]
audit: audit.jsonl
"""
_PATIENCE = 60.0
_CURSOR_ASKED = b"\x1b[6n"


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: of it in the table.
        arguments: behind `localsteer`; MODEL is the model's file.
        lines: what it reads from stdin.
        before: commands that go before it, and are not killed.
        trust: whether the model is known.
        ends_refused: where it was done, it refuses to do it again.
        goes_on: what a second run must say it has not done again, where a first one left some of the work; from what lies in the
            folder then.
        terminal: it gets one, and these lines are typed.
        serves: it is a server, which is asked something, and ended.
    """

    name: str
    arguments: tuple[str, ...]
    lines: str = ""
    before: tuple[tuple[str, ...], ...] = ()
    trust: bool = True
    ends_refused: bool = False
    goes_on: Callable[[Path], str] = lambda _box: ""
    terminal: bool = False
    serves: bool = False


def _measured(box: Path) -> str:
    """So many answers of a calibration need not be given again."""
    count = 0
    for file in box.glob("home/cache/localsteer/calibration/*.jsonl"):
        for line in file.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                json.loads(line)
                count += 1
    return f"{count} of them measured already" if count else ""


def _built(box: Path) -> str:
    """So many vectors need not be built again."""
    names = [file.name.partition("-")[0] for file in box.glob("home/cache/localsteer/vectors/[a-z]*.gguf")]
    return f"{names[0]}: there already" if names else ""


_MODEL = ("-m", "MODEL", "--threads", "1")
_TEXTS = ("--positive", "a.txt", "--negative", "b.txt")
_SHARE = ("vectors", "share", "old.gguf", "-o", "shared", *_MODEL)
JOBS = (
    Job("extract, a new file", ("extract", "loud.yaml", "-o", "new.gguf", *_MODEL)),
    Job("extract, over an older one", ("extract", "loud.yaml", "-o", "old.gguf", *_MODEL)),
    Job("extract --concept-from", ("extract", "--concept-from", "a captain", "-o", "captain.gguf", "--layers", "1-3", *_MODEL)),
    Job("the first look at a model", ("models", "show", "MODEL"), trust=False),
    Job("a concept's first use", ("generate", "hello", "-s", "loud", "-n", "4", *_MODEL)),
    Job(
        "a policy with an audit log",
        ("generate", "hello", "--policy", "policy.yaml", "-n", "40", *_MODEL),
    ),
    Job("vectors build", ("vectors", "build", "loud", "quick", *_MODEL), goes_on=_built),
    Job("vectors build -o", ("vectors", "build", "loud", "quick", "-o", "built", *_MODEL)),
    Job("vectors import FILE", ("vectors", "import", "foreign.npz", "-o", "mine.gguf", *_MODEL)),
    Job("vectors import FOLDER", ("vectors", "import", "shared", "--name", "taken"), before=(_SHARE,), ends_refused=True),
    Job("vectors share", _SHARE, ends_refused=True),
    Job("vectors share --force", (*_SHARE, "--force"), before=(_SHARE,)),
    Job("vectors combine", ("vectors", "combine", "0.5 old.gguf + push.gguf", "-o", "old.gguf", "--force")),
    Job(
        "calibrate --report",
        ("calibrate", "old.gguf", "--quick", "--by-cost", "--report", "report", *_MODEL),
        before=(("extract", "loud.yaml", "-o", "old.gguf", *_MODEL),),
        goes_on=_measured,
    ),
    Job("policy fit", ("policy", "fit", *_TEXTS, "-o", "p.gguf", "--save-unseen", "u.jsonl", *_MODEL)),
    Job("export llama-cpp", ("export", "llama-cpp", "old.gguf", "-o", "out.gguf", *_MODEL)),
    Job("export glp", ("export", "glp", "!old.gguf", "-o", "out.gguf", *_MODEL)),
    Job("export lora", ("export", "lora", "old.gguf", "-o", "out.gguf", *_MODEL)),
    Job("export knobs", ("export", "knobs", "old.gguf", "push.gguf", "-o", "knobs", *_MODEL)),
    Job("export bake", ("export", "bake", "old.gguf", "-o", "out.gguf", *_MODEL)),
    Job("export bake, merged", ("export", "bake", "old.gguf", "-o", "out.gguf", "-m", "OTHER", "--threads", "1")),
    Job("history export", ("history", "export", "1", "talk.json")),
    Job("history delete", ("history", "delete", "--all", "--yes")),
    Job(
        "chat from a pipe",
        ("chat", "--resume", "1", "-n", "40", *_MODEL),
        lines="Hello\n/save kept.json\n/export kept.md\nAnd now?\n/save kept.json\n",
    ),
    Job("chat in a terminal", ("chat", "-n", "60", *_MODEL), lines="Hello\r/save kept.json\rAnd now?\r/quit\r", terminal=True),
    Job(
        "serve",
        ("serve", "--port", "0", "--json", "--policy", "policy.yaml", "--context", "256", "--parallel", "2", *_MODEL),
        serves=True,
    ),
)


@dataclass(frozen=True)
class Setting:
    """What all of them share.

    Attributes:
        models: by what stands for them in arguments.
        first: the folder as it is before any of them: `home` and `work`.
    """

    models: Mapping[str, Path]
    first: Path

    def given(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """Arguments with the models' files."""
        return tuple(str(self.models.get(one, one)) for one in arguments)


def environment(box: Path, job: Job) -> dict[str, str]:
    """Of a process whose home is in a folder."""
    home = box / "home"
    own = {"HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    own |= {f"XDG_{name.upper()}_HOME": str(home / name) for name in ("cache", "data", "config")}
    own |= {"LOCALSTEER_TRUST": "1"} if job.trust else {}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCALSTEER", "XDG", "COV"))}
    return {**kept, **own}


def prepare(folder: Path) -> Setting:
    """Make the models, and what the commands start from."""
    models = {
        "MODEL": write_tiny_model(folder / "model.gguf", "llama"),
        "OTHER": write_tiny_model(folder / "other.gguf", "qwen2"),
    }
    work, home = folder / "first" / "work", folder / "first" / "home"
    work.mkdir(parents=True)
    (work / "loud.yaml").write_text(CONCEPT)
    (work / "policy.yaml").write_text(_POLICY)
    examples = low_and_high(12)
    for name, label in (("a.txt", True), ("b.txt", False)):
        (work / name).write_text("".join(f"{one.message}\n" for one in examples if one.label == label))
    push(work)
    with Model(models["MODEL"], threads=1) as model:
        vector = tiny_vector(model, 1)
        write_vector(replace(vector, provenance=replace(vector.provenance, source=CONCEPT)), work / "old.gguf")
    foreign: dict[str, Any] = {f"direction.{layer}": np.full(64, layer, np.float32) for layer in (1, 2)}
    np.savez(work / "foreign.npz", **foreign)
    for name in ("loud", "quick"):
        concept = home / "data" / "localsteer" / "vectors" / name / "concept.yaml"
        concept.parent.mkdir(parents=True)
        concept.write_text(CONCEPT.replace("name: loud", f"name: {name}"))
    _keep_conversations(home / "data" / "localsteer" / "history.db")
    return Setting(MappingProxyType(models), folder / "first")


def _keep_conversations(path: Path) -> None:
    from localsteer.chat.history import History
    from tests.chat.made_transcript import asked

    with History(path) as history:
        for texts in (("Hi", "Hello"), ("What now?", "Nothing.")):
            history.finish(history.begin(asked(*texts)))
    path.with_name("chat-lines").write_text("\n# 2026-01-31 12:00:00\n+Hi\n")


# ---- what is done with those that do not end by themselves


def ask_and_end(process: BaseProcess, stdout: Path) -> None:
    """Have a server build a vector, and answer three times; then end it. What fails there has been killed."""
    while not (told := stdout.read_text()).endswith("}\n"):
        if process.exitcode is not None:
            return
        time.sleep(0.02)
    url = json.loads(told)["url"]
    with suppress(httpx.HTTPError):
        for steering in ("0.5 loud", "push.gguf", ""):
            body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "steering": steering}
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=_PATIENCE)
    process.terminate()


def talk(terminal: int, lines: str) -> None:
    """Type lines as soon as there is a prompt, and read what comes, until the other end is closed."""
    seen, typed = b"", False
    with suppress(OSError):
        while data := os.read(terminal, 65536):
            seen += data
            for _ in range(data.count(_CURSOR_ASKED)):
                os.write(terminal, b"\x1b[1;1R")
            if not typed and re.search(rb"context \d+/", seen):
                typed = True
                os.write(terminal, lines.encode())
