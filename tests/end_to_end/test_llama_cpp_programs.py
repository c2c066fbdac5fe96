"""What is written loads in llama.cpp's own program, built from the very source of the installed llama-cpp-python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.tools import built_programs
from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.control_vector import ControlVector

pytestmark = pytest.mark.models

PROMPT = "<|im_start|>user\nHow was your day?<|im_end|>\n<|im_start|>assistant\n"
LENGTH = 24


@pytest.fixture(scope="module")
def completion(demo_path: Path) -> Path:
    program = built_programs().get("llama-completion")
    if program is None:
        pytest.skip("llama-completion is not built: `make bench-tools` does it")
    return program


def run(program: Path, model: Path, *options: str) -> str:
    command = [str(program), "-m", str(model), "-p", PROMPT, "-n", str(LENGTH), "--temp", "0", "-no-cnv", "-c", "512"]
    result = subprocess.run(
        [*command, "--no-display-prompt", *options], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
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
    plan = resolve(parse_steering("-1.5 happy"), demo.fingerprint, lambda _name: happy, "prompt")
    with Generator(demo) as generator:
        ours = generator.generate(Request(prompt, plan, greedy, LENGTH)).text.strip()
    # Both run the same kernels, but for how the prompt is cut into batches: the first words agree.
    assert steered.split()[:4] == ours.split()[:4]
