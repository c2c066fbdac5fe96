"""What steering costs in other respects: knowledge (the right letter of multiple-choice questions) and following instructions.

The questions are the worked examples of MMLU (Hendrycks et al. 2021) that the lm-eval package ships; nothing of them is kept
here. The instructions are our own (`bench/instructions.yaml`), each of which a program can check. Both are given at strength 1
and -1 of a fresh vector, and under the system prompt of its concept.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from platformdirs import user_cache_path

from bench.instructions import Instruction, instructions
from bench.quality.records import FOLDER
from bench.quality.size import Size
from bench.quality.ways import construction, without_calibration
from bench.report import describe_machine
from bench.tools import ToolsError
from localsteer.building.library import load_vector
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.names import shipped_folder
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.files.atomic import atomic_path
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import answer_prompt
from localsteer.reading.rows import read
from localsteer.reading.span import Span
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import POLES, SIGN

_PACKAGE = "lm-eval==0.4.13"
_ASK = "\nAnswer with the letter of the right answer alone."
# Under a system prompt, where each question is read anew, every so manieth is asked.
PROMPTED_EVERY = 14
_TARGET = re.compile(r"answer is \(([A-D])\)")
_LONGEST = 64
_SEED = 30_011_000
# Questions are read, and kept, so many at a time: an interrupted run goes on from there.
_AT_ONCE = 20


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


def records_of(which: str) -> dict[str, dict[str, Any]]:
    """What was measured on a model, by concept."""
    files = sorted((FOLDER / which / "retention").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def measure(model: Model, which: str, names: Sequence[str], size: Size) -> None:
    """Of these concepts, what was not measured yet; kept concept by concept.

    The questions, which are long, are read for all of them together: steering begins at the last token.
    """
    asked, given = questions(), instructions()
    prompts = [answer_prompt(model, [Message("user", one.text + _ASK)]) for one in asked]
    some = list(range(0, len(asked), PROMPTED_EVERY))
    every = sorted(file.parent.name for file in shipped_folder().glob("*/concept.yaml"))
    known, unsteered = records_of(which), dict[tuple[int, ...], float]()
    made_by = (_ASK, PROMPTED_EVERY, _LONGEST, _SEED, asked, given)
    keys: dict[str, str] = {}
    for name in names:
        contrast = load_concept(shipped_folder() / name / "concept.yaml")
        made_from = (construction(model, contrast), contrast.source, model.fingerprint.content)
        key = hashlib.sha256(repr((made_from, made_by)).encode()).hexdigest()[:16]
        if not (name in known and known[name]["key"] == key and known[name]["given"] >= size.instructions):
            keys[name] = key
    edits = {
        (name, pole): Edit(without_calibration(load_vector(name, model)).at(SIGN[pole]).rows(model.n_layer))
        for name in keys
        for pole in POLES
    }
    if not keys:
        return
    plain, *steered = _right_in_turns(model, prompts, asked, [None, *edits.values()])
    right = dict(zip(edits, steered, strict=True))
    for name, key in keys.items():
        print(f"{model.name}, {name}: what else it costs", file=sys.stderr, flush=True)
        contrast = load_concept(shipped_folder() / name / "concept.yaml")
        sides: dict[str, Any] = {}
        for place, pole in enumerate(POLES):
            system = Message("system", contrast.personas[0][place])
            under = [answer_prompt(model, [system, Message("user", asked[number].text + _ASK)]) for number in some]
            (prompted,) = _right(model, under, [asked[number] for number in some], [None])
            turn = _turn(len(given), every.index(name) * len(POLES) + place, size.instructions)
            own = [given[number] for number in turn]
            if turn not in unsteered:
                unsteered[turn] = _followed(model, own)
            sides[pole] = {
                "loss": float(np.mean(plain - right[name, pole])),
                "prompt loss": float(np.mean(plain[some] - prompted)),
                "followed unsteered": unsteered[turn],
                "followed": _followed(model, own, Plan(Steering(), edits[name, pole], None)),
                "followed under the prompt": _followed(model, own, opening=[system]),
            }
        record = {
            "key": key,
            "model": model.name,
            "questions": len(asked),
            "prompted": len(some),
            "given": size.instructions,
            "unsteered": float(np.mean(plain)),
            "sides": sides,
            "by": describe_machine()["localsteer"],
        }
        path = FOLDER / which / "retention" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _turn(given: int, side: int, count: int) -> tuple[int, ...]:
    """So many of so many instructions, in turns of the sides; both poles of four concepts come to meet all of them alike."""
    start = (side + side // len(POLES)) * count
    return tuple((start + number) % given for number in range(count))


def _followed(model: Model, given: Sequence[Instruction], plan: Plan | None = None, opening: Sequence[Message] = ()) -> float:
    """Share of some instructions that are followed."""
    requests = [
        Request(answer_prompt(model, [*opening, Message("user", one.ask)]), plan, Sampling(seed=_SEED + number), _LONGEST)
        for number, one in enumerate(given)
    ]
    answers = generate_many(model, requests)
    return float(np.mean([one.followed(answer.text) for one, answer in zip(given, answers, strict=True)]))


def _right_in_turns(
    model: Model, prompts: list[tuple[int, ...]], asked: list[Question], edits: Sequence[Edit | None]
) -> list[NDArray[np.float64]]:
    """What `_right` gives for each edit, some questions at a time; what is known of an edit is read from its file."""
    folder = user_cache_path("localsteer") / "bench-retention"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{_digest(model, prompts, asked, edit)}.npy" for edit in edits]
    found: list[NDArray[np.float64]] = [np.load(file) if file.exists() else np.empty(0) for file in files]
    for start in range(0, len(asked), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        ahead = [number for number, known in enumerate(found) if len(known) <= start]
        if not ahead:
            continue
        print(f"{model.name}: {start} of {len(asked)} questions", file=sys.stderr, flush=True)
        for number, right in zip(ahead, _right(model, prompts[some], asked[some], [edits[one] for one in ahead]), strict=True):
            found[number] = np.concatenate([found[number], right])
            with atomic_path(files[number]) as temporary, temporary.open("wb") as written:
                np.save(written, found[number])
    return found


def _digest(model: Model, prompts: list[tuple[int, ...]], asked: list[Question], edit: Edit | None) -> str:
    letters = "".join(one.letter for one in asked)
    parts = (model.fingerprint.content, prompts, letters, _AT_ONCE, edit.added.tobytes() if edit is not None else None)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


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
