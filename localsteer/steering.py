"""Steering: the expression `0.5 happy + 0.3 formal` <-> what is done to the residual stream at which layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from localsteer.calibrated import Scope
from localsteer.dose import DOSE_TOLERANCE
from localsteer.dose_notes import measured_notes, past_calibration
from localsteer.errors import ExpressionError, LocalsteerError, VectorError
from localsteer.llama.fingerprint import Fingerprint
from localsteer.llama.residual import Edit
from localsteer.vector import ControlVector, merge_norms

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Term:
    """One vector of an expression.

    Attributes:
        vector: a library name or a path.
        strength: the number in front of it.
        layers: first and last layer, both inclusive; None means all that the vector has.
        ablate: remove the component along the vector instead of adding it (`!name`); strength is 1 then.
    """

    vector: str
    strength: float = 1.0
    layers: tuple[int, int] | None = None
    ablate: bool = False

    def __str__(self) -> str:
        name = self.vector if _BARE.fullmatch(self.vector) and not _NUMBER.fullmatch(self.vector) else _quote(self.vector)
        suffix = "" if self.layers is None else f"@{self.layers[0]}-{self.layers[1]}"
        if self.ablate:
            return f"!{name}{suffix}"
        strength = "" if abs(self.strength) == 1 else f"{_format_number(abs(self.strength))} "
        return f"{strength}{name}{suffix}"


@dataclass(frozen=True)
class Steering:
    """A parsed expression; `str` gives it back in its canonical form. Without terms, nothing is steered."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        text = ""
        for term in self.terms:
            negative = term.strength < 0
            sign = (" - " if negative else " + ") if text else ("-" if negative else "")
            text += f"{sign}{term}"
        return text

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def opposite(self) -> Steering | None:
        """The expression with all signs turned; None where a term is an ablation, which has no opposite."""
        if any(term.ablate for term in self.terms):
            return None
        return Steering(tuple(Term(term.vector, -term.strength, term.layers) for term in self.terms))


@dataclass(frozen=True, eq=False)
class Plan:
    """Steering resolved for one model.

    Attributes:
        steering: where it comes from.
        edit: what is done at each layer.
        relative_dose: sum over layers of ‖added‖ / mean ‖hidden state‖; None where a vector does not say the norms, and where
            something is removed and nothing added.
        scope: whether the response only is steered, the prompt as well, or the response of an anchored answer; calibrated vectors
            have a dose for each.
        notes: what the user should know, such as a vector read from another quantisation, or a dose past the calibrated range.
        opposite: the plan with all signs turned; None where something is removed, or the layers asked for have none.
    """

    steering: Steering
    edit: Edit
    relative_dose: float | None
    scope: Scope = "response"
    notes: tuple[str, ...] = ()
    opposite: Plan | None = None

    @property
    def effect(self) -> Edit | None:
        """The edit, always the same object; None where it does nothing."""
        return self.edit if self.edit.added.any() or self.edit.removed else None

    def refuse_above(self, max_dose: float) -> None:
        """Make sure that steering stays within a relative dose.

        Raises:
            LocalsteerError: it does not, or a vector without hidden norms leaves it unknown.
        """
        if self.relative_dose is None and self.edit.added.any():
            raise LocalsteerError(
                f"The relative dose of {self.steering} is unknown, so it cannot be held below {max_dose:g}: "
                "its vectors do not say how large the hidden states are.",
                hint="Calibrate them with `localsteer calibrate`, or leave out --max-dose.",
            )
        if self.relative_dose is not None and self.relative_dose > max_dose * DOSE_TOLERANCE:
            raise LocalsteerError(
                f"{self.steering} has a relative dose of {self.relative_dose:.2f}, and --max-dose allows {max_dose:g}.",
                hint=f"A strength of {_round_down(max_dose / self.relative_dose)} times that stays within it.",
            )


