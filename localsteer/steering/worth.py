"""What a vector is worth on a model, in words: how far it goes, beside what, and what else there is to do."""

from __future__ import annotations

from collections.abc import Iterator

from localsteer.vector.calibration import OTHER, POLES, SIGN, Calibration, Limit, Mode, Pole, Side, pole_of
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.dosing import DosedSide

# Of the system prompt's effect: below the first nothing that one would notice, up to the second noticeably less, up to the third
# as much, for all that the interval of an effect allows to say.
_HARDLY, _LESS, _AS_FAR = 0.3, 0.75, 1.3
_BAD: dict[Limit, str] = {
    "repetition": "answers repeat themselves",
    "relevance": "answers leave their questions",
    "refusals": "answers are refused",
    "script": "answers slip into another script",
}
SHORT = (
    "Times a system prompt: as far as one that asks for it goes (an opposite prompt: the model follows none for it; answers "
    "differ: unsteered ones from each other). (?): not shown beyond doubt. Nats, prompted: before calibration, how much likelier "
    "its own answers become, and do under a system prompt. Cost: nats a token of coherence; before calibration, of a few short "
    "answers."
)
"""How `in_short` is to be read."""
# By how much a dose may be beyond another one and be the same, with all rounding.
_SAME = 1e-3


def pole_name(vector: ControlVector, pole: Pole) -> str:
    """What the concept calls it."""
    named = vector.provenance.positive if pole == "positive" else vector.provenance.negative
    return named or ("+" if pole == "positive" else "-")


def is_shown(vector: ControlVector, pole: Pole) -> bool:
    """Whether strength 1 or -1 of a vector was seen to do something beyond doubt."""
    calibration, dosing = vector.provenance.calibration, vector.provenance.dosing
    if calibration is not None:
        side = calibration.sides[pole, "response"]
        return side.dose is not None and side.shown
    return dosing is not None and dosing.sides[pole].shown


def strongest_tried(vector: ControlVector, pole: Pole) -> float | None:
    """The strongest strength toward a pole at which answers were measured, positive; None where none were.

    Of the response, as strength 1 is: its dose was found among those that were tried.
    """
    calibration, dosing = vector.provenance.calibration, vector.provenance.dosing
    if calibration is not None:
        curve, unit = calibration.sides[pole, "response"].curve, vector.dose(SIGN[pole])
        return curve[-1].dose / unit if curve and unit else None
    if dosing is not None:
        side = dosing.sides[pole]
        return max((one.dose for one in side.tried), default=0.0) / side.dose["response"] or None
    return None


def why_no_dose(side: Side, budget: float) -> str:
    """Why a calibration found no dose for a side.

    Args:
        side: one without a dose.
        budget: the calibration's, nats a token.
    """
    if not side.curve:
        return "none was tried, for the response has none"
    costs = [point.cost.mean for point in side.curve]
    if all(cost != cost for cost in costs):
        return "nothing is said at any that was tried"
    if side.limit in _BAD:
        return f"{_BAD[side.limit]} at any that was tried"
    allowed = budget if side.allowed is None else side.allowed
    if not any(cost <= allowed for cost in costs):
        least = min((point for point in side.curve if point.cost.mean == point.cost.mean), key=lambda point: point.cost.mean)
        return (
            f"the least that any costs is {least.cost.mean:.2f} nats a token, at a relative dose of {least.dose:.3f}, "
            f"and {allowed:.2g} are allowed"
        )
    return f"none within {allowed:.2g} nats a token does anything beyond doubt"


def worth(vector: ControlVector) -> Iterator[tuple[Pole, str]]:
    """What strength 1 and -1 are worth, one sentence each; nothing for a vector that was neither dosed nor calibrated."""
    for pole in POLES:
        said = worth_of(vector, SIGN[pole])
        if said is not None:
            yield pole, said


def worth_of(vector: ControlVector, strength: float, mode: Mode = "response") -> str | None:
    """What a strength is worth: one sentence; None where nothing was measured."""
    pole = pole_of(strength)
    name, other = pole_name(vector, pole), pole_name(vector, OTHER[pole])
    calibration, dosing = vector.provenance.calibration, vector.provenance.dosing
    if calibration is not None:
        side = calibration.side(strength, mode)
        told = _calibrated(calibration, side, abs(strength), pole, name, other)
        return f"{told} {beyond}" if (beyond := _beyond(side, abs(strength))) else told
    if dosing is None:
        return None
    told = _dosed(dosing.sides[pole], pole, name, other)
    return told if abs(strength) == 1 else f"at strength {SIGN[pole]:g}, {told}"


