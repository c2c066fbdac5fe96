"""What is written loads in llama.cpp's own program, built from the very source of the installed llama-cpp-python."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.tools import built_programs
from localsteer.building.library import loader
from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.export.adapter import export_adapter
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.steering.expression import parse_steering
from localsteer.vector.control_vector import ControlVector, Floats
from tests.conftest import plan_of, run_alone
from tests.end_to_end.conftest import THREADS
from tests.end_to_end.test_export import QUESTIONS, serving

pytestmark = pytest.mark.models

PROMPT = "<|im_start|>user\nHow was your day?<|im_end|>\n<|im_start|>assistant\n"
LENGTH = 24
# Of an answer under an adapter, which does nearly what the vector does: so many tokens, on so many of the 20 prompts, are ours or
# part from ours at a near tie. A divergence of 0.0085 nats, as `happy` has, is a deviation of 0.13 in a logit, and of twice that
# in the difference of the two likeliest.
SAME_TOKENS, SAME_PROMPTS, NEAR_TIE = 16, 14, 0.25
GREEDY = Sampling(temperature=0)
# What four requests at once ask for: the scale of each adapter.
ASKED: tuple[Mapping[str, float], ...] = ({"happy": 1.0}, {"happy": -1.0}, {"formal": 1.0}, {"happy": 0.5, "formal": 0.5})


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    """Looked up before each test gets an empty home of its own."""
    return built_programs()


def program(programs: Mapping[str, Path], name: str) -> Path:
    if name not in programs:
        pytest.skip(f"{name} is not built: `make bench-tools` does it")
    return programs[name]


@pytest.fixture(scope="module")
def completion(programs: dict[str, Path]) -> Path:
    return program(programs, "llama-completion")


# As many as we compute with: on a busy core those of a program wait for one another.
AS_MANY_THREADS = ["-t", str(THREADS)] if THREADS is not None else []


def run(program: Path, model: Path, *options: str) -> str:
    command = [str(program), "-m", str(model), "-p", PROMPT, "-n", str(LENGTH), "--temp", "0", "-no-cnv", "-c", "512"]
    result = subprocess.run(
        [*command, "--no-display-prompt", *AS_MANY_THREADS, *options],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.removesuffix(" [end of text]").strip()


def test_the_vector_loads_and_shifts_the_text_as_ours_does(
    completion: Path, demo: Model, demo_path: Path, happy: ControlVector, happy_file: Path
) -> None:
    prompt = prompt_tokens(demo, [Message("user", PROMPT)], raw=True)
    greedy = Sampling(temperature=0)
    plain = run(completion, demo_path)
    steered = run(completion, demo_path, "--control-vector-scaled", f"{happy_file}:-1.5")
    assert steered != plain
    # What the file holds, whatever was measured for the other pole.
    plan = plan_of(Edit(happy.rows(demo.n_layer) * np.float32(-1.5)), steer_prompt=True)
    with Generator(demo) as generator:
        ours = generator.generate(Request(prompt, plan, greedy, LENGTH)).text.strip()
    # Both run the same kernels, but for how the prompt is cut into batches: the first words agree.
    assert steered.split()[:4] == ours.split()[:4]


@dataclass(frozen=True, eq=False)
class Knob:
    """An adapter that was exported: its file, and what it does at scale 1."""

    file: Path
    added: Floats


@pytest.fixture(scope="module")
def knobs(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Knob]:
    folder = tmp_path_factory.mktemp("knobs")
    made = {}
    for name in ("happy", "formal"):
        adapted = export_adapter(parse_steering(name), folder / f"{name}.gguf", loader(demo), demo)
        print(f"{name}: {adapted.fidelity}")
        made[name] = Knob(folder / f"{name}.gguf", adapted.plan.edit.added)
    return made


@pytest.fixture(scope="module")
def prompts(demo: Model) -> list[str]:
    assert demo.chat_template is not None
    return [demo.chat_template.render([Message("user", question)]) for question in QUESTIONS]


def steering(knobs: Mapping[str, Knob], scales: Mapping[str, float]) -> Edit:
    """What adapters at some scales stand for."""
    return Edit(np.sum([knobs[name].added * np.float32(scale) for name, scale in scales.items()], axis=0))


def answers(demo: Model, prompts: Sequence[str], edit: Edit | None) -> list[tuple[int, ...]]:
    """Ours, with prompt and response steered."""
    plan = plan_of(edit, steer_prompt=True) if edit is not None else None
    with Generator(demo) as generator:
        requests = [Request(tuple(demo.tokenize(prompt)), plan, GREEDY, SAME_TOKENS) for prompt in prompts]
        return [generator.generate(request).tokens for request in requests]


def count_same(
    demo: Model, label: str, prompts: Sequence[str], edit: Edit | None, ours: Sequence[tuple[int, ...]], theirs: Sequence[bytes]
) -> int:
    """How many answers are ours, or part from ours at a near tie; both are told, and each tie."""
    same, near = 0, 0
    for question, prompt, own, other in zip(QUESTIONS, prompts, ours, theirs, strict=True):
        pieces = [demo.token_bytes(token) for token in own]
        if other.strip() == b"".join(pieces).strip():
            same += 1
            continue
        place = next((at for at in range(len(own)) if not other.startswith(b"".join(pieces[: at + 1]))), len(own))
        tokens = [*demo.tokenize(prompt), *own[:place]]
        logits = run_alone(demo, tokens, [edit] * len(tokens), read=False).logits[-1]
        first, second = sorted(logits.tolist())[:-3:-1]
        near += first - second < NEAR_TIE
        print(f"{label}: {question!r} parts at token {place}, where the two likeliest are {first - second:.3f} apart")
    print(f"{label}: {same} of {len(prompts)} answers the same for {SAME_TOKENS} tokens, {near} more part at a near tie")
    return same + near


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_llama_completion_takes_an_adapter(
    completion: Path, demo: Model, demo_path: Path, knobs: dict[str, Knob], prompts: list[str], scale: float
) -> None:
    file, edit = knobs["happy"].file, steering(knobs, {"happy": scale})
    chosen = ["--lora", str(file)] if scale == 1 else ["--lora-scaled", f"{file}:{scale}"]
    common = [
        str(completion),
        "-m",
        str(demo_path),
        *AS_MANY_THREADS,
        *chosen,
        "-n",
        str(SAME_TOKENS),
        "--temp",
        "0",
        "-no-cnv",
        "-c",
        "512",
    ]
    theirs = []
    for prompt in prompts:
        command = [*common, "--no-display-prompt", "-p", prompt]
        result = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
        theirs.append(result.stdout.rstrip(b"\n").removesuffix(b" [end of text]"))
    ours = answers(demo, prompts, edit)
    assert count_same(demo, f"happy at {scale}", prompts, edit, ours, theirs) >= SAME_PROMPTS


def test_llama_server_serves_four_scales_of_two_adapters_at_once(
    programs: dict[str, Path], demo: Model, demo_path: Path, knobs: dict[str, Knob], prompts: list[str]
) -> None:
    numbers = {name: number for number, name in enumerate(knobs)}
    asked: list[Mapping[str, float] | None] = [*ASKED, None]
    files = [part for knob in knobs.values() for part in ("--lora-scaled", f"{knob.file}:0")]
    theirs: list[list[bytes]] = []
    with serving(
        program(programs, "llama-server"), "-m", str(demo_path), "-np", "4", "-c", "2048", *AS_MANY_THREADS, *files
    ) as url:

        def answer(prompt: str, scales: Mapping[str, float] | None) -> bytes:
            body: dict[str, Any] = {"prompt": prompt, "n_predict": SAME_TOKENS, "temperature": 0, "cache_prompt": False}
            if scales is not None:
                body["lora"] = [{"id": numbers[name], "scale": scale} for name, scale in scales.items()]
            data = json.dumps(body | {"return_tokens": True}).encode()
            request = urllib.request.Request(f"{url}/completion", data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as response:
                tokens: list[int] = json.load(response)["tokens"]
            return b"".join(demo.token_bytes(token) for token in tokens)

        with ThreadPoolExecutor(len(ASKED)) as pool:
            for prompt in prompts:
                together = list(pool.map(answer, [prompt] * len(ASKED), ASKED))
                theirs.append([*together, answer(prompt, None)])
    same = {}
    for number, scales in enumerate(asked):
        edit = steering(knobs, scales) if scales is not None else None
        ours, label = answers(demo, prompts, edit), str(scales or "no adapter named")
        same[label] = count_same(demo, label, prompts, edit, ours, [group[number] for group in theirs])
    assert min(same.values()) >= SAME_PROMPTS, same
