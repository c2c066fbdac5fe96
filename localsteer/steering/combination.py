"""An expression -> the one control vector that it stands for, for files that others load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from localsteer.errors import LocalsteerError, VectorError
from localsteer.steering.expression import Steering, Term
from localsteer.steering.plan import part_of
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector


def combine(steering: Steering, load: Callable[[str], ControlVector], mode: Mode = "response") -> ControlVector:
    """The sum of an expression's terms: strength 1 of it is the whole expression.

    Args:
        steering: an expression of at least one term.
        load: the vector that a name or path in it stands for.
        mode: which of a calibrated vector's doses is meant.

    Raises:
        LocalsteerError: a term removes a component, which no vector can.
        VectorError: the vectors are of different models, have no direction at the layers asked for, or their sum is nothing, or
            past all numbers.
    """
    refuse_removal(steering)
    vectors = {name: load(name) for name in dict.fromkeys(term.vector for term in steering.terms)}
    total, *others = (part_of(term, vectors[term.vector], mode) for term in steering.terms)
    for other in others:
        total = total + other
    moved = {layer: direction for layer, direction in total.directions.items() if direction.any()}
    if not moved:
        raise VectorError(f'"{steering}" adds nothing at any layer.')
    alone = steering.terms == (Term(steering.terms[0].vector),)
    label = describe(steering, vectors.__getitem__)
    return ControlVector(moved, replace(total.provenance, concept=label.terms[0].vector if alone else str(label)))


def describe(steering: Steering, load: Callable[[str], ControlVector]) -> Steering:
    """An expression with its vectors called by their own names: a path says nothing on another machine."""
    names = {name: load(name).provenance.concept or Path(name).stem for name in {term.vector for term in steering.terms}}
    return Steering(tuple(replace(term, vector=names[term.vector]) for term in steering.terms))


def refuse_removal(steering: Steering) -> None:
    """Make sure that an expression only adds, in all of a reply.

    Raises:
        LocalsteerError: a term removes a component, or steers the reasoning alone.
    """
    for term in steering.terms:
        if term.phase != "answer":
            raise LocalsteerError(
                f"{term} steers the reasoning alone, and a vector steers whatever it is added to.",
                hint=f"Leave out @{term.phase}.",
            )
        if term.ablate:
            raise LocalsteerError(
                f"{term} removes a component, and a vector can only add.",
                hint="Removal works where localsteer itself runs the model: give it with -s instead.",
            )
