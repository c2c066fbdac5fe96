"""A folder that somebody shared (`localsteer vectors share` writes such): what of it is used, and kept under a name.

The card is for people, and is not read. Nothing in the folder says where anything is written: names are made anew, of letters,
digits and hyphens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from localsteer.concepts.concept_file import NAME, parse_concept
from localsteer.concepts.names import CONCEPT_FILE, shipped_folder, user_folder
from localsteer.errors import ContrastError, VectorError, shown
from localsteer.files.atomic import atomic_path, writable
from localsteer.files.text import read_text
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import is_adapter, read_vector, read_vector_header, write_vector

# A hundred times the longest concept of the library.
_LARGEST_CONCEPT = 1 << 20
# Vectors of one concept, each for another model.
_MOST_FILES = 100


@dataclass(frozen=True, eq=False)
class SharedFolder:
    """What a folder holds.

    Attributes:
        folder: where it lies.
        concept: the text of its concept file, or of the concept that its vectors carry; None without one.
        vectors: by file.
        adapters: those of LoRA adapters, likewise.
    """

    folder: Path
    concept: str | None
    vectors: dict[Path, ControlVector]
    adapters: dict[Path, ControlVector]

    def only(self, content: str | None = None) -> Path:
        """The file to import where one vector is wanted; an adapter where there is nothing else.

        Args:
            content: hash of the file of the model that it is for, if that is known.

        Raises:
            VectorError: there is none, or more than one.
        """
        found = self.vectors or self.adapters
        if content is not None and len(found) > 1:
            made_for = {path: vector.provenance.model for path, vector in found.items()}
            found = {
                path: found[path] for path, model in made_for.items() if model is not None and model.content == content
            } or found
        if not found:
            raise VectorError(
                f"{self.folder} holds no vector.", hint="Without -o its concept is kept, and built for any model at first use."
            )
        if len(found) > 1:
            raise VectorError(
                f"{self.folder} holds {len(found)} vectors.", hint=f"Import one of them, such as {next(iter(found))}."
            )
        return next(iter(found))


def read_folder(folder: Path) -> SharedFolder:
    """Read what somebody shared; every file is checked.

    Raises:
        VectorError: a file ending in .gguf is damaged, or neither a vector nor an adapter of localsteer's.
        ContrastError: the concept file cannot be read.
    """
    with writable(folder, VectorError):
        files = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    if len(files) > _MOST_FILES:
        raise VectorError(f"{folder} holds {len(files)} GGUF files.", hint="Import one of them.")
    if odd := next((path.name for path in files if not path.name.isprintable()), None):
        raise VectorError(f"{folder} holds a file with control characters in its name ({shown(odd)}).", hint="Rename it.")
    adapters = {path: read_vector(path) for path in files if is_adapter(read_vector_header(path))}
    vectors = {path: read_vector(path) for path in files if path not in adapters}
    file, concept = folder / CONCEPT_FILE, None
    if file.is_file():
        if file.stat().st_size > _LARGEST_CONCEPT:
            raise ContrastError(f"{file} is larger than any concept: {file.stat().st_size:,} bytes.")
        concept = read_text(file, ContrastError)
    else:
        carried = (vector.provenance.source for vector in (*vectors.values(), *adapters.values()))
        concept = next((text for text in carried if text), None)
    return SharedFolder(folder, concept, vectors, adapters)


@dataclass(frozen=True)
class Kept:
    """What of a folder has become the user's.

    Attributes:
        name: what it is called in an expression.
        folder: where it lies.
        vectors: names of the models for which vectors came with it.
        left_out: vectors that would not be found by the name: made from another wording, not said for which model, or for a model
            that another of them is for as well.
        hides_shipped: whether a concept of that name comes with localsteer.
    """

    name: str
    folder: Path
    vectors: tuple[str, ...]
    left_out: tuple[Path, ...]
    hides_shipped: bool


def keep(shared: SharedFolder, *, name: str | None = None, force: bool = False) -> Kept:
    """Put a concept, with the vectors that were built from it, among the user's own.

    Args:
        shared: what was read.
        name: what to call it; None takes the concept's name.
        force: replace another concept of that name, and vectors that are there.

    Raises:
        ContrastError: the concept is broken, or the name is none.
        VectorError: there is no concept in the folder, something else is there already, or it cannot be written.
    """
    if shared.concept is None:
        raise VectorError(
            f"{shared.folder} holds no concept file, and no vector that carries one: it has no name to be kept under.",
            hint="-o NAME.gguf makes a vector file of it.",
        )
    contrast = parse_concept(shared.concept, str(shared.folder / CONCEPT_FILE))
    called = name if name is not None else contrast.name
    if not re.fullmatch(NAME, called):
        raise ContrastError(f'"{called}" is no name for a concept.', hint="It takes letters from a to z, digits and hyphens.")
    folder = user_folder() / called
    file = folder / CONCEPT_FILE
    if not force and file.is_file() and read_text(file, ContrastError) != shared.concept:
        raise VectorError(
            f'You have another concept "{called}" ({file}).',
            hint="Give this one another name with --name, or --force to replace it.",
        )
    kept: dict[Path, tuple[str, ControlVector]] = {}
    left_out = []
    for path, vector in shared.vectors.items():
        own = vector.provenance
        if own.model is None or own.source not in ("", shared.concept) or own.origin:
            left_out.append(path)
            continue
        # Of another quantisation of the same model there may be one, too.
        slug = re.sub(r"[^a-z0-9]+", "-", f"{own.model.name[:60]} {own.model.content[:8]}".lower()).strip("-")
        place = folder / f"{slug}.gguf"
        if place in kept:
            left_out.append(path)
            continue
        kept[place] = own.model.name, vector
    # The concept's file comes last: vectors without one were left by an import that was killed.
    if not force and file.is_file() and (taken := next((path for path in kept if path.exists()), None)):
        raise VectorError(f"{taken} is there already.", hint="--force replaces it.")
    with writable(folder, VectorError):
        folder.mkdir(parents=True, exist_ok=True)
    for path, (_, vector) in kept.items():
        write_vector(vector, path)
    # Last: with it the name is known.
    with atomic_path(file, VectorError) as temporary:
        temporary.write_text(shared.concept, encoding="utf-8", newline="")
    models = tuple(dict.fromkeys(model for model, _ in kept.values()))
    return Kept(called, folder, models, tuple(left_out), (shipped_folder() / called / CONCEPT_FILE).is_file())
