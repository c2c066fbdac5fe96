"""Fixtures and helpers that all tests share."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from localsteer import discovery
from localsteer.engine.request import Request
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode
from tests.door_report import door, pytest_terminal_summary
from tests.tiny_models import CHATML_TEMPLATE, RECURRENT_ARCHITECTURE, write_tiny_model

__all__ = ["door", "pytest_terminal_summary"]  # pytest finds them here

# The same examples in every run, and no limit to the time of one: machines differ.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

Floats = NDArray[np.float32]
TinyPath = Callable[[str], Path]
TinyModel = Callable[[str], Model]

# The same token computed in a differently composed batch: at most 0.028 apart in logits of deviation 3, and 0.023 in rows of
# deviation 2 (both for gemma3; a third of it for the others, nothing for mamba). A layer or token mixed up is off by 1 or more.
LOGIT_NOISE = 0.1
ROW_NOISE = 0.1
# A vector added in llama.cpp's graph, or by the tap: float32 rounding at most (2e-7 measured).
ROUNDING = 1e-5

# What differs in how sequences are kept and computed: plain attention; a sliding window, and norms of its own. All architectures
# there are take their turn in tests/llama/ and in tests/test_architectures.py.
KINDS = ("llama", "gemma3")

_homes = itertools.count()


def pytest_configure() -> None:
    """Let Ctrl-C reach the tests that press it: a shell starts its background jobs with SIGINT ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _strangers_machine(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each test a home of its own, not even made yet: nothing of the developer's is read or written."""
    home = tmp_path_factory.getbasetemp() / f"home-{next(_homes)}"
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    folders = {"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "LOCALAPPDATA": "local"}
    for variable, folder in folders.items():
        monkeypatch.setenv(variable, str(home / folder))
    for variable in ("LOCALSTEER_MODEL", "LOCALSTEER_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LOCALSTEER_TRUST", "1")  # hundreds of tiny models, each of them new in its home
    monkeypatch.setattr(discovery, "OLLAMA_SERVICE_MODELS", home / "no-ollama-service")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> TinyPath:
    """The file of a tiny model by its architecture, written once."""
    folder = tmp_path_factory.mktemp("tiny-models")

    def path(architecture: str) -> Path:
        file = folder / f"{architecture}.gguf"
        return file if file.exists() else write_tiny_model(file, architecture)

    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_path: TinyPath) -> Iterator[TinyModel]:
    """A tiny model by its architecture, opened once."""
    opened: dict[str, Model] = {}

    def model(architecture: str) -> Model:
        if architecture not in opened:
            opened[architecture] = Model(tiny_path(architecture), threads=1)
        return opened[architecture]

    yield model
    for each in opened.values():
        each.close()


@pytest.fixture(scope="session")
def tiny(tiny_model: TinyModel) -> Model:
    """The tiny model of the llama architecture."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A tiny model whose template opens a block of reasoning before the answer."""
    template = CHATML_TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'") + "{# </think> #}"
    file = write_tiny_model(tmp_path_factory.mktemp("thinking") / "thinking.gguf", "llama", chat_template=template)
    with Model(file, threads=1) as model:
        yield model


@pytest.fixture(params=[*KINDS, RECURRENT_ARCHITECTURE])
def steerable(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    """A tiny model of each kind that can be steered."""
    return tiny_model(request.param)


@pytest.fixture(params=KINDS)
def transformer(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    """A tiny model of each kind that can be steered, and whose sequences may share tokens and be cut short."""
    return tiny_model(request.param)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that are run."""
    sizes: list[int] = []
    decode = Context.decode

    def count(self: Context, batch: Batch) -> None:
        sizes.append(len(batch))
        decode(self, batch)

    monkeypatch.setattr(Context, "decode", count)
    return sizes


def random_tokens(count: int, seed: int) -> tuple[int, ...]:
    """Ordinary tokens of the tiny vocabulary, one byte each."""
    return tuple(np.random.default_rng(seed).integers(0, 256, count).tolist())


def random_rows(model: Model, layers: Sequence[int], seed: int, norm: float = 4.0) -> Floats:
    """What a control vector adds: (n_layer, n_embd), random at these layers; a hidden state's norm is 8 to 24."""
    rows = np.zeros((model.n_layer, model.n_embd), np.float32)
    drawn = np.random.default_rng(seed).standard_normal((len(layers), model.n_embd))
    rows[list(layers)] = drawn * (norm / np.linalg.norm(drawn, axis=1, keepdims=True))
    return rows


def random_edit(model: Model, seed: int, norm: float = 4.0) -> Edit:
    """A random direction added at every block but 0."""
    return Edit(random_rows(model, range(1, model.n_layer), seed, norm))


def random_basis(model: Model, rank: int, seed: int) -> Floats:
    """An orthonormal basis (rank, n_embd) of random components to remove."""
    drawn = np.random.default_rng(seed).standard_normal((model.n_embd, rank))
    basis: Floats = np.linalg.qr(drawn)[0].T.astype(np.float32)
    return basis


def plan_of(edit: Edit, *, steer_prompt: bool = False, mode: Mode = "response") -> Plan:
    """A plan that does this, whatever expression it came from."""
    return Plan(Steering(), edit, None, "prompt" if steer_prompt else mode)


def in_mode(request: Request, mode: Mode) -> Request:
    """The same request, its plan taken for one of this mode."""
    return replace(request, plan=replace(request.plan, mode=mode) if request.plan is not None else None, mode=mode)


@dataclass(frozen=True, eq=False)
class Run:
    """One sequence in one decode of its own: logits (n_tokens, n_vocab), and rows (n_tokens, n_embd) of every block."""

    logits: Floats
    rows: tuple[Floats, ...]


def run_alone(model: Model, tokens: Sequence[int], edits: Sequence[Edit | None] = (), *, read: bool = True) -> Run:
    """The plainest way to run a prompt, to compare every cleverer one with.

    `edits` holds one for each token; the rows of a block are those before its own edit.
    """
    layers = range(model.n_layer if read else 0)
    tap = ResidualTap(model.n_layer, model.n_embd)
    tap.watch(layers)
    tap.edit(edits)
    batch = Batch.of_one_sequence(tokens, start=0)
    batch.outputs[:] = 1
    with Context(model, n_ctx=len(tokens), n_ubatch=len(tokens), n_outputs=len(tokens), tap=tap) as context:
        context.decode(batch)
        logits = np.stack([context.logits(row) for row in range(len(tokens))])
        return Run(logits, tuple(tap.rows(layer) for layer in layers))


def next_tokens(tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> Batch:
    """One token each of several sequences, logits for all."""
    ids, places, lanes = (np.asarray(numbers, np.int32) for numbers in (tokens, positions, sequences))
    return Batch(ids, places, np.ones(len(ids), np.int32), lanes, np.ones(len(ids), np.int8))


def assert_greedy(
    model: Model, prompt: Sequence[int], answer: Sequence[int], edit: Edit | None = None, *, steer_prompt: bool = False
) -> None:
    """Every token of an answer is the most likely one after those before it, under steering of all that predicts the answer."""
    tokens = (*prompt, *answer)
    first = 0 if steer_prompt else len(prompt) - 1
    edits = [edit if place >= first else None for place in range(len(tokens))]
    logits = run_alone(model, tokens, edits, read=False).logits[len(prompt) - 1 : -1]
    assert len(answer) > 0
    shortfall = logits.max(axis=1) - logits[np.arange(len(answer)), list(answer)]
    assert shortfall.max() < LOGIT_NOISE
