"""Vectors of the peers from the very prompts that ours is built from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.measure import run_process
from bench.tools import llama_programs
from bench.venvs import is_made, venv_python
from localsteer.concepts.concept_file import parse_concept
from localsteer.llama.model import Model
from localsteer.vector.file import read_vector

# torch from PyPI brings its CPU build or a larger one, as the machine has it.
_REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "accelerate", "gguf<0.20", "repeng==0.4.0")
NAMES = ("llama-cvector-generator", "repeng")
_REPENG_WORKER = Path(__file__).parent / "repeng_worker.py"


def write_prompt_files(concept: str, model: Model, folder: Path) -> tuple[Path, Path]:
    """The prompts of a concept (YAML text), as this model reads them, in the files that all programs take."""
    pairs = parse_concept(concept, "the concept").pairs
    paths = folder / "positive.txt", folder / "negative.txt"
    for path, prompts in zip(paths, zip(*((pair.positive, pair.negative) for pair in pairs), strict=True), strict=True):
        lines = (prompt.render(model).replace("\\", r"\\").replace("\n", r"\n") for prompt in prompts)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def peer_vectors(model: Model, concept: str) -> dict[str, NDArray[np.float32]]:
    """(n_layer, n_embd) what each peer's file adds at strength 1, from the prompts of a concept (YAML text)."""
    made = {}
    with tempfile.TemporaryDirectory(prefix="localsteer-bench-") as name:
        folder = Path(name)
        prompts = write_prompt_files(concept, model, folder)
        cvector_generator(model.path, prompts, folder / "cvector.gguf", model.threads)
        repeng(model.path, prompts, folder / "repeng.gguf")
        for peer, file in zip(NAMES, ("cvector.gguf", "repeng.gguf"), strict=True):
            made[peer] = read_vector(folder / file).rows(model.n_layer)
    return made


def cvector_generator(model: Path, prompts: tuple[Path, Path], output: Path, threads: int) -> None:
    """llama-cvector-generator's mean difference."""
    program = llama_programs([NAMES[0]])[NAMES[0]]
    command = [str(program), "-m", str(model), "--method", "mean", "-t", str(threads)]
    run_process([*command, "--positive-file", str(prompts[0]), "--negative-file", str(prompts[1]), "-o", str(output)])


def repeng(model: Path, prompts: tuple[Path, Path], output: Path) -> None:
    """Repeng's own vector, computed by repeng on the dequantised weights."""
    run_process([str(_repeng_python()), str(_REPENG_WORKER), str(model), *map(str, prompts), str(output)])


def repeng_is_installed() -> bool:
    """Whether `repeng` runs at once, without a gigabyte of torch to be fetched first."""
    return is_made("repeng")


def _repeng_python() -> Path:
    """The Python of a venv with repeng, made at first use (some 1 GB; torch is no dependency of ours)."""
    return venv_python("repeng", _REQUIREMENTS)
