"""What a user should know of a dose: that it was measured elsewhere, never, or only up to a weaker one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from localsteer.llama.fingerprint import Fingerprint
from localsteer.steering.dose import DOSE_TOLERANCE
from localsteer.steering.expression import Steering, Term
from localsteer.steering.worth import pole_name, why_no_dose, worth_of
from localsteer.vector.calibration import POLES, SIGN, Calibration, Mode, Side, pole_of
from localsteer.vector.control_vector import ControlVector


def notes(
    steering: Steering, vectors: Mapping[str, ControlVector], model: Fingerprint, mode: Mode, dose: float | None
) -> Iterator[str]:
    """What to say of a steering whose sum has this relative dose, where measurements do not cover it.

    Args:
        steering: the expression.
        vectors: its vectors by name.
        model: the model that is steered.
        mode: what is steered.
        dose: relative dose of the sum; None where it is unknown.
    """
    for term in steering.terms:
        yield from _of_term(term, vectors[term.vector], model, mode)
    if dose is not None:
        yield from _past_calibration(steering, dose, vectors, mode)


def _of_term(term: Term, vector: ControlVector, model: Fingerprint, mode: Mode) -> Iterator[str]:
    """What to say of a vector's measurements where they do not cover what a term asks for."""
    probe, calibration = vector.provenance.probe, vector.provenance.calibration
    if probe is not None:
        yield f"{term.vector} is a policy's probe, fitted to tell texts apart at layer {probe.layer}: how it steers is unknown."
    if term.ablate:
        return
    dosing = vector.provenance.dosing
    if calibration is None and dosing is not None and dosing.content != model.content:
        yield _elsewhere(f"{term.vector} was dosed on {dosing.model}", term)
    if calibration is None and dosing is not None and dosing.sides[pole_of(term.strength)].is_doubtful:
        yield f"{worth_of(vector, SIGN[pole_of(term.strength)])}"
    if calibration is None and dosing is None and vector.provenance.n_pairs:
        yield f"{term.vector} was never dosed: what strength 1 of it does was not measured."
    if calibration is None:
        if mode == "anchored":
            yield (
                f"{term.vector} is not calibrated: an anchored answer gets the dose of others, though it takes a stronger one. "
                f"`localsteer calibrate {term.vector} --anchored` looks for it."
            )
        return
    if calibration.content != model.content:
        yield _elsewhere(f"{term.vector} was calibrated on {calibration.model}", term)
    pole = pole_of(term.strength)
    names = {one: pole_name(vector, one) for one in POLES}
    side = calibration.side(term.strength, mode)
    if side.dose is None:
        where = " with the prompt steered as well" if mode == "prompt" else ""
        used = f"that of the response toward {names[calibration.main_pole]}" if dosing is None else "the one it was built with"
        yield (
            f"{term}: calibration found no dose toward {names[pole]}{where} ({why_no_dose(side, calibration.budget)}); "
            f"{used} is used, relative dose {vector.dose(term.strength, mode):.2f}."
        )
    elif calibration.has_own(term.strength, mode):
        return
    elif (own := calibration.sides.get((pole, mode))) is not None:
        yield (
            f"{term}: calibration found no dose for anchored answers toward {names[pole]} "
            f"({why_no_dose(own, calibration.budget)}); that of others is used."
        )
    else:
        yield (
            f"{term}: there is no dose for anchored answers, which may take a stronger one; that of others is used. "
            f"`localsteer calibrate {term.vector} --anchored` looks for it."
        )


def _elsewhere(measured: str, term: Term) -> str:
    return (
        f"{measured}, another file than this model (another quantisation, or tuned further): its doses may not hold here. "
        f"`localsteer calibrate {shlex.quote(term.vector)} -o NEW.gguf` measures them."
    )


def _past_calibration(steering: Steering, dose: float, vectors: Mapping[str, ControlVector], mode: Mode) -> Iterator[str]:
    """What to say of a dose that is stronger than any of those that were measured for the vectors."""
    added = [term for term in steering.terms if not term.ablate]
    dosed = [
        at_one
        for term in added
        if _calibrated_dose(vectors[term.vector], term.strength, mode) is None
        if (at_one := vectors[term.vector].dose(term.strength, mode)) is not None
    ]
    if dosed and len(dosed) == len(added):
        if dose > max(dosed) * DOSE_TOLERANCE:
            yield f"{steering} is past strength 1: relative dose {dose:.2f}, and what was measured is {max(dosed):.2f}."
        return
    calibrated = [
        (_measured(calibration, term.strength, mode), at_one, calibration.budget)
        for term in added
        if (calibration := vectors[term.vector].provenance.calibration) is not None
        if (at_one := _calibrated_dose(vectors[term.vector], term.strength, mode)) is not None
    ]
    limit = max((own for _, own, _ in calibrated), default=None)
    if limit is None or dose <= limit * DOSE_TOLERANCE:
        return
    text = f"{steering} is past the calibrated range: relative dose {dose:.2f}, calibrated up to {limit:.2f}."
    if len(steering.terms) > 1:
        yield f"{text} What the mixture costs was not measured."
        return
    side, _, budget = calibrated[0]
    allowed, measured = budget if side.allowed is None else side.allowed, side.curve[-1].dose
    within = dose <= measured * DOSE_TOLERANCE
    at = f"at {dose:.2f}" if within else f"already at {measured:.2f}, the strongest one measured,"
    yield f"{text} Answers {at} cost {side.cost_at(dose):.2f} nats a token, and {allowed:.2g} were allowed."


def _calibrated_dose(vector: ControlVector, strength: float, mode: Mode) -> float | None:
    calibration = vector.provenance.calibration
    return calibration.side(strength, mode).dose if calibration is not None else None


def _measured(calibration: Calibration, strength: float, mode: Mode) -> Side:
    """The side whose answers tell what a dose costs: that of this mode, even where it gave no dose and another's is used."""
    own = calibration.sides.get((pole_of(strength), mode))
    return own if own is not None and own.curve else calibration.sides[pole_of(strength), "response"]
