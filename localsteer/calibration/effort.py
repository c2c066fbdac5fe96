"""How many answers a calibration samples: what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from localsteer.vector.calibration import POLES

# Doses at which the budget is first looked for.
LADDER = (0.1, 0.2, 0.4)
# How far the ladder goes on, by factors of two, where the budget is not between these; every budget so far was.
LADDER_LIMITS = (0.0125, 3.2)
# The doses of the curve, and of a shape that is to replace the first one, as shares of the one that should reach the budget.
CURVE = (0.5, 0.75, 1.0, 1.3, 1.7)
REFINE = (0.5, 0.75, 1.3, 1.7)
# Steering the prompt as well costs about twice as much at the same dose; the last is taken only where the budget is not reached.
PROMPT = (0.3, 0.55, 0.9)
PROMPT_FURTHER = 1.4
# An anchored answer costs less than a free one at the same dose: over the 30 sides of the shipped vectors its strength 1 is 1.2
# to 2.4 times the dose of the response, 1.6 in the middle (`localsteer vectors show`).
ANCHORED = (1.0, 1.6, 2.4)
ANCHORED_FURTHER = 3.6


@dataclass(frozen=True)
class Effort:
    """How many answers are sampled, and how long.

    Attributes:
        max_tokens: longest answer.
        unsteered: unsteered answers.
        persona: answers under each persona.
        locate: answers at each dose of the ladder; `curve`, `shapes`, `refine` and `prompt` likewise at each dose of their
            stage. No `shapes` means that only the first shape is calibrated.
        anchored: answers at each dose of the stage for anchored answers, which is only taken where it is asked for.
    """

    max_tokens: int
    unsteered: int
    persona: int
    locate: int
    curve: int
    shapes: int
    refine: int
    prompt: int
    anchored: int

    @property
    def baselines(self) -> int:
        """Answers that nothing steers."""
        return self.unsteered + len(POLES) * self.persona

    @property
    def anchored_answers(self) -> int:
        """The most answers that the stage for anchored answers takes."""
        return len(POLES) * self.anchored * (len(ANCHORED) + 1)

    def answers(self, n_shapes: int) -> int:
        """The most answers that a calibration takes, without those of the anchored stage.

        The ladder may take one more step at this price; for every further one the curve takes fewer answers (`curve_after`).

        Args:
            n_shapes: shapes to choose from, the first one included.
        """
        steered = self.locate * (len(LADDER) + 1) + self.curve * len(CURVE) + self.prompt * (len(PROMPT) + 1)
        if self.shapes and n_shapes > 1:
            steered += self.shapes * (n_shapes - 1) + self.refine * len(REFINE)
        return self.baselines + len(POLES) * steered

    def curve_after(self, steps: int) -> int:
        """Answers at each dose of the curve, after the ladder took this many steps more than its three."""
        # A step costs `locate` answers, and one answer less at each of five doses gives as many or more back.
        fewer = -(-self.locate // len(CURVE)) * max(0, steps - 1)
        return max(1, self.curve - fewer)


# 36 tokens are two sentences, enough to hear a tone and to fall apart in; with six shapes these are 332 answers, 11,952 tokens.
# All costs are against the same unsteered answers, so their chance is shared by all doses: 40 of them were 0.04 nats off.
# The anchored stage has three or four doses to the curve's five and nothing else to lean on: with 8 answers at each, strength 1
# (a standard error below) spent 0.12 to 0.19 of a budget of 0.25 on fresh questions for six of the 15 shipped concepts.
THOROUGH = Effort(max_tokens=36, unsteered=60, persona=15, locate=4, curve=8, shapes=5, refine=4, prompt=6, anchored=16)
# A quarter of that: 114 answers, 2,964 tokens.
QUICK = Effort(max_tokens=26, unsteered=20, persona=7, locate=2, curve=4, shapes=0, refine=0, prompt=3, anchored=4)
