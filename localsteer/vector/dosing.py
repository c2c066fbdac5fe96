"""What was measured of a fresh vector's dose, as the vector carries it: what strength 1 is toward each pole, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from localsteer.errors import VectorError, shown
from localsteer.files.json_values import build, read_json
from localsteer.vector.calibration import POLES, Interval, Mode, Pole, pole_of, without_nan

DosedMode = Literal["response", "prompt"]
"""Those that are dosed: an anchored answer gets the dose of the response."""

# Nats a token that sampled answers may be less likely under their pole's persona than its own answers. Means of 24 answers on
# Qwen2.5-Coder 1.5B: French 0.8 (fluent) and 2.2 at 1.5 times that dose (broken), a pirate 1.5 (reads well) and 2.3 at 1.4 times;
# on SmolLM2-135M all are below 1.3, also French that is none.
INCOHERENT = 1.6


@dataclass(frozen=True)
class Tried:
    """What a relative dose does to given answers, by teacher forcing.

    Attributes:
        dose: the relative dose, positive.
        own: how much likelier the pole's own answers become, nats a token.
    """

    dose: float
    own: float


@dataclass(frozen=True)
class DosedSide:
    """What was found for one pole.

    Attributes:
        dose: relative dose of strength 1, for each mode.
        tried: the doses that it was found between, ascending.
        ratio: near the dose of the response (where that was first narrowed down to, or weakened to), how much likelier the
            pole's own answers become than those of the other pole, nats a token, with its 95 % interval over the answers.
        kl: there, KL(steered || unsteered) along some own answers of both poles, nats a token. For prompt files it is measured,
            like `coherence`, at twice the dose: from the prompts of one pole to those of the other.
        coherence: how much less likely answers sampled there are under the pole's persona than its own answers, nats a token.
        shown: whether the vector does anything toward this pole beyond doubt.
        most: the strongest dose at which everyday questions are hardly refused more often than without; NaN where refusals were
            not seen to begin.
        asked: the ratio under the system prompt that asks for the pole, instead of the vector; NaN where there is none.

    Raises:
        VectorError: a dose that is not positive, or no finite number.
    """

    dose: Mapping[DosedMode, float]
    tried: tuple[Tried, ...]
    ratio: Interval
    kl: float
    coherence: float
    shown: bool
    most: float = math.nan
    asked: float = math.nan

    def __post_init__(self) -> None:
        if set(self.dose) != {"response", "prompt"}:
            raise VectorError("a dose is missing")
        for dose in self.dose.values():
            if not 0 < dose < math.inf:
                raise VectorError(f"a dose of {dose} is none")

    @property
    def is_coherent(self) -> bool:
        """Whether sampled answers made sense at any dose that was tried; not where none was given."""
        return self.coherence <= INCOHERENT

    @property
    def is_doubtful(self) -> bool:
        """Whether it makes no sense, or does nothing that was seen, though it was looked for."""
        return not self.is_coherent or not (self.shown or math.isnan(self.ratio.mean))


@dataclass(frozen=True)
class Dosing:
    """The doses of a fresh vector.

    Attributes:
        model: name of the model it was made on.
        content: hash of that very file (Fingerprint.content).
        seed: of the answers.
        answers: how many own answers of each pole there were.
        sides: by pole.

    Raises:
        VectorError: a side is missing.
    """

    model: str
    content: str
    seed: int
    answers: int
    sides: Mapping[Pole, DosedSide]

    def __post_init__(self) -> None:
        if set(self.sides) != set(POLES):
            raise VectorError("it needs a side for each pole")

    def dose(self, strength: float, mode: Mode) -> float:
        """The relative dose of strength 1 (or -1) toward the pole that a strength moves toward."""
        return self.sides[pole_of(strength)].dose["prompt" if mode == "prompt" else "response"]

    @property
    def unit(self) -> float:
        """The relative dose that the vector's tensors hold: that of strength 1 of the response."""
        return self.dose(1.0, "response")

    def document(self) -> dict[str, Any]:
        """As a JSON document; what is not a number is null."""
        plain: dict[str, Any] = without_nan(asdict(self))
        for side in plain["sides"].values():
            if side["asked"] is None:
                del side["asked"]  # a file from before it was measured stays the same to the last byte
        return plain

    def to_json(self) -> str:
        """As text, for a vector's metadata."""
        return json.dumps(self.document(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Dosing:
        """From text.

        Raises:
            VectorError: it is damaged.
        """
        try:
            read = build(cls, read_json(text))
            return replace(read, model=shown(read.model))
        except (ValueError, VectorError) as error:
            raise VectorError(f"the dosing is damaged: {shown(error)}.", hint="Build the vector again.") from error
