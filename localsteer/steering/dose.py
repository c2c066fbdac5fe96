"""How strong a steering is, and the strongest that is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from localsteer.errors import LocalsteerError
from localsteer.llama.residual import Edit
from localsteer.steering.expression import Steering
from localsteer.vector.control_vector import Floats

# Two doses are the same up to this factor: rounding of float32, and of two ways to sum up one dose.
DOSE_TOLERANCE = 1.001
# The hidden norms in the files of the demo model's vectors give doses within 12 % of those by the model's own norms.
_FAR_OFF = 2.0


def relative_dose(added: Floats, hidden_norm: Floats) -> float:
    """Sum over layers of ‖added‖ / mean ‖hidden state‖: a strength that can be compared between models.

    Args:
        added: (n_layer, n_embd), residual-stream units.
        hidden_norm: (n_layer,), NaN where not measured; those layers are left out.
    """
    # In float64, where no float32 squared is past all numbers.
    ratios = np.linalg.norm(added.astype(np.float64), axis=1) / hidden_norm
    return float(np.nansum(ratios))


@dataclass(frozen=True, eq=False)
class DoseLimit:
    """The largest relative dose that is allowed on a model.

    What a vector's file says of hidden norms has no part in it: it could say anything.

    Attributes:
        dose: the largest one.
        hidden_norm: (n_layer,) mean Euclidean norm of the model's residual stream at every layer but 0, where nothing is added.
    """

    dose: float
    hidden_norm: Floats

    def dose_of(self, edit: Edit) -> float:
        """The relative dose of what an edit adds on this model."""
        return relative_dose(edit.added, self.hidden_norm)

    def check(self, steering: Steering, edit: Edit, told: float | None) -> str | None:
        """Make sure that a steering stays within the limit.

        Args:
            steering: the expression.
            edit: what it does.
            told: its relative dose by the norms in its vectors' files; None where they say none.

        Returns:
            What the user should know: that these norms are not the model's.

        Raises:
            LocalsteerError: it does not, or it removes something, which takes as much as there is.
        """
        if edit.removed:
            raise LocalsteerError(
                f"{steering} removes a component, however large it is, so it cannot be held below {self.dose:g}.",
                hint="Leave out the removal, or --max-dose.",
            )
        dose = self.dose_of(edit)
        if not self.allows(dose):
            raise LocalsteerError(
                f"{steering} has a relative dose of {dose:.2f} on this model, and --max-dose allows {self.dose:g}.",
                hint=f"A strength of {_round_down(self.dose / dose)} times that stays within it.",
            )
        if told is None or (dose <= _FAR_OFF * told and told <= _FAR_OFF * dose):
            return None
        return (
            f"{steering} has a relative dose of {dose:.2g} on this model, and of {told:.2g} by the hidden norms in its vectors' "
            "files, which are not this model's: --max-dose goes by the model."
        )

    def allows(self, dose: float) -> bool:
        """Whether a relative dose is within the limit."""
        return dose <= self.dose * DOSE_TOLERANCE


def _round_down(number: float) -> str:
    """Two significant digits of a positive number, never more than it."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.floor(number / unit * DOSE_TOLERANCE) * unit:.2g}"
