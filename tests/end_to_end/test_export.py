"""What is exported does in other programs what localsteer does, and what they export does so here."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.peers import cvector_generator, repeng, repeng_is_installed
from bench.prompts import write_prompt_files
from bench.tools import built_programs
from localsteer.building.estimators import ESTIMATORS
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.building.library import loader
from localsteer.concepts.contrast import read_prompt_files
from localsteer.concepts.names import concepts
from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.export.bake import bake
from localsteer.export.llama_cpp import export_vector
from localsteer.export.verify import PLACES, predictions, reference
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.importing import import_vector
from tests.conftest import run_alone

QUESTIONS = (
    "How was your day?",
    "What is a good breakfast?",
    "Tell me about your town.",
    "What do you think about Mondays?",
    "Describe the sea.",
    "My flight was cancelled.",
    "Who was your best teacher?",
    "What should I cook tonight?",
    "Is it going to rain?",
    "I lost my keys.",
    "What is the point of school?",
    "How do I learn to swim?",
    "Tell me a short story.",
    "What makes a good friend?",
    "Why is the sky blue?",
    "My neighbour is too loud.",
    "What would you do with a million dollars?",
    "Recommend me a book.",
    "How do plants grow?",
    "What is your favourite season?",
)
LENGTH = 32
GREEDY = Sampling(temperature=0)
# Two tokens whose logits differ by less are a tie that the composition of a batch decides: see LOGIT_NOISE in tests/conftest.py;
# on quantised models the noise floor is 2 % of a hidden state.
NEAR_TIE = 0.5
# Of the demo model's 30 blocks: those where two honest readings of the same prompts agree (docs/concepts.md).
STEADY = range(10, 24)


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    """Looked up before each test gets an empty home of its own."""
    return built_programs()


def program(programs: dict[str, Path], name: str) -> Path:
    if name not in programs:
        pytest.skip(f"{name} is not built: `make bench-tools` does it")
    return programs[name]


@dataclass(frozen=True)
class Case:
    """A vector of the library, exported."""

    name: str
    file: Path
    edit: NDArray[np.float32]
    answers: tuple[tuple[int, ...], ...]


def chosen() -> list[str]:
    """Names of the library: `make exports` takes all of them, a minute for each."""
    names = os.environ.get("LOCALSTEER_EXPORTS", "happy")
    return sorted(concepts()) if names == "all" else names.split(",")


@pytest.fixture(scope="module")
def prompts(demo: Model) -> list[str]:
    assert demo.chat_template is not None
    return [demo.chat_template.render([Message("user", question)]) for question in QUESTIONS]


def exported(demo: Model, name: str, prompts: list[str], folder: Path, verify: bool = True) -> Case:
    """A vector of the library, exported, and our own answers under `--steer-prompt`."""
    steering = parse_steering(name)
    file = folder / f"{name}.gguf"
    fidelity = export_vector(steering, file, loader(demo), demo, verify=verify).fidelity
    print(f"{name}: {fidelity}")
    plan = resolve(steering, demo.fingerprint, loader(demo), "prompt")
    with Generator(demo) as generator:
        requests = [Request(tuple(demo.tokenize(prompt)), plan, GREEDY, LENGTH) for prompt in prompts]
        answers = tuple(generator.generate(request).tokens for request in requests)
    return Case(name, file, plan.edit.added, answers)


@pytest.fixture(scope="module")
def cases(demo: Model, prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("exported")
    made = [exported(demo, name, prompts, folder) for name in chosen()]
    assert made
    return made


def assert_baked(demo: Model, demo_path: Path, case: Case, prompts: list[str], output: Path) -> None:
    """A model with the vector baked in predicts what the steered one does."""
    # The predictions behind the prompt and all but the last of the first 20 tokens of an answer.
    texts = [(*demo.tokenize(prompt), *answer[: PLACES - 1]) for prompt, answer in zip(prompts, case.answers, strict=True)]
    ours = reference(demo, case.edit, texts)
    bake(demo_path, parse_steering(case.name), output, verify=False)  # that is what follows
    with Model(output) as baked:
        fidelity = ours.compare(predictions(baked, texts))
    print(f"{case.name}: {fidelity}")
    assert fidelity.places == len(prompts) * PLACES
    assert fidelity.mean <= 0.01
    assert fidelity.unsteered_mean > 5 * fidelity.mean


def test_a_vector_is_exported_and_baked(demo: Model, demo_path: Path, prompts: list[str], tmp_path: Path) -> None:
    case = exported(demo, "happy", prompts[:3], tmp_path, verify=False)  # what is baked is compared, at fewer places
    assert_baked(demo, demo_path, case, prompts[:3], tmp_path / "baked.gguf")


def assert_the_same(demo: Model, case: Case, prompts: list[str], answer: Callable[[str], bytes]) -> None:
    """At least 18 of 20 answers are ours to the last byte, and the others part from ours at a near-tie.

    Bytes, not text: an answer that is cut after 32 tokens may end in half a character.
    """
    same = 0
    for prompt, ours in zip(prompts, case.answers, strict=True):
        theirs, pieces = answer(prompt), [demo.token_bytes(token) for token in ours]
        if theirs.strip() == b"".join(pieces).strip():
            same += 1
            continue
        place = next(at for at in range(len(ours) + 1) if at == len(ours) or not theirs.startswith(b"".join(pieces[: at + 1])))
        assert place < len(ours), (prompt, theirs)
        rest = theirs.removeprefix(b"".join(pieces[:place]))
        tokens = [*demo.tokenize(prompt), *ours[:place]]
        logits = run_alone(demo, tokens, [Edit(case.edit)] * len(tokens), read=False).logits[-1]
        begins = [token for token in range(demo.n_vocab) if (text := demo.token_bytes(token)) and rest.startswith(text)]
        others = [token for token in begins if token != ours[place]] or [t for t in range(demo.n_vocab) if demo.is_end(t)]
        gap = float(logits[ours[place]] - logits[others].max())
        print(f"{case.name}: {prompt!r} parts at token {place}, where the logits are {gap:.3f} apart")
        assert gap < NEAR_TIE
    print(f"{case.name}: {same} of {len(prompts)} answers the same")
    assert same >= 18


@pytest.mark.models
def test_llama_completion_answers_as_we_do(
    programs: dict[str, Path], demo: Model, demo_path: Path, prompts: list[str], cases: list[Case]
) -> None:
    completion = program(programs, "llama-completion")
    for case in cases:

        def answer(prompt: str, case: Case = case) -> bytes:
            command = [str(completion), "-m", str(demo_path), "--control-vector", str(case.file), "-p", prompt, "-n", str(LENGTH)]
            options = ["--temp", "0", "-no-cnv", "-c", "512", "--no-display-prompt"]
            result = subprocess.run([*command, *options], capture_output=True, check=True, stdin=subprocess.DEVNULL)
            return result.stdout.rstrip(b"\n").removesuffix(b" [end of text]")

        assert_the_same(demo, case, prompts, answer)


@contextlib.contextmanager
def serving(server: Path, *options: str) -> Iterator[str]:
    """A llama-server with these options, and where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(server), "--host", "127.0.0.1", "--port", str(port), "-c", "512", "-np", "1", *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            assert process.poll() is None, "llama-server ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.mark.models
