"""A vector as a folder that people upload as it is: the vector, the adapter of it, its concept, and the card."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localsteer.building.own_answers import Progress
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.descriptions import everyday_questions
from localsteer.concepts.names import CONCEPT_FILE
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.errors import ExportError
from localsteer.export.adapter import Adapted, make_adapter
from localsteer.export.card import Contents, Sample, card
from localsteer.files.atomic import atomic_path, is_unfinished, writable
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.llama.threads import interrupts_after
from localsteer.reading.prompt import answer_prompt
from localsteer.steering.expression import Steering, Term
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import fill_file

CARD = "README.md"

# What is asked for the card, and how long the answers are: to be looked at, not to be measured.
_QUESTIONS = 3
_TOKENS = 60
_SEED = 1
_STRENGTHS = (0.0, 1.0, -1.0)
# Of a name, with an ending behind it.
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Shared:
    """A folder that was written.

    Attributes:
        name: of the vector, and of its files.
        files: what is in it, the card last.
        adapted: what is known of the adapter; None without one.
        without_adapter: why there is none; "" where there is one.
        notes: what the user should know.
    """

    name: str
    files: tuple[Path, ...]
    adapted: Adapted | None
    without_adapter: str
    notes: tuple[str, ...]


def share(
    name: str,
    folder: Path,
    load: Callable[[str], ControlVector],
    model: Model,
    *,
    license: str | None = None,
    base_model: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Shared:
    """Write a folder with a vector as it is, its adapter, its concept where it carries one, and a card.

    Args:
        name: of the vector, or its file.
        folder: is made where it is not there; other files in it stay.
        load: the vector that a name or path stands for.
        model: the model that answers for the card, and for which the adapter is made.
        license: what the card names.
        base_model: the model's name on the hub; for the card as well.
        force: replace files of the same names.
        progress: told what is going on.

    Raises:
        VectorError: the vector is missing or damaged, or does not fit the model.
        ExportError: the folder cannot be written, or holds files of these names already, unless a share that was killed left
            them. It is left as it was then.
    """
    load = functools.cache(load)
    vector = load(name)
    plans = {
        (strength, mode): resolve(Steering((Term(name, strength),)), model.fingerprint, load, mode)
        for strength in _STRENGTHS[1:]
        for mode in ("response", "prompt")
    }
    called = _file_name(vector.provenance.concept or Path(name).stem)
    source = vector.provenance.source
    owned = [f"{called}.gguf", f"{called}-lora.gguf", CONCEPT_FILE, CARD]
    _check_place(folder, owned, force)
    adapted, why = None, ""
    with _made(folder), contextlib.ExitStack() as stack:
        # What is entered first gets its name last. That is the card: while there is none, the folder is seen to be half done.
        for_card = stack.enter_context(atomic_path(folder / CARD, ExportError))
        try:
            with contextlib.ExitStack() as unless:
                place = unless.enter_context(atomic_path(folder / owned[1], ExportError))
                adapted = make_adapter(Steering((Term(name),)), place, load, model, progress=progress)
                stack.push(unless.pop_all())
        except ExportError as error:  # the folder is of use without
            why = error.message
        samples = _samples(vector, model, {strength: plans[strength, "response"] for strength in _STRENGTHS[1:]})
        doses = {
            strength: (plans[strength, "response"].relative_dose, plans[strength, "prompt"].relative_dose)
            for strength in _STRENGTHS[1:]
        }
        contents = Contents(
            called,
            vector,
            model.fingerprint,
            model.path.name,
            doses,
            adapted,
            bool(source),
            samples,
            license=license,
            base_model=base_model,
        )
        if source:
            concept = stack.enter_context(atomic_path(folder / CONCEPT_FILE, ExportError))
            concept.write_text(source, encoding="utf-8", newline="")
        fill_file(vector, stack.enter_context(atomic_path(folder / contents.vector_file, ExportError)))
        for_card.write_text(card(contents), encoding="utf-8")
        names = [contents.vector_file, *([contents.adapter_file] if adapted is not None else [])]
        names += [*([CONCEPT_FILE] if source else []), CARD]
        finished = stack.pop_all()
        with interrupts_after():  # in the middle it would leave a folder that is neither the old one nor the new
            # The card goes first, and what the new one does not speak of any more goes, too.
            for one in (CARD, *(one for one in owned if one not in names)):
                (folder / one).unlink(missing_ok=True)
            finished.close()
    notes = dict.fromkeys(note for plan in plans.values() for note in plan.notes)
    return Shared(called, tuple(folder / one for one in names), adapted, why, tuple(notes))


def _file_name(concept: str) -> str:
    """What a vector's files are called: its concept's letters and digits, so that no name leads anywhere else."""
    return re.sub(r"[^a-z0-9]+", "-", concept.lower())[:_LONGEST_NAME].strip("-") or "vector"


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Around what is written into a folder: it is made where it is not there, and gone again where nothing was written."""
    is_new = not folder.exists()
    with writable(folder, ExportError):
        folder.mkdir(exist_ok=True)
        try:
            yield
        except BaseException:
            if is_new:
                with contextlib.suppress(OSError):  # others have put something there
                    folder.rmdir()
            raise


def _check_place(folder: Path, names: list[str], force: bool) -> None:
    """Find out before the work that the folder cannot be made, or that files would be lost."""
    if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"The folder {folder} cannot be made.", hint="Name one in a folder that is there.")
    there = next((folder / name for name in names if (folder / name).exists()), None)
    if there is not None and not force and not is_unfinished(folder / CARD):
        raise ExportError(f"{there} is there already.", hint="Give another folder, or --force to write it anew.")


def _samples(vector: ControlVector, model: Model, plans: Mapping[float, Plan]) -> list[Sample]:
    """Answers without and with the vector, to questions that it was not made from."""
    source = vector.provenance.source
    held_out = parse_concept(source, f"the concept in {vector.provenance.concept}").held_out if source else ()
    questions = (held_out or everyday_questions())[:_QUESTIONS]
    requests = [
        Request(
            answer_prompt(model, [Message("user", question)]), plans.get(strength), Sampling(seed=_SEED), _TOKENS, mode="response"
        )
        for question in questions
        for strength in _STRENGTHS
    ]
    answers = [
        f"{answer.text} ..." if answer.finish_reason == "length" else answer.text for answer in generate_many(model, requests)
    ]
    groups = [answers[start : start + len(_STRENGTHS)] for start in range(0, len(answers), len(_STRENGTHS))]
    return [
        Sample(question, dict(zip(_STRENGTHS, group, strict=True))) for question, group in zip(questions, groups, strict=True)
    ]
