"""Mutated models, opened through the door of strangers' files; many in one process, and anew behind each that ends it.

`python -m tests.llama.mutant_doors 1500 [docs/reliability.md]` says what came of so many, and writes it there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, TextIO
from unittest.mock import patch

from handbook.pages import keep
from localsteer.errors import LocalsteerError
from localsteer.llama.apart import Limits, run_apart
from tests.llama.mutants import MUTATIONS, mutant
from tests.tiny_models import ARCHITECTURES, RECURRENT_ARCHITECTURE, UNSTEERABLE_ARCHITECTURE, write_tiny_model

Stage = Literal["header", "trial", "use"]
_NAME = "tests.llama.mutant_doors"
TOGETHER = 40
_LIMITS = Limits(processor=40, clock=900, memory=1 << 30)
_MARKS = ("<!-- mutated models: `make fuzz` -->", "<!-- end -->")


@dataclass(frozen=True)
class Fate:
    """What came of a mutant.

    Attributes:
        kind: what was changed.
        stage: how far it came: the check of its header, the trial of the rest of it, or its use in the process that trusts it.
        end: there: "refused" by an error that says why, "opened", or how the process ended ("died", "processor", "clock").
        said: the error, the last words, or a fault.
        fault: what should not have happened.
        seconds: of a processor, in all.
    """

    number: int
    kind: str
    stage: Stage
    end: str
    said: str = ""
    fault: bool = False
    seconds: float = 0.0


def originals(folder: Path) -> list[Path]:
    """A tiny model of each family."""
    names = (*ARCHITECTURES, RECURRENT_ARCHITECTURE, UNSTEERABLE_ARCHITECTURE)
    made = [write_tiny_model(folder / f"{name}.gguf", name, n_layer=2, n_embd=32) for name in names]
    return [*made, write_tiny_model(folder / "experts.gguf", "llama", n_layer=2, n_embd=32, n_expert=4)]


def fates(numbers: range, folder: Path) -> Iterator[Fate]:
    """Open mutants by their numbers; each ends in an error, an answer, or the end of its process."""
    sound = originals(folder)
    for start in range(numbers.start, numbers.stop, TOGETHER):
        kinds, paths = {}, {}
        for number in range(start, min(start + TOGETHER, numbers.stop)):
            kinds[number], data = mutant(number, sound)
            paths[number] = folder / f"mutant-{number}.gguf"
            paths[number].write_bytes(data)
        left = dict(paths)
        while left:
            (folder / "told").touch()
            mutants = {number: str(path) for number, path in left.items()}
            # This package comes before another one of the name `tests`, which some distribution may bring.
            with patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2])):
                outcome = run_apart(_NAME, json.dumps([str(folder / "told"), mutants]).encode(), _LIMITS)
            stage: Stage = "header"
            for line in (folder / "told").read_text().splitlines():
                told = json.loads(line)
                stage = told["stage"]
                number = told["number"]
                if "end" in told:
                    del left[number]
                    yield Fate(**told, kind=kinds[number])
            (folder / "told").unlink()
            if left:
                number = next(iter(left))
                assert outcome.end != "well"
                del left[number]
                yield Fate(number, kinds[number], stage, outcome.end, outcome.last_words, fault=stage != "trial")
        for path in paths.values():
            path.unlink()


def prepare() -> Callable[[bytes], bytes]:
    """What the process does."""
    from localsteer.llama import library

    library.load()
    return _open_all


def _open_all(given: bytes) -> bytes:
    told, mutants = json.loads(given)
    with Path(told).open("a") as file:
        for number, path in mutants.items():
            _open(int(number), Path(path), file)
    return b""


def _open(number: int, path: Path, file: TextIO) -> None:
    from localsteer.llama.header_check import check_header
    from localsteer.llama.model_file import content_hash
    from localsteer.llama.tried_model import try_here

    begun = time.process_time()

    def tell(stage: Stage, **what: str | bool) -> None:
        told: dict[str, object] = {"number": number, "stage": stage, **what}
        if what:
            told["seconds"] = round(time.process_time() - begun, 3)
        print(json.dumps(told), file=file, flush=True)

    stage: Stage = "header"
    try:
        tell(stage)
        check_header(path)
        content_hash(path)
        stage = "trial"
        tell(stage)
        how = {"path": str(path), "gpu_layers": 0, "threads": 1, "ollama_template": None, "rpc": []}
        refused = try_here(json.dumps(how).encode())
        if refused:
            message = json.loads(refused)["message"]
            tell(stage, end="refused", said=message, fault=not message.isprintable())
            return
        stage = "use"
        tell(stage)
        _use(path)
        tell(stage, end="opened")
    except LocalsteerError as error:
        tell(stage, end="refused", said=str(error), fault=not str(error).isprintable())
    except Exception as error:
        tell(stage, end="refused", said=repr(error), fault=True)


def _use(path: Path) -> None:
    """As `doctor`, `models show` and an answer to a question would."""
    from localsteer.engine.generate import Generator
    from localsteer.engine.request import Request
    from localsteer.llama.chat_template import Message
    from localsteer.llama.model import Model
    from localsteer.llama.sampling import Sampling
    from localsteer.llama.steerability import steerability
    from localsteer.llama.template_errors import TemplateError
    from localsteer.reading.prompt import prompt_tokens

    with Model(path, gpu_layers=0, threads=1) as model:
        _ = model.fingerprint, model.end_tokens, model.kv_bytes
        assert (model.name + model.description + model.architecture).isprintable()
        steerability(model)
        try:
            tokens = prompt_tokens(model, [Message("system", "Be brief."), Message("user", "Hello, how are you?")])
        except TemplateError:
            tokens = tuple(model.tokenize("Hello, how are you?"))
        if tokens:
            with Generator(model) as generator:
                generator.generate(Request(tokens, sampling=Sampling(temperature=0), max_tokens=4))


def table(all_fates: list[Fate]) -> str:
    """What caught the mutants, by what was changed, as Markdown."""
    columns = {
        "header check": lambda one: one.stage == "header",
        "llama.cpp refuses": lambda one: one.stage == "trial" and one.end == "refused",
        "trial: death": lambda one: one.stage == "trial" and one.end == "died",
        "trial: time": lambda one: one.stage == "trial" and one.end in ("processor", "clock"),
        "refused in use": lambda one: one.stage == "use" and one.end == "refused" and not one.fault,
        "answers": lambda one: one.end == "opened" and not one.fault,
        "faults": lambda one: one.fault,
    }
    lines = [f"| changed | mutants | {' | '.join(columns)} |", "|---" + "|--:" * (len(columns) + 1) + "|"]
    for kind in (*MUTATIONS, "all"):
        some = [one for one in all_fates if kind in (one.kind, "all")]
        cells = [str(sum(map(column, some))) for column in columns.values()]
        lines.append(f"| {kind} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(all_fates: list[Fate]) -> str:
    """The table, and how mutants die."""
    deaths = Counter(one.said for one in all_fates if one.end == "died")
    said = "".join(f"- {count} × `{words}`\n" for words, count in deaths.most_common())
    slowest = max(one.seconds for one in all_fates)
    head = (
        f"{date.today().isoformat()}, `python -m tests.llama.mutant_doors {len(all_fates)}`; the slowest that came to an end of"
    )
    return f"""{head} its own took {slowest:.1f} s of a processor.

{table(all_fates)}

The last words of those that died in the trial:

{said}"""


def _main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for fate in fates(range(count), Path(folder)):
            found.append(fate)
            if fate.fault or fate.end not in ("refused", "opened"):
                print(fate, file=sys.stderr, flush=True)
            if len(found) % 100 == 0:
                print(f"{len(found)} of {count}", file=sys.stderr, flush=True)
    told = report(found)
    print(told)
    for page in map(Path, sys.argv[2:]):
        keep(told, page, _MARKS)
    sys.exit(any(fate.fault for fate in found))


if __name__ == "__main__":
    _main()