def test_llama_server_answers_as_we_do(
    programs: dict[str, Path], demo: Model, demo_path: Path, prompts: list[str], cases: list[Case]
) -> None:
    server = program(programs, "llama-server")
    for case in cases:
        with serving(server, "-m", str(demo_path), "--control-vector", str(case.file)) as url:

            def answer(prompt: str, url: str = url) -> bytes:
                body = {"prompt": prompt, "n_predict": LENGTH, "temperature": 0, "return_tokens": True, "cache_prompt": False}
                request = urllib.request.Request(
                    f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request) as response:
                    tokens: list[int] = json.load(response)["tokens"]
                return b"".join(demo.token_bytes(token) for token in tokens)

            assert_the_same(demo, case, prompts, answer)


@pytest.mark.models
def test_a_baked_model_predicts_what_the_steered_one_does(
    demo: Model, demo_path: Path, prompts: list[str], cases: list[Case], tmp_path: Path
) -> None:
    for case in cases:
        assert_baked(demo, demo_path, case, prompts, tmp_path / f"{case.name}.gguf")


@pytest.mark.models
def test_a_baked_model_answers_in_llama_cpps_own_program(
    programs: dict[str, Path], demo: Model, demo_path: Path, prompts: list[str], cases: list[Case], tmp_path: Path
) -> None:
    completion = program(programs, "llama-completion")
    case = cases[0]
    bake(demo_path, parse_steering(case.name), tmp_path / "baked.gguf", verify=False)
    command = [str(completion), "-m", str(tmp_path / "baked.gguf"), "-p", prompts[0], "-n", "16", "--temp", "0", "-no-cnv"]
    result = subprocess.run(
        [*command, "-c", "512", "--no-display-prompt"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert result.stdout.split()[:4] == demo.detokenize(list(case.answers[0])).split()[:4]


# Imports


@pytest.fixture(scope="module")
def prompt_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_prompt_files(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def ours(demo: Model, prompt_files: tuple[Path, Path]) -> NDArray[np.float32]:
    """(n_layer, n_embd) as our own extraction reads the same prompts."""
    vector = extract(
        demo, read_prompt_files(*prompt_files, name="calm"), ExtractionSettings(layers=(1, demo.n_layer - 2), dose=False)
    )
    estimate = vector.provenance.estimate
    assert estimate is not None
    return estimate


def cosines(theirs: NDArray[np.float32], ours: NDArray[np.float32]) -> dict[int, NDArray[np.float64]]:
    """By how many blocks ours are moved: the cosine of each of their directions with ours, (n_steady,)."""

    def cosine(block: int, other: int) -> float:
        one, two = theirs[block], ours[other]
        return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))

    found = {shift: np.array([cosine(block, block + shift) for block in STEADY]) for shift in (-1, 0, 1)}
    for shift, values in found.items():
        print(f"shift {shift:+d}: mean cosine {values.mean():.3f}, lowest {values.min():.3f}")
    return found


def share_at_home(found: dict[int, NDArray[np.float64]]) -> float:
    """The share of directions that are nearer to ours of their own block than to those of the blocks before and after."""
    return float(((found[0] > found[-1]) & (found[0] > found[1])).mean())


@pytest.fixture(scope="module")
def cvector_file(
    programs: dict[str, Path], demo: Model, prompt_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    program(programs, "llama-cvector-generator")
    path = tmp_path_factory.mktemp("peers") / "cvector.gguf"
    cvector_generator(demo.path, prompt_files, path, demo.threads)
    return path


@pytest.fixture(scope="module")
def repeng_file(demo: Model, prompt_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not repeng_is_installed():
        pytest.skip("repeng is not installed: `make bench` does it")
    path = tmp_path_factory.mktemp("peers") / "repeng.gguf"
    repeng(demo.path, prompt_files, path)
    return path


@pytest.mark.models
def test_llama_cvector_generators_directions_come_home(cvector_file: Path, demo: Model, ours: NDArray[np.float32]) -> None:
    imported = import_vector(cvector_file, model=demo.fingerprint)
    assert (imported.kind, imported.shift) == ("llama-cvector-generator", -1)
    found = cosines(imported.vector.rows(demo.n_layer), ours)
    assert found[0].mean() > max(found[-1].mean(), found[1].mean())
    assert share_at_home(found) > 0.75


@pytest.mark.models
def test_repengs_directions_are_at_home_on_average(repeng_file: Path, demo: Model, ours: NDArray[np.float32]) -> None:
    imported = import_vector(repeng_file, model=demo.fingerprint)
    assert (imported.kind, imported.shift) == ("repeng", 0)
    found = cosines(imported.vector.rows(demo.n_layer), ours)
    assert found[0].mean() > max(found[-1].mean(), found[1].mean())


def centred_component(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> NDArray[np.float32]:
    """What repeng's `pca_diff` computes, an estimator: scikit-learn's PCA centres the differences before it looks for the
    first component, which then says how pairs differ from each other, and not what they have in common."""
    differences = (positive - negative).transpose(1, 0, 2)
    centred = differences - differences.mean(axis=1, keepdims=True)
    first: NDArray[np.float32] = np.linalg.svd(centred, full_matrices=False)[2][:, 0, :]
    agreeing = np.einsum("lpe,le->lp", differences, first) > 0
    return first * np.where(agreeing.mean(axis=1) < 0.5, -1, 1)[:, None].astype(np.float32)


@pytest.mark.models
def test_repengs_directions_are_ours_read_in_its_way_block_by_block(
    repeng_file: Path, demo: Model, prompt_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ESTIMATORS, "centred", centred_component)
    settings = ExtractionSettings(method="centred", layers=(1, demo.n_layer - 2), dose=False)
    estimate = extract(demo, read_prompt_files(*prompt_files, name="calm"), settings).provenance.estimate
    assert estimate is not None
    found = cosines(import_vector(repeng_file).vector.rows(demo.n_layer), estimate)
    # The sign is a vote of the pairs, and of a component that they do not have in common it is a close one.
    lines = {shift: np.abs(values) for shift, values in found.items()}
    print(f"in either direction: mean cosine {lines[0].mean():.3f}, at home {share_at_home(lines):.2f}")
    assert share_at_home(lines) > 0.85  # 1 and, on another processor, 0.93 were seen; a file read one block off has next to none
    assert lines[0].mean() > 0.95  # 0.985 was seen; theirs reads the weights of the same file in float32


def test_a_prompt_is_read_as_the_programs_read_it(demo: Model, prompts: list[str]) -> None:
    """What the comparisons above rest on."""
    assert tuple(demo.tokenize(prompts[0])) == prompt_tokens(demo, [Message("user", QUESTIONS[0])])
