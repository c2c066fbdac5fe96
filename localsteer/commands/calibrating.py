"""What the commands that calibrate share: how a calibration is set up, and what it will cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localsteer.calibration.calibrate import CalibrationSettings, Calibrator
    from localsteer.calibration.laboratory import Speed
    from localsteer.contrast import Contrast
    from localsteer.extraction import Progress
    from localsteer.llama.model import Model
    from localsteer.vector import ControlVector


def calibrator_for(
    model: Model,
    vector: ControlVector,
    contrast: Contrast,
    settings: CalibrationSettings | None = None,
    *,
    progress: Progress | None = None,
    fresh: bool = False,
) -> Calibrator:
    """A calibration that keeps its measurements, so that it goes on where Ctrl-C stopped it.

    Raises:
        CalibrationError: as Calibrator.
        VectorError: as Calibrator.
    """
    from localsteer.calibration.calibrate import Calibrator, measurements_folder

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress("measuring answers", done, total)

    return Calibrator(model, vector, contrast, settings, folder=measurements_folder(), fresh=fresh, on_progress=tell)


def price(calibrators: Sequence[Calibrator], speed: Speed) -> str:
    """What calibrations of one model will cost at most, in words, told before the first one starts."""
    measured = sum(one.measured for one in calibrators)
    left = f", {measured} of them measured already" if measured else ""
    return (
        f"{calibrators[0].model.name}: up to {sum(one.answers for one in calibrators)} answers of "
        f"{calibrators[0].settings.effort.max_tokens} tokens ({sum(one.tokens for one in calibrators):,} tokens){left}; "
        f"about {duration(sum(one.seconds(speed) for one in calibrators))} "
        f"at {speed.answering:.0f} tokens/s answering and {speed.reading:.0f} tokens/s re-reading."
    )


def duration(seconds: float) -> str:
    """A time for people, in one unit."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
