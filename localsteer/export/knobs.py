"""Several vectors, each an adapter of its own: volume knobs for an unmodified llama-server, set by every request."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localsteer.errors import ExportError
from localsteer.export.adapter import Adapted, export_adapter
from localsteer.export.gguf_rewrite import Progress
from localsteer.export.llama_cpp import file_argument
from localsteer.files.atomic import atomic_path, check_writable
from localsteer.llama.model import Model
from localsteer.steering.expression import Steering, Term
from localsteer.vector.control_vector import ControlVector

_PAGE = "README.md"
_FIRST_LINE = "# Volume knobs for llama-server, by localsteer"


@dataclass(frozen=True)
class Knob:
    """One adapter of several.

    Attributes:
        number: the id that llama-server gives it.
        name: what it is called.
        file: the adapter.
        adapted: what is known of it.
    """

    number: int
    name: str
    file: Path
    adapted: Adapted


def export_knobs(
    names: Sequence[str],
    folder: Path,
    load: Callable[[str], ControlVector],
    model: Model,
    *,
    verify: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Knob]:
    """Write an adapter for each vector, and a page that says how llama-server is started with them and asked.

    Args:
        names: of vectors, or their files.
        folder: is made where it is not there.
        load: the vector that a name or path stands for.
        model: the model that they are for.
        verify: load each back, and compare what it does with our own steering.
        force: keep those that do not steer as we do.
        progress: told what is going on.

    Raises:
        VectorError: a vector is missing or damaged, or does not fit the model.
        ExportError: as `export_adapter`, two vectors are called alike, or there is another page already. Those that were written
            before stay.
    """
    files = [folder / f"{Path(name).stem}.gguf" for name in names]
    if twice := next((file for file in files if files.count(file) > 1), None):
        raise ExportError(f"Two vectors would be {twice}.", hint="Rename one of their files.")
    if odd := next((file for file in files if ":" in str(_without_drive(file))), None):
        raise ExportError(f"llama-server takes no file with a colon in its name: {odd}.", hint="Give another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    page = folder / _PAGE
    check_writable(page, ExportError)
    if page.is_file() and not page.read_text(encoding="utf-8", errors="replace").startswith(_FIRST_LINE):
        raise ExportError(f"{page} is there already, and of something else.", hint="Give another folder.")
    knobs = []
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        steering = Steering((Term(name),))
        adapted = export_adapter(steering, file, load, model, verify=verify, force=force, modelfile=False, progress=progress)
        knobs.append(Knob(number, file.stem, file, adapted))
    with atomic_path(page, ExportError) as temporary:
        temporary.write_text(_page(knobs, model.path), encoding="utf-8")
    return knobs


def server_command(knobs: Sequence[Knob], model: Path) -> str:
    """What starts llama-server with all of them, none turned up.

    That is what scale 0 does. `--lora-init-without-apply` does not: requests that name no adapter get all at scale 1 then.
    """
    adapters = " ".join(f"--lora-scaled {file_argument(_without_drive(knob.file), 0)}" for knob in knobs)
    return f"llama-server -m {shlex.quote(str(model))} {adapters}"


def _without_drive(path: Path) -> Path:
    """A file as it is called from here, where its name holds a colon, at which llama-server looks for the scale."""
    return Path(os.path.relpath(path)) if ":" in str(path) else path


def _page(knobs: Sequence[Knob], model: Path) -> str:
    lines = [
        _FIRST_LINE,
        "",
        "```",
        server_command(knobs, model),
        "```",
        "",
        "| id | knob | scale of strength 1 | of the other pole | nats from localsteer's own steering (the unsteered model) |",
        "|---|---|---|---|---|",
    ]
    for knob in knobs:
        opposite, fidelity = knob.adapted.opposite, knob.adapted.fidelity
        other = "none" if opposite is None else f"{opposite:.2g}"
        told = "not verified" if fidelity is None else f"{fidelity.mean:.2g} ({fidelity.unsteered_mean:.2g})"
        lines.append(f"| {knob.number} | {knob.name} | 1 | {other} | {told} |")
    first, last = knobs[0], knobs[-1]
    mixed = [{"id": first.number, "scale": 0.5}, *([{"id": last.number, "scale": 0.5}] if last is not first else [])]
    asked = {"messages": [{"role": "user", "content": "How was your day?"}], "lora": mixed}
    lines += [
        "",
        "Every request says how far each is turned; those that it does not name are off, and so are all where it names none:",
        "",
        "```",
        "curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"  -d '{json.dumps(asked)}'",
        "```",
        "",
        "For all requests that say nothing:",
        "",
        "```",
        "curl http://127.0.0.1:8080/lora-adapters -H 'Content-Type: application/json' \\",
        f"  -d '{json.dumps([{'id': first.number, 'scale': 1}])}'",
        "```",
        "",
        "llama-server computes requests with other scales one after the other, not in one batch.",
    ]
    return "\n".join(lines) + "\n"
