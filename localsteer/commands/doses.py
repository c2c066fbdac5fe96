"""What was measured of a fresh vector's doses, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from localsteer.commands.output import note
from localsteer.errors import LocalsteerError
from localsteer.steering.worth import pole_name, worth_of
from localsteer.vector.calibration import OTHER, POLES, SIGN
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.dosing import DosedSide


@contextmanager
def without_a_dose(*kinds: type[LocalsteerError]) -> Iterator[None]:
    """Around a dosing, for commands with --no-dose: what keeps it from being done does not keep a vector from being made."""
    try:
        yield
    except kinds as error:
        hint = " ".join(filter(None, (error.hint, "--no-dose leaves that out.")))
        raise type(error)(f"The vector cannot be dosed on this model: {error.message}", hint=hint) from error


def print_dosing(vector: ControlVector) -> None:
    """What strength 1 and -1 are, and how that shows; nothing for a vector that was not dosed."""
    dosing = vector.provenance.dosing
    if dosing is None:
        return
    names = {pole: pole_name(vector, pole) for pole in POLES}
    for pole in POLES:
        side = dosing.sides[pole]
        if not side.is_coherent:
            note(
                f"Answers toward {names[pole]} made no sense, or were none, at every dose that was tried: take a weaker strength."
            )
        click.echo(f"{SIGN[pole]:+.0f} {names[pole]}: {'; '.join(_parts(side, names[OTHER[pole]]))}")
        if side.most <= side.dose["response"]:
            note(f"Toward {names[pole]} more than that makes the model refuse everyday questions.")
        if side.is_coherent and not side.shown and side.ratio.mean == side.ratio.mean:
            note(f"{worth_of(vector, SIGN[pole])} Strength 1 is as much as its text bears.")


def _parts(side: DosedSide, other: str) -> Iterator[str]:
    yield f"relative dose {side.dose['response']:.2f} ({side.dose['prompt']:.2f} with the prompt steered as well)"
    if side.shown:
        asked = f", {side.asked:.2f} under a system prompt that asks for it" if side.asked == side.asked else ""
        yield f"its own answers {side.ratio.mean:.2f} nats a token likelier beside those of {other}{asked}"
    if abs(side.coherence) < float("inf"):
        yield f"answers at it {side.coherence:+.2f} nats a token less likely than these"
