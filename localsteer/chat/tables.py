"""Tables that a chat shows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from localsteer.building.library import FoundVector, find_vector
from localsteer.concepts.names import LibraryConcept, concepts
from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.steering.plan import Plan
from localsteer.steering.worth import worth
from localsteer.vector.calibration import SIGN

_BARS = 30
_KEYS = (
    ("Enter", "send; while the model answers, the line is kept for afterwards"),
    ("Alt-Enter", 'another line; so does """ at both ends, and what is pasted'),
    ("Alt-Up, Alt-Down", "turn the last knob by 0.1, also while the model answers"),
    ("Ctrl-C", "stop the answer, and keep what was said"),
    ("Ctrl-D", "leave"),
)


def help_table(commands: Iterable[tuple[str, str]], width: int) -> Table:
    """What can be typed: the commands, with what each does, and the keys."""
    table = Table(box=None, show_header=False, pad_edge=False, width=width if width < 80 else None)
    table.add_column(no_wrap=width >= 80)
    table.add_column()
    for command, text in commands:
        table.add_row(Text(command, "bold"), Text(text))
    table.add_row(Text("!COMMAND", "bold"), Text("run a command of the system, and give its output with the next message"))
    table.add_row(Text("/quit", "bold"), Text("leave"))
    for key, text in _KEYS:
        table.add_row(Text(key, "bold"), Text(text))
    return table


def measured(concept: LibraryConcept, content: str) -> FoundVector | None:
    """A concept's vector for a model where it is built; None where it is not, or is broken."""
    try:
        return find_vector(concept, concept.source(), content)
    except LocalsteerError:
        return None


def vector_table(model: Model, width: int) -> Table:
    """The library on this model: what each vector does, and how strong it may be."""
    table = Table("name", "strength 1 and -1 (relative dose)", "what they are worth", box=box.SIMPLE_HEAD, pad_edge=False)
    if width < 70:
        table = Table("name", "relative dose", box=box.SIMPLE_HEAD, pad_edge=False)
    for concept in concepts().values():
        found = measured(concept, model.fingerprint.content)
        dose = "built at first use" if found is None else doses(found)
        row = [Text(concept.name), Text(dose)]
        if width >= 70:
            row.append(Text("\n".join(text for _, text in worth(found.vector)) if found is not None else ""))
        table.add_row(*row)
    return table


def doses(found: FoundVector) -> str:
    """The relative doses of strength 1 and -1."""
    calibration, dosing = found.vector.provenance.calibration, found.vector.provenance.dosing
    told = []
    for sign in SIGN.values():
        dose = calibration.side(sign, "response").dose if calibration is not None else None
        if dose is None and dosing is not None:
            dose = dosing.dose(sign, "response")
        told.append("none" if dose is None else f"{dose:.2f}")
    return " and ".join(told)


def layer_table(plan: Plan, model: Model) -> Table:
    """How much is added at each layer, beside the length of what is there."""
    norms = read_hidden_norm(model)
    shares = np.linalg.norm(plan.edit.added, axis=1) / np.where(np.isnan(norms), np.inf, norms)
    table = Table("layer", "added / hidden norm", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for layer in [int(layer) for layer in np.flatnonzero(plan.edit.added.any(axis=1))]:
        table.add_row(str(layer), f"{shares[layer]:.3f}", "█" * round(_BARS * float(shares[layer] / shares.max())))
    for layer in sorted(plan.edit.removed):
        table.add_row(str(layer), "removed", "")
    return table
