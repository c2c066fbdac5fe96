"""What steering costs in knowledge: the log probability of the right letter of multiple-choice questions.

Run as `python -m bench.retention [CONCEPT ...] [--model demo|real]`; writes `bench/RETENTION.md`. The questions are the worked
examples of MMLU (Hendrycks et al. 2021) that the lm-eval package ships; nothing of them is kept here. The answer is steered at
strength 1 and -1 of a fresh vector; under the system prompt every 14th question is asked, since each is read anew there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from platformdirs import user_cache_path

from bench.fresh_dose import CONCEPTS
from bench.models import demo_model, real_model
from bench.report import describe_machine
from bench.tools import ToolsError
from localsteer.building.library import load_vector
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import shipped_folder
from localsteer.files.atomic import atomic_path
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.rows import Span, read
from localsteer.vector.calibration import POLES, SIGN

_HERE = Path(__file__).parent
_RECORDS, _PAGE = _HERE / "retention.json", _HERE / "RETENTION.md"
_PACKAGE = "lm-eval==0.4.13"
_ASK = "\nAnswer with the letter of the right answer alone."
_PROMPTED_EVERY = 14
_TARGET = re.compile(r"answer is \(([A-D])\)")


@dataclass(frozen=True)
class Question:
    """One with four answers, and the letter of the right one."""

    text: str
    letter: str


def questions() -> list[Question]:
    """The worked examples, each once.

    Raises:
        ToolsError: the package cannot be had.
    """
    folder = user_cache_path("localsteer") / "bench-tools" / "lm-eval"
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _PACKAGE]
        if subprocess.run(command).returncode:
            raise ToolsError(f"{' '.join(command)} failed.")
    found: dict[str, Question] = {}
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as package:
        for name in sorted(package.namelist()):
            if "mmlu/flan_cot_fewshot/mmlu_" in name and name.endswith(".yaml"):
                for sample in yaml.safe_load(package.read(name).decode())["fewshot_config"]["samples"]:
                    target = _TARGET.search(sample["target"])
                    if target is not None:
                        found.setdefault(sample["question"], Question(sample["question"].strip(), target[1]))
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.retention", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", default=CONCEPTS)
    parser.add_argument("--model", choices=["demo", "real"], default="real")
    options = parser.parse_args()
    path = demo_model() if options.model == "demo" else real_model()
    if path is None:
        print("bench: LOCALSTEER_REAL_MODEL names no model", file=sys.stderr)
        return 1
    asked = questions()
    records: dict[str, Any] = json.loads(_RECORDS.read_text(encoding="utf-8")) if _RECORDS.exists() else {}
    with Model(path) as model:
        records[model.name] = {
            "machine": describe_machine(),
            "questions": len(asked),
            **_measured(model, options.concepts, asked),
        }
    with atomic_path(_RECORDS) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    _write_page(records)
    return 0


def _measured(model: Model, names: list[str], asked: list[Question]) -> dict[str, Any]:
    edits: dict[str, Edit] = {}
    for name in names:
        print(f"{model.name}: {name}", file=sys.stderr, flush=True)
        vector = load_vector(name, model)
        for pole in POLES:
            edits[f"{name}, {pole}"] = Edit(vector.at(SIGN[pole]).rows(model.n_layer))
    prompts = [prompt_tokens(model, [Message("user", one.text + _ASK)]) for one in asked]
    plain = _right(model, prompts, asked, [None, *edits.values()])
    ways: dict[str, Any] = {}
    for (way, _), steered in zip(edits.items(), plain[1:], strict=True):
        ways[way] = {"loss": float(np.mean(plain[0] - steered))}
    some = list(range(0, len(asked), _PROMPTED_EVERY))
    for name in names:
        contrast = load_concept(shipped_folder() / name / "concept.yaml")
        for place, pole in enumerate(POLES):
            system = Message("system", contrast.personas[0][place])
            under = [prompt_tokens(model, [system, Message("user", asked[number].text + _ASK)]) for number in some]
            (found,) = _right(model, under, [asked[number] for number in some], [None])
            ways[f"{name}, {pole}"]["prompt"] = float(np.mean(plain[0][some] - found))
            print(f"{model.name} {name} {pole}: {ways[f'{name}, {pole}']}", file=sys.stderr, flush=True)
    return {"unsteered": float(np.mean(plain[0])), "ways": ways}


def _right(model: Model, prompts: list[tuple[int, ...]], asked: list[Question], edits: list[Edit | None]) -> NDArray[np.float64]:
    """(n_edits, n_questions) log probability of the right letter among the four, as the first token of the answer.

    Among the four, since a model that begins with a word ("The right answer is") knows no less. A prompt is read once.
    """
    letters = [model.tokenize(letter, add_special=False)[0] for letter in "ABCD"]
    spans = [Span((*prompt, letters[0]), len(prompt), None, edit) for edit in edits for prompt in prompts]
    found = np.full(len(spans), np.nan)

    def take(readers: Sequence[int], _position: int, logprobs: Rows) -> None:
        four = logprobs[letters].astype(np.float64)
        four -= np.log(np.exp(four).sum())
        for reader in readers:
            found[reader] = four["ABCD".index(asked[reader % len(prompts)].letter)]

    for _ in read(model, spans, (), want_nll=True, on_prediction=take):
        pass
    return found.reshape(len(edits), -1)


def _write_page(records: dict[str, Any]) -> None:
    lines = [
        "# What steering costs in knowledge",
        "",
        "Written by `python -m bench.retention`; edits are lost. By how much the log probability of the right letter, among the",
        "four, of multiple-choice questions (the worked examples of MMLU that the lm-eval package ships) falls, in nats: at",
        f"strength 1 and -1 of a fresh vector, and under the system prompt of its concept (every {_PROMPTED_EVERY}th question).",
        "Less than 0 is a gain; -1.39 is chance.",
        "",
    ]
    for model, record in records.items():
        ways = record["ways"]
        means = {kind: float(np.mean([one[kind] for one in ways.values()])) for kind in ("loss", "prompt")}
        lines += [
            f"## {model}",
            "",
            f"{record['questions']} questions; unsteered {record['unsteered']:.2f}. Mean loss: steered **{means['loss']:.3f}**, "
            f"system prompts {means['prompt']:.3f}. {record['machine']['CPU']}, localsteer {record['machine']['localsteer']}.",
            "",
            "| | strength 1 | system prompt |",
            "|---|---|---|",
            *(f"| {way} | {one['loss']:+.3f} | {one['prompt']:+.3f} |" for way, one in ways.items()),
            "",
        ]
    _PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
