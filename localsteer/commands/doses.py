"""What was measured of a fresh vector's doses, in words."""

from __future__ import annotations

from collections.abc import Iterator

import click

from localsteer.commands.output import note
from localsteer.vector.calibration import OTHER, POLES, SIGN
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.dosing import DosedSide


def print_dosing(vector: ControlVector) -> None:
    """What strength 1 and -1 are, and how that shows; nothing for a vector that was not dosed."""
    dosing = vector.provenance.dosing
    if dosing is None:
        return
    names = {"positive": vector.provenance.positive or "positive", "negative": vector.provenance.negative or "negative"}
    for pole in POLES:
        side = dosing.sides[pole]
        click.echo(f"{SIGN[pole]:+.0f} {names[pole]}: {'; '.join(_parts(side, names[OTHER[pole]]))}")
        if not side.shown and side.ratio.mean == side.ratio.mean:
            note(
                f"Nothing beyond chance was seen toward {names[pole]}: what its persona says became no likelier than what that "
                f"of {names[OTHER[pole]]} says. Can this model be asked for it? Strength 1 is as much as its text bears."
            )


def _parts(side: DosedSide, other: str) -> Iterator[str]:
    yield f"relative dose {side.dose['response']:.2f} ({side.dose['prompt']:.2f} with the prompt steered as well)"
    if side.shown:
        yield f"its persona's words {side.ratio.mean:.2f} nats a token likelier beside those of {other}"
    if abs(side.coherence) < float("inf"):
        yield f"sampled answers {side.coherence:+.2f} nats a token from the persona's own"
