"""A dosing, without a model."""

from __future__ import annotations

from localsteer.vector.calibration import Interval
from localsteer.vector.dosing import DosedSide, Dosing, Tried


def dosing(positive: float = 0.5, negative: float = 0.25, *, content: str = "model", shown: bool = True) -> Dosing:
    """Doses of the response; those of a steered prompt are half as large."""

    def side(dose: float) -> DosedSide:
        tried = (Tried(dose / 2, 0.1), Tried(dose * 2, -0.4))
        ratio = Interval(0.5, 0.4, 0.6) if shown else Interval(0.0, -0.1, 0.1)
        return DosedSide({"response": dose, "prompt": dose / 2}, tried, ratio, kl=0.3, coherence=0.1, shown=shown)

    return Dosing("Model", content, 0, 10, {"positive": side(positive), "negative": side(negative)})