def in_short(vector: ControlVector, pole: Pole) -> tuple[str, str] | None:
    """What strength 1 or -1 is worth and what it costs, nats a token, as `SHORT` says; None where nothing was measured."""
    calibration, dosing = vector.provenance.calibration, vector.provenance.dosing
    if calibration is not None:
        return _calibrated_in_short(calibration, calibration.side(SIGN[pole], "response"), pole)
    if dosing is None:
        return None
    side = dosing.sides[pole]
    if not side.is_coherent:
        return "answers made no sense at any dose", ""
    if side.ratio.mean != side.ratio.mean:
        return "what it does was not measured", ""
    if not side.shown:
        return "nothing beyond chance was seen", ""
    beside = f", prompted {max(side.asked, 0):.1f}" if side.asked == side.asked else ""
    return f"its answers {side.ratio.mean:.1f} nats likelier{beside}", f"{max(side.coherence, 0):.2f}"


def _calibrated_in_short(calibration: Calibration, side: Side, pole: Pole) -> tuple[str, str]:
    if side.dose is None:
        return f"no dose: {why_no_dose(side, calibration.budget)}", ""
    effect, scale = side.effect_at(side.dose), calibration.scale.get(pole)
    if calibration.personas and scale == "persona":
        told = f"hardly heard, {effect:.1f}" if effect < _HARDLY else f"{effect:.1f} times a system prompt"
    elif calibration.personas and scale == "other persona":
        told = f"{effect:.1f} times an opposite prompt"
    else:
        told = f"{effect:.1f} times as far as answers differ"
    return f"{told}{'' if side.shown else ' (?)'}", f"{_cost(side, 1):.2f}"


def _cost(side: Side, strength: float) -> float:
    """Nats a token. What is expected at strength 1 is known from all doses."""
    assert side.dose is not None
    return side.cost if strength == 1 and side.cost is not None else side.cost_at(strength * side.dose)


def _calibrated(calibration: Calibration, side: Side, strength: float, pole: Pole, name: str, other: str) -> str:
    prompt = f"; ask for {name} in a system prompt, alone or beside the vector" if calibration.personas else ""
    if side.dose is None:
        return f"{name}: no dose on {calibration.model}: {why_no_dose(side, calibration.budget)}{prompt}."
    effect = side.effect_at(strength * side.dose)
    price = f"for {_cost(side, strength):.2f} nats a token of coherence{'' if side.shown else ', not shown beyond doubt'}"
    if not calibration.personas:
        return f"{name}: {effect:.1f} times as far as unsteered answers differ from each other, {price}."
    if calibration.scale.get(pole) != "persona":
        beside = f"the system prompt for {other} goes the other way"
        if calibration.scale.get(pole) != "other persona":
            beside = "unsteered answers differ from each other"
        return (
            f"{name}: {effect:.1f} times as far as {beside}, {price}; {calibration.model} does not measurably follow a system "
            f"prompt that asks for {name}."
        )
    if effect < _HARDLY:
        return f"{name}: hardly heard ({effect:.1f} of what a system prompt does){prompt}."
    if effect < _LESS:
        return f"{name}: {effect:.1f} times as far as a system prompt that asks for it, {price}{prompt}, if that is not enough."
    if effect < _AS_FAR:
        return f"{name}: about as far as a system prompt that asks for it ({effect:.1f} times), {price}."
    return f"{name}: {effect:.1f} times as far as a system prompt that asks for it, {price}."


def _beyond(side: Side, strength: float) -> str | None:
    """That a strength is further than anything that was measured."""
    if side.dose is None or not side.curve or strength * side.dose <= side.curve[-1].dose * (1 + _SAME):
        return None
    strongest = side.curve[-1].dose / side.dose
    return f"That was measured at {strongest:.2g} times strength 1, the strongest tried: what more does is not known."


def _dosed(side: DosedSide, pole: Pole, name: str, other: str) -> str:
    if not side.is_coherent:
        return (
            f"{name}: answers made no sense, or were none, at every dose that was tried. Take a weaker strength, or ask for it "
            "in a system prompt."
        )
    if side.ratio.mean != side.ratio.mean:
        return f"{name}: as strong as the text bears; what it does was not measured, for nothing tells what it is about."
    if not side.shown:
        return (
            f"{name}: nothing beyond chance was seen. Ask for it in a system prompt: what the model does not follow there, a "
            "vector built from such prompts will hardly do."
        )
    told = f"{name}: its own answers become {side.ratio.mean:.1f} nats a token likelier beside those of {other}"
    if side.asked != side.asked:
        return f"{told}."
    if side.asked <= 0:
        return f"{told}; a system prompt that asks for it makes them no likelier."
    more = "; ask for it there, too" if side.ratio.mean < _LESS * side.asked else ""
    return f"{told}, {side.asked:.1f} under a system prompt that asks for it{more}."
