"""The expression `0.5 happy + 0.3 formal` <-> its terms."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from localsteer.errors import ExpressionError, LocalsteerError

Phase = Literal["answer", "thinking"]
"""The part of a reply: what a reasoning model thinks before it answers, and what it answers. Others only answer."""

PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Term:
    """One vector of an expression.

    Attributes:
        vector: a library name or a path.
        strength: the number in front of it.
        layers: first and last layer, both inclusive; None means all that the vector has.
        ablate: remove the component along the vector instead of adding it (`!name`); strength is 1 then.
        phase: the part of the reply that is steered.
    """

    vector: str
    strength: float = 1.0
    layers: tuple[int, int] | None = None
    ablate: bool = False
    phase: Phase = "answer"

    def __str__(self) -> str:
        return f"-{self.unsigned}" if self.strength < 0 else self.unsigned

    @property
    def unsigned(self) -> str:
        """The term without its sign, as it stands behind a + or -."""
        name = self.vector if _BARE.fullmatch(self.vector) and not _NUMBER.fullmatch(self.vector) else _quote(self.vector)
        suffix = "" if self.layers is None else f"@{self.layers[0]}-{self.layers[1]}"
        suffix += "" if self.phase == "answer" else f"@{self.phase}"
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
            text += f"{sign}{term.unsigned}"
        return text

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def opposite(self) -> Steering | None:
        """The expression with all signs turned; None where a term is an ablation, which has no opposite."""
        if any(term.ablate for term in self.terms):
            return None
        return Steering(tuple(replace(term, strength=-term.strength) for term in self.terms))


NOTHING = Steering()

# A bare name may hold what paths hold; a space, a quote, @, *, ! or + needs quotes around the whole.
_BARE = re.compile(r"(?!-)[^\s\"'@*!+]+")

# What a strength ends with; "2024-01-05.gguf" and "3d" are names.
_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?(?=[\s*\"'!+@]|$)")

# A strength with no name behind it.
_BEHIND = re.compile(rf"(?P<sign>[+-]?)\s*\*?\s*(?P<number>{_NUMBER.pattern})\s*(?=[+-]|$)")

_DECIMAL_COMMA = re.compile(r"\d+,\d+")

_LAYERS = re.compile(r"(\d{1,6})(?!\d)(?:-(\d{1,6})(?!\d))?")

_PHASE = re.compile(rf"@({'|'.join(PHASES)})(?=[\s@+-]|$)")

_SPACE = re.compile(r"\s*")


def parse_steering(expression: str) -> Steering:
    """Parse an expression.

        expression = [sign] term {sign term}
        term       = ["!"] vector [layers] [phase]  |  [strength ["*"]] vector [layers] [phase]
        layers     = "@" first ["-" last]
        phase      = "@answer" | "@thinking"

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
            return Term(self.name(), ablate=True, layers=self.layers(), phase=self.phase())
        strength = 1.0
        number = _NUMBER.match(self.text, self.at)
        if number is not None:
            self.at = number.end()
            strength = float(number[0])
            self.skip()
            if self.take("*"):
                self.skip()
            if not math.isfinite(strength):
                raise self.error("This strength is too large.", number.start())
            if self.take("!"):
                raise self.error("A removal (!) takes no strength.", self.at - 1)
        return Term(self.name(), sign * strength, self.layers(), phase=self.phase())

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
        if _PHASE.match(self.text, self.at) or not self.take("@"):
            return None
        start = self.at
        match = _LAYERS.match(self.text, start)
        if match is None:
            raise self.error("Expected layers, such as 8-23, or answer or thinking.")
        self.at = match.end()
        first, last = int(match[1]), int(match[2] or match[1])
        if first < 1:
            raise self.error("Block 0 cannot be steered; layers start at 1.", start)
        if first > last:
            raise self.error("The first layer is above the last.", start)
        return first, last

    def phase(self) -> Phase:
        match = _PHASE.match(self.text, self.at)
        if match is None:
            return "answer"
        self.at = match.end()
        return "thinking" if match[1] == "thinking" else "answer"

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


def _quote(name: str) -> str:
    quote = "'" if '"' in name else '"'
    if quote in name:
        raise LocalsteerError(f"A name with both kinds of quotes cannot stand in an expression: {name}.")
    return f"{quote}{name}{quote}"


def _format_number(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