# A bare name may hold what paths hold; a space, a quote, @, *, ! or + needs quotes around the whole.
_BARE = re.compile(r"(?!-)[^\s\"'@*!+]+")
# What a strength ends with; "2024-01-05.gguf" and "3d" are names.
_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?(?=[\s*\"'!+@]|$)")
# A strength with no name behind it.
_BEHIND = re.compile(rf"(?P<sign>[+-]?)\s*\*?\s*(?P<number>{_NUMBER.pattern})\s*(?=[+-]|$)")
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_LAYERS = re.compile(r"(\d{1,6})(?!\d)(?:-(\d{1,6})(?!\d))?")
_SPACE = re.compile(r"\s*")


def parse_steering(expression: str) -> Steering:
    """Parse an expression.

        expression = [sign] term {sign term}
        term       = ["!"] vector [layers]  |  [strength ["*"]] vector [layers]
        layers     = "@" first ["-" last]

    A sign inside a bare name (`happy-sad`) belongs to the name; one after a space starts a term. Quotes hold a path with
    spaces. The empty expression steers nothing.

    Raises:
        ExpressionError: with a caret under the place.
    """
    return _Parser(expression).parse()


class _Parser:
    def __init__(self, expression: str) -> None:
        self.text = expression
        self.at = 0

    def parse(self) -> Steering:
        terms: list[Term] = []
        self.skip()
        while self.at < len(self.text):
            if terms:
                self.refuse_strength_behind(terms[-1])
            sign = self.sign()
            if sign is None and terms:
                raise self.unjoined(terms[-1])
            terms.append(self.term(sign or 1.0))
            self.skip()
        return Steering(tuple(terms))

    def refuse_strength_behind(self, last: Term) -> None:
        """A likely slip: the strength behind the name, as in `happy 0.5` or `happy -0.5 + sad`."""
        found = _BEHIND.match(self.text, self.at)
        if found is None or abs(last.strength) != 1:
            return
        if last.ablate:
            raise self.error("A removal (!) takes no strength.")
        sign = -1.0 if found["sign"] == "-" else 1.0
        meant = Steering((replace(last, strength=sign * last.strength * float(found["number"])),))
        raise self.error(f"The strength stands before the name: {meant}.")

    def unjoined(self, last: Term) -> ExpressionError:
        """Two terms with nothing between them, or with a comma in the first that was meant otherwise."""
        name = last.vector
        if _DECIMAL_COMMA.fullmatch(name):
            return self.error(f"A strength is written with a point: {name.replace(',', '.')}.")
        if name.endswith(","):
            return self.error("Terms are joined by + or -, not by a comma.")
        return self.error("Expected + or - between two terms.")

    def term(self, sign: float) -> Term:
        start = self.at
        if self.take("!"):
            if sign < 0:
                raise self.error("A removal (!) takes no minus sign.", start)
            self.skip()
            return Term(self.name(), ablate=True, layers=self.layers())
        strength = 1.0
        number = _NUMBER.match(self.text, self.at)
        if number is not None:
            self.at = number.end()
            strength = float(number[0])
            self.skip()
            if self.take("*"):
                self.skip()
            if not np.isfinite(strength):
                raise self.error("This strength is too large.", number.start())
            if self.take("!"):
                raise self.error("A removal (!) takes no strength.", self.at - 1)
        return Term(self.name(), sign * strength, self.layers())

    def name(self) -> str:
        if self.at < len(self.text) and self.text[self.at] in "\"'":
            quote, start = self.text[self.at], self.at
            end = self.text.find(quote, start + 1)
            if end < 0:
                raise self.error("This quote is not closed.", start)
            if end == start + 1:
                raise self.error("This name is empty.", start)
            self.at = end + 1
            return self.text[start + 1 : end]
        match = _BARE.match(self.text, self.at)
        if match is None:
            raise self.error("Expected the name or path of a vector.")
        self.at = match.end()
        return match[0]

    def layers(self) -> tuple[int, int] | None:
        if not self.take("@"):
            return None
        start = self.at
        match = _LAYERS.match(self.text, start)
        if match is None:
            raise self.error("Expected layers, such as 8-23.")
        self.at = match.end()
        first, last = int(match[1]), int(match[2] or match[1])
        if first < 1:
            raise self.error("Block 0 cannot be steered; layers start at 1.", start)
        if first > last:
            raise self.error("The first layer is above the last.", start)
        return first, last

    def sign(self) -> float | None:
        for character, value in (("+", 1.0), ("-", -1.0)):
            if self.take(character):
                self.skip()
                return value
        return None

    def take(self, character: str) -> bool:
        found = self.text.startswith(character, self.at)
        self.at += found
        return found

    def skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match is not None else self.at

    def error(self, problem: str, at: int | None = None) -> ExpressionError:
        return ExpressionError(self.text, self.at if at is None else at, problem)


def resolve(steering: Steering, model: Fingerprint, load: Callable[[str], ControlVector], scope: Scope = "response") -> Plan:
    """What an expression does to a model.

    Args:
        steering: the expression.
        model: the model to steer.
        load: finds a vector by name or path.
        scope: what is steered; calibrated vectors have a dose for each.

    Raises:
        VectorError: a vector does not fit the model, or has no direction at the layers asked for.
    """
    vectors = {name: load(name) for name in dict.fromkeys(term.vector for term in steering.terms)}
    plan = _resolve(steering, model, vectors, scope)
    opposite = steering.opposite
    if opposite is None:
        return plan
    try:
        return replace(plan, opposite=_resolve(opposite, model, vectors, scope))
    except VectorError:  # a calibrated vector may have other layers toward its other pole, and none of those asked for
        return plan


def _resolve(steering: Steering, model: Fingerprint, vectors: Mapping[str, ControlVector], scope: Scope) -> Plan:
    added = np.zeros((model.n_layer, model.n_embd), np.float32)
    removed: dict[int, list[Floats]] = {}
    notes: dict[str, None] = {}
    hidden_norm: Floats | None = None
    for term in steering.terms:
        vector = vectors[term.vector]
        fit, norms = vector.check_fits(model, name=term.vector), vector.provenance.hidden_norm
        notes |= dict.fromkeys([*([fit] if fit is not None else []), *measured_notes(term, vector, model, scope)])
        if norms is not None and len(norms) == model.n_layer:
            hidden_norm = merge_norms(hidden_norm, norms)
        if term.ablate:
            for layer, direction in _trim(vector, term, model).directions.items():
                removed.setdefault(layer, []).append(direction)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                try:
                    scaled = vector.at(term.strength, scope)
                except VectorError:  # what is finite at strength 1 is not at this one
                    raise VectorError(f"The strength of {term} is too large.") from None
                added += _trim(scaled, term, model).rows(model.n_layer)
    if not np.isfinite(added).all():
        raise VectorError(f'The strengths of "{steering}" are too large.')
    bases = {layer: basis for layer, directions in removed.items() if len(basis := _orthonormal(directions))}
    dose: float | None = None
    only_removes = bool(bases) and not added.any()
    if hidden_norm is not None and not only_removes and not added[np.isnan(hidden_norm)].any():
        dose = relative_dose(added, hidden_norm)
    if dose is not None and (past := past_calibration(steering, dose, vectors, scope)) is not None:
        notes[past] = None
    return Plan(steering, Edit(added, bases), dose, scope, tuple(notes))


def relative_dose(added: Floats, hidden_norm: Floats) -> float:
    """Sum over layers of ‖added‖ / mean ‖hidden state‖: a strength that can be compared between models.

    Args:
        added: (n_layer, n_embd), residual-stream units.
        hidden_norm: (n_layer,), NaN where not measured; those layers are left out.
    """
    ratios = np.linalg.norm(added, axis=1) / hidden_norm
    return float(np.nansum(ratios))


def _trim(vector: ControlVector, term: Term, model: Fingerprint) -> ControlVector:
    if term.layers is None:
        return vector
    first, last = term.layers
    if last >= model.n_layer:
        raise VectorError(
            f"{term} names layer {last}, and {model.name} has layers 1 to {model.n_layer - 1} to steer.",
        )
    try:
        return vector.only(range(first, last + 1))
    except VectorError as error:
        raise VectorError(f"{term.vector}: {error.message}", hint=error.hint) from None


def join_removals(removals: Sequence[Mapping[int, Floats]]) -> dict[int, Floats]:
    """Bases (r, n_embd) by layer of everything that several edits remove."""
    layers = {layer for removed in removals for layer in removed}
    return {layer: _orthonormal([row for removed in removals for row in removed.get(layer, ())]) for layer in sorted(layers)}


def _orthonormal(directions: Sequence[Floats]) -> Floats:
    """A basis (r, n_embd) of what the directions span, so that removing them does not depend on their order."""
    basis: NDArray[np.float64]
    stacked = np.stack(directions).astype(np.float64)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    # Their lengths do not matter for what is removed: a short one counts as much as a long one.
    _, sizes, basis = np.linalg.svd(stacked / np.where(norms > 0, norms, 1), full_matrices=False)
    # Directions that are multiples of one another up to float32 rounding span one dimension, not two.
    kept = sizes > max(1e-6 * float(sizes[0]), float(np.finfo(np.float32).tiny))
    return basis[kept].astype(np.float32)


def _round_down(number: float) -> str:
    """Two significant digits of a positive number, never more than it."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.floor(number / unit * DOSE_TOLERANCE) * unit:.2g}"


def _quote(name: str) -> str:
    quote = "'" if '"' in name else '"'
    if quote in name:
        raise LocalsteerError(f"A name with both kinds of quotes cannot stand in an expression: {name}.")
    return f"{quote}{name}{quote}"


def _format_number(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
